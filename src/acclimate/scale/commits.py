"""What a shard has finished: rows and state, which become valid together by one small file."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from acclimate.errors import CheckpointError, ConfigError
from acclimate.storage import Folder, digest_of
from acclimate.vision.data.prediction_archives import read_samples

FORMAT: Final = "acclimate shard 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One file of rows: lines of JSON, or a tar file with a member for each row.

    Attributes:
        file: its name in the output folder; ``sha256``: of its content; ``count``: of its rows.
    """

    file: str
    sha256: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What of a shard is finished; what stands in no commit counts as not done.

    Attributes:
        key: of the settings and images that it is of.
        images: how many the shard has; 0 until its archive was listed.
        adapted: images that the model was adapted to before any was predicted, with ``reset`` ``stream``.
        predicted: images whose rows are there, unusable ones included.
        batches: adaptation steps' batches so far.
        rows: the files of rows, in order.
        state: the file with the adapted state; None before the first, and where there is none.
        skipped: images that could not be used, and why.
        finished: whether the shard is done.
        report: of the adaptation, at the end.
    """

    key: str
    images: int = 0
    adapted: int = 0
    predicted: int = 0
    batches: int = 0
    rows: tuple[Rows, ...] = ()
    state: str | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    finished: bool = False
    report: Mapping[str, Any] | None = None

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return sum(part.count for part in self.rows)


class ShardStore:
    """The files of one shard.

    A commit first writes rows and state under names of their own, and then ``commit.json``, which names them. That file
    is replaced in one step: a reader sees the commit before or the one after, never a half. A worker that was taken for
    dead and writes later writes the same content, because the same work gives the same bytes.

    Args:
        folder: of the whole export.
        name: of the shard, as part of a path.
        key: see :class:`Commit`.
    """

    def __init__(self, folder: Folder, name: str, key: str) -> None:
        self._folder, self._name, self._base, self._key = folder, name, f"shards/{name}", key

    def last(self) -> Commit:
        """Return the last commit, or an empty one.

        Raises:
            ConfigError: it is of other images or settings.
            CheckpointError: it cannot be read.
        """
        content = self._folder.read(f"{self._base}/commit.json")
        if content is None:
            return Commit(key=self._key)
        try:
            found = json.loads(content)
            if found.pop("format") != FORMAT:
                raise ValueError("another format")
            rows = tuple(Rows(**part) for part in found.pop("rows"))
            commit = Commit(rows=rows, **found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{self._folder.url}/{self._base}/commit.json is damaged ({error}); remove the folder {self._base}"
            ) from error
        if commit.key != self._key:
            raise ConfigError(
                f"{self._folder.url}/{self._base} is of an export of other images or settings; choose another output "
                "folder, or remove it"
            )
        return commit

    def commit(
        self, before: Commit, *, rows: Sequence[Mapping[str, Any]], state: bytes | None, **changes: Any
    ) -> Commit:
        """Add rows and replace the state, together, and return the new commit."""
        number = before.adapted + before.predicted
        parts = before.rows
        if rows:
            file = f"{self._base}/rows-{before.predicted:010d}.jsonl"
            content = "".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows).encode()
            parts = (*parts, Rows(file=file, sha256=self._folder.write(file, content), count=len(rows)))
        saved = before.state
        if state is not None:
            changed = changes.get("adapted", before.adapted) + changes.get("predicted", before.predicted)
            saved = f"{self._base}/state-{max(number, changed):010d}.safetensors"
            self._folder.write(saved, state)
        after = replace(before, rows=parts, state=saved, **changes)
        self._folder.write(f"{self._base}/commit.json", _as_json(after))
        if before.state is not None and before.state != after.state:
            self._folder.remove(before.state)
        return after

    def rows(self, commit: Commit) -> Iterator[dict[str, Any]]:
        """Yield the rows of a commit; see :func:`rows_of`."""
        return rows_of(self._folder, commit.rows)

    def replace_rows(self, before: Commit, archive: Path, **changes: Any) -> Commit:
        """Replace all files of rows by one tar file with the same rows, and return the new commit.

        Args:
            before: the commit with all rows.
            archive: the tar file, on this machine.
            changes: what else the new commit says.
        """
        file = f"{self._name}.tar"
        rows = Rows(file=file, sha256=self._folder.put(file, archive), count=before.row_count)
        after = replace(before, rows=(rows,), **changes)
        self._folder.write(f"{self._base}/commit.json", _as_json(after))
        for part in before.rows:
            self._folder.remove(part.file)
        return after

    def state(self, commit: Commit) -> bytes | None:
        """Return the content of the state file of a commit.

        Raises:
            CheckpointError: it is gone.
        """
        if commit.state is None:
            return None
        content = self._folder.read(commit.state)
        if content is None:
            raise CheckpointError(f"{self._folder.url}/{commit.state} is gone; remove the folder {self._base}")
        return content


def _as_json(commit: Commit) -> bytes:
    return json.dumps({"format": FORMAT, **asdict(commit)}, indent=1).encode() + b"\n"


def rows_of(folder: Folder, parts: Sequence[Rows]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard in order.

    Raises:
        CheckpointError: a file is gone, or its content is not what was committed.
    """
    for part in parts:
        if part.file.endswith(".tar"):
            yield from _archived(folder, part)
            continue
        content = folder.read(part.file)
        if content is None or hashlib.sha256(content).hexdigest() != part.sha256:
            raise _changed(folder, part)
        for line in content.splitlines():
            yield json.loads(line)


def _archived(folder: Folder, part: Rows) -> Iterator[dict[str, Any]]:
    with folder.fetched(part.file) as path:
        if path is None or digest_of(path) != part.sha256:
            raise _changed(folder, part)
        try:
            yield from read_samples(path)
        except (tarfile.TarError, OSError, ValueError) as error:
            raise _changed(folder, part) from error


def _changed(folder: Folder, part: Rows) -> CheckpointError:
    return CheckpointError(f"{folder.url}/{part.file} is gone or was changed; export the shard again")
