"""The language page: a prompt with examples, answered without and with adapting, side by side."""

from __future__ import annotations

import html
from typing import Any, Final

from nicegui import background_tasks, ui
from pydantic import TypeAdapter, ValidationError

from acclimate.errors import DataError
from acclimate.language import AskReport
from acclimate.serve.schemas import AdapterName, ChatRequest
from acclimate.ui.asking import Ended, Failed, Question, Side, Step, Text, losses_of
from acclimate.ui.charts import Chart, Line
from acclimate.ui.frame import card, framed, heading, mark_finished, paragraph, primary, secondary, set_text, table_html
from acclimate.ui.snippets import snippets
from acclimate.ui.text_form import Form
from acclimate.ui.visit import Visit, told

_SIDES: Final[dict[Side, tuple[str, str]]] = {
    "base": ("Base model", "answers from the prompt alone"),
    "adapted": ("With adapting", "fine-tuned on the examples first, where that helps"),
}
_PARTS: Final = {
    "gate": "Trying the examples (gate)",
    "training": "Training on all examples",
    "answer": "Answering, adapted",
    "icl": "Answering, base model",
    "comparison": "Training, to compare",
}


async def show(visit: Visit) -> None:
    """Draw the page."""
    with framed(visit, "/"):
        heading("Language", 1)
        paragraph(
            "Give a prompt with worked examples. The model is fine-tuned on them for this one request, and a "
            "calibrated gate decides whether the adapted model or the base model answers.",
            "lead",
        )
        _View(visit).draw()


