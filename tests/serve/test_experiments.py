"""Requests are assigned to the arms of an experiment, and its report counts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from acclimate.cli.main import main
from acclimate.errors import ConfigError
from acclimate.monitoring import Arm, Experiment
from acclimate.serve.experiments import Assigner
from acclimate.serve.schemas import TTTOptions
from tests.serve.process import served

PROMPT = "".join(f"{word} -> <q>{word}</q>\n" for word in ("apple", "river", "stone", "cloud", "green")) + "melon ->"


def test_the_server_assigns_arms_and_records_their_outcomes(tmp_path: Path) -> None:
    database = str(tmp_path / "metrics.db")
    made = CliRunner().invoke(main, ["experiment", "create", "adapting", "--db", database])
    assert made.exit_code == 0, made.output
    arms = []
    with served(tmp_path, "--set", "experiment=adapting") as server:
        for number in range(12):
            body: dict[str, Any] = {"model": "spark", "messages": [{"role": "user", "content": PROMPT}]}
            headers = {"x-request-id": f"r{number}"}
            told = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=120).json()[
                "ttt"
            ]
            assert told["experiment"] == "adapting"
            arms.append(told["arm"])
            assert told["status"] == ("plain" if told["arm"] == "ICL" else "adapted")
        body["ttt"] = {"mode": "off"}
        alone = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()["ttt"]
        assert alone["experiment"] is None
        assert server.end() == 0
    assert {"ICL", "TTT"} == set(arms)
    report = CliRunner().invoke(main, ["experiment", "report", "adapting", "--db", database, "--json"])
    assert report.exit_code == 0, report.output
    counted = {arm["name"]: arm["outcomes"] for arm in json.loads(report.stdout)["arms"]}
    assert counted == {name: arms.count(name) for name in ("ICL", "TTT")}


def experiment(**changes: Any) -> Experiment:
    return Experiment(**({"name": "e", "arms": (Arm("ICL"), Arm("TTT")), "created_at": "2026-01-01"} | changes))


def test_who_takes_part() -> None:
    by_user = Assigner(experiment(assigned_by="user", design="fixed", horizon=100))
    assert by_user.assigned(None, user="", request_id="a") is None
    assert by_user.assigned(TTTOptions(), user="ann", request_id="a") is None
    one, again = (by_user.assigned(None, user="ann", request_id=request) for request in "ab")
    assert one is not None
    assert one == again
    by_request = Assigner(experiment(assigned_by="request"))
    found = [by_request.assigned(None, user="", request_id=str(n)) for n in range(40)]
    assert {assignment.arm for assignment in found if assignment is not None} == {"ICL", "TTT"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stopped_at": "2026-01-02"}, "was stopped"),
        ({"arms": (Arm("ICL", settings={"learning_rate": 1.0}), Arm("TTT"))}, "learning_rate"),
        ({"arms": (Arm("ICL", settings={"policy": "maybe"}), Arm("TTT"))}, "policy must be"),
        ({"arms": (Arm("ICL", settings={"rank": -1}), Arm("TTT"))}, "cannot be used"),
    ],
)
def test_experiments_that_cannot_be_served_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Assigner(experiment(**changes))
