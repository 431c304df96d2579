"""The language pipeline: fine-tunes a language model on the examples in a prompt, for the time of one request.

A gate decides on held-out examples whether the fine-tuned model or the base model answers. Everything here may be
called from several threads, on one model or on several.
"""

from acclimate.language.answers import AdaptationMetadata, AskReport
from acclimate.language.debug_log import DebugLog
from acclimate.language.decision.calibration import Calibration, shipped
from acclimate.language.decision.evidence import Evidence, HeldOut, cross_fit, held_out
from acclimate.language.decision.gate import CONFIDENCE_THRESHOLDS, DECLINED, REASONS, Decision, Gate
from acclimate.language.engine import Engine
from acclimate.language.examples import Example, as_examples, validated
from acclimate.language.models.language_model import LanguageModel, load
from acclimate.language.patterns import DOMAIN_SENSITIVITY, Detection, detect
from acclimate.language.prompts import PromptFormat
from acclimate.language.training.adapter_cache import AdapterManager
from acclimate.language.training.recipes import RANK_RECOMMENDATIONS, Recipe, optimize_training_steps
from acclimate.language.training.trainer import Adapter, StopReason, train

__all__ = [
    "CONFIDENCE_THRESHOLDS",
    "DECLINED",
    "DOMAIN_SENSITIVITY",
    "RANK_RECOMMENDATIONS",
    "REASONS",
    "AdaptationMetadata",
    "Adapter",
    "AdapterManager",
    "AskReport",
    "Calibration",
    "DebugLog",
    "Decision",
    "Detection",
    "Engine",
    "Evidence",
    "Example",
    "Gate",
    "HeldOut",
    "LanguageModel",
    "PromptFormat",
    "Recipe",
    "StopReason",
    "as_examples",
    "cross_fit",
    "detect",
    "held_out",
    "load",
    "optimize_training_steps",
    "shipped",
    "train",
    "validated",
]
