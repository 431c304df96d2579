"""Detection of few-shot patterns in a prompt: the kind of pattern, its examples, and the query."""

from acclimate.language.patterns.detection import DOMAIN_SENSITIVITY, KINDS, Detection, Kind, detect

__all__ = ["DOMAIN_SENSITIVITY", "KINDS", "Detection", "Kind", "detect"]
