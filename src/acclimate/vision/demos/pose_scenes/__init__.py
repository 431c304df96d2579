"""Scenes of plates with handwritten digits, each with a known pose in front of a known camera."""

from acclimate.extras import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
