"""A guard on the entropy of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from acclimate.core.guards import Evidence, Rejection
from acclimate.registry import GuardInfo


@dataclass(frozen=True, slots=True)
class MaxEntropy:
    """Fires when the mean entropy of a batch's decisions exceeds ``limit_nats``."""

    info: ClassVar[GuardInfo] = GuardInfo(
        name="max_entropy",
        title="a mean entropy of the decisions above VALUE nats",
        value="limit_nats",
        codes=("entropy_too_high",),
    )

    limit_nats: float = 1.0

    def __call__(self, evidence: Evidence) -> Rejection | None:
        """Judge one step."""
        found = evidence.signals.entropy_nats
        if found > self.limit_nats:
            return Rejection("entropy_too_high", f"entropy of {found:.3g} nats exceeds {self.limit_nats:g}")
        return None