class _View:
    """The page of one visitor."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._form = Form(visit)
        self._question: Question | None = None
        visit.on_leave(self._stop)

    def draw(self) -> None:
        """Draw the inputs and the place for answers."""
        with ui.element("div").classes("two"):
            with card("Ask"):
                self._form.draw()
                with ui.element("div").classes("row").style("margin-top: 1rem"):
                    self._run = primary("Run", "play_arrow").on_click(self._ask)
                    self._end = secondary("Stop", "stop").on_click(self._stop)
                    self._end.set_enabled(False)
                    secondary("Copy as ...", "content_copy").on_click(self._copy)
                    secondary("Share", "link").on_click(self._share)
                self._problem = paragraph("", "problem").props('role="alert"')
            with ui.element("div").classes("stack"):
                self._draw_answers()

    def _draw_answers(self) -> None:
        self._answers: dict[Side, ui.html] = {}
        self._status: dict[Side, ui.html] = {}
        with ui.element("div").classes("half"):
            for side, (title, about) in _SIDES.items():
                with card(title):
                    paragraph(about, "note")
                    self._answers[side] = ui.html("Not asked yet.", sanitize=False).classes("answer code empty")
                    self._answers[side].props(f'aria-live="polite" role="group" aria-label="Answer: {title}"')
                    self._status[side] = paragraph("", "note")
        with card("Why"):
            self._why = paragraph("The reasons appear here when a prompt has been answered.")
            self._gate = paragraph("")
            self._held_out = ui.html("", sanitize=False)
            self._save_box = ui.element("div").classes("row")
            self._save_box.set_visibility(False)
            with self._save_box:
                self._name = ui.input(label="Name of the adapter").props("outlined dense")
                secondary("Save the adapter", "save").on_click(self._save)
        with card("Training"):
            self._trained = paragraph("", "note")
            self._chart = Chart("Training loss", axis="step", unit="nats per answer token", low=True)
        with card("What each part cost"):
            self._costs = ui.html(paragraph_html("Nothing was run yet."), sanitize=False)

    async def _ask(self) -> None:
        """Ask, and show what happens until both answers are there."""
        # The button may be pressed again before the browser shows that it is disabled.
        if not self._run.enabled:
            return
        self._run.set_enabled(False)
        set_text(self._problem, "")
        try:
            body = self._form.body()
            caller = await self._visit.allowed("infer")
            if body.ttt is not None and body.ttt.mode != "off" and not caller.may("train"):
                body = body.model_copy(update={"ttt": body.ttt.model_copy(update={"mode": "off"})})
                set_text(self._problem, "This API key may not adapt (scope train): only the base model is asked.")
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
            set_text(self._problem, told(error))
            self._run.set_enabled(True)
            return
        self._question = Question(self._visit.parts, caller, body)
        self._clear(body)
        background_tasks.create(self._follow(self._question), name="question of a visitor")

    def _stop(self) -> None:
        if self._question is not None:
            self._question.give_up()

    def _clear(self, body: ChatRequest) -> None:
        is_off = body.ttt is not None and body.ttt.mode == "off"
        for side, box in self._answers.items():
            waiting = "Switched off." if is_off and side == "adapted" else "..."
            box.set_content(waiting)
            box.classes(add="empty")
            set_text(self._status[side], "")
        for element in (self._why, self._gate, self._trained):
            set_text(element, "")
        self._held_out.set_content("")
        self._costs.set_content("")
        self._chart.show([], [])
        self._save_box.set_visibility(False)
        self._end.set_enabled(True)

    async def _follow(self, question: Question) -> None:
        texts: dict[Side, str] = {"base": "", "adapted": ""}
        steps: list[Step] = []
        reports: dict[Side, AskReport] = {}
        with self._visit.client:
            try:
                async for event in question.events():
                    if isinstance(event, Text):
                        texts[event.side] += event.text
                        self._show_answer(event.side, texts[event.side])
                    elif isinstance(event, Step):
                        steps.append(event)
                        self._show_steps(steps)
                    elif isinstance(event, Failed):
                        set_text(self._status[event.side], told(event.error))
                        self._answers[event.side].set_content("No answer.")
                    else:
                        reports[event.side] = event.report
                        self._show_end(event)
            except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
                set_text(self._problem, told(error))
                for side in self._answers:
                    self._answers[side].set_content("No answer.")
            finally:
                self._run.set_enabled(True)
                mark_finished(self._run)
                self._end.set_enabled(False)
            if reports:
                self._show_reasons(question, reports)

    def _show_answer(self, side: Side, text: str) -> None:
        self._answers[side].classes(remove="empty")
        self._answers[side].set_content(html.escape(text))

    def _show_steps(self, steps: list[Step]) -> None:
        runs = losses_of(steps)
        names = ["on half of the examples (gate)", "on all examples"]
        longest = max(len(run) for run in runs)
        lines = [
            Line(names[number] if number < len(names) else f"run {number + 1}", [*run, *[None] * (longest - len(run))])
            for number, run in enumerate(runs)
        ]
        self._chart.show(range(1, longest + 1), lines)

    def _show_end(self, ended: Ended) -> None:
        report = ended.report
        self._show_answer(ended.side, report.answer or "(empty)")
        seconds = report.seconds.get("total", 0.0)
        set_text(self._status[ended.side], report.status_line if ended.side == "adapted" else f"{seconds:.2f} s")

    def _show_reasons(self, question: Question, reports: dict[Side, AskReport]) -> None:
        report = reports.get("adapted") or next(iter(reports.values()))
        set_text(self._why, report.explanation)
        set_text(self._gate, gate_sentence(report))
        self._held_out.set_content(held_out_html(report) + _warnings_html(report) + sent_html(report))
        self._costs.set_content(costs_html(reports))
        if report.cached:
            set_text(
                self._trained, "Nothing was trained: these examples were trained on before, and the adapter was kept."
            )
        elif not report.trained_tokens:
            set_text(self._trained, "Nothing was trained.")
        self._save_box.set_visibility(question.can_be_saved and self._visit.caller.may("train"))

    async def _save(self) -> None:
        if self._question is None:
            return
        try:
            caller = await self._visit.allowed("train")
            named = self._question.save(_adapter_name(self._name.value or ""), caller)
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
            ui.notify(told(error), type="negative")
            return
        self._form.refresh_models(self._form.model)
        ui.notify(f"Saved. Ask it as the model {named.model_id}.", type="positive")

    def _share(self) -> None:
        address = str(self._visit.request.base_url).rstrip("/") + self._form.address()
        ui.clipboard.write(address)
        ui.navigate.history.replace(self._form.address())
        kept = "" if self._form.ready_name else " What you typed is not in it."
        ui.notify(f"The address of this page with its settings was copied.{kept}")

    def _copy(self) -> None:
        try:
            body = self._form.body()
        except DataError as error:
            set_text(self._problem, told(error))
            return
        server = str(self._visit.request.base_url).rstrip("/")
        made = snippets(body, server=server, with_key=self._visit.sessions.needed)
        with ui.dialog() as dialog, ui.element("div").classes("card").style("width: min(46rem, 92vw)"):
            heading("The same request elsewhere")
            with ui.tabs().props("dense align=left") as tabs:
                for name in ("curl", "Python", "command line"):
                    ui.tab(name)
            with ui.tab_panels(tabs, value="curl"):
                for name, text in (("curl", made.curl), ("Python", made.python), ("command line", made.command)):
                    with ui.tab_panel(name):
                        _snippet(text)
            secondary("Close").on_click(dialog.close)
        dialog.open()


def _snippet(text: str) -> None:
    def copy() -> None:
        ui.clipboard.write(text)
        ui.notify("Copied.")

    shown = ui.html(f"<pre>{html.escape(text)}</pre>", sanitize=False).classes("prompt-text")
    shown.props('tabindex="0" role="group" aria-label="Request"')
    secondary("Copy", "content_copy").on_click(copy)


def _adapter_name(name: str) -> str:
    try:
        checked: str = TypeAdapter(AdapterName).validate_python(name.strip())
    except ValidationError:
        raise DataError(
            f"{name[:80]!r} is no name of an adapter; use letters, digits, dashes and underscores, at most 64"
        ) from None
    return checked


def paragraph_html(text: str) -> str:
    """Return plain text as a paragraph of HTML."""
    return f"<p>{html.escape(text)}</p>"


def gate_sentence(report: AskReport) -> str:
    """Return the gate's two probabilities as a sentence; empty where the explanation of the report has them."""
    base, adapted = report.icl_confidence, report.metadata.confidence_score
    if base is None:
        return ""
    if report.status == "adapted":
        # The explanation has said the numbers.
        return "" if report.calibrated else "The probabilities are estimated from held-out examples alone."
    how = "estimated by a fit to many tasks" if report.calibrated else "estimated from held-out examples alone"
    if adapted is None:
        return f"The base model is right with probability {base:.0%} ({how}); no adapter was tried."
    return f"The adapted model is right with probability {adapted:.0%}, the base model with {base:.0%} ({how})."


