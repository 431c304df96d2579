"""What a request is read as: limits, defaults, and which adapter it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from acclimate.errors import DataError
from acclimate.serve.schemas import ChatRequest, CompletionRequest
from acclimate.serve.service import Service
from acclimate.serve.settings import ServerSettings
from tests.language.models import small

EXAMPLES = [{"input": text, "output": text[::-1]} for text in ("ab", "cd", "ef")]


@pytest.fixture
def service() -> Iterator[Service]:
    settings = ServerSettings(models=("llama",), default_answer_tokens=7, max_answer_tokens=9, max_examples=3)
    found = Service(settings, {"llama": small()})
    yield found
    assert found.close()


def chat(**more: Any) -> ChatRequest:
    return ChatRequest(model="llama", messages=[{"role": "user", "content": "gh"}], **more)  # type: ignore[list-item]


def test_prompts_without_examples_have_the_default_length_and_others_that_of_their_examples(service: Service) -> None:
    assert service.prepare(chat(), "").request.max_tokens == 7
    assert service.prepare(chat(max_tokens=3), "").request.max_tokens == 3
    plain = CompletionRequest(model="llama", prompt="gh")
    assert service.prepare(plain, "").request.max_tokens == 7
    given = service.prepare(chat(ttt={"examples": EXAMPLES}), "")
    assert given.request.max_tokens is None


def test_the_key_of_the_adapter_is_that_of_the_examples(service: Service) -> None:
    one, same, other = (
        service.prepare(chat(ttt={"examples": examples}), "") for examples in (EXAMPLES, EXAMPLES, EXAMPLES[:2])
    )
    assert one.trains == same.trains != other.trains
    assert service.prepare(chat(), "").trains is None
    assert service.prepare(chat(ttt={"examples": EXAMPLES, "mode": "off"}), "").trains is None
    with pytest.raises(DataError, match="at most 3"):
        service.prepare(chat(ttt={"examples": [*EXAMPLES, {"input": "x", "output": "y"}]}), "")
