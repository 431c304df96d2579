"""The vision pipeline: adapts a model to unlabelled images and predicts them."""

from acclimate.extras import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
