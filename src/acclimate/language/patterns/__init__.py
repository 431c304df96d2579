"""Is there a few-shot pattern in a prompt? Which, with which examples, and what is asked?"""

from acclimate.language.patterns.detection import DOMAIN_SENSITIVITY, KINDS, Detection, Kind, detect, readings

__all__ = ["DOMAIN_SENSITIVITY", "KINDS", "Detection", "Kind", "detect", "readings"]
