"""Values of Python from and to JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any


def to_jsonable(value: Any) -> Any:
    """Return ``value`` made of JSON's types only: dataclasses to dicts, tuples to lists, non-finite numbers to null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def from_json(text: Any) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is no text, no JSON, or nested too deeply to be read.
    """
    if not isinstance(text, str):
        raise ValueError(f"JSON is text, got {type(text).__name__}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
