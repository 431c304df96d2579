"""The page for examples that are images or sounds: drop files, name them, drop the open one."""

from __future__ import annotations

import base64
import html
import io
import uuid
import wave
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
from anyio import CapacityLimiter, to_thread
from nicegui import ui
from nicegui.events import UploadEventArguments
from starlette.concurrency import run_in_threadpool

from acclimate.errors import DataError
from acclimate.media import Item, Limits, MediaEngine, MediaExample, MediaReport, item_from_bytes
from acclimate.media.items import SAMPLE_RATE_HZ
from acclimate.ui.allowance import Allowance
from acclimate.ui.frame import (
    card,
    framed,
    heading,
    mark_finished,
    paragraph,
    primary,
    secondary,
    set_text,
    table_html,
)
from acclimate.ui.image_shown import picture
from acclimate.ui.one_at_a_time import OneAtATime
from acclimate.ui.upload_box import upload_box
from acclimate.ui.visit import Visit, told

#: Most examples of a visitor: a handful for each class is what this is for.
MOST_EXAMPLES: Final = 128
_MOST_HELD_BYTES: Final = 256 * 2**20
_DECODED_AT_A_TIME: Final = 2
_LONGEST_SOUND_S: Final = 30.0
_MOST_PIXELS: Final = 25_000_000
_SHOWN: Final = 12
_SAMPLE_DIGITS: Final = (0, 1, 7)
_SAMPLES_EACH: Final = 7


@dataclass(slots=True)
class FilesLab:
    """What all visitors of this page share: the encoders, which are used by one of them at a time.

    Attributes:
        engine: with the encoders.
        turns: of visitors.
        allowance: of each visitor, for what their open pages hold in memory.
        decoders: how many uploads are decoded at a time; each takes up to some hundred MiB.
    """

    engine: MediaEngine
    turns: OneAtATime = field(default_factory=OneAtATime)
    allowance: Allowance = field(default_factory=lambda: Allowance(_MOST_HELD_BYTES))
    decoders: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_DECODED_AT_A_TIME))

    def ask(self, examples: list[MediaExample], query: Item) -> MediaReport:
        """Return the answer to a query.

        Raises:
            DataError: the examples cannot be learned from.
            BusyError: too many wait.
        """
        with self.turns.turn():
            return self.engine.ask(examples, query)


def files_lab(max_upload_mib: float, device: str) -> FilesLab:
    """Return what the page needs, within the server's limits."""
    limits = Limits(
        max_bytes=int(max_upload_mib * 2**20),
        max_pixels=_MOST_PIXELS,
        max_seconds=_LONGEST_SOUND_S,
        max_examples=MOST_EXAMPLES,
    )
    return FilesLab(MediaEngine(limits=limits, device=device))


async def show(visit: Visit, lab: FilesLab) -> None:
    """Draw the page."""
    with framed(visit, "/files"):
        heading("Files", 1)
        paragraph(
            "Give a few images or sounds with their labels, and an open one: frozen encoders are compared on held-out "
            "examples, and the answer comes with its evidence.",
            "lead",
        )
        _View(visit, lab).draw()


