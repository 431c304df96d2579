"""The registry of methods, adapters and guards, of this package and of plug-ins. It imports no torch.

The properties of a method are its class attribute ``info``. Commands need them before torch is imported, so for the
classes of this package they are read from the source text, as setuptools reads a version: :class:`MethodInfo`,
:class:`AdapterInfo` and :class:`GuardInfo` take literals only. Plug-ins are found by entry points
(``acclimate.methods``, ``acclimate.adapters``, ``acclimate.guards``) and imported when they are used.
"""

from __future__ import annotations

import ast
import functools
import importlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar, get_args

from acclimate.errors import ConfigError, first_line

_LOG = logging.getLogger(__name__)

Kind = Literal["classifier", "multilabel", "segmenter", "detector"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""Kinds of models: a classifier predicts one class for each image, a multilabel model any number of labels (a sigmoid
for each), a segmenter a class for each pixel, a detector objects in the image."""
_SETTINGS_OF: Final[Mapping[Kind, Kind]] = {"multilabel": "classifier"}
"""Kinds of models that have the presets, ranks and trials of another kind where a method names none for them."""
FilterKind = Literal["all", "norm_only", "adapter_only", "lora_only", "lora_norm_only"]
FILTER_KINDS: Final[tuple[FilterKind, ...]] = get_args(FilterKind)
"""Which parameters may be trainable, see :class:`acclimate.core.TensorFilter`."""
SHIPPED: Final = "acclimate"
"""The origin of entries that are part of this package."""


Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """The publication of a method.

    Attributes:
        authors: as they are cited.
        venue: the conference or journal; ``year``: of the publication.
        arxiv: the arXiv identifier.
    """

    authors: str
    venue: str
    year: int
    arxiv: str

    def __str__(self) -> str:
        return f"{self.authors}, {self.venue} {self.year}, arXiv {self.arxiv}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings of a run for one method.

    Attributes:
        name: of the preset.
        settings: by field of :class:`acclimate.vision.TTTConfig`; ``method`` and ``batch_size`` are added.
        segmenter: settings that are different on a segmenter.
        detector: settings that are different on a detector. Learning rates are ten times lower there, because
            minimising entropy at a classifier's rates makes a detector collapse (1e-3 took a small RT-DETR from 82 to
            36 mAP).
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    segmenter: Mapping[str, Any] = field(default_factory=dict)
    detector: Mapping[str, Any] = field(default_factory=dict)

    def of_kind(self, kind: Kind) -> Mapping[str, Any]:
        """Return the settings that are different on a kind of model."""
        return {"segmenter": self.segmenter, "detector": self.detector}.get(kind, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo:
    """The properties of a method, from which command line, presets, checks and documentation are derived.

    Attributes:
        name: at the command line, in reports and in state files.
        title: the name in headings; ``paper``: None for a method of this project.
        kinds: the kinds of model that it works on.
        cost: approximate CPU time as a multiple of prediction without adaptation (``benchmarks/cifar``); methods are
            listed in this order.
        needs_gradient: whether it makes gradient steps; otherwise steps, learning rate and update filter have no
            effect.
        needs_one_of: requirements (``batch_norm``, ``source_images``), of which at least one must be fulfilled.
        uses_source_images: whether it uses source images if there are any.
        adapts_each_image: whether it adapts to each image alone, without keeping anything for the next.
        also_predicts_with: what it predicts with besides weights, which is lost when only the weights are kept.
        averages_views: whether it averages predictions over views of an image. Its predictions on an image and on its
            mirror image are alike then, whether or not they are right, and guards do not compare them.
        compares_itself: whether it compares itself with the unadapted model, so that guards need compare fewer images.
        unchanged_on_source: whether predictions on a stream like the source are bit for bit those without adaptation.
        parameters_of_paper: the update filter that the paper uses; None where the paper does not restrict it.
        certainty_allowance: factor of the degradation score's limit (see :class:`acclimate.core.WorseThanSource`), for
            methods that are less certain by nature, such as those that mix in the source's statistics.
        presets: the first one is the default.
        safe_rank: by kind of model, the rank in the order in which ``--ttt`` without a method chooses.
        auto: by kind of model, the settings that ``--ttt-method auto`` tries; ``auto_last_resort``: whether only where
            no other method can be tried; ``auto_without_batch_norm``: whether only on models without BatchNorm;
            ``auto_reason``: the reason that is reported when it is chosen.
        compared: whether ``acclimate compare`` runs it by default.
        own_settings: fields of the method, besides ``lr`` and ``update``, with the fields of ``TTTConfig`` that set
            them.
        state_version: version of its state in files; increased when fields of the state change their meaning.
    """

    name: str
    title: str = ""
    paper: Paper | None = None
    kinds: tuple[Kind, ...] = KINDS
    cost: float = 1.0
    needs_gradient: bool = True
    needs_one_of: tuple[str, ...] = ()
    uses_source_images: bool = False
    adapts_each_image: bool = False
    also_predicts_with: str | None = None
    averages_views: bool = False
    compares_itself: bool = False
    unchanged_on_source: bool = False
    parameters_of_paper: FilterKind | None = None
    certainty_allowance: float = 1.0
    presets: tuple[Preset, ...] = ()
    safe_rank: Mapping[str, int] = field(default_factory=dict)
    auto: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    auto_last_resort: bool = False
    auto_without_batch_norm: bool = False
    auto_reason: str | None = None
    compared: bool = True
    own_settings: Mapping[str, str] = field(default_factory=dict)
    state_version: int = 1

    def rank(self, kind: Kind) -> int | None:
        """Return the method's ``safe_rank`` for a kind of model; None where it is not chosen for that kind."""
        return self._of_kind(self.safe_rank, kind)

    def trials(self, kind: Kind) -> tuple[Mapping[str, Any], ...]:
        """Return the settings that ``auto`` tries on a kind of model; empty where it does not try the method."""
        return self._of_kind(self.auto, kind) or ()

    def _of_kind(self, values: Mapping[str, Value], kind: Kind) -> Value | None:
        if kind not in self.kinds:
            return None
        return values.get(kind, values.get(_SETTINGS_OF.get(kind, kind)))

    def applies_to(self, kind: Kind, *, batch_norm: bool, source_images: bool) -> bool:
        """Return whether it works on a kind of model, with or without BatchNorm layers and source images."""
        there = {"batch_norm": batch_norm, "source_images": source_images}
        return kind in self.kinds and (not self.needs_one_of or any(there[need] for need in self.needs_one_of))


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardInfo:
    """The properties of a guard.

    Attributes:
        name: at the command line; ``title``: what it fires on.
        value: the field that ``--ttt-guard NAME=VALUE`` sets; None where there is none.
        on_by_default: whether runs use it by default.
        setting: the field of ``TTTConfig`` that is its short form: a number for ``value``, or a switch.
        needs_probe: whether it needs a probe batch, which runs then keep.
        costs_prediction: whether it may run the unadapted model; such guards are called last.
        codes: of the rejections that it returns.
    """

    name: str
    title: str = ""
    value: str | None = None
    on_by_default: bool = False
    setting: str | None = None
    needs_probe: bool = False
    costs_prediction: bool = False
    codes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """The properties of an adapter.

    Attributes:
        name: at the command line; ``title``: what it runs.
        model: what ``--model`` takes; None where there is no model.
        default_model: used where ``--model`` is left out; None where it is required.
        takes_checkpoint: whether it takes ``--checkpoint``; ``takes_dtype``: whether it takes ``--dtype``.
    """

    name: str
    title: str = ""
    model: str | None = None
    default_model: str | None = None
    takes_checkpoint: bool = False
    takes_dtype: bool = False


Info = TypeVar("Info", bound=MethodInfo | GuardInfo | AdapterInfo)


@dataclass(frozen=True, slots=True)
class Entry(Generic[Info]):
    """One method, adapter or guard.

    Attributes:
        name: at the command line.
        target: ``module:Class``.
        origin: ``acclimate``, or name and version of the distribution that contains it.
        info: its properties; None for a plug-in, which must be imported first.
    """

    name: str
    target: str
    origin: str
    info: Info | None = None


@dataclass(frozen=True, slots=True)
class Registry(Generic[Info]):
    """The methods, adapters or guards: those of this package, then those of plug-ins.

    Attributes:
        what: the word for an entry in messages, such as ``method``.
        group: the group of entry points.
        packages: folders or single modules below this one that contain the entries of this package.
        info_type: the type of the class attribute ``info``.
    """

    what: str
    group: str
    packages: tuple[str, ...]
    info_type: type[Info]

    def entries(self) -> dict[str, Entry[Info]]:
        """Return every entry by name without importing any; this package's entries have precedence over plug-ins."""
        found: dict[str, Entry[Info]] = dict(self.shipped())
        for point in _entry_points(self.group):
            origin = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown distribution"
            if point.name in found:
                _LOG.warning("%s: the %s %r of %s is ignored, because %s has one of this name",
                             self.group, self.what, point.name, origin, found[point.name].origin)  # fmt: skip
                continue
            found[point.name] = Entry(point.name, point.value, origin)
        return found

    def shipped(self) -> Mapping[str, Entry[Info]]:
        """Return the entries of this package by name."""
        found: Mapping[str, Entry[Info]] = _shipped(self.packages, self.info_type)  # type: ignore[arg-type]
        return found

    def names(self) -> tuple[str, ...]:
        """Return the name of every entry."""
        return tuple(self.entries())

    def load(self, name: str) -> Any:
        """Return the class of an entry.

        Raises:
            ConfigError: there is no entry of that name, or it is a plug-in that cannot be imported.
        """
        if (shipped := self.shipped().get(name)) is not None:
            return self._loaded(shipped)
        entries = self.entries()
        if name not in entries:
            raise ConfigError(f"unknown {self.what} {name!r}; choose one of {', '.join(entries)}")
        return self._loaded(entries[name])

    def info(self, name: str) -> Info:
        """Return the properties of an entry; a plug-in is imported for that.

        Raises:
            ConfigError: as :meth:`load`.
        """
        shipped = self.shipped().get(name)
        if shipped is not None and shipped.info is not None:
            return shipped.info
        info: Info = self.load(name).info
        return info

    def infos(self) -> dict[str, Info]:
        """Return the properties of every entry by name; a plug-in that cannot be imported is reported by a warning."""
        found = {}
        for name, entry in self.entries().items():
            try:
                found[name] = entry.info or self._loaded(entry).info
            except ConfigError as error:
                _LOG.warning("%s", error)
        return found

    def _loaded(self, entry: Entry[Info]) -> Any:
        module, _, attribute = entry.target.partition(":")
        if entry.origin == SHIPPED:
            return getattr(importlib.import_module(module), attribute)
        try:
            cls: Any = importlib.import_module(module)
            for part in attribute.split("."):
                cls = getattr(cls, part)
            if not isinstance(cls.info, self.info_type):
                raise TypeError(f"its info is a {type(cls.info).__name__}, not a {self.info_type.__name__}")
            if cls.info.name != entry.name:
                raise TypeError(f"its entry point is called {entry.name!r} and its info {cls.info.name!r}")
        except Exception as error:
            raise ConfigError(
                f"the {self.what} {entry.name!r} of {entry.origin} cannot be loaded from {entry.target}: "
                f"{type(error).__name__}: {first_line(error)}; repair or uninstall that distribution"
            ) from error
        return cls


METHODS: Final = Registry("method", "acclimate.methods", ("methods",), MethodInfo)
GUARDS: Final = Registry("guard", "acclimate.guards", ("core/guards.py",), GuardInfo)
ADAPTERS: Final = Registry("adapter", "acclimate.adapters", ("vision/models",), AdapterInfo)


def presets() -> dict[str, tuple[str, Preset]]:
    """Return method and preset by the preset's name, in the order of methods.

    Of two presets with the same name the first is taken, and a warning names the other.
    """
    found: dict[str, tuple[str, Preset]] = {}
    for name, info in METHODS.infos().items():
        for preset in info.presets:
            if preset.name in found:
                _LOG.warning(
                    "the preset %r of %s is ignored, because %s has one of this name",
                    preset.name,
                    name,
                    found[preset.name][0],
                )
            else:
                found[preset.name] = (name, preset)
    return found


def _entry_points(group: str) -> Sequence[metadata.EntryPoint]:
    return _entry_points_below(group, tuple((path, _changed_ns(path)) for path in sys.path))


@functools.lru_cache(maxsize=8)
def _entry_points_below(group: str, _paths: tuple[tuple[str, int], ...]) -> Sequence[metadata.EntryPoint]:
    # Every distribution is read for that, which takes some hundredths of a second: once, until one comes or goes.
    return tuple(metadata.entry_points(group=group))


def _changed_ns(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


@functools.cache
def _shipped(packages: tuple[str, ...], info_type: type[Any]) -> Mapping[str, Entry[Any]]:
    root = Path(__file__).parent
    found = []
    for package in packages:
        place = root / package
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            module = ".".join(("acclimate", *path.relative_to(root).with_suffix("").parts))
            found += [
                Entry(info.name, f"{module}:{cls}", SHIPPED, info)
                for cls, info in _infos_in(path.read_text(encoding="utf-8"), info_type)
            ]
    found.sort(key=lambda entry: getattr(entry.info, "cost", 0.0))
    return {entry.name: entry for entry in found}


def _infos_in(source: str, info_type: type[Info]) -> Iterator[tuple[str, Info]]:
    """Yield name and ``info`` of every class in a module's text whose ``info`` has this type."""
    if f"{info_type.__name__}(" not in source:
        return
    for cls in ast.parse(source).body:
        if not isinstance(cls, ast.ClassDef):
            continue
        for statement in cls.body:
            if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "info":
                info = None if statement.value is None else _literal(statement.value)
                if isinstance(info, info_type):
                    yield cls.name, info


_LITERALS: Final = {cls.__name__: cls for cls in (MethodInfo, GuardInfo, AdapterInfo, Preset, Paper)}


def _literal(node: ast.expr) -> Any:
    """Return the value of an expression made of literals and of the classes of this module."""
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _LITERALS or node.args:
            raise TypeError(f"line {node.lineno}: an info may contain only literals and keyword arguments")
        return _LITERALS[node.func.id](**{str(k.arg): _literal(k.value) for k in node.keywords})
    if isinstance(node, ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, (_literal(value) for value in node.values), strict=True))
    return ast.literal_eval(node)
