"""The adaptation engine: sessions, guards, selections and losses; it imports torch and no library for models."""

from acclimate.extras import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
