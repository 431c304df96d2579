"""The settings of test-time training in vision: the defaults of the integration plan, and presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from acclimate import registry
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.registry import FILTER_KINDS, FilterKind, Kind

ResetPolicy = Literal["stream", "sample", "online"]
RESET_POLICIES: Final[tuple[ResetPolicy, ...]] = get_args(ResetPolicy)
AUTO: Final = "auto"
"""Given as the method, lets :func:`acclimate.vision.run.auto.choose` choose one for the model and the stream."""
DEFAULT_METHOD: Final = "tent"
"""The integration plan's default; ``--ttt`` without a method runs :func:`safe_method` instead."""


_LARGEST_RATE: Final = 1e30
"""Larger numbers times a gradient exceed the range of float32, in which torch computes updates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TTTConfig:
    """The settings of adapting a model to a set of images.

    The defaults are those of the integration plan, which are not tuned; presets are, see :meth:`resolve`.

    Attributes:
        enabled: whether to adapt.
        method: name of the adaptation method.
        steps: adaptation steps on each batch.
        lr: learning rate.
        batch_size: number of images in a batch.
        max_batches: adapt on at most so many batches; None means all.
        update_filter: which parameters are trainable.
        include, exclude: name patterns that restrict the filter further.
        reset: ``stream``: adapt on all images, then predict them; ``sample``: adapt to one image, predict it, and
            restore the source model; ``online``: predict and adapt batch by batch in one pass.
        seed: of all random numbers.
        mask_prob, patch_size, mask_value: settings of mim.
        lora_rank, lora_alpha, lora_targets: low-rank weights to attach during the run, see
            :class:`acclimate.core.TensorFilter`.
        method_options: further fields of the method, by name.
        guards: whether to check every step; False turns all guards off.
        guard_values: further guards, or other limits, by the guard's name: a number, True for the guard's own
            default, False to leave the guard out. See :data:`acclimate.registry.GUARDS`.
        max_update: largest step, relative to the weights' norm.
        max_drift: largest distance from the source, relative to the weights' norm.
        collapse_share: reset when one class takes more than this share of recent decisions; None never does.
        probe: whether to keep the first batch and compare the entropy on it before and after every step.
        paced: whether to adapt only while the stream is new or changes (:class:`acclimate.core.Pacing`).
        max_seconds: limit of the adaptation time; None means no limit.
        preset: the preset that :meth:`resolve` took; ``filled``: the fields whose values come from it.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    enabled: bool = True
    method: str = DEFAULT_METHOD
    steps: int = 1
    lr: float = 1e-4
    batch_size: int = 1
    max_batches: int | None = None
    update_filter: FilterKind = "all"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    reset: ResetPolicy = "stream"
    seed: int = 0
    mask_prob: float = 0.6
    patch_size: int = 16
    mask_value: float = 0.0
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ()
    method_options: Mapping[str, Any] = field(default_factory=dict)
    guards: bool = True
    guard_values: Mapping[str, Any] = field(default_factory=dict)
    max_update: float = 0.1
    max_drift: float = 0.5
    collapse_share: float | None = None
    probe: bool = False
    paced: bool = False
    max_seconds: float | None = None
    preset: str | None = field(default=None, init=False)
    filled: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        _one_of("method", self.method, registry.METHODS.names())
        _one_of("reset", self.reset, RESET_POLICIES)
        _one_of("update_filter", self.update_filter, FILTER_KINDS)
        for name, lowest in (("steps", 1), ("batch_size", 1), ("patch_size", 1), ("max_batches", 1), ("lora_rank", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name} must be at least {lowest}, got {value}")
        if not 0 <= self.lr <= _LARGEST_RATE:
            raise ConfigError(f"lr must not be negative, and at most {_LARGEST_RATE:g}, got {self.lr}")
        if self.collapse_share is not None and self.reset == "sample":
            raise ConfigError(
                "collapse_share counts recent decisions, and reset 'sample' drops them after each image; use another "
                "reset, or leave it out"
            )
        if self.probe and self.reset == "sample":
            raise ConfigError(
                "probe keeps the stream's first batch, and reset 'sample' adapts to each image alone; use another "
                "reset, or leave it out"
            )
        if self.paced and self.reset == "sample":
            raise ConfigError(
                "paced compares each batch with the stream before it, and reset 'sample' adapts to each image alone; "
                "use another reset, or leave it out"
            )
        for name, value in self.guard_values.items():
            _one_of("guard", name, registry.GUARDS.names())
            if value is not False and self.reset == "sample" and registry.GUARDS.info(name).needs_probe:
                raise ConfigError(
                    f"the guard {name} keeps the stream's first batch, and reset 'sample' adapts to each image alone; "
                    "use another reset, or leave it out"
                )
        if not 0 < self.mask_prob < 1:
            raise ConfigError(f"mask_prob must lie between 0 and 1, got {self.mask_prob}")

    @classmethod
    def resolve(
        cls, given: Mapping[str, Any], *, kind: Kind, preset: str | None = None, safe_method: str = DEFAULT_METHOD
    ) -> TTTConfig:
        """Return the settings ``given``, completed by a preset.

        Args:
            given: settings that the user gave, by field name; they replace those of the preset.
            kind: the kind of model; presets may differ between kinds.
            preset: its name; None takes the method's own preset, ``none`` the defaults of this class.
            safe_method: the method of the preset ``safe`` where no method is given; see :func:`safe_method`.

        Raises:
            ConfigError: the preset or a setting is unknown, or the preset is another method's.
            TTTNotSupportedError: the method does not work on this kind of model.
        """
        unknown = set(given) - {f.name for f in dataclasses.fields(cls) if f.init}
        if unknown:
            known = ", ".join(sorted(f.name for f in dataclasses.fields(cls) if f.init))
            raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}; choose from {known}")
        if preset is None:
            method = given.get("method", DEFAULT_METHOD)
            preset = own_preset(_one_of("method", method, registry.METHODS.names()))
        if preset == "none":
            config = cls(**given)
            _refuse_other_kinds(config.method, kind)
            _refuse_collapse(config, kind)
            return config
        own = own_preset(safe_method) if preset == "safe" and "method" not in given else preset
        values = preset_values(own, kind)
        method = given.get("method", values["method"])
        if method != values["method"]:
            raise ConfigError(
                f"preset {preset!r} is for method {values['method']!r}, not {method!r}; leave one of them out"
            )
        _refuse_other_kinds(method, kind)
        options = {**values.pop("method_options", {}), **given.get("method_options", {})}
        config = cls(**{**values, **given, "method_options": options})
        _refuse_collapse(config, kind)
        # Not constructor arguments, because naming a preset there would not apply it.
        object.__setattr__(config, "preset", preset)
        said = given if own != preset else (*given, "method")
        object.__setattr__(config, "filled", tuple(name for name in values if name not in said))
        return config


