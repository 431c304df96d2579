"""The vision pipeline: unlabelled images in, adapted predictions out."""

import lazy_loader

# Names are imported when they are first used: commands that need no torch must not wait for it. Which names there are
# says the stub beside this file, for this line and for type checkers alike.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