class _View:
    """The page of one visitor."""

    def __init__(self, visit: Visit, lab: FilesLab) -> None:
        self._visit, self._lab = visit, lab
        self._examples: dict[str, MediaExample] = {}
        self._query: Item | None = None
        self._held, self._has_left = 0, False
        visit.on_leave(self._leave)

    def draw(self) -> None:
        """Draw the inputs and the place for the answer."""
        with ui.element("div").classes("two"):
            with ui.element("div").classes("stack"):
                with card("Examples"):
                    self._draw_examples()
                with card("Open file"):
                    self._draw_query()
            with ui.element("div").classes("stack"):
                with card("Answer"):
                    self._answer = ui.html('<p class="note">Nothing was asked yet.</p>', sanitize=False)
                    self._answer.props('aria-live="polite" role="group" aria-label="Answer"')
                with card("What was compared"):
                    self._tried = ui.html("", sanitize=False)
                with card("Nearest examples"):
                    self._nearest = ui.element("ul").classes("pictures")

    def _draw_examples(self) -> None:
        with ui.element("div").classes("row"):
            self._label = ui.input(label="Label of the files that you drop next").props("outlined dense")
            self._label.style("flex: 1; min-width: 12rem")
            secondary("Take some digits").on_click(self._take_digits)
        upload_box(self._visit, "Choose examples with this label", self._example_uploaded, multiple=True)
        self._count = paragraph("No example yet.", "note").props('aria-live="polite"')
        self._gallery = ui.element("ul").classes("pictures")

    def _draw_query(self) -> None:
        upload_box(self._visit, "Choose the open file", self._query_uploaded, multiple=False)
        self._query_box = ui.element("ul").classes("pictures")
        with ui.element("div").classes("row"):
            self._run = primary("Run", "play_arrow").on_click(self._ask)
        self._problem = paragraph("", "problem").props('role="alert"')

    async def _item(self, event: UploadEventArguments) -> Item | None:
        """Return what was uploaded, decoded; tell what is wrong with it, and return None then."""
        name = event.file.name[:80]
        try:
            await self._visit.allowed("infer")
            content = await event.file.read()
            decode = partial(item_from_bytes, content, name=name, limits=self._lab.engine.limits)
            return await to_thread.run_sync(decode, limiter=self._lab.decoders)
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
            ui.notify(told(error), type="negative", timeout=8000)
            return None

    async def _example_uploaded(self, event: UploadEventArguments) -> None:
        label = str(self._label.value or "").strip()
        if not label:
            ui.notify("Type the label of these files first.", type="negative")
            return
        item = await self._item(event)
        if item is not None:
            self._add(MediaExample(item, label))

    async def _query_uploaded(self, event: UploadEventArguments) -> None:
        item = await self._item(event)
        if item is not None:
            self._take_query(item)

    def _take_digits(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        for label in _SAMPLE_DIGITS:
            for number in (digits.target == label).nonzero()[0][:_SAMPLES_EACH]:
                name = f"digit-{number}"
                if not self._add(MediaExample(Item.of("image", _digit(digits.images[number]), name), str(label))):
                    return
        later = (digits.target == _SAMPLE_DIGITS[-1]).nonzero()[0][_SAMPLES_EACH]
        self._take_query(Item.of("image", _digit(digits.images[later]), f"digit-{later}"))

    def _take_query(self, item: Item) -> None:
        if not self._hold(_size(item)):
            return
        self._hold(0 if self._query is None else -_size(self._query))
        self._query = item
        self._query_box.clear()
        with self._query_box, ui.element("li"):
            _draw_item(item, item.name)

    def _hold(self, size: int) -> bool:
        """Count bytes that this page holds from now on; tell where they are too many, and return False then."""
        owner = self._visit.caller.id
        if size <= 0:
            self._lab.allowance.give_back(owner, -size)
            self._held += size
            return True
        try:
            if self._has_left:
                raise DataError("the page was closed")
            self._lab.allowance.take(owner, size)
        except DataError as error:
            ui.notify(told(error), type="negative", timeout=8000)
            return False
        self._held += size
        return True

    def _leave(self) -> None:
        self._has_left = True
        self._hold(-self._held)

    def _add(self, example: MediaExample) -> bool:
        """Take an example; tell where it is one too many, and return False then."""
        if len(self._examples) >= MOST_EXAMPLES:
            ui.notify(f"{MOST_EXAMPLES} examples are here, and no more are taken.", type="negative")
            return False
        if not self._hold(_size(example.item)):
            return False
        key = uuid.uuid4().hex
        self._examples[key] = example
        with self._gallery, ui.element("li") as place:
            _draw_item(example.item, f"{example.output}: {example.item.name}")
            remove = secondary("Remove").props("dense")
            # Not in the text of props, which has escapes of its own: the name is the visitor's.
            remove.props["aria-label"] = f"Remove {example.item.name}"

        def removed() -> None:
            if self._examples.pop(key, None) is not None:
                self._hold(-_size(example.item))
                place.delete()
                self._show_count()

        remove.on_click(removed)
        self._show_count()
        return True

    def _show_count(self) -> None:
        counts: dict[str, int] = {}
        for example in self._examples.values():
            counts[example.output] = counts.get(example.output, 0) + 1
        listed = ", ".join(f"{count} of {label}" for label, count in counts.items())
        set_text(self._count, f"{len(self._examples)} examples: {listed}." if counts else "No example yet.")

    async def _ask(self) -> None:
        # The button may be pressed again before the browser shows that it is disabled.
        if not self._run.enabled:
            return
        self._run.set_enabled(False)
        set_text(self._problem, "")
        try:
            caller = await self._visit.allowed("train")
            if self._query is None:
                raise DataError("there is no open file yet; drop the one to answer")
            report = await run_in_threadpool(self._lab.ask, list(self._examples.values()), self._query)
            self._visit.parts.telemetry.answered_media(report, request_id=uuid.uuid4().hex, actor=caller.id)
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
            set_text(self._problem, told(error))
        else:
            self._show(report)
        finally:
            self._run.set_enabled(True)
            mark_finished(self._run)

    def _show(self, report: MediaReport) -> None:
        self._answer.set_content(answer_html(report))
        self._tried.set_content(tried_html(report))
        self._nearest.clear()
        by_name = {example.item.name: example for example in self._examples.values()}
        with self._nearest:
            for near in report.nearest[:_SHOWN]:
                example = by_name.get(near.name)
                if example is not None:
                    with ui.element("li"):
                        _draw_item(example.item, f"{near.output}: {near.name} (similarity {near.similarity:.2f})")


def _size(item: Item) -> int:
    """Return about how many bytes of memory an item takes: its values, and a picture or a sound for the browser."""
    return 2 * item.values.nbytes


def _draw_item(item: Item, text: str) -> None:
    with ui.element("figure"):
        if item.kind == "image":
            address = picture(np.asarray(item.values, dtype=np.uint8))
            ui.element("img").props(f'src="{address}" alt=""')
        else:
            ui.element("audio").props(f'controls src="{sound_address(item)}"').style("width: 100%")
        ui.html(html.escape(text), tag="figcaption", sanitize=False)


def sound_address(item: Item) -> str:
    """Return a sound as a data address that browsers can play."""
    file = io.BytesIO()
    with wave.Wave_write(file) as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE_HZ)
        sound.writeframes((np.clip(item.values, -1, 1) * (2**15 - 1)).astype("<i2").tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"


def answer_html(report: MediaReport) -> str:
    """Return the answer in words, with its probability, its evidence and its warnings."""
    held_out = "No example could be held out."
    if report.held_out_accuracy is not None:
        held_out = (
            f"Of {report.held_out_examples} examples, each held out in turn, {report.held_out_accuracy:.0%} were "
            "recognised this way."
        )
    sentences = [
        f"{report.label} is right with probability {report.probability:.0%}.",
        held_out,
        f"Encoder {report.encoder}, head {report.head}, views {report.views}; {report.seconds['total']:.2f} s.",
    ]
    rows = [[label, f"{share:.0%}"] for label, share in _likeliest(report.probabilities)]
    warnings = "".join(f'<p class="warn">{html.escape(warning)}</p>' for warning in report.warnings)
    return (
        f'<p class="answer">{html.escape(report.answer)}</p>'
        + "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
        + table_html(["label", "probability"], rows, numbers=(1,))
        + warnings
    )


def tried_html(report: MediaReport) -> str:
    """Return what was compared on held-out examples, the best first."""
    rows = [
        [
            tried.encoder + (" (adapted)" if tried.adapted else ""),
            tried.head,
            tried.views,
            "" if tried.accuracy is None else f"{tried.accuracy:.0%}",
            "" if tried.damaged_accuracy is None else f"{tried.damaged_accuracy:.0%}",
        ]
        for tried in sorted(report.tried, key=lambda tried: -(tried.accuracy or 0.0))
    ]
    return table_html(["encoder", "head", "views", "held out", "held out, damaged"], rows, numbers=(3, 4))


def _likeliest(probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(probabilities.items(), key=lambda item: -item[1])[:_SHOWN]


def _digit(values: Any) -> Any:
    gray = (255 - np.asarray(values) * 15).astype(np.uint8)
    return np.repeat(np.repeat(np.repeat(gray, 4, axis=0), 4, axis=1)[..., None], 3, axis=2)