_BATCH_SIZE: Final[Mapping[Kind, int]] = {"classifier": 64, "multilabel": 64, "segmenter": 8, "detector": 8}


def safe_method(kind: Kind, *, knows_source: bool, has_batch_norm: bool) -> str:
    """Return the method that ``--ttt`` runs without ``--ttt-method``, which is also that of the preset ``safe``.

    It is the first in the order of ``safe_rank`` that the model and the data allow. For detectors, methods that
    minimise entropy come last, because they helped in none of the measurements (``benchmarks/pose_scenes``).
    """
    fitting = [
        (rank, name)
        for name, info in registry.METHODS.infos().items()
        if (rank := info.rank(kind)) is not None
        and info.applies_to(kind, batch_norm=has_batch_norm, source_images=knows_source)
    ]
    return min(fitting)[1]


def preset_values(name: str, kind: Kind) -> dict[str, Any]:
    """Return the settings of a preset for a kind of model, including ``method`` and ``batch_size``.

    Raises:
        ConfigError: there is no such preset.
    """
    known = registry.presets()
    method, preset = known[_one_of("preset", name, tuple(known))]
    values = {"method": method, **preset.settings, "batch_size": _BATCH_SIZE[kind]}
    return {**values, **preset.of_kind(kind)}


def own_preset(method: str) -> str:
    """Return the default preset of a method; ``none`` where it has no preset."""
    presets = registry.METHODS.info(method).presets
    return presets[0].name if presets else "none"


def methods_for(kind: Kind) -> tuple[str, ...]:
    """Return the methods that work on a kind of model."""
    return tuple(name for name, info in registry.METHODS.infos().items() if kind in info.kinds)


_PLURALS: Final[Mapping[Kind, str]] = {
    "classifier": "classifiers",
    "multilabel": "models with several labels for an image",
    "segmenter": "segmenters",
    "detector": "detectors",
}
_SINGULARS: Final[Mapping[Kind, str]] = {
    "classifier": "classifier",
    "multilabel": "model with several labels for an image",
    "segmenter": "segmenter",
    "detector": "detector",
}


def _refuse_other_kinds(method: str, kind: Kind) -> None:
    kinds = registry.METHODS.info(method).kinds
    if kind not in kinds:
        raise TTTNotSupportedError(
            f"{method} is for {' and '.join(_PLURALS[k] for k in kinds)}, and this model is a {_SINGULARS[kind]}; use "
            f"one of {', '.join(methods_for(kind))}"
        )


def _refuse_collapse(config: TTTConfig, kind: Kind) -> None:
    if kind == "multilabel" and (config.collapse_share is not None or config.guard_values.get("collapse", False)):
        raise ConfigError(
            "the guard collapse (collapse_share) counts the most probable class of each image, and images of this "
            "model may have several labels or none; leave it out"
        )


def _one_of(what: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"unknown {what} {value!r}; choose one of {', '.join(known)}")
    return value
