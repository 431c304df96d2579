"""What `import acclimate` offers."""

from __future__ import annotations

import pytest

import acclimate


def test_every_public_name_is_there() -> None:
    for name in acclimate.__all__:
        assert getattr(acclimate, name) is not None


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Magic'"):
        acclimate.Magic  # noqa: B018
