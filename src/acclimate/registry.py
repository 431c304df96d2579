"""Which methods, adapters and guards there are: those that ship and those of plug-ins. Loads no torch.

What a method is like stands on the method itself, as the class attribute ``info``. Commands must know it before
torch is imported, so for the classes that ship it is read from their source text, as setuptools reads a version:
:class:`MethodInfo`, :class:`AdapterInfo` and :class:`GuardInfo` take literals only. Plug-ins are found by entry points
(``acclimate.methods``, ``acclimate.adapters``, ``acclimate.guards``) and imported when something of them is needed.
"""

from __future__ import annotations

import ast
import functools
import importlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar, get_args

from acclimate.errors import ConfigError, first_line

_LOG = logging.getLogger(__name__)

Kind = Literal["classifier", "detector"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""What a model decides on: one class for each image, or candidate objects in it."""
FilterKind = Literal["all", "norm_only", "adapter_only", "lora_only", "lora_norm_only"]
FILTER_KINDS: Final[tuple[FilterKind, ...]] = get_args(FilterKind)
"""Which parameters may be trainable, see :class:`acclimate.core.TensorFilter`."""
SHIPPED: Final = "acclimate"
"""The origin of what comes with this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """Where a method was published.

    Attributes:
        authors: as they are cited.
        venue: of the publication; ``year``: of it.
        arxiv: the identifier there.
    """

    authors: str
    venue: str
    year: int
    arxiv: str

    def __str__(self) -> str:
        return f"{self.authors}, {self.venue} {self.year}, arXiv {self.arxiv}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings of a run that suit one method.

    Attributes:
        name: of the preset.
        settings: by field of :class:`acclimate.vision.TTTConfig`; ``method`` and ``batch_size`` are added.
        detector: what differs on a detector. Learning rates are ten times lower there: entropy on a detector's outputs
            collapses at a classifier's rates (1e-3 took a small RT-DETR from 82 to 36 mAP).
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    detector: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo:
    """What a method is like; the command line, presets, checks and pages are derived from it.

    Attributes:
        name: at the command line, in reports and in state files.
        title: as a heading; ``paper``: None for a method of this project.
        kinds: of model that it works on.
        cost: CPU time as a multiple of plain prediction, roughly (``benchmarks/cifar``); methods are listed by it.
        needs_gradient: whether it moves weights; without, steps, learning rate and update filter have no effect.
        needs_one_of: ``batch_norm`` layers or ``source_images``: at least one of those named must be there.
        uses_source_images: whether source images change what it does.
        adapts_each_image: whether it takes each image alone and keeps nothing from one to the next.
        also_predicts_with: what it predicts with besides weights, so that it cannot be left behind in a model.
        unchanged_on_source: whether a stream that is as the source was is predicted bit for bit as without adapting.
        parameters_of_paper: the update filter that the paper uses; None where any is as good.
        certainty_allowance: how much less certain than the unadapted model it may be before a guard falls back, as a
            multiple of what is usual: methods that mix in the source's statistics are less certain by nature.
        presets: the first is used unless another is named.
        safe_rank: by kind of model, the place in the order in which ``--ttt`` without a method chooses.
        auto: by kind of model, settings that ``--ttt-method auto`` tries; ``auto_last_resort``: only where nothing
            else can be tried; ``auto_reason``: why it is taken where it passes.
        compared: whether ``acclimate compare`` runs it unless told otherwise.
        own_settings: fields of the method that are set by fields of ``TTTConfig``, by name, besides ``lr`` and
            ``update``.
        state_version: of its state in files; raised when fields of the state change their meaning.
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
    unchanged_on_source: bool = False
    parameters_of_paper: FilterKind | None = None
    certainty_allowance: float = 1.0
    presets: tuple[Preset, ...] = ()
    safe_rank: Mapping[str, int] = field(default_factory=dict)
    auto: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    auto_last_resort: bool = False
    auto_reason: str | None = None
    compared: bool = True
    own_settings: Mapping[str, str] = field(default_factory=dict)
    state_version: int = 1

    def applies_to(self, kind: Kind, *, batch_norm: bool, source_images: bool) -> bool:
        """Say whether it works on a kind of model with or without BatchNorm layers and known source images."""
        there = {"batch_norm": batch_norm, "source_images": source_images}
        return kind in self.kinds and (not self.needs_one_of or any(there[need] for need in self.needs_one_of))


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardInfo:
    """What a guard is like.

    Attributes:
        name: at the command line; ``title``: what it fires on.
        value: the field that ``--ttt-guard NAME=VALUE`` sets; None where there is nothing to set.
        on_by_default: whether runs have it unless told otherwise.
        setting: the field of ``TTTConfig`` that is its short form: a value for ``value``, or a switch.
        needs_probe: whether it looks at the probe batch, which runs then keep.
        costs_prediction: whether it may run the unadapted model; such guards are asked last.
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
    """What an adapter is like.

    Attributes:
        name: at the command line; ``title``: what it runs.
        model: what ``--model`` names; None where there is no model.
        default_model: where ``--model`` may be left out.
        takes_checkpoint: whether weights are given apart from the model.
    """

    name: str
    title: str = ""
    model: str | None = None
    default_model: str | None = None
    takes_checkpoint: bool = False


Info = TypeVar("Info", bound=MethodInfo | GuardInfo | AdapterInfo)


@dataclass(frozen=True, slots=True)
class Entry(Generic[Info]):
    """One method, adapter or guard.

    Attributes:
        name: at the command line.
        target: ``module:Class``.
        origin: ``acclimate``, or name and version of the distribution that brings it.
        info: None where it can only be known by importing a plug-in.
    """

    name: str
    target: str
    origin: str
    info: Info | None = None


@dataclass(frozen=True, slots=True)
class Registry(Generic[Info]):
    """The entries of one kind: what ships, then plug-ins.

    Attributes:
        what: in messages, such as ``method``.
        group: of entry points.
        packages: folders below this one whose modules hold what ships, or single modules.
        info_type: of the class attribute ``info``.
    """

    what: str
    group: str
    packages: tuple[str, ...]
    info_type: type[Info]

    def entries(self) -> dict[str, Entry[Info]]:
        """Return every entry by name without importing any; of two of one name the one that ships is taken."""
        found: dict[str, Entry[Info]] = dict(self.shipped())
        for point in metadata.entry_points(group=self.group):
            origin = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown distribution"
            if point.name in found:
                _LOG.warning("%s: the %s %r of %s is ignored, that of %s has the name",
                             self.group, self.what, point.name, origin, found[point.name].origin)  # fmt: skip
                continue
            found[point.name] = Entry(point.name, point.value, origin)
        return found

    def shipped(self) -> Mapping[str, Entry[Info]]:
        """Return what comes with this package, by name."""
        found: Mapping[str, Entry[Info]] = _shipped(self.packages, self.info_type)  # type: ignore[arg-type]
        return found

    def names(self) -> tuple[str, ...]:
        """Return the name of every entry."""
        return tuple(self.entries())

    def load(self, name: str) -> Any:
        """Return the class of an entry.

        Raises:
            ConfigError: there is none of that name, or it is a plug-in that cannot be imported.
        """
        entries = self.entries()
        if name not in entries:
            raise ConfigError(f"unknown {self.what} {name!r}; choose one of {', '.join(entries)}")
        return self._loaded(entries[name])

    def info(self, name: str) -> Info:
        """Return what an entry is like; a plug-in is imported for it.

        Raises:
            ConfigError: as :meth:`load`.
        """
        entry = self.entries().get(name)
        if entry is not None and entry.info is not None:
            return entry.info
        info: Info = self.load(name).info
        return info

    def infos(self) -> dict[str, Info]:
        """Return what every entry is like, by name; a plug-in that cannot be imported is named in a warning."""
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
    """Return method and preset by the preset's name, each method's own first one first.

    Of two presets of one name the first is taken, and a warning names the other.
    """
    found: dict[str, tuple[str, Preset]] = {}
    for name, info in METHODS.infos().items():
        for preset in info.presets:
            if preset.name in found:
                _LOG.warning("the preset %r of %s is ignored: %s has one", preset.name, name, found[preset.name][0])
            else:
                found[preset.name] = (name, preset)
    return found


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
    """Yield the name of every class in a module's text that has an ``info`` of this type, and the info."""
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
            raise TypeError(f"line {node.lineno}: an info is made of literals and keyword arguments only")
        return _LITERALS[node.func.id](**{str(k.arg): _literal(k.value) for k in node.keywords})
    if isinstance(node, ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, (_literal(value) for value in node.values), strict=True))
    return ast.literal_eval(node)
