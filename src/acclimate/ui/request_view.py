"""The page of one request: what was recorded of it, and why it was decided so."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any, Final

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from acclimate.language.answers import AdaptationMetadata, AskReport
from acclimate.monitoring.overview import RequestDetails, request_details
from acclimate.ui.frame import card, framed, heading, paragraph, raw_badge, table
from acclimate.ui.reading_shown import kind_in_words
from acclimate.ui.visit import Visit, told

_TITLES: Final = {
    "timestamp": "time (UTC)", "pipeline": "pipeline", "model": "model", "method": "method",
    "pattern": "examples read as",
    "pattern_confidence": "read exactly with probability", "confidence": "adapted model right with probability",
    "icl_confidence": "base model right with probability", "seconds": "seconds",
    "memory_bytes": "bytes beyond the model",
    "rank": "rank of the low-rank weights", "environment": "environment", "user_feedback": "user's rating, 1 to 5",
    "pattern_expected": "labelled as", "actor": "key", "session_id": "session",
}  # fmt: skip
#: In the order in which they are read.
_TEXT_TITLES: Final = {
    "prompt": "prompt", "examples": "examples", "query": "question", "answer": "answer",
    "icl_answer": "answer of the base model", "ttt_answer": "answer of the adapted model",
}  # fmt: skip
_ATTEMPT_TITLES: Final = {
    "examples_count": "examples", "training_steps": "training steps", "adaptation_time": "seconds of gate and training",
    "convergence_score": "share by which the training loss fell", "accuracy_improvement": "gain over the base model",
}  # fmt: skip


async def show(visit: Visit, request_id: str) -> None:
    """Draw the page."""
    with framed(visit, "/watch"):
        heading("Request", 1)
        paragraph(request_id, "lead code")
        ui.html('<p><a href="/watch">Back to all requests</a></p>', sanitize=False)
        try:
            caller = await visit.allowed("infer")
            found = await run_in_threadpool(_read, visit, request_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
            paragraph(told(error), "problem")
            return
        # Whether a request exists is not told to other keys.
        if found is None or not (caller.may("admin") or found.request["actor"] == caller.id):
            paragraph("There is no such request, or it is not yours. It may have been deleted since.", "problem")
            return
        _draw(found)


def _read(visit: Visit, request_id: str) -> RequestDetails | None:
    store = visit.parts.telemetry.store
    if store is None:
        return None
    with store.reading() as connection:
        return request_details(connection, request_id)


def _draw(found: RequestDetails) -> None:
    request = found.request
    with ui.element("div").classes("two"):
        with ui.element("div").classes("stack"):
            with card("Decision"):
                ui.html(f"<p>{raw_badge(str(request['status']), str(request['status']))}</p>", sanitize=False)
                for sentence in decision_sentences(request, found.attempt):
                    paragraph(sentence)
            if request["content"] is not None:
                with card("Content"):
                    ui.html(content_html(request["content"]), sanitize=False)
            if found.outcomes:
                with card("Experiments"):
                    rows = [
                        [o["test_id"], o["method"], o["response_quality"], o["response_time"]] for o in found.outcomes
                    ]
                    table(["experiment", "arm", "quality", "seconds"], rows, numbers=(2, 3))
        with ui.element("div").classes("stack"):
            with card("What was recorded"):
                table(["", ""], _rows(request, _TITLES))
            if found.attempt is not None:
                with card("Adapting"):
                    table(["", ""], _rows(found.attempt, _ATTEMPT_TITLES))
            if found.vision is not None:
                with card("Vision run"):
                    shown = [
                        (k.replace("_", " "), v) for k, v in found.vision.items() if k != "request_id" and v is not None
                    ]
                    table(["", ""], shown)
            if found.audit:
                with card("Audit log"):
                    rows = [[e["timestamp"][:19], e["action"], e["outcome"], e["actor"]] for e in found.audit]
                    table(["time", "action", "outcome", "by"], rows)


def decision_sentences(request: Mapping[str, Any], attempt: Mapping[str, Any] | None) -> list[str]:
    """Return in sentences what was done about a request, and why."""
    if request["pipeline"] != "language":
        reason = f" ({request['reason'].replace('_', ' ')})" if request["reason"] else ""
        return [f"The images were predicted by {request['method'] or 'the model alone'}: {request['status']}{reason}."]
    found = AskReport(
        answer="",
        status=request["status"],
        reason=request["reason"],
        method=request["method"] or "icl",
        model=request["model"] or "",
        pattern=request["pattern"],
        icl_confidence=request["icl_confidence"],
        metadata=AdaptationMetadata(
            confidence_score=request["confidence"],
            examples_used=(attempt or {}).get("examples_count") or 0,
        ),
    )
    sentences = [found.explanation] if found.explanation else []
    if request["pattern"] is not None:
        sentences.append(f"The prompt was read as {kind_in_words(request['pattern'])}.")
    base, adapted = request["icl_confidence"], request["confidence"]
    if request["status"] in ("declined", "fallback") and base is not None:
        tried = "no adapter was tried" if adapted is None else f"the adapted one with {adapted:.0%}"
        sentences.append(f"The base model was estimated to be right with probability {base:.0%}, {tried}.")
    return sentences


def content_html(content: Mapping[str, Any]) -> str:
    """Return stored texts, each under its name."""
    parts = []
    for name in sorted(content, key=lambda name: list(_TEXT_TITLES).index(name) if name in _TEXT_TITLES else 99):
        value = content[name]
        if value in (None, "", []):
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
        parts.append(
            f"<h3>{html.escape(_TEXT_TITLES.get(name) or name.replace('_', ' '))}</h3>"
            f'<div class="prompt-text" tabindex="0">{html.escape(text)}</div>'
        )
    return "".join(parts)


def _rows(values: Mapping[str, Any], titles: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(title, _shown(name, values[name])) for name, title in titles.items() if values.get(name) is not None]


def _shown(name: str, value: Any) -> str:
    if name.endswith("confidence") or name in ("convergence_score", "accuracy_improvement"):
        return f"{value:.0%}"
    if name == "timestamp":
        return str(value)[:19].replace("T", " ")
    if name == "pattern":
        return kind_in_words(value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
