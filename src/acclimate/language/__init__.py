"""The language pipeline: fine-tunes a language model on the examples in a prompt, for the time of one request.

A gate decides on held-out examples whether the fine-tuned model or the base model answers. Everything here may be
called from several threads, on one model or on several.
"""

from acclimate.extras import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
