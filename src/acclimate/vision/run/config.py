"""The settings of test-time training in vision, the plan's defaults, and presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.registry import FILTER_KINDS, FilterKind

MethodName = Literal[
    "tent", "mim", "cotta", "eata", "sar", "bn", "spectrum", "align", "blend", "roid", "deyo", "rotta", "memo", "lame"
]
METHOD_NAMES: Final = (
    "bn", "spectrum", "blend", "lame", "tent", "eata", "sar", "deyo", "roid", "mim", "rotta", "align", "cotta", "memo",
)  # fmt: skip
ResetPolicy = Literal["stream", "sample", "online"]
COMPARED: Final = tuple(name for name in METHOD_NAMES if name != "memo")
"""What is compared unless said otherwise: memo takes a hundred predictions and more for each image."""
WITHOUT_GRADIENT: Final = ("bn", "spectrum", "blend", "lame")
"""Methods that move no weight: steps, learning rate and update filter mean nothing to them."""
USE_SOURCE: Final = ("eata", "spectrum", "blend", "align")
"""Methods that look at source images where they are given."""
CLASSIFIERS_ONLY: Final = ("lame", "deyo", "rotta", "memo")
"""Methods that compare an image's predictions over several passes, or with its neighbours'."""
RESET_POLICIES: Final = ("stream", "sample", "online")
Kind = Literal["classifier", "detector"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TTTConfig:
    """Everything that says how a model is adapted to a set of images.

    The defaults are those of the integration plan. They are not tuned: see :data:`PRESETS` and :meth:`resolve`.

    Attributes:
        enabled: adapt at all.
        method: what to do with a batch.
        steps: adaptation steps on each batch.
        lr: learning rate.
        batch_size: images in a batch.
        max_batches: adapt on at most so many batches; None means all.
        update_filter: which parameters may move.
        include, exclude: name patterns that narrow the filter.
        reset: ``stream``: adapt first, then predict everything; ``sample``: adapt to one image, predict it, go
            back; ``online``: predict and adapt batch by batch in one pass.
        seed: of everything random.
        mask_prob, patch_size, mask_value: of mim.
        lora_rank, lora_alpha, lora_targets: attach low-rank weights for the length of the run.
        method_options: further fields of the method, by name.
        guards: judge every step; False turns all guards off.
        max_update: largest step, relative to the weights' norm.
        max_drift: largest distance from the source, relative to the weights' norm.
        collapse_share: reset when one class takes more than this share of recent decisions; None never does.
        probe: keep the first batch and compare the entropy on it around every step.
        paced: learn only while the stream is new or changes, and predict between (:class:`acclimate.core.Pacing`).
        max_seconds: of adaptation; None means no limit.
        preset: the preset that :meth:`resolve` took; ``filled``: the fields that it filled in.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    enabled: bool = True
    method: MethodName = "tent"
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
    max_update: float = 0.1
    max_drift: float = 0.5
    collapse_share: float | None = None
    probe: bool = False
    paced: bool = False
    max_seconds: float | None = None
    preset: str | None = field(default=None, init=False)
    filled: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHOD_NAMES)
        _one_of("reset", self.reset, RESET_POLICIES)
        _one_of("update_filter", self.update_filter, FILTER_KINDS)
        for name, lowest in (("steps", 1), ("batch_size", 1), ("patch_size", 1), ("max_batches", 1), ("lora_rank", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name} must be at least {lowest}, got {value}")
        if not self.lr >= 0:
            raise ConfigError(f"lr must not be negative, got {self.lr}")
        if self.collapse_share is not None and self.reset == "sample":
            raise ConfigError(
                "collapse_share looks at recent decisions, and reset 'sample' forgets them after each image"
            )
        if self.probe and self.reset == "sample":
            raise ConfigError("probe keeps the stream's first batch, and reset 'sample' takes each image by itself")
        if self.paced and self.reset == "sample":
            raise ConfigError("paced looks at how the stream goes on, and reset 'sample' takes each image by itself")
        if not 0 < self.mask_prob < 1:
            raise ConfigError(f"mask_prob must lie between 0 and 1, got {self.mask_prob}")

    @classmethod
    def resolve(
        cls, given: Mapping[str, Any], *, kind: Kind, preset: str | None = None, safe_method: MethodName = "tent"
    ) -> TTTConfig:
        """Return the settings ``given``, with the rest from a preset.

        Args:
            given: settings that the user gave, by field name; they win over everything.
            kind: of the model: presets differ.
            preset: its name; None takes the method's own, ``none`` takes no preset but the plan's defaults.
            safe_method: of the preset ``safe`` where no method is given; see :func:`safe_method`.

        Raises:
            ConfigError: the preset or a setting is unknown, or the preset is another method's.
            TTTNotSupportedError: the method is for classifiers, and this is a detector.
        """
        unknown = set(given) - {f.name for f in dataclasses.fields(cls) if f.init}
        if unknown:
            raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}")
        if preset is None:
            preset = METHOD_PRESETS[_one_of("method", given.get("method", "tent"), METHOD_NAMES)]
        if preset == "none":
            _refuse_on_detectors(given.get("method", "tent"), kind)
            return cls(**given)
        own = METHOD_PRESETS[safe_method] if preset == "safe" and "method" not in given else preset
        values = preset_values(own, kind)
        method = given.get("method", values["method"])
        if method != values["method"]:
            raise ConfigError(
                f"preset {preset!r} is for method {values['method']!r}, not {method!r}; leave one of them out"
            )
        _refuse_on_detectors(method, kind)
        options = {**values.pop("method_options", {}), **given.get("method_options", {})}
        config = cls(**{**values, **given, "method_options": options})
        # Not constructor arguments: a preset that is only named would change nothing.
        object.__setattr__(config, "preset", preset)
        said = given if own != preset else (*given, "method")
        object.__setattr__(config, "filled", tuple(name for name in values if name not in said))
        return config


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "safe": {"method": "tent", "update_filter": "norm_only", "lr": 1e-3, "max_drift": 0.2},
    "adapter_only": {"method": "tent", "update_filter": "adapter_only", "lr": 1e-3, "lora_rank": 4, "max_drift": 0.2},
    "mim_safe": {"method": "mim", "update_filter": "norm_only", "lr": 1e-4, "max_drift": 0.2},
    "cotta_safe": {"method": "cotta", "update_filter": "all", "lr": 1e-3, "max_drift": 0.2},
    "eata_safe": {"method": "eata", "update_filter": "norm_only", "lr": 5e-3, "max_drift": 0.2},
    "sar_safe": {
        "method": "sar", "update_filter": "norm_only", "lr": 1e-3, "max_drift": 0.2, "method_options": {"base": "adam"},
    },
    "bn_safe": {"method": "bn", "update_filter": "norm_only"},
    "spectrum_safe": {"method": "spectrum", "update_filter": "norm_only"},
    "blend_safe": {"method": "blend", "update_filter": "norm_only"},
    "align_safe": {"method": "align", "update_filter": "all", "lr": 2e-4, "max_drift": 0.2},
    "lame_safe": {"method": "lame", "update_filter": "norm_only"},
    "deyo_safe": {"method": "deyo", "update_filter": "norm_only", "lr": 1e-3, "max_drift": 0.2},
    "roid_safe": {"method": "roid", "update_filter": "norm_only", "lr": 1e-3, "max_drift": 0.2},
    "rotta_safe": {"method": "rotta", "update_filter": "norm_only", "lr": 1e-3, "max_drift": 0.2},
    "memo_safe": {"method": "memo", "update_filter": "all", "lr": 5e-3},
}  # fmt: skip
"""Settings that work out of the box, each for one method; :func:`preset_values` completes them for the model's kind."""

