"""``acclimate ui``: the server and its web page on this machine, opened in the browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

import click

from acclimate.cli.serve import start
from acclimate.cli.terminal import reports_input_errors
from acclimate.extras import require


@click.command("ui", short_help="Open the web page: try both pipelines, watch, operate.")
@click.option("--model", "models", multiple=True, help="Model to serve; may be repeated.  [default: spark]")
@click.option("--images", "image_folder", type=click.Path(path_type=Path), help="Folder of images to try.")
@click.option(
    "--image-model",
    "image_models",
    multiple=True,
    metavar="ADAPTER:MODEL",
    help="Further model for images: transformers:FOLDER or torch:PACKAGE.MODULE:FACTORY; may be repeated.",
)
@click.option("--port", type=int, default=8420, show_default=True, help="Port; 0 takes a free one.")
@click.option("--db", metavar="PATH_OR_URL", help="The metrics store.")
@click.option("--open/--no-open", "opens", default=True, show_default=True, help="Open the page in the browser.")
@reports_input_errors
def ui_command(
    models: tuple[str, ...],
    image_folder: Path | None,
    image_models: tuple[str, ...],
    port: int,
    db: str | None,
    opens: bool,
) -> None:
    """Serve the web page on this machine, for yourself, and open it in the browser.

    It is acclimate serve with the model that ships with the package, on the loopback address, without API keys.
    """
    require("ui", "acclimate ui")
    given: dict[str, Any] = {"models": models or ("spark",), "image_folder": image_folder, "port": port, "db": db}
    given["image_models"] = image_models or None
    # Replicas have no page.
    given["engine"] = "here"

    def ready(address: str) -> None:
        click.echo(f"the page is at {address}/ (Ctrl-C ends it)", err=True)
        if opens:
            webbrowser.open(f"{address}/")

    start({**given, "config": None, "others": ()}, ready=ready)
