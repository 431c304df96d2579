"""The engine: torch only, knows no task."""

from acclimate.core.budget import Budget
from acclimate.core.guards import (
    Collapse,
    MaxDrift,
    MaxUpdate,
    NonFinite,
    ProbeAgreement,
    ProbeLoss,
    WorseThanSource,
    default_guards,
)
from acclimate.core.method import Method, Selection, Step
from acclimate.core.pacing import Pacing
from acclimate.core.report import SessionReport, StepReport
from acclimate.core.selection import TensorFilter
from acclimate.core.session import Session
from acclimate.core.signals import Certainty, Signals
from acclimate.core.task import Classification, Decisions, Task, View

__all__ = [
    "Budget",
    "Certainty",
    "Classification",
    "Collapse",
    "Decisions",
    "MaxDrift",
    "MaxUpdate",
    "Method",
    "NonFinite",
    "Pacing",
    "ProbeAgreement",
    "ProbeLoss",
    "Selection",
    "Session",
    "SessionReport",
    "Signals",
    "Step",
    "StepReport",
    "Task",
    "TensorFilter",
    "View",
    "WorseThanSource",
    "default_guards",
]
