"""What a visitor asks: a prompt or rows of examples, the model, and every setting of adapting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from nicegui import ui
from pydantic import ValidationError

from acclimate.errors import DataError
from acclimate.language.patterns import detect
from acclimate.serve.schemas import ChatRequest
from acclimate.serve.service import ServedModel
from acclimate.ui.frame import heading, number_field, paragraph, secondary, set_text
from acclimate.ui.reading_shown import marked_html, summary
from acclimate.ui.ready_prompts import READY, ready_prompt
from acclimate.ui.visit import Visit

_MODES: Final = {"auto": "the gate decides", "force": "always adapt", "off": "never adapt"}
#: Settings that are part of a shared address, with the type that is read from it.
_SHARED: Final = {
    "rank": int,
    "steps": int,
    "votes": int,
    "confidence_threshold": float,
    "budget_s": float,
    "max_tokens": int,
    "temperature": float,
    "seed": int,
}
_OF_ADAPTING: Final = ("rank", "steps", "votes", "confidence_threshold", "budget_s")
_FIRST_ROWS: Final = tuple((word, f"<q>{word}</q>") for word in ("stone", "lamp", "river", "cabin"))
#: Pause in typing after which the prompt is read again.
_PAUSE_MS: Final = 250


@dataclass(slots=True)
class _Row:
    given: Any
    wanted: Any


class Form:
    """The inputs of the language page.

    Args:
        visit: of the page.
    """

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self.ready_name = ""
        self._fields: dict[str, Any] = {}
        self._rows: list[_Row] = []

    def draw(self) -> None:
        """Draw the inputs; the page's address says what they begin with."""
        begin = ready_prompt(self._visit.parameter("example")) or READY[0]
        self.ready_name = begin.name
        with ui.element("div").classes("row"):
            ready = ui.select(
                {prompt.name: prompt.title for prompt in READY}, value=begin.name, label="Ready examples"
            ).props("outlined dense options-dense")
            ready.style("flex: 1; min-width: 14rem").on_value_change(lambda event: self._take(event.value))
        with ui.tabs().props("dense align=left inline-label aria-label='How to give examples'") as self._tabs:
            ui.tab("prompt", "Prompt")
            ui.tab("rows", "Rows of examples")
        with ui.tab_panels(self._tabs, value="prompt").props("keep-alive").classes("full"):
            with ui.tab_panel("prompt"):
                self._draw_prompt(begin.prompt)
            with ui.tab_panel("rows"):
                self._draw_rows()
        self._draw_settings()

    def body(self) -> ChatRequest:
        """Return the request that the inputs make.

        Raises:
            DataError: something is missing or out of range.
        """
        given = {name: kind(value) for name, kind in _SHARED.items() if (value := self._fields[name].value) is not None}
        ttt: dict[str, Any] = {name: given.pop(name) for name in _OF_ADAPTING if name in given}
        ttt["mode"] = self._mode.value
        text = self._prompt.value or ""
        if self._tabs.value == "rows":
            text = self._query.value or ""
            pairs = [(row.given.value or "", row.wanted.value or "") for row in self._rows]
            ttt["examples"] = [{"input": given, "output": wanted} for given, wanted in pairs if given or wanted]
            if not ttt["examples"]:
                raise DataError("there is no example; fill in a row, or use the prompt")
        if not text.strip():
            raise DataError("there is nothing to answer; type a prompt or a question")
        try:
            return ChatRequest.model_validate(
                {"model": self.model, "messages": [{"role": "user", "content": text}], "ttt": ttt, **given}
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{where}: {first['msg']}") from error

    @property
    def model(self) -> str:
        """The model, or the adapter, that is asked."""
        return str(self._model.value)

    def address(self) -> str:
        """Return the address of this page with its settings; what was typed is not in it."""
        values: dict[str, Any] = {"model": self.model, "mode": self._mode.value}
        values |= {name: self._fields[name].value for name in _SHARED if self._fields[name].value is not None}
        if self.ready_name:
            values["example"] = self.ready_name
        return f"/?{urlencode(values)}"

    def refresh_models(self, chosen: str) -> None:
        """Offer adapters that were made since."""
        self._model.set_options(self._models(), value=chosen)

    def _draw_prompt(self, begin: str) -> None:
        self._prompt = ui.textarea(label="Prompt with worked examples", value=begin)
        self._prompt.props(f'outlined autogrow debounce={_PAUSE_MS} input-class="code" spellcheck=false').style(
            "width: 100%"
        )
        self._prompt.on_value_change(self._read)
        self._summary = paragraph("", "note").props('aria-live="polite"').style("margin-top: .75rem")
        with ui.element("div").classes("row").style("margin-bottom: .35rem"):
            for kind, name in (("input", "input"), ("output", "output"), ("query", "question")):
                ui.label(name).classes(f"key {kind}")
            ui.label("unmarked: instruction").classes("note")
        self._shown = (
            ui.html("", sanitize=False)
            .classes("prompt-text")
            .props('tabindex="0" aria-label="The prompt as it was read" role="group"')
        )
        self._read()

    def _draw_rows(self) -> None:
        self._row_box = ui.element("div").classes("stack").style("gap: .5rem")
        for given, wanted in _FIRST_ROWS:
            self._add_row(given, wanted)
        secondary("Add a row", "add").props("dense").on_click(lambda: self._add_row("", ""))
        self._query = (
            ui.input(label="Question", value="melon").props("outlined dense").style("width: 100%; margin-top: .5rem")
        )

    def _add_row(self, given: str, wanted: str) -> None:
        most = self._visit.parts.service.settings.max_examples
        if len(self._rows) >= most:
            ui.notify(f"{most} examples are the most that are adapted to.", type="negative")
            return
        with self._row_box, ui.element("div").classes("example-row") as box:
            number = len(self._rows) + 1
            row = _Row(
                ui.input(label=f"Input {number}", value=given).props("outlined dense"),
                ui.input(label=f"Output {number}", value=wanted).props("outlined dense"),
            )
            remove = ui.button(icon="close", color=None).props(f'flat dense round aria-label="Remove row {number}"')

        def removed() -> None:
            if row in self._rows:
                self._rows.remove(row)
                box.delete()

        remove.on_click(removed)
        self._rows.append(row)

    def _draw_settings(self) -> None:
        models = self._models()
        wanted = self._visit.parameter("model")
        served = next(iter(self._visit.parts.service.models.values()))
        heading("Settings", 3)
        with ui.element("div").classes("fields"):
            self._model = ui.select(models, value=wanted if wanted in models else next(iter(models)), label="Model")
            self._model.props("outlined dense options-dense")
            mode = self._visit.parameter("mode", "auto")
            self._mode = ui.select(_MODES, value=mode if mode in _MODES else "auto", label="Adapting")
            self._mode.props("outlined dense options-dense")
        with (
            ui.expansion("All settings, with their defaults").classes("full").props("dense"),
            ui.element("div").classes("fields"),
        ):
            self._draw_numbers(served)

    def _draw_numbers(self, served: ServedModel) -> None:
        settings, recipe = self._visit.parts.service.settings, served.model.recipe
        threshold = f"{served.gate.confidence_threshold:g}" if served.gate.confidence_threshold else "none"
        rows: tuple[tuple[str, str, str, float, float, bool], ...] = (
            ("rank", "Rank of the low-rank weights", str(recipe.rank or "by the number of examples"), 1, 64, True),
            ("steps", "Most training steps", str(recipe.steps or "by the number of examples"), 1, 64, True),
            ("votes", "Votes (orders of the examples)", "1", 1, 16, True),
            ("confidence_threshold", "Least confidence to adapt", threshold, 0, 1, False),
            (
                "budget_s",
                "Most seconds for adapting",
                f"{settings.adaptation_budget_s:g}",
                0,
                settings.adaptation_budget_s,
                False,
            ),
            ("max_tokens", "Longest answer, tokens", "by the examples", 1, settings.max_answer_tokens, True),
            ("temperature", "Temperature", "0: the likeliest answer", 0, 2, False),
            ("seed", "Seed of a drawn answer", "0", 0, 2**31, True),
        )
        for name, label, default, low, high, whole in rows:
            given = _number(self._visit.parameter(name), _SHARED[name])
            inside = given if given is not None and low <= given <= high else None
            self._fields[name] = number_field(label, default, low=low, high=high, whole=whole, value=inside)

    def _models(self) -> dict[str, str]:
        service, caller = self._visit.parts.service, self._visit.caller
        adapters = service.library.of(caller.id, sees_all=caller.may("admin"))
        return {name: name for name in service.models} | {n.model_id: f"{n.model_id} (adapter)" for n in adapters}

    def _take(self, name: str) -> None:
        found = ready_prompt(name)
        if found is not None:
            self.ready_name = name
            self._prompt.set_value(found.prompt)
            self._tabs.set_value("prompt")

    def _read(self) -> None:
        text = self._prompt.value or ""
        known = ready_prompt(self.ready_name)
        if known is not None and text != known.prompt:
            self.ready_name = ""
        detected = detect(text)
        set_text(self._summary, summary(detected))
        self._shown.set_content(marked_html(text, detected))


def _number(text: str, kind: type[int] | type[float]) -> float | None:
    try:
        return kind(text) if text else None
    except ValueError:
        return None
