"""A place where files are dropped or chosen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nicegui import ui
from nicegui.events import UploadEventArguments

from acclimate.ui.frame import secondary
from acclimate.ui.visit import Visit


def upload_box(
    visit: Visit,
    label: str,
    act: Callable[[UploadEventArguments], Awaitable[None]],
    *,
    multiple: bool,
    most: int | None = None,
    accept: str | None = None,
) -> None:
    """Draw a place where files are dropped, and a button that chooses them.

    Args:
        visit: of the page.
        label: of the button.
        act: called with every file that arrived.
        multiple: whether several may be given at once.
        most: how many, at most.
        accept: endings of names that the browser offers, separated by commas.
    """
    limit_mib = visit.parts.service.settings.max_upload_mib
    upload = ui.upload(
        label="or drop files here",
        multiple=multiple,
        auto_upload=True,
        max_file_size=int(limit_mib * 2**20),
        max_files=most,
        on_upload=act,
        on_rejected=lambda: ui.notify(f"A file is larger than {limit_mib:g} MiB, or there are too many."),
    )
    upload.props(f'flat accept="{accept}"' if accept else "flat")
    choose = secondary(label, "upload_file").style("margin-top: .5rem")
    choose.move(target_index=upload.parent_slot.children.index(upload) if upload.parent_slot else 0)
    # In the browser, which opens its dialog for files only there and then.
    choose.on("click", js_handler=f"() => getElement({upload.id}).$refs.qRef.pickFiles()")
