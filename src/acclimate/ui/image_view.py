"""The images page: a stream of images, predicted without and with adapting, with what the model saw."""

from __future__ import annotations

import asyncio
import html
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from anyio import CapacityLimiter, to_thread
from nicegui import background_tasks, ui
from nicegui.events import UploadEventArguments
from starlette.concurrency import run_in_threadpool

from acclimate.errors import AcclimateError, DataError, first_line
from acclimate.monitoring import vision_request
from acclimate.registry import METHODS
from acclimate.ui.allowance import Allowance
from acclimate.ui.charts import Chart, Line
from acclimate.ui.frame import card, framed, heading, mark_finished, paragraph, primary, secondary, set_text
from acclimate.ui.image_decisions import decision
from acclimate.ui.image_results import choice_html, result_html, steps_html
from acclimate.ui.image_runs import BatchSeen, Job, Result, Runner, Shown, check_folder
from acclimate.ui.image_sets import MOST_IMAGES, SAMPLES, ImageModel, ImageSet, ImageSets, Uploads
from acclimate.ui.image_shown import picture, words
from acclimate.ui.upload_box import upload_box
from acclimate.ui.visit import Visit, told
from acclimate.vision.data.corruptions import CORRUPTIONS, Uint8Image
from acclimate.vision.data.images import CorruptionSpec
from acclimate.vision.models.loading import AdapterOptions

_LOG = logging.getLogger(__name__)
_UPLOADS, _FOLDER, _NO_DAMAGE = "uploads", "folder", "none"
_MODES: Final = {"damaged": "every image damaged", "live": "live: clean, damaged, clean again"}
_DEFAULT_IMAGES, _DEFAULT_BATCH = 96, 16
_MOST_UPLOADED_BYTES: Final = 512 * 2**20
_DECODED_AT_A_TIME: Final = 2
#: Of the proportions of two pictures of one image.
_SHAPE_TOLERANCE: Final = 0.02
#: Methods that are offered first.
_FIRST_METHODS: Final = {"auto": "auto: choose by trying", "default": "the default for this kind of model"}


@dataclass(slots=True)
class Lab:
    """What all visitors of the images page share: the package's images, the models that are offered, and the runner.

    Attributes:
        sets: of images.
        models: by name.
        runner: of one job at a time.
        allowance: of each visitor, for uploads.
        decoders: how many uploads are decoded at a time; each takes up to some hundred MiB.
    """

    sets: ImageSets
    models: Mapping[str, ImageModel]
    runner: Runner
    allowance: Allowance = field(default_factory=lambda: Allowance(_MOST_UPLOADED_BYTES))
    decoders: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_DECODED_AT_A_TIME))


async def show(visit: Visit, lab: Lab) -> None:
    """Draw the page."""
    with framed(visit, "/images"):
        heading("Images", 1)
        paragraph(
            "An unlabelled stream of images is predicted twice: by the model as it was trained, and by the model that "
            "adapts to the stream. Guards take back steps that would hurt.",
            "lead",
        )
        _View(visit, lab).draw()


