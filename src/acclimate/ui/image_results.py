"""What came of a run over images, as HTML: steps of the adaptation, metrics, and the evidence of ``auto``."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from typing import Any

from acclimate.ui.frame import table_html
from acclimate.ui.image_runs import BatchSeen, Result
from acclimate.vision.run.auto import Choice


def steps_html(seen: Sequence[BatchSeen]) -> str:
    """Return what the adaptation did: steps by verdict, and the newest ones that a guard took back."""
    counts = Counter(batch.verdict for batch in seen if batch.verdict != "none")
    adapted = sum(batch.used for batch in seen if batch.verdict == "kept")
    total = sum(batch.samples for batch in seen)
    if not counts:
        return "<p>The model was not adapted.</p>"
    listed = ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in counts.most_common())
    text = f"<p>Steps: {html.escape(listed)}. Decisions that were learned from: {adapted}, of {total} images.</p>"
    fired = [batch for batch in seen if batch.verdict in ("rolled_back", "reset", "recovered")][-5:]
    if fired:
        rows = [[batch.images, batch.verdict.replace("_", " "), batch.reason or batch.code or ""] for batch in fired]
        text += table_html(["after images", "guard", "why"], rows)
    return text


def result_html(result: Result) -> str:
    """Return metrics, cost and remarks of a run."""
    rows: list[list[Any]] = [
        [name, f"{100 * before:.1f} %", f"{100 * after:.1f} %", f"{100 * (after - before):+.1f}"]
        for name, (before, after) in result.metrics.items()
    ]
    ratio = result.seconds_after / max(result.seconds_before, 1e-9)
    rows.append(["seconds", f"{result.seconds_before:.2f}", f"{result.seconds_after:.2f}", f"{ratio:.1f} times"])
    text = f"<p>Method: <strong>{html.escape(result.method)}</strong>, {result.images} images.</p>"
    text += table_html(["", "without", "with adapting", "difference"], rows, numbers=(1, 2, 3))
    if result.gain is not None:
        gain = result.gain
        text += (
            f"<p>{html.escape(result.main_metric or '')}: {100 * gain.value:+.1f} points "
            f"(95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}).</p>"
        )
    elif not result.metrics:
        text += "<p>There are no labels, so nothing says how many predictions are right.</p>"
    notes = [*result.notes, *(f"{image.rpartition('/')[2]}: {why}" for image, why in result.skipped.items())]
    if notes:
        items = "".join(f"<li>{html.escape(note)}</li>" for note in notes[:12])
        text += f'<details><summary>{len(notes)} notes</summary><ul class="note">{items}</ul></details>'
    return text


def choice_html(choice: Choice) -> str:
    """Return the evidence of ``auto`` as a table, and its reasons."""
    rows = [
        [
            trial.method,
            "" if trial.lr is None else f"{trial.lr:g}",
            trial.refused or f"{trial.entropy_nats:.3f}",
            "" if trial.refused else f"{trial.effective_classes:.1f}",
            "" if trial.refused else f"{trial.mean_score:.2f}",
            "" if trial.refused else f"{trial.degradation_score:.2f}",
        ]
        for trial in choice.trials
    ]
    columns = ["method", "learning rate", "entropy, nats", "classes in use", "mean score", "degradation"]
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in choice.reasons)
    table = table_html(columns, rows, numbers=(1, 2, 3, 4, 5))
    return f"<h3>What auto tried</h3>{table}<ul>{reasons}</ul>"
