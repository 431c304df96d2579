"""Lines of labelled images and sounds: ``{"input": {"image": "a.png"}, "output": "cat"}``. Reads no image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from acclimate.errors import DataError
from acclimate.json_values import from_json
from acclimate.media.items import KINDS, Kind

SHAPE: Final = '{"input": {"image": "a.png"}, "output": "cat"}'


@dataclass(frozen=True, slots=True)
class ExampleLine:
    """A line of a file of examples.

    Attributes:
        kind: of the input.
        path: of the input, as it was written.
        output: the answer that it should get.
    """

    kind: Kind
    path: str
    output: str


def has_media(path: Path) -> bool:
    """Return whether the first example of a file has an object as its input; False also where it cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            first = next((line for line in file if line.strip()), "")
        row = from_json(first)
    except (OSError, ValueError):
        return False
    return isinstance(row, Mapping) and isinstance(row.get("input"), Mapping)


def read_lines(path: Path, *, max_examples: int) -> list[ExampleLine]:
    """Return the lines of a file of examples.

    Raises:
        DataError: the file cannot be read, a line is not an example, there are too many, or the kinds are mixed.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    rows = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"{path} holds no examples")
    if len(rows) > max_examples:
        raise DataError(f"{path} holds {len(rows)} examples, at most {max_examples} are used; leave some out")
    found = [_line(where, line) for where, line in rows]
    kinds = sorted({line.kind for line in found})
    if len(kinds) > 1:
        raise DataError(f"{path} mixes inputs of the kinds {' and '.join(kinds)}; give one kind at a time")
    return found


def _line(where: str, line: str) -> ExampleLine:
    try:
        row = from_json(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON; write {SHAPE} on each line") from error
    given: Any = row.get("input") if isinstance(row, Mapping) else None
    if not isinstance(given, Mapping) or len(given) != 1 or "output" not in row:
        raise DataError(f"{where} is no example of an image or a sound; write {SHAPE}")
    ((key, path),) = given.items()
    kind = next((kind for kind in KINDS if kind == key), None)
    if kind is None or not isinstance(path, str) or not path or "\0" in path:
        raise DataError(f"{where} has the input {dict(given)!r}; give one of {', '.join(KINDS)} with a path")
    output = row["output"]
    if isinstance(output, bool) or not isinstance(output, str | int | float):
        raise DataError(f"{where} has the output {output!r}; it must be text")
    return ExampleLine(kind, path, str(output))
