"""What a run shows of a model's decisions: what it was given, what it decided, how sure it was."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from acclimate.core.session import Session
from acclimate.methods.blend import Blend
from acclimate.methods.spectrum import SpectrumFilter, in_unit_range
from acclimate.vision.data.corruptions import Uint8Image
from acclimate.vision.data.records import Dataset
from acclimate.vision.models.adapter import Adapter, Entry

#: Detections with a lower score are not shown, and no decisions.
SHOWN_SCORE: Final = 0.3


@torch.no_grad()
def handed_on(session: Session, inputs: Any) -> list[Uint8Image] | None:
    """Return a batch as the session's method hands it on to the model, or None where it changes no images."""
    method, state, task = session.method, session.state, session.task
    if isinstance(method, SpectrumFilter):
        cleaned = method.cleaned(inputs, state, task=task)
    elif isinstance(method, Blend) and method.spectrum is not None and state.filters:
        cleaned = method.spectrum.cleaned(inputs, state.seen, task=task)
    else:
        return None
    given, filtered = (in_unit_range(task.images(batch), task) for batch in (inputs, cleaned))
    if torch.equal(given, filtered):
        return None
    pixels = filtered.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [np.ascontiguousarray(image) for image in pixels]


def decision(entry: Entry) -> Any:
    """Return what is decided about an image, for comparison."""
    if "segments" in entry:
        return [segment["segmentation"]["counts"] for segment in entry["segments"]]
    if "classification" in entry:
        return entry["classification"]["class_id"]
    return sorted(detection["class_id"] for detection in entry["detections"] if detection["score"] >= SHOWN_SCORE)


def certainty(entries: Sequence[Entry]) -> float | None:
    """Return the mean score of decisions; None where there are none."""
    scores: list[float] = []
    for entry in entries:
        if "classification" in entry:
            scores.append(entry["classification"]["score"])
        elif "segments" in entry:
            scores += [segment["score"] for segment in entry["segments"]]
        else:
            scores += [d["score"] for d in entry["detections"] if d["score"] >= SHOWN_SCORE]
    return statistics.fmean(scores) if scores else None


def class_names(adapter: Adapter, dataset: Dataset) -> dict[int, str]:
    """Return the names of classes by id, as far as the data set or the model has them."""
    if dataset.categories:
        return dict(dataset.categories)
    named = getattr(getattr(adapter.get_model(), "config", None), "id2label", None)
    return {int(number): str(name) for number, name in named.items()} if isinstance(named, dict) else {}
