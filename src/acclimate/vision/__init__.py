"""The vision pipeline: unlabelled images in, adapted predictions out."""

from acclimate.extras import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
