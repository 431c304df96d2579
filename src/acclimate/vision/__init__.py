"""The vision pipeline: adapts a model to unlabelled images and predicts them."""

import lazy_loader

# Names are imported when they are first used, so that commands that need no torch do not wait for it. The stub beside
# this file lists the names, for this call and for type checkers.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
