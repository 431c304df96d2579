"""Make a trained model better on the data in front of it, at test time, and prove that it did."""

import lazy_loader

__version__ = "0.2.0"

# Names are imported when they are first used: torch takes seconds, and acclimate --help should not.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