def held_out_html(report: AskReport) -> str:
    """Return a table of the held-out examples, without and with adapting; empty where none were held out."""
    before, after, count = report.held_out_before, report.held_out_after, report.metadata.examples_used
    if before is None:
        return ""
    rows: list[list[Any]] = [["base model", f"{before:.0%}"]]
    rows.append(["adapted to the other examples", "not tried" if after is None else f"{after:.0%}"])
    return table_html(["Held-out examples answered exactly", f"of {count}"], rows, numbers=[1])


def costs_html(reports: dict[Side, AskReport]) -> str:
    """Return a table of the seconds that each part of a request took."""
    sides = [side for side in _SIDES if side in reports]
    parts = [part for part in _PARTS if any(reports[side].seconds.get(part) for side in sides)]
    rows: list[list[Any]] = [
        [_PARTS[part], *(_seconds(reports[side].seconds.get(part)) for side in sides)] for part in parts
    ]
    rows.append(["All, with waiting", *(_seconds(reports[side].seconds.get("total")) for side in sides)])
    rows.append(["Memory beyond the model", *(f"{reports[side].peak_bytes / 2**20:.1f} MiB" for side in sides)])
    rows.append(["Tokens of the prompt", *(str(reports[side].prompt_tokens) for side in sides)])
    rows.append(["Tokens trained on", *(str(reports[side].trained_tokens) for side in sides)])
    columns = ["", *(_SIDES[side][0] for side in sides)]
    return table_html(columns, rows, numbers=range(1, len(columns)))


def sent_html(report: AskReport) -> str:
    """Return the text that the answer followed, folded; empty where it is not known."""
    if not report.prompt_sent:
        return ""
    shown = f'<div class="prompt-text" tabindex="0">{html.escape(report.prompt_sent)}</div>'
    return f"<details><summary>What was sent to the model</summary>{shown}</details>"


def _warnings_html(report: AskReport) -> str:
    return "".join(f'<p class="note">{html.escape(warning)}</p>' for warning in report.warnings)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"