class _View:
    """The page of one visitor."""

    def __init__(self, visit: Visit, lab: Lab) -> None:
        self._visit, self._lab = visit, lab
        self._uploads = Uploads(lab.sets.folder, allowance=lab.allowance, owner=visit.caller.id)
        self._cancelled = threading.Event()
        self._has_left = False
        self._seen: list[BatchSeen] = []
        visit.on_leave(self._leave)

    def draw(self) -> None:
        """Draw the inputs and the place for results."""
        with ui.element("div").classes("two"):
            with card("Stream and model"):
                self._draw_form()
            with ui.element("div").classes("stack"):
                self._draw_results()

    def _draw_form(self) -> None:
        sources: dict[str, str] = {str(name): title for name, title in SAMPLES.items()}
        sources[_UPLOADS] = "Images that I upload"
        if self._visit.parts.service.settings.image_folder is not None:
            sources[_FOLDER] = "The server's folder"
        with ui.element("div").classes("fields"):
            self._source = self._choice("images", "Images", sources, "digits")
            self._source.on_value_change(self._source_changed)
            models = {name: model.title for name, model in self._lab.models.items()}
            self._model = self._choice("model", "Model", models, "digits")
            damages = {_NO_DAMAGE: "none"} | {name: name.replace("_", " ") for name in CORRUPTIONS}
            self._damage = self._choice("damage", "Damage", damages, "contrast")
            severity = self._visit.parameter("severity", "4")
            self._severity = ui.number(
                label="Severity, 1 to 5", value=int(severity) if severity in tuple("12345") else 4, min=1, max=5, step=1
            ).props("outlined dense")
            methods = _FIRST_METHODS | {name: f"{name}: {info.title}" for name, info in METHODS.infos().items()}
            self._method = self._choice("method", "Method", methods, "auto")
            self._play = self._choice("play", "Stream", _MODES, "damaged")
            self._most = ui.number(
                label=f"Images, at most {MOST_IMAGES}", value=_DEFAULT_IMAGES, min=2, max=MOST_IMAGES, step=1
            ).props("outlined dense")
            self._batch = ui.number(label="Images in a batch", value=_DEFAULT_BATCH, min=1, max=MOST_IMAGES, step=1)
            self._batch.props("outlined dense")
        self._upload_box = ui.element("div").style("margin-top: .75rem")
        with self._upload_box:
            paragraph("PNG, JPEG, WebP or BMP. They are kept until you leave this page.", "note")
            upload_box(
                self._visit,
                "Choose images",
                self._uploaded,
                multiple=True,
                most=MOST_IMAGES,
                accept=".png,.jpg,.jpeg,.webp,.bmp",
            )
            self._upload_count = paragraph("", "note").props('aria-live="polite"')
        self._upload_box.set_visibility(self._source.value == _UPLOADS)
        with ui.element("div").classes("row").style("margin-top: 1rem"):
            self._run = primary("Run", "play_arrow").on_click(self._start)
            self._end = secondary("Stop", "stop").on_click(self._cancelled_by_visitor)
            self._end.set_enabled(False)
            secondary("Share", "link").on_click(self._share)
        self._problem = paragraph("", "problem").props('role="alert"')

    def _choice(self, name: str, label: str, options: dict[str, str], default: str) -> ui.select:
        wanted = self._visit.parameter(name, default)
        chosen = ui.select(options, value=wanted if wanted in options else default, label=label)
        return chosen.props("outlined dense options-dense")

    def _draw_results(self) -> None:
        with card("Stream"):
            self._progress = paragraph("Nothing was run yet.", "note").props('aria-live="polite"')
            self._now = ui.html("", sanitize=False)
            self._damaged = paragraph("", "note")
            self._certainty = Chart("Certainty", axis="images", unit="mean score of decisions", low=True, most=1.0)
            self._right_box = ui.element("div")
            with self._right_box:
                self._right = Chart("Accuracy by batch", axis="images", unit="share that is right", low=True, most=1.0)
            self._right_box.set_visibility(False)
            self._steps = ui.html("", sanitize=False)
        with card("Result"):
            self._result = ui.html("<p>The metrics, where there are labels, and the cost.</p>", sanitize=False)
            self._choice_box = ui.html("", sanitize=False)
        with card("Before and after"):
            self._compare_box = ui.element("div")
            self._gallery = ui.element("ul").classes("pictures")

    def _source_changed(self) -> None:
        self._upload_box.set_visibility(self._source.value == _UPLOADS)
        fitting = next((m.name for m in self._lab.models.values() if m.sample == self._source.value), None)
        if fitting is not None:
            self._model.set_value(fitting)

    async def _uploaded(self, event: UploadEventArguments) -> None:
        try:
            await self._visit.allowed("infer")
            content = await event.file.read()
            await to_thread.run_sync(self._uploads.add, content, limiter=self._lab.decoders)
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
            ui.notify(f"{event.file.name[:80]}: {told(error)}", type="negative")
        set_text(self._upload_count, f"{self._uploads.count} images are here.")

    async def _start(self) -> None:
        # The button may be pressed again before the browser shows that it is disabled.
        if not self._run.enabled:
            return
        self._run.set_enabled(False)
        set_text(self._problem, "")
        # The package's images are written, and its small network is trained, when they are first wanted.
        set_text(self._progress, "Getting images and model ready ...")
        try:
            await self._visit.allowed("train")
            job = await run_in_threadpool(self._job)
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
            set_text(self._progress, "")
            set_text(self._problem, told(error))
            self._run.set_enabled(True)
            return
        self._cancelled = threading.Event()
        if self._has_left:
            self._cancelled.set()
        self._seen = []
        self._end.set_enabled(True)
        self._result.set_content("")
        self._choice_box.set_content("")
        self._steps.set_content("")
        self._gallery.clear()
        self._compare_box.clear()
        set_text(self._progress, "Waiting for the model ...")
        background_tasks.create(self._follow(job, self._cancelled), name="images of a visitor")

    def _job(self) -> Job:
        model = self._lab.models.get(str(self._model.value))
        if model is None:
            raise DataError("there is no such model; choose one of the list")
        damage = str(self._damage.value)
        if model.sample is not None and self._source.value in SAMPLES and model.sample != self._source.value:
            raise DataError(f"the model {model.title!r} is for other images: choose {SAMPLES[model.sample]!r}")
        corruption = None if damage == _NO_DAMAGE else CorruptionSpec(damage, _whole(self._severity, 4))
        return Job(
            images=self._images(),
            adapter=self._options(model),
            method=str(self._method.value),
            corruption=corruption,
            play="live" if self._play.value == "live" else "damaged",
            most=_whole(self._most, _DEFAULT_IMAGES),
            batch_size=_whole(self._batch, _DEFAULT_BATCH),
        )

    def _images(self) -> ImageSet:
        source = str(self._source.value)
        if source == _UPLOADS:
            return self._uploads.as_set()
        if source == _FOLDER:
            folder = self._visit.parts.service.settings.image_folder
            if folder is None:
                raise DataError("this server was started without a folder of images")
            return ImageSet(check_folder(folder))
        return self._lab.sets.sample("scenes" if source == "scenes" else "digits")

    def _options(self, model: ImageModel) -> AdapterOptions:
        return self._lab.sets.digits_options() if model.options is None else model.options

    async def _follow(self, job: Job, cancelled: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        with self._visit.client:

            def tell(event: BatchSeen | Shown) -> None:
                loop.call_soon_threadsafe(self._told, event)

            try:
                result = await run_in_threadpool(self._lab.runner.run, job, tell=tell, cancelled=cancelled)
            except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
                set_text(self._progress, "")
                set_text(self._problem, told(error))
            else:
                self._show_result(result)
                try:
                    self._record(result, time.perf_counter() - began)
                except (AcclimateError, RuntimeError) as error:
                    # A result is shown whatever comes of its record.
                    _LOG.warning("a run over images was not recorded: %s", first_line(error))
            finally:
                self._run.set_enabled(True)
                mark_finished(self._run)
                self._end.set_enabled(False)

    def _record(self, result: Result, seconds: float) -> None:
        """Write the run to the metrics store, as a command's run is."""
        store = self._visit.parts.telemetry.store
        if store is None:
            return
        gain = result.gain
        store.record(
            vision_request(
                images=result.images,
                model=str(self._model.value),
                session_id="page",
                ttt=result.ttt,
                seconds=seconds,
                actor=self._visit.caller.id or "page",
                cost_ratio=result.seconds_after / max(result.seconds_before, 1e-9),
                gain=None if gain is None else (gain.value, gain.low, gain.high),
                metric=result.main_metric,
            )
        )

    def _told(self, event: BatchSeen | Shown) -> None:
        with self._visit.client:
            if isinstance(event, Shown):
                self._show_now(event)
            else:
                self._seen.append(event)
                self._show_stream()

    def _show_now(self, shown: Shown) -> None:
        names: dict[int, str] = {}
        state = "damaged" if shown.damaged else "as it is"
        self._now.set_content(
            f'<div class="row"><img src="{picture(shown.pixels)}" alt="" style="height: 4.5rem; border-radius: .4rem">'
            f"<div>Now ({state}): without adapting {html.escape(words(shown.before, names))},<br>"
            f"with adapting {html.escape(words(shown.after, names))}</div></div>"
        )

    def _show_stream(self) -> None:
        seen = self._seen
        set_text(self._progress, f"{seen[-1].images} images predicted.")
        positions = [batch.images for batch in seen]
        self._certainty.show(
            positions,
            [
                Line("without adapting", [batch.certainty_before for batch in seen]),
                Line("with adapting", [batch.certainty_after for batch in seen]),
            ],
        )
        ranges = [batch.images for batch in seen if batch.damaged]
        if ranges and len(ranges) < len(seen):
            set_text(self._damaged, f"Images {ranges[0] - seen[0].samples + 1} to {ranges[-1]} are damaged.")
        if seen[-1].right_before is not None:
            self._right_box.set_visibility(True)
            self._right.show(
                positions,
                [
                    Line("without adapting", [batch.right_before for batch in seen]),
                    Line("with adapting", [batch.right_after for batch in seen]),
                ],
            )
        self._steps.set_content(steps_html(seen))

    def _show_result(self, result: Result) -> None:
        self._result.set_content(result_html(result))
        self._choice_box.set_content("" if result.choice is None else choice_html(result.choice))
        with self._gallery:
            for shown in result.shown:
                self._draw_figure(shown, result)
        if result.shown:
            differing = [shown for shown in result.shown if decision(shown.before) != decision(shown.after)]
            self._compare((differing or list(result.shown))[0], result)

    def _draw_figure(self, shown: Shown, result: Result) -> None:
        names = result.class_names
        with ui.element("li"), ui.element("figure"):
            pictures = [(shown.pixels, "as the camera gave it")]
            if shown.handed_on is not None:
                pictures.append((shown.handed_on, "as the filter handed it on"))
            with ui.element("div").style("display: flex; gap: .25rem"):
                for pixels, text in pictures:
                    image = ui.element("img").props(f'src="{picture(pixels)}" alt="{text}" title="{text}"')
                    image.style("min-width: 0; flex: 1")
            before, after = words(shown.before, names), words(shown.after, names)
            ui.html(f"before: {html.escape(before)}<br>after: {html.escape(after)}", tag="figcaption", sanitize=False)
            show = secondary("Compare").props("dense")
            show.props["aria-label"] = f"Compare: before {before}, after {after}"
            show.on_click(lambda: self._compare(shown, result))
            # The large picture is above the small ones, and may be out of sight.
            show.on(
                "click", js_handler=f'() => getHtmlElement({self._compare_box.id}).scrollIntoView({{block: "nearest"}})'
            )

    def _compare(self, shown: Shown, result: Result) -> None:
        """Draw one image large, predicted before and after, with a slider between the two."""
        self._compare_box.clear()
        before = picture(shown.pixels, shown.before, shown=shown, large=True)
        # What the model was given, where a filter changed it and both have the same shape.
        given = shown.pixels if shown.handed_on is None else shown.handed_on
        given = given if _same_shape(given, shown.pixels) else shown.pixels
        after = picture(given, shown.after, shown=shown, large=True)
        words_before, words_after = (words(entry, result.class_names) for entry in (shown.before, shown.after))
        with self._compare_box:
            with ui.element("div").classes("before-after") as box:
                _picture(after, f"with adapting: {words_after}")
                with ui.element("div").classes("over").style("clip-path: inset(0 50% 0 0)"):
                    _picture(before, f"without adapting: {words_before}")
                ui.label(f"without adapting: {words_before}").classes("tag").style("left: .5rem")
                ui.label(f"with adapting: {words_after}").classes("tag").style("right: .5rem")
            # The browser's own control is moved by hand, keyboard and screen reader alike. It acts in the browser: one
            # that waited for the server would lag behind the hand.
            slider = ui.element("input").classes("before-after-slider")
            slider.props('type="range" min="0" max="100" value="50" aria-label="How much is shown without adapting"')
            slider.on(
                "input",
                js_handler=f"""(event) => {{
                    const over = getHtmlElement({box.id}).querySelector(".over");
                    over.style.clipPath = `inset(0 ${{100 - event.target.value}}% 0 0)`;
                }}""",
            )

    def _cancelled_by_visitor(self) -> None:
        self._cancelled.set()

    def _leave(self) -> None:
        self._has_left = True
        self._cancelled.set()
        self._uploads.close()

    def _share(self) -> None:
        values = {
            "images": self._source.value, "model": self._model.value, "damage": self._damage.value,
            "severity": self._severity.value or 4, "method": self._method.value, "play": self._play.value,
        }  # fmt: skip
        path = f"/images?{urlencode(values)}"
        ui.clipboard.write(str(self._visit.request.base_url).rstrip("/") + path)
        ui.navigate.history.replace(path)
        ui.notify("The address of this page with its settings was copied.")


def _picture(address: str, text: str) -> None:
    """Draw a picture with its text, which may hold names of classes: the text of props has escapes of its own."""
    image = ui.element("img")
    image.props["src"], image.props["alt"] = address, text


def _whole(given: ui.number, default: int) -> int:
    """Return the number in a field; an empty one has its default.

    Raises:
        DataError: it is out of range: what the browser sends is not bound to what its control allows.
    """
    value = default if given.value is None else given.value
    if not given.min <= value <= given.max or value != int(value):
        raise DataError(f"{given.label}: {value:g} is no whole number from {given.min:g} to {given.max:g}")
    return int(value)


def _same_shape(one: Uint8Image, other: Uint8Image) -> bool:
    """Return whether two images have nearly the same proportions."""
    (height, width), (other_height, other_width) = one.shape[:2], other.shape[:2]
    return bool(abs(height * other_width - width * other_height) <= _SHAPE_TOLERANCE * height * other_width)
