"""Options that more than one command takes, and how they become settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from acclimate.core.selection import FILTER_KINDS
from acclimate.errors import ConfigError
from acclimate.vision.data.images import CorruptionSpec
from acclimate.vision.models.loading import ADAPTERS, AdapterOptions
from acclimate.vision.run.auto import AUTO
from acclimate.vision.run.config import METHOD_NAMES, PRESETS, RESET_POLICIES, USE_SOURCE, WITHOUT_GRADIENT

Command = TypeVar("Command", bound=Callable[..., Any])

# Parameter name at the command line -> field of TTTConfig.
TTT_FIELDS: Final = {
    "ttt_method": "method",
    "ttt_steps": "steps",
    "ttt_lr": "lr",
    "ttt_batch_size": "batch_size",
    "ttt_max_batches": "max_batches",
    "ttt_update_filter": "update_filter",
    "ttt_include": "include",
    "ttt_exclude": "exclude",
    "ttt_mask_prob": "mask_prob",
    "ttt_patch_size": "patch_size",
    "ttt_mask_value": "mask_value",
    "ttt_reset": "reset",
    "ttt_seed": "seed",
    "ttt_guards": "guards",
    "ttt_max_update": "max_update",
    "ttt_max_drift": "max_drift",
    "ttt_collapse_share": "collapse_share",
    "ttt_probe": "probe",
    "ttt_paced": "paced",
    "ttt_max_seconds": "max_seconds",
    "lora_rank": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_targets": "lora_targets",
}


def existing_path(**kwargs: Any) -> click.Path:
    """Return a parameter type for paths that are checked by the library, whose messages say more."""
    return click.Path(path_type=Path, **kwargs)


def model_options(command: Command) -> Command:
    """Add the options that choose and load a model."""
    return _apply(
        command,
        click.option(
            "--adapter",
            type=click.Choice(ADAPTERS),
            default="transformers",
            show_default=True,
            help="What loads and runs the model.",
        ),
        click.option(
            "--model", metavar="NAME", help="A folder or hub name (transformers), or package.module:factory (torch)."
        ),
        click.option("--checkpoint", metavar="FILE", help="Weights for the torch adapter, as safetensors."),
        click.option(
            "--trust-pickle", is_flag=True, help="Allow weights that are not safetensors; loading them runs code."
        ),
        click.option("--device", default="cpu", show_default=True, help="Where to run: cpu, cuda, cuda:1, ..."),
        click.option(
            "--score-threshold",
            type=click.FloatRange(0, 1),
            default=0.05,
            show_default=True,
            help="Detections below are not written.",
        ),
    )


def data_options(command: Command) -> Command:
    """Add the options that say what is predicted."""
    return _apply(
        command,
        click.option("--images-root", type=existing_path(), help="Where the paths of a list or COCO file start."),
        click.option("--max-images", type=click.IntRange(min=1), help="Only the first so many images."),
        click.option(
            "--corrupt",
            metavar="NAME[:SEVERITY]",
            help="Put every image through a corruption first (see acclimate corrupt --list).",
        ),
    )


def ttt_options(command: Command) -> Command:
    """Add the options of test-time training. A preset fills in what is not given."""
    preset = "a preset may say otherwise"
    return _apply(
        command,
        click.option("--ttt-steps", type=int, default=1, help=f"Steps on each batch.  [default: 1; {preset}]"),
        click.option("--ttt-lr", type=float, default=1e-4, help=f"Learning rate.  [default: 0.0001; {preset}]"),
        click.option("--ttt-batch-size", type=int, default=1, help=f"Images in a batch.  [default: 1; {preset}]"),
        click.option("--ttt-max-batches", type=int, help="Adapt on at most so many batches."),
        click.option(
            "--ttt-update-filter",
            type=click.Choice(FILTER_KINDS),
            default="all",
            help=f"Which parameters may move.  [default: all; {preset}]",
        ),
        click.option("--ttt-include", multiple=True, metavar="PATTERN", help="Only parameters that match; repeatable."),
        click.option(
            "--ttt-exclude", multiple=True, metavar="PATTERN", help="Never parameters that match; repeatable."
        ),
        click.option(
            "--ttt-mask-prob", type=float, default=0.6, show_default=True, help="mim: probability of hiding a patch."
        ),
        click.option(
            "--ttt-patch-size", type=int, default=16, show_default=True, help="mim: side of a patch in pixels."
        ),
        click.option(
            "--ttt-mask-value", type=float, default=0.0, show_default=True, help="mim: value of hidden pixels."
        ),
        click.option(
            "--ttt-reset",
            type=click.Choice(RESET_POLICIES),
            default="stream",
            help="stream: adapt, then predict all; sample: each image alone; online: both in one pass.",
        ),
        click.option(
            "--ttt-seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of everything random."
        ),
        click.option(
            "--ttt-option",
            "ttt_options",
            multiple=True,
            metavar="NAME=VALUE",
            help="A field of the method (see docs/methods); repeatable.",
        ),
        click.option(
            "--ttt-source", type=existing_path(), help=f"Unlabelled source images, for {', '.join(USE_SOURCE)}."
        ),
        click.option(
            "--ttt-guards/--no-ttt-guards",
            default=True,
            show_default=True,
            help="Judge every step; roll back what is bad.",
        ),
        click.option(
            "--ttt-max-update",
            type=float,
            default=0.1,
            help=f"Largest step relative to the weights' norm.  [default: 0.1; {preset}]",
        ),
        click.option(
            "--ttt-max-drift",
            type=float,
            default=0.5,
            help=f"Largest distance from the source.  [default: 0.5; {preset}]",
        ),
        click.option(
            "--ttt-collapse-share",
            type=float,
            help="Reset when one class takes more than this share of the last 256 decisions.",
        ),
        click.option(
            "--ttt-probe/--no-ttt-probe",
            default=False,
            help="Compare the entropy on the first batch around every step.",
        ),
        click.option(
            "--ttt-paced/--no-ttt-paced",
            default=False,
            help="Learn only while the stream is new or changes; predict between.",
        ),
        click.option("--ttt-max-seconds", type=float, help="Stop adapting after so many seconds."),
        click.option("--lora-rank", type=int, help="Attach low-rank weights of this rank for the run."),
        click.option("--lora-alpha", type=float, help="Their scale times the rank.  [default: the rank]"),
        click.option(
            "--lora-targets",
            multiple=True,
            metavar="PATTERN",
            help="Layers that get them; repeatable.  [default: every linear layer and convolution]",
        ),
    )


def preset_option(command: Command) -> Command:
    """Add the option that names a preset."""
    names = ", ".join(PRESETS)
    return _apply(
        command,
        click.option(
            "--ttt-preset", metavar="NAME", help=f"{names}, or none for the bare defaults.  [default: the method's own]"
        ),
    )


def method_option(command: Command) -> Command:
    """Add the option that names the method."""
    return _apply(
        command,
        click.option(
            "--ttt-method",
            type=click.Choice((*METHOD_NAMES, AUTO)),
            default="tent",
            show_default=True,
            help="What to do with a batch; auto finds out what suits model and stream, and says why.",
        ),
    )


def adapter_options(values: dict[str, Any]) -> AdapterOptions:
    """Return the model that the options choose."""
    return AdapterOptions(
        adapter=values["adapter"],
        model=values["model"],
        checkpoint=values["checkpoint"],
        trust_pickle=values["trust_pickle"],
        device=values["device"],
        score_threshold=values["score_threshold"],
    )


def corruption(values: dict[str, Any]) -> CorruptionSpec | None:
    """Return the corruption that the options name, if any."""
    return CorruptionSpec.parse(values["corrupt"]) if values.get("corrupt") else None


def refuse_what_has_no_effect(context: click.Context) -> None:
    """Refuse settings that were typed and would be ignored.

    Raises:
        ConfigError: naming the flag and what it needs.
    """
    values = context.params

    def needs(condition: bool, what: str, *names: str) -> None:
        for name in names:
            if not condition and _typed(context, name):
                raise ConfigError(f"--{name.replace('_', '-')} has no effect without {what}; add it, or leave this out")

    needs(not values["images"].is_dir(), "a list or a COCO file as IMAGES", "images_root")
    method = values.get("ttt_method")
    needs(values.get("lora_rank") is not None, "--lora-rank", "lora_alpha", "lora_targets")
    needs(
        values.get("ttt_guards", True), "guards", "ttt_max_update", "ttt_max_drift", "ttt_collapse_share", "ttt_probe"
    )
    if method is not None:
        needs(method == "mim", "--ttt-method mim", "ttt_mask_prob", "ttt_patch_size", "ttt_mask_value")
        needs(method in (*USE_SOURCE, AUTO), f"--ttt-method {', '.join((*USE_SOURCE, AUTO))}", "ttt_source")
        gradient = ("ttt_steps", "ttt_lr", "ttt_update_filter", "ttt_include", "ttt_exclude", "lora_rank", "ttt_paced")
        needs(method not in WITHOUT_GRADIENT, f"a method that learns ({method} has no gradient)", *gradient)
        needs(
            method != "memo",
            "a method that learns from the stream (memo takes each image alone)",
            "ttt_steps",
            "ttt_paced",
        )
        needs(values["tta"], "--tta", "tta_seed", "tta_flip_prob", "tta_norm_only")
        if values["ttt"] and _typed(context, "batch_size"):
            raise ConfigError("--batch-size has no effect with --ttt; use --ttt-batch-size")
    needs(values.get("adapter") != "dummy", "a model: the dummy adapter has none", "model", "checkpoint")


def given_ttt_settings(context: click.Context) -> dict[str, Any]:
    """Return the settings of TTT that the user typed, by field of ``TTTConfig``."""
    given = {field: context.params[parameter] for parameter, field in TTT_FIELDS.items() if _typed(context, parameter)}
    pairs = [text.partition("=") for text in context.params.get("ttt_options", ())]
    for name, separator, _ in pairs:
        if not separator:
            raise ConfigError(f"--ttt-option takes NAME=VALUE, got {name!r}")
    if pairs:
        given["method_options"] = {name.strip(): value.strip() for name, _, value in pairs}
    return given


def _typed(context: click.Context, parameter: str) -> bool:
    return parameter in context.params and context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE


def _apply(command: Command, *options: Callable[[Any], Any]) -> Command:
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)
