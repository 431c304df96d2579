"""``acclimate serve``, ``acclimate config`` and ``acclimate keys``: the server, its settings and its API keys."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.table import Table

from acclimate.cli.terminal import reports_input_errors, set_up_logging, stdout
from acclimate.extras import is_installed, require

Command = TypeVar("Command", bound=Callable[..., Any])
_DEFAULT_KEYS: Final = Path("acclimate_keys.json")

_config_option = click.option(
    "--config", type=click.Path(path_type=Path), envvar="ACCLIMATE_SERVE_CONFIG", show_envvar=True, help="TOML file."
)


def _flags(command: Command) -> Command:
    """Add the settings that are typed most; each of them, and all others, can stand in the file or the environment."""
    for option in (
        click.option("--set", "others", multiple=True, metavar="NAME=VALUE", help="Any other setting."),
        click.option("--record/--no-record", default=None, help="Write a row to the metrics store for every answer."),
        click.option("--db", metavar="PATH_OR_URL", help="The metrics store."),
        click.option("--ray-address", help="Cluster of --engine ray.  [default: one on this machine alone]"),
        click.option("--replicas", type=int, help="Replicas of --engine ray.  [default: 2]"),
        click.option(
            "--engine", type=click.Choice(["here", "ray"]), help="Serve from this process, or from replicas on Ray."
        ),
        click.option(
            "--vllm-adapter-folder",
            type=click.Path(path_type=Path),
            help="Folder that this server and vLLM see at the same path.",
        ),
        click.option("--vllm-api-key-env", metavar="NAME", help="Environment variable with vLLM's API key."),
        click.option("--vllm-url", help="Address of vLLM's server, such as http://127.0.0.1:8000."),
        click.option(
            "--generate-with", type=click.Choice(["here", "vllm"]), help="Where answers to text are generated."
        ),
        click.option(
            "--adapter-store",
            metavar="PATH_OR_URL",
            help="Folder, or fsspec path, where trained adapters are kept and shared with other servers.",
        ),
        click.option("--threads", type=int, help="Threads of torch."),
        click.option("--device", help="torch's name of the device."),
        click.option("--insecure", is_flag=True, default=None, help="Listen on any address without API keys."),
        click.option("--keys-file", type=click.Path(path_type=Path), help="API keys; see acclimate keys."),
        click.option("--port", type=int, help="Port; 0 takes a free one.  [default: 8420]"),
        click.option("--host", help="Address to listen on.  [default: 127.0.0.1]"),
        click.option("--model", "models", multiple=True, help="Model to serve; may be repeated.  [default: smollm2]"),
        _config_option,
    ):
        command = option(command)
    return command


def _settings(given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from acclimate.errors import ConfigError
    from acclimate.serve.settings import read_settings

    flags = {name: value for name, value in given.items() if name not in ("config", "others")}
    flags["models"] = tuple(flags["models"]) or None
    for pair in given["others"]:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair!r} has no value; give NAME=VALUE")
        flags[name.strip()] = value
    return read_settings(flags, config=given["config"])


@click.command("serve", short_help="Serve models over HTTP, as OpenAI's API.")
@_flags
@reports_input_errors
def serve_command(**given: Any) -> None:
    """Serve language models over HTTP, with OpenAI's API.

    Requests that show worked examples are adapted to them where that helps. Settings come from a TOML file, then from
    environment variables (ACCLIMATE_SERVE_PORT), then from options; acclimate config show prints them.
    """
    require("serve", "acclimate serve")
    start(given)


def start(given: dict[str, Any], *, ready: Callable[[str], None] | None = None) -> None:
    """Run the server until it is told to end, with the web page where that is installed.

    Args:
        given: settings by name, and ``config`` and ``others`` as on the command line.
        ready: called with the address as soon as requests are answered.
    """
    settings, _ = _settings(given)
    set_up_logging(False)
    logging.getLogger("acclimate").setLevel(settings.log_level.upper())
    if settings.engine == "ray":
        require("ray", "--engine ray")
        from acclimate.scale.serving import run as run_replicas

        run_replicas(settings, announce=lambda line: click.echo(line, err=True), ready=ready)
        return
    from acclimate.serve.server import run

    extend = None
    if settings.page and is_installed("ui"):
        from acclimate.ui.site import add_page

        extend = add_page
    run(settings, announce=lambda line: click.echo(line, err=True), extend=extend, ready=ready)


@click.group("config", short_help="Show the server's settings.")
def config_group() -> None:
    """Settings of the server."""


@config_group.command("show")
@_flags
@reports_input_errors
def show_command(**given: Any) -> None:
    """Print every setting of the server as TOML, with where its value comes from and what it is."""
    require("serve", "acclimate config show")
    settings, sources = _settings(given)
    without_effect = settings.without_effect()
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        # TOML has no null: what is not set is a comment. So is what a server would refuse.
        shown = f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
        if value is not None and name in without_effect:
            shown = f"# {shown} needs {without_effect[name]}"
        click.echo(f"{shown}  # {sources[name]}: {field.description}")


def _toml(value: Any) -> str:
    """Return a value as TOML writes it, which for these types is as JSON does."""
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value if isinstance(value, bool | int | float) else str(value))


@click.group("keys", short_help="Create, list and revoke API keys of the server.")
def keys_group() -> None:
    """API keys of the server."""


_file_option = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path),
    default=_DEFAULT_KEYS,
    show_default=True,
    envvar="ACCLIMATE_SERVE_KEYS_FILE",
    show_envvar=True,
    help="Where the keys are kept, without their secrets.",
)


@keys_group.command("create")
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, help="infer, train or admin; may be repeated.  [default: infer, train]"
)
@_file_option
@reports_input_errors
def create_command(name: str, scopes: tuple[str, ...], path: Path) -> None:
    """Create a key called NAME and print it, once: only a hash of it is kept."""
    require("serve", "acclimate keys")
    from acclimate.serve.keys import KeyFile

    key, secret = KeyFile(path).create(name, scopes or ("infer", "train"))
    click.echo(secret)
    click.echo(f"key {key.id} of {key.name} may {' and '.join(key.scopes)}; {path} keeps its hash", err=True)


@keys_group.command("list")
@_file_option
@reports_input_errors
def list_command(path: Path) -> None:
    """List the keys."""
    require("serve", "acclimate keys")
    from acclimate.serve.keys import KeyFile

    table = Table("id", "name", "scopes", "created", "revoked")
    for key in KeyFile(path).all():
        table.add_row(key.id, key.name, " ".join(key.scopes), key.created, key.revoked or "")
    stdout().print(table)


@keys_group.command("revoke")
@click.argument("key_id", metavar="ID")
@_file_option
@reports_input_errors
def revoke_command(key_id: str, path: Path) -> None:
    """Revoke the key with this ID; a server that is running refuses it from its next request on."""
    require("serve", "acclimate keys")
    from acclimate.serve.keys import KeyFile

    key = KeyFile(path).revoke(key_id)
    click.echo(f"key {key.id} of {key.name} is revoked")