METHOD_PRESETS: Final[dict[str, str]] = {
    "tent": "safe",
    "mim": "mim_safe",
    "cotta": "cotta_safe",
    "eata": "eata_safe",
    "sar": "sar_safe",
    "bn": "bn_safe",
    "spectrum": "spectrum_safe",
    "blend": "blend_safe",
    "align": "align_safe",
    "lame": "lame_safe",
    "deyo": "deyo_safe",
    "roid": "roid_safe",
    "rotta": "rotta_safe",
    "memo": "memo_safe",
}


def safe_method(kind: Kind, *, knows_source: bool, has_batch_norm: bool) -> MethodName:
    """Return the method of the preset ``safe`` for a model.

    Entropy on a detector's outputs helps nowhere that it was measured (``benchmarks/pose_scenes``), so detectors get
    what does: ``spectrum`` where source images are known, else ``bn``, else Tent at a tenth of its rate.
    """
    if kind == "classifier":
        return "tent"
    return "spectrum" if knows_source else "bn" if has_batch_norm else "tent"


_BATCH_SIZE: Final[dict[Kind, int]] = {"classifier": 64, "detector": 8}
# Entropy on a detector's outputs collapses at a classifier's rates: 1e-3 took a small RT-DETR from 82 to 36 mAP.
_DETECTOR_LR_FACTOR: Final = 0.1


def preset_values(name: str, kind: Kind) -> dict[str, Any]:
    """Return the settings of a preset for a kind of model.

    Raises:
        ConfigError: there is no such preset.
    """
    values = dict(PRESETS[_one_of("preset", name, tuple(PRESETS))])
    values["batch_size"] = _BATCH_SIZE[kind]
    # Alignment asks nothing of the outputs, and its rate was found on a detector.
    if kind == "detector" and "lr" in values and name != "align_safe":
        values["lr"] = values["lr"] * _DETECTOR_LR_FACTOR
    return values


def _refuse_on_detectors(method: str, kind: Kind) -> None:
    if kind == "detector" and method in CLASSIFIERS_ONLY:
        raise TTTNotSupportedError(
            f"{method} is for classifiers, and this model is a detector; use spectrum, align, bn, mim or cotta"
        )


def _one_of(what: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"unknown {what} {value!r}; choose one of {', '.join(known)}")
    return value
