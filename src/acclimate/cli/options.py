"""Options that several commands share, and their conversion to settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from acclimate import registry
from acclimate.cli.grouped_help import grouped
from acclimate.errors import ConfigError
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.run.config import AUTO, RESET_POLICIES

if TYPE_CHECKING:
    from acclimate.vision.data.images import CorruptionSpec

Command = TypeVar("Command", bound=Callable[..., Any])

# Maps parameter names of the command line to fields of TTTConfig.
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
    """Return a parameter type for paths; the library checks them, because its messages are more specific."""
    return click.Path(path_type=Path, **kwargs)


_model, _data = grouped("Model"), grouped("Images")
_method, _training = grouped("Method"), grouped("Learning")
_guards, _low_rank = grouped("Guards"), grouped("Low-rank weights")


def model_options(command: Command) -> Command:
    """Add the options that choose and load a model."""
    return _apply(
        command,
        _model(
            "--adapter",
            type=click.Choice(registry.ADAPTERS.names()),
            default="transformers",
            show_default=True,
            help="The adapter that loads and runs the model (see acclimate list adapters).",
        ),
        _model(
            "--model", metavar="NAME", help="A folder or hub name (transformers), or package.module:factory (torch)."
        ),
        _model("--checkpoint", metavar="FILE", help="Weights for the torch adapter, as safetensors or a state_dict."),
        _model(
            "--trust-pickle",
            is_flag=True,
            help="Load weights that contain other objects than tensors; loading them executes code.",
        ),
        _model("--device", default="cpu", show_default=True, help="The device to run on: cpu, cuda, cuda:1, ..."),
        _model(
            "--dtype",
            type=click.Choice(("float32", "float16", "bfloat16", "float64")),
            help="Convert the model and its images to this number format (torch, transformers).  "
            "[default: the model's own]",
        ),
        _model(
            "--autocast",
            type=click.Choice(("bfloat16", "float16")),
            help="Compute matrix products and convolutions in this number format; weights and losses keep theirs.",
        ),
        _model(
            "--channels-last",
            is_flag=True,
            help="Keep the channels of convolutions last in memory, which is faster in half precision on a GPU.",
        ),
        _model(
            "--score-threshold",
            type=click.FloatRange(0, 1),
            default=0.05,
            show_default=True,
            help="Detections with a lower score are not written.",
        ),
    )


def data_options(command: Command) -> Command:
    """Add the options that choose the images."""
    return _apply(
        command,
        _data(
            "--images-root", type=existing_path(), help="The folder to which paths in a list or COCO file are relative."
        ),
        _data("--max-images", type=click.IntRange(min=1), help="Use only the first so many images."),
        _data(
            "--exif-orientation/--no-exif-orientation",
            default=True,
            show_default=True,
            help="Rotate images as their EXIF data says, or keep the stored pixel grid.",
        ),
        _data(
            "--corrupt",
            metavar="NAME[:SEVERITY]",
            help="Apply a corruption to every image first (see acclimate corrupt --list).",
        ),
    )


def ttt_options(command: Command) -> Command:
    """Add the options of test-time training. Options that are not given get their values from a preset."""
    preset = "[default: the preset's, see below]"
    source = ", ".join(name for name, info in _shipped_methods().items() if info.uses_source_images)
    return _apply(
        command,
        _method(
            "--ttt-option",
            "ttt_options",
            multiple=True,
            metavar="NAME=VALUE",
            help="Set a field of the method (see its page in docs/methods); repeatable.",
        ),
        _method("--ttt-source", type=existing_path(), help=f"Unlabelled source images, for {source}."),
        _method(
            "--ttt-reset",
            type=click.Choice(RESET_POLICIES),
            default="stream",
            help="stream: adapt on all images, then predict them; sample: adapt to each image alone; online: predict "
            "and adapt batch by batch in one pass.  [default: stream; compare: online]",
        ),
        _method("--ttt-batch-size", type=int, default=1, help=f"Images in a batch.  {preset}"),
        _method("--ttt-max-batches", type=int, help="Adapt on at most so many batches.  [default: all]"),
        _method("--ttt-max-seconds", type=float, help="Stop adapting after so many seconds.  [default: never]"),
        _method(
            "--ttt-seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            help="Seed of all random numbers.",
        ),
        _training("--ttt-steps", type=int, default=1, show_default=True, help="Steps on each batch."),
        _training("--ttt-lr", type=float, default=1e-4, help=f"Learning rate.  {preset}"),
        _training(
            "--ttt-update-filter",
            type=click.Choice(registry.FILTER_KINDS),
            default="all",
            help=f"Which parameters are trainable.  {preset}",
        ),
        _training(
            "--ttt-include",
            multiple=True,
            metavar="PATTERN",
            help="Train only parameters that match; repeatable.",
        ),
        _training(
            "--ttt-exclude",
            multiple=True,
            metavar="PATTERN",
            help="Do not train parameters that match; repeatable.",
        ),
        _training(
            "--ttt-paced/--no-ttt-paced",
            default=False,
            show_default=True,
            help="Adapt only at the start and when the stream changes, otherwise only predict.",
        ),
        _training(
            "--ttt-mask-prob", type=float, default=0.6, show_default=True, help="mim: probability of masking a patch."
        ),
        _training("--ttt-patch-size", type=int, default=16, show_default=True, help="mim: side of a patch in pixels."),
        _training("--ttt-mask-value", type=float, default=0.0, show_default=True, help="mim: value of masked pixels."),
        _guards(
            "--ttt-guards/--no-ttt-guards",
            default=True,
            show_default=True,
            help="Check every step, and undo steps that make the model worse.",
        ),
        _guards(
            "--ttt-guard",
            "ttt_guard",
            multiple=True,
            metavar="NAME[=VALUE]",
            help="Add a guard, or set its limit; NAME=off turns it off; repeatable (see acclimate list guards).",
        ),
        _guards("--ttt-max-update", type=float, default=0.1, show_default=True, help="Short for max_update=VALUE."),
        _guards("--ttt-max-drift", type=float, default=0.5, help=f"Short for max_drift=VALUE.  {preset}"),
        _guards("--ttt-collapse-share", type=float, help="Short for collapse=VALUE.  [default: off]"),
        _guards("--ttt-probe/--no-ttt-probe", default=False, show_default=True, help="Short for probe_loss."),
        _low_rank(
            "--lora-rank", type=int, help="Attach low-rank weights of this rank during the run.  [default: none]"
        ),
        _low_rank(
            "--lora-alpha", type=float, help="Scale of the low-rank weights times the rank.  [default: the rank]"
        ),
        _low_rank(
            "--lora-targets",
            multiple=True,
            metavar="PATTERN",
            help="Layers that get low-rank weights; repeatable.  [default: every linear layer and convolution]",
        ),
    )


def ignore_value_option(command: Command) -> Command:
    """Add the option for the value in label images that does not count."""
    return _apply(
        command,
        click.option(
            "--ignore-value",
            type=click.IntRange(0, 65535),
            help="The value of pixels in label images that do not count.  [default: 255]",
        ),
    )


def preset_option(command: Command) -> Command:
    """Add the option that names a preset."""
    names = ", ".join(preset.name for info in _shipped_methods().values() for preset in info.presets)
    return _apply(
        command,
        _method(
            "--ttt-preset",
            metavar="NAME",
            help=f"{names}, or none for the integration plan's defaults.  [default: the method's own]",
        ),
    )


def method_option(command: Command) -> Command:
    """Add the option that names the method."""
    return _apply(
        command,
        _method(
            "--ttt-method",
            type=click.Choice((*registry.METHODS.names(), AUTO)),
            help="The adaptation method; auto chooses one for the model and the stream, and prints the reasons.  "
            f"[default: {_safe_methods()}]",
        ),
    )


def presets_epilog() -> str:
    """Return a table of the presets' values for the end of a help page."""
    lines = ["method    learning rate: classifier, segmenter, detector   trainable      other"]
    for name, info in _shipped_methods().items():
        for preset in info.presets[:1]:
            rates = "no gradient"
            if info.needs_gradient:
                rate = preset.settings["lr"]
                rates = f"{rate:g}"
                for kind in ("segmenter", "detector"):
                    rates += f", {preset.of_kind(kind).get('lr', rate):g}" if kind in info.kinds else ", -"
            shown = ("lr", "update_filter", "method_options")
            rest = [f"{key} {value}" for key, value in preset.settings.items() if key not in shown]
            rest += [f"{key} {value}" for key, value in preset.settings.get("method_options", {}).items()]
            trainable = preset.settings["update_filter"] if info.needs_gradient else "-"
            lines.append(f"{name:<9} {rates:<48} {trainable:<14} {', '.join(rest)}".rstrip())
    return (
        "What the preset of a method fills in (batch size 64 on a classifier, 8 on a segmenter or detector):\n\n\b\n"
        + "\n".join(lines)
    )


