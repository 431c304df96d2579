"""The engine: torch only, knows no task."""

from acclimate.extras import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
