"""What the application says about itself is true: requests made from its own description never end in a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.serve.process import served


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("openapi")
    (folder / "loras").mkdir()
    # Short answers: the application is looked at, not they.
    short = ("max_answer_tokens=4", "default_answer_tokens=4", f"lora_folder={folder / 'loras'}")
    flags = [flag for setting in (*short, "allow_lora_loading=true") for flag in ("--set", setting)]
    with served(folder, "--no-record", *flags) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_no_request_ends_in_a_server_error(schema: Any) -> None:
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 13
    for operation in operations:

        @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(timeout=60)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        ask()
