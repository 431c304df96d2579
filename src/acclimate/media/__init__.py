"""Images and sounds: a few labelled files and an open one in, an answer with its evidence out.

The encoder is frozen; a head is fitted on the vectors of the examples and of changed copies of them. Which encoder,
head and copies are used is decided on held-out examples of the request.
"""

from acclimate.extras import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
