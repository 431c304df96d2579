"""The page that operates the server: adapters, API keys, experiments, old rows, health."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable
from typing import Any, Final

from nicegui import ui
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from acclimate.errors import DataError
from acclimate.language.training.adapter_cache import KeptAdapter
from acclimate.monitoring import Arm, Experiment, Store, Window, check, maintain, suggest
from acclimate.monitoring.experiments import create, list_experiments, stop
from acclimate.serve.experiments import Assigner
from acclimate.serve.keys import SCOPES, KeyFile, Scope
from acclimate.serve.library import NamedAdapter
from acclimate.serve.schemas import AdapterName
from acclimate.ui.frame import card, framed, heading, paragraph, primary, raw_badge, secondary, table_html
from acclimate.ui.visit import Visit, told

_POLICIES: Final = {"gate": "the gate decides", "always": "always adapt", "never": "never adapt"}
_HEALTH_DAYS: Final = 7.0
_SCOPES_IN_WORDS: Final[dict[Scope, str]] = {
    "infer": "ask models, see its own requests",
    "train": "adapt to examples, make adapters",
    "admin": "everything, others' requests included",
}


async def show(visit: Visit) -> None:
    """Draw the page: adapters for everybody, the rest for administrators."""
    with framed(visit, "/operate"):
        heading("Operate", 1)
        paragraph("Adapters, API keys, experiments, old rows and health of this server.", "lead")
        is_admin = visit.caller.may("admin")
        with ui.element("div").classes("stack"):
            _Adapters(visit).draw()
            if not is_admin:
                paragraph("The rest of this page needs a key with the scope admin.", "note")
                return
            with ui.element("div").classes("half"):
                _Keys(visit).draw()
                _Experiments(visit).draw()
                _Maintenance(visit).draw()
                _Health(visit).draw()


class _Section:
    """A part of the page that acts for its visitor and says what went wrong."""

    scope: Scope = "admin"

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    @property
    def _store(self) -> Store:
        store = self._visit.parts.telemetry.store
        if store is None:
            raise DataError("this server records nothing; start it with --record")
        return store

    async def _act(self, act: Callable[[], Any], *, in_thread: bool = True, scope: Scope | None = None) -> Any:
        """Do something that the visitor must be allowed to do; tell what went wrong, and return None then."""
        try:
            await self._visit.allowed(scope or self.scope)
            return await run_in_threadpool(act) if in_thread else act()
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
            ui.notify(told(error), type="negative", timeout=8000)
            return None

    async def _did(self, act: Callable[[], object], *, in_thread: bool = True, scope: Scope | None = None) -> bool:
        """Do something as :meth:`_act` does, and return whether it was done: only then anything new is shown."""

        def acted() -> bool:
            act()
            return True

        return await self._act(acted, in_thread=in_thread, scope=scope) is True


class _Adapters(_Section):
    scope: Scope = "train"

    def draw(self) -> None:
        with card("Adapters"):
            self._named = ui.element("div").classes("stack").style("gap: .35rem")
            heading("Kept from requests", 3)
            paragraph(
                "The adapters of past requests; the least recently used ones are dropped where memory ends.", "note"
            )
            self._kept = ui.element("div").classes("stack").style("gap: .35rem")
        self._refresh()

    def _refresh(self) -> None:
        self._named.clear()
        self._kept.clear()
        service, caller = self._visit.parts.service, self._visit.caller
        with self._named:
            found = service.library.of(caller.id, sees_all=caller.may("admin"))
            if not found:
                paragraph("No adapter has a name yet. The language page saves them, and POST /v1/adapters.", "note")
            for named in found:
                self._draw_named(named)
        with self._kept:
            if not caller.may("admin"):
                paragraph("Shown to administrators.", "note")
                return
            empty = True
            for name, served in service.models.items():
                for kept in served.cache.kept():
                    empty = False
                    self._draw_kept(name, kept)
            if empty:
                paragraph("None.", "note")

    def _draw_named(self, named: NamedAdapter) -> None:
        with ui.element("div").classes("row spread"):
            size = f"{named.adapter.held_bytes / 2**20:.1f} MiB"
            ui.label(f"{named.model_id}: {len(named.examples)} examples, rank {named.adapter.rank}, {size}")
            with ui.element("div").classes("row"):
                name = ui.input(label="New name").props("outlined dense").style("width: 9rem")
                secondary("Rename").props("dense").on_click(lambda: self._rename(named, str(name.value or "")))
                remove = ui.button("Delete", color=None).classes("danger").props("dense flat")
                remove.on_click(lambda: _confirmed(f"Delete {named.model_id}?", lambda: self._delete(named)))

    def _draw_kept(self, model: str, kept: KeptAdapter) -> None:
        what = f"rank {kept.rank}, {kept.held_bytes / 2**20:.1f} MiB" if kept.rank else "adapting was declined"
        words = f"{model} {kept.key[:10]}: {kept.examples} examples, {what}, uses since: {kept.usage_count}"
        with ui.element("div").classes("row spread"):
            ui.label(words)
            with ui.element("div").classes("row"):
                pin = secondary("Unpin" if kept.is_pinned else "Pin").props("dense")
                pin.on_click(lambda: self._pin(model, kept.key, not kept.is_pinned))
                drop = ui.button("Drop", color=None).classes("danger").props("dense flat")
                drop.on_click(lambda: self._drop(model, kept.key))

    async def _rename(self, named: NamedAdapter, name: str) -> None:
        def act() -> NamedAdapter:
            try:
                checked = TypeAdapter(AdapterName).validate_python(name.strip())
            except ValidationError:
                raise DataError("a name has letters, digits, dashes and underscores, at most 64") from None
            return self._visit.parts.service.library.rename(named, checked)

        renamed = await self._act(act, in_thread=False)
        if renamed is not None:
            ui.notify(f"It is asked as {renamed.model_id} now.", type="positive")
            self._refresh()

    async def _delete(self, named: NamedAdapter) -> None:
        if await self._did(lambda: self._visit.parts.service.library.remove(named), in_thread=False):
            self._refresh()

    async def _pin(self, model: str, key: str, is_pinned: bool) -> None:
        cache = self._visit.parts.service.models[model].cache
        if await self._did(lambda: cache.pin(key, is_pinned), in_thread=False, scope="admin"):
            self._refresh()

    async def _drop(self, model: str, key: str) -> None:
        cache = self._visit.parts.service.models[model].cache
        if await self._did(lambda: cache.remove(key), in_thread=False, scope="admin"):
            self._refresh()


class _Keys(_Section):
    def draw(self) -> None:
        with card("API keys"):
            keys = self._visit.parts.access.keys
            if keys is None:
                paragraph("This server asks for no API keys: whoever reaches it may do everything.", "note")
                return
            self._list = ui.element("div").classes("stack").style("gap: .35rem")
            heading("New key", 3)
            with ui.element("div").classes("stack").style("gap: 0"):
                self._name = ui.input(label="Name").props("outlined dense").style("max-width: 20rem")
                self._scopes = {
                    scope: ui.checkbox(f"{scope}: {words}", value=scope != "admin")
                    for scope, words in _SCOPES_IN_WORDS.items()
                }
            primary("Create").on_click(lambda: self._create(keys))
            self._made = ui.html("", sanitize=False)
            self._refresh(keys)

    def _refresh(self, keys: KeyFile) -> None:
        self._list.clear()
        with self._list:
            for key in keys.all():
                with ui.element("div").classes("row spread"):
                    ended = f", revoked {key.revoked[:10]}" if key.revoked else ""
                    ui.label(f"{key.name} ({key.id}): {', '.join(key.scopes)}, made {key.created[:10]}{ended}")
                    if key.revoked is None:
                        revoke = ui.button("Revoke", color=None).classes("danger").props("dense flat")
                        revoke.on_click(
                            lambda key=key: _confirmed(
                                f"Revoke the key {key.name} ({key.id})?", lambda: self._revoke(keys, key.id)
                            )
                        )

    async def _create(self, keys: KeyFile) -> None:
        scopes = [scope for scope in SCOPES if self._scopes[scope].value]
        made = await self._act(lambda: keys.create(str(self._name.value or ""), scopes))
        if made is None:
            return
        _, secret = made
        words = "The key is shown this once; only a hash of it is kept:"
        self._made.set_content(f"<p>{words}</p><div class='prompt-text'>{html.escape(secret)}</div>")
        self._refresh(keys)

    async def _revoke(self, keys: KeyFile, key_id: str) -> None:
        if await self._did(lambda: keys.revoke(key_id)):
            self._refresh(keys)


class _Experiments(_Section):
    def draw(self) -> None:
        with card("Experiments"):
            if self._visit.parts.telemetry.store is None:
                paragraph("Experiments need a metrics store; start the server with --record.", "note")
                return
            self._list = ui.element("div").classes("stack").style("gap: .35rem")
            heading("New experiment", 3)
            with ui.element("div").classes("fields"):
                self._name = ui.input(label="Name").props("outlined dense")
                self._control = ui.select(_POLICIES, value="never", label="Control arm").props("outlined dense")
                self._treatment = ui.select(_POLICIES, value="gate", label="Treatment arm").props("outlined dense")
                self._share = ui.number(label="Share of the treatment", value=0.5, min=0.05, max=0.95, step=0.05)
                self._share.props("outlined dense")
            primary("Create").on_click(self._create)
            ui.timer(0, self._refresh, once=True)

    async def _refresh(self) -> None:
        found = await self._act(lambda: list_experiments(self._store)) or []
        active = self._visit.parts.experiment.name
        self._list.clear()
        with self._list:
            if not found:
                paragraph("None yet.", "note")
            for made in found:
                self._draw_one(made, active)

    def _draw_one(self, made: Experiment, active: str | None) -> None:
        with ui.element("div").classes("row spread"):
            state = "requests are assigned to it" if made.name == active else "no requests are assigned to it"
            if made.stopped_at is not None:
                state = f"stopped {made.stopped_at[:10]}"
            ui.label(f"{made.name}: {made.arms[0].name} against {made.arms[1].name}, {state}")
            if made.stopped_at is None:
                with ui.element("div").classes("row"):
                    if made.name != active:
                        secondary("Assign requests").props("dense").on_click(lambda: self._begin(made.name))
                    end = ui.button("Stop", color=None).classes("danger").props("dense flat")
                    end.on_click(lambda: _confirmed(f"Stop {made.name} for good?", lambda: self._stop(made.name)))

    async def _create(self) -> None:
        share = float(self._share.value or 0.5)
        policies = str(self._control.value), str(self._treatment.value)

        def act() -> Experiment:
            if policies[0] == policies[1]:
                raise DataError("both arms answer alike; choose two ways")
            made = Experiment(
                name=str(self._name.value or ""),
                arms=(
                    Arm("ICL" if policies[0] == "never" else policies[0], 1 - share, {"policy": policies[0]}),
                    Arm("TTT" if policies[1] == "gate" else policies[1], share, {"policy": policies[1]}),
                ),
            )
            create(self._store, made)
            return made

        if await self._act(act) is not None:
            await self._refresh()

    async def _begin(self, name: str) -> None:
        if await self._did(lambda: self._visit.parts.experiment.begin(Assigner.of(self._store, name))):
            await self._refresh()

    async def _stop(self, name: str) -> None:
        def act() -> None:
            stop(self._store, name)
            if self._visit.parts.experiment.name == name:
                self._visit.parts.experiment.end()

        if await self._did(act):
            await self._refresh()


class _Maintenance(_Section):
    def draw(self) -> None:
        with card("Old rows"):
            paragraph("Rows older than this are deleted; what would be deleted is counted first.", "note")
            with ui.element("div").classes("row"):
                self._days = ui.number(label="Keep days", value=30, min=1, max=3650, step=1).props("outlined dense")
                self._days.on_value_change(self._days_changed)
                secondary("Count").on_click(lambda: self._run(float(self._days.value or 30), dry=True))
                self._delete = ui.button("Delete", color=None).classes("danger").props("flat")
                self._delete.on_click(self._ask)
                self._delete.set_enabled(False)
            self._found = ui.html("", sanitize=False)

    def _days_changed(self) -> None:
        # What was counted is no longer what would be deleted.
        self._delete.set_enabled(False)

    def _ask(self) -> None:
        days = float(self._days.value or 30)
        question = f"Delete what is older than {days:g} days, for good?"
        _confirmed(question, lambda: self._run(days, dry=False))

    async def _run(self, days: float, *, dry: bool) -> None:
        actor = self._visit.caller.id or "page"
        done = await self._act(lambda: maintain(self._store, keep_days=days, dry_run=dry, actor=actor))
        if done is None:
            return
        word = "would be deleted" if dry else "deleted"
        rows = [[table.replace("_", " "), count] for table, count in done.removed.items() if count]
        none = f"<p>Nothing is older than {days:g} days.</p>"
        self._found.set_content(table_html(["table", word], rows, numbers=(1,)) if rows else none)
        # Only what was counted with these days can be deleted.
        self._delete.set_enabled(dry and bool(rows))


class _Health(_Section):
    def draw(self) -> None:
        with card("Health"):
            paragraph(f"Every indicator over the last {_HEALTH_DAYS:g} days, and advice on settings.", "note")
            primary("Check").on_click(self._check)
            self._verdict = ui.html("", sanitize=False)

    async def _check(self) -> None:
        window = Window.last(days=_HEALTH_DAYS)
        found = await self._act(lambda: (check(self._store, window), suggest(self._store, window)))
        if found is None:
            return
        health, advice = found
        kind = {"healthy": "ok", "alerts": "alert"}.get(health.verdict, "off")
        lines = "".join(f"<li>{html.escape(m.line_with_state)}</li>" for m in health.measurements.values())
        notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in health.notes)
        hints = "".join(
            f"<h3>{html.escape(hint.symptom)}</h3><p>{html.escape(hint.change)}</p>"
            f"<p class='note'>{html.escape(hint.evidence)} {html.escape(hint.expected)}</p>"
            for hint in advice
        )
        self._verdict.set_content(
            f"<p>{raw_badge(kind, health.verdict)} {html.escape(health.summary)}</p><ul>{lines}</ul>{notes}{hints}"
        )


def _confirmed(question: str, act: Callable[[], Awaitable[None]]) -> None:
    """Ask whether something is really meant, and do it then."""
    with ui.dialog() as dialog, ui.element("div").classes("card"):
        paragraph(question)

        async def yes() -> None:
            dialog.close()
            await act()

        with ui.element("div").classes("row"):
            sure = ui.button("Yes", color=None).classes("danger").props("flat")
            sure.on_click(yes)
            secondary("No").on_click(dialog.close)
    dialog.open()
