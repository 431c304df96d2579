"""Make a trained model better on the data in front of it, at test time, and prove that it did."""

from acclimate.extras import lazy_names

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