def _shipped_methods() -> dict[str, registry.MethodInfo]:
    """Return the methods of this package; plug-ins are left out, because importing them would slow --help down."""
    return {name: entry.info for name, entry in registry.METHODS.shipped().items() if entry.info is not None}


def compared_methods() -> str:
    """Return the methods that ``acclimate compare`` runs by default."""
    return ", ".join(name for name, info in _shipped_methods().items() if info.compared)


def listed(text: str) -> list[str]:
    """Return the parts of a comma-separated text."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _safe_methods() -> str:
    found = []
    for kind in registry.KINDS:
        ranked = sorted(
            (rank, name) for name, info in _shipped_methods().items() if (rank := info.rank(kind)) is not None
        )
        found.append(f"{kind}: {', else '.join(name for _, name in ranked)}")
    return "; ".join(found)


def is_folder(path: Path) -> bool:
    """Return whether a folder is at ``path``; False also for names that the system refuses."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def adapter_options(values: dict[str, Any]) -> AdapterOptions:
    """Return the options of the adapter and its model."""
    return AdapterOptions(
        adapter=values["adapter"],
        model=values["model"],
        checkpoint=values["checkpoint"],
        trust_pickle=values["trust_pickle"],
        device=values["device"],
        dtype=values["dtype"],
        autocast=values["autocast"],
        channels_last=values["channels_last"],
        score_threshold=values["score_threshold"],
    )


