"""What all pages have in common: heading, navigation, theme, and small parts that are used again."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

from nicegui import ui

from acclimate.ui.visit import Visit

TITLE: Final = "acclimate"
#: Below which the page's own files are.
STATIC: Final = "/_page"
#: Keeps the choice between light and dark; no more is stored in the browser.
THEME_COOKIE: Final = "acclimate_theme"
_PAGES: Final = (
    ("/", "Language"),
    ("/images", "Images"),
    ("/files", "Files"),
    ("/watch", "Watch"),
    ("/operate", "Operate"),
)
# In the browser, so that it is at once; the cookie lets the next page begin with the same theme.
_TOGGLE_THEME: Final = f"""() => {{
    const next = !document.body.classList.contains("body--dark");
    Quasar.Dark.set(next);
    document.cookie = "{THEME_COOKIE}=" + (next ? "dark" : "light") + "; path=/; max-age=31536000; samesite=strict";
}}"""
Place = Literal["/", "/images", "/files", "/watch", "/operate"]


@contextmanager
def framed(visit: Visit, place: Place) -> Iterator[None]:
    """Draw the heading, and what the block draws below it.

    Args:
        visit: of the page.
        place: the entry of the navigation that is shown as current.
    """
    ui.add_head_html(f'<link rel="stylesheet" href="{STATIC}/page.css">')
    theme = visit.request.cookies.get(THEME_COOKIE)
    ui.dark_mode({"dark": True, "light": False}.get(theme or ""))
    # Beside NiceGUI's own main landmark, not in it.
    with visit.client.layout, ui.element("header").classes("top") as top:
        with ui.element("a").props('href="/"').classes("brand"):
            ui.element("img").props(f'src="{STATIC}/icon.svg" alt=""')
            ui.label(TITLE)
        with ui.element("nav").props('aria-label="Pages"'):
            for path, title in _PAGES:
                link = ui.element("a").props(f'href="{path}"')
                if path == place:
                    link.props('aria-current="page"')
                with link:
                    ui.label(title)
        with ui.element("div").classes("right"):
            if visit.sessions.needed:
                ui.label(f"{visit.caller.name or visit.caller.id} ({', '.join(visit.caller.scopes)})").classes("who")
                session = visit.sessions.find(visit.token or "")
                if session is not None:
                    _sign_out(session.form_token)
            with ui.element("button").props('type="button" aria-label="Light or dark"').classes("plain") as button:
                ui.label("Light / dark")
            button.on("click", js_handler=_TOGGLE_THEME)
    top.move(target_index=0)
    with ui.element("div").classes("page") as content:
        yield
    ui.skip_link("Skip to the content", target=content)


def _sign_out(form_token: str) -> None:
    with ui.element("form").props('method="post" action="/logout"'):
        ui.element("input").props(f'type="hidden" name="token" value="{form_token}"')
        with ui.element("button").props('type="submit"').classes("plain"):
            ui.label("Sign out")


def heading(text: str, level: Literal[1, 2, 3] = 2) -> ui.element:
    """Draw a heading and return it."""
    return ui.html(html.escape(text), tag=f"h{level}", sanitize=False)


def paragraph(text: str, classes: str = "") -> ui.html:
    """Draw a paragraph of plain text and return it; :func:`set_text` changes it."""
    return ui.html(html.escape(text), tag="p", sanitize=False).classes(classes)


def set_text(element: ui.html, text: str) -> None:
    """Replace the plain text of a paragraph."""
    element.set_content(html.escape(text))


@contextmanager
def card(title: str | None = None, *, label: str | None = None, classes: str = "") -> Iterator[ui.element]:
    """Draw a section in a box, with its heading."""
    name = html.escape(label or title or "", quote=True)
    with ui.element("section").classes(f"card {classes}").props(f'aria-label="{name}"' if name else "") as box:
        if title is not None:
            heading(title)
        yield box


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[int] = ()) -> ui.html:
    """Draw a table of plain values and return it.

    Args:
        columns: their headings.
        rows: of values, which are shown as text; those of :func:`raw` as they are.
        numbers: positions of columns that are aligned to the right.
    """
    return ui.html(table_html(columns, rows, numbers=numbers), sanitize=False)


def table_html(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[int] = ()) -> str:
    """Return the HTML of a table; see :func:`table`."""
    kind = [' class="number"' if position in numbers else "" for position in range(len(columns))]
    head = "".join(
        f'<th scope="col"{k}>{html.escape(name)}</th>' if name else "<td></td>"
        for name, k in zip(columns, kind, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{_shown(value)}</td>" for value, k in zip(row, kind, strict=True)) + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    drawn = f'<table class="plain">{head}<tbody>{body}</tbody></table>'
    # Where it is wider than a phone it can be scrolled, with the keyboard too.
    return f'<div class="scroll" tabindex="0">{drawn}</div>'


class Raw(str):
    """Text that is HTML already; made by this package alone, never of what visitors or models write."""

    __slots__ = ()


def raw_link(address: str, text: str) -> Raw:
    """Return a link for a table."""
    return Raw(f'<a href="{html.escape(address, quote=True)}">{html.escape(text)}</a>')


def raw_badge(kind: str, text: str) -> Raw:
    """Return a badge for a table; its colour is of its kind."""
    return Raw(f'<span class="badge {html.escape(kind, quote=True)}">{html.escape(text)}</span>')


def _shown(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    return "" if value is None else html.escape(str(value))


def number_field(label: str, default: str, *, low: float, high: float, whole: bool = True, value: Any = None) -> Any:
    """Draw an input for a number that may be left empty, and return it; the default is shown where it is empty."""
    field = ui.number(label=label, value=value, min=low, max=high, step=1 if whole else 0.05, placeholder=default)
    return field.props(f'outlined dense stack-label clearable clear-icon="close" hint="default: {default}"')


def primary(text: str, icon: str | None = None) -> ui.button:
    """Draw the button for the main action of a section."""
    return ui.button(text, icon=icon, color=None).classes("action").props("unelevated")


def mark_finished(button: ui.button) -> None:
    """Count on a button how often what it started has ended, for programs that press it."""
    count = int(button.props.get("data-finished", 0)) + 1
    button.props(f"data-finished={count}")


def secondary(text: str, icon: str | None = None) -> ui.button:
    """Draw a button for another action."""
    return ui.button(text, icon=icon, color=None).classes("other").props("flat")
