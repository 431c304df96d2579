"""Which skills a query needs."""

from __future__ import annotations

from sam.orchestration.uif import SAM_UIF

from acclimate_sam.planning import plan


class DynamicPlanner:
    """Plans test-time adaptation where a query shows worked examples."""

    def create_plan(self, uif: SAM_UIF) -> list[str]:
        """Return the names of the skills, in order."""
        return plan(uif)