def corruption(values: dict[str, Any]) -> CorruptionSpec | None:
    """Return the corruption that the options choose; None where there is none."""
    from acclimate.vision.data.images import CorruptionSpec

    return CorruptionSpec.parse(values["corrupt"]) if values.get("corrupt") else None


def refuse_what_has_no_effect(context: click.Context) -> None:
    """Check that no option was given that would be ignored.

    Raises:
        ConfigError: an option has no effect; the message names it and what it requires.
    """
    values = context.params

    def needs(condition: bool, what: str, *names: str) -> None:
        for name in names:
            if not condition and _typed(context, name):
                raise ConfigError(f"--{name.replace('_', '-')} has no effect without {what}; add it, or leave this out")

    needs(not is_folder(values["images"]), "a list or a COCO file as IMAGES", "images_root")
    method = values.get("ttt_method")
    needs(values.get("lora_rank") is not None, "--lora-rank", "lora_alpha", "lora_targets")
    guards = ("ttt_guard", "ttt_max_update", "ttt_max_drift", "ttt_collapse_share", "ttt_probe")
    needs(values.get("ttt_guards", True), "guards", *guards)
    _refuse_guards_twice(context)
    if "ttt_method" in values:
        info = None if method in (None, AUTO) else registry.METHODS.info(method)
        for name, other in _shipped_methods().items():
            flags = [parameter for parameter, field in TTT_FIELDS.items() if field in other.own_settings.values()]
            has_them = info is not None and set(other.own_settings) <= set(info.own_settings)
            needs(has_them, f"--ttt-method {name}", *flags)
        if info is not None:
            _refuse_for_method(info, needs)
    if "tta" in values:
        needs(values["tta"], "--tta", "tta_seed", "tta_flip_prob", "tta_norm_only")
        if values["ttt"] and _typed(context, "batch_size"):
            raise ConfigError("--batch-size has no effect with --ttt; use --ttt-batch-size")
    own = ("model", "checkpoint", "dtype", "autocast", "channels_last")
    needs(values.get("adapter") != "dummy", "a model: the dummy adapter has none", *own)


def _refuse_for_method(info: registry.MethodInfo, needs: Callable[..., None]) -> None:
    method = info.name
    sourced = [name for name, other in registry.METHODS.infos().items() if other.uses_source_images]
    needs(info.uses_source_images, f"--ttt-method {', '.join((*sourced, AUTO))}", "ttt_source")
    gradient = ("ttt_steps", "ttt_lr", "ttt_update_filter", "ttt_include", "ttt_exclude", "lora_rank", "ttt_paced")
    needs(info.needs_gradient, f"a method with gradient steps ({method} has no gradient)", *gradient)
    needs(
        not info.adapts_each_image,
        f"a method that adapts to the stream ({method} adapts to each image alone)",
        "ttt_steps",
        "ttt_paced",
    )


def _refuse_guards_twice(context: click.Context) -> None:
    named = _guard_values(context)
    for name, entry in registry.GUARDS.shipped().items():
        flag = None if entry.info is None or entry.info.setting is None else f"ttt_{entry.info.setting}"
        if name in named and flag is not None and _typed(context, flag):
            raise ConfigError(f"--{flag.replace('_', '-')} and --ttt-guard {name} set the same guard; leave one out")


def _guard_values(context: click.Context) -> dict[str, Any]:
    """Return the guards of ``--ttt-guard`` by name, with text, True or False as values."""
    found: dict[str, Any] = {}
    for text in context.params.get("ttt_guard", ()):
        name, separator, value = (part.strip() for part in text.partition("="))
        if name in found:
            raise ConfigError(f"--ttt-guard {name} is given twice; leave one out")
        found[name] = {"": True, "on": True, "off": False}.get(value, value) if separator else True
    return found


def given_ttt_settings(context: click.Context) -> dict[str, Any]:
    """Return the settings of TTT that were given at the command line, by field of ``TTTConfig``."""
    given = {field: context.params[parameter] for parameter, field in TTT_FIELDS.items() if _typed(context, parameter)}
    pairs = [text.partition("=") for text in context.params.get("ttt_options", ())]
    for name, separator, _ in pairs:
        if not separator:
            raise ConfigError(f"--ttt-option takes NAME=VALUE, got {name!r}")
    if guards := _guard_values(context):
        given["guard_values"] = guards
    if pairs:
        given["method_options"] = {name.strip(): value.strip() for name, _, value in pairs}
    return given


def _typed(context: click.Context, parameter: str) -> bool:
    return parameter in context.params and context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE


def _apply(command: Command, *options: Callable[[Any], Any]) -> Command:
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)
