"""Whether a query shows worked examples, and which skills it therefore needs."""

from __future__ import annotations

from typing import Any

from acclimate.language import Detection, detect

LEAST_EXAMPLES = 2


def detected(uif: Any) -> Detection | None:
    """Return the few-shot pattern of a query that can be adapted to, or None."""
    found = detect(uif.input_query)
    if found is None or found.query is None or len(found.examples) < LEAST_EXAMPLES:
        return None
    return found


def plan(uif: Any) -> list[str]:
    """Return ``TestTimeAdaptation`` before ``ResponseGeneration``, where there is something to adapt to."""
    given = uif.intermediate_data.get("few_shot_examples") or ()
    adapts = len(given) >= LEAST_EXAMPLES or detected(uif) is not None
    return ["TestTimeAdaptation", "ResponseGeneration"] if adapts else ["ResponseGeneration"]
