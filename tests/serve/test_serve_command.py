"""Settings of the server, where they come from, and API keys, at the command line."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from acclimate.cli.main import main
from acclimate.errors import ConfigError
from acclimate.serve.settings import ServerSettings, read_settings


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("ACCLIMATE_SERVE_")]:
        monkeypatch.delenv(name)


def test_flags_come_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nmax_rows = 2\nmodels = ["spark"]\nmax_waiting = 3\n')
    settings, sources = read_settings(
        {"port": 9, "host": None},
        config=file,
        environment={"ACCLIMATE_SERVE_PORT": "5", "ACCLIMATE_SERVE_MAX_ROWS": "6", "ACCLIMATE_DB_URL": "x"},
    )
    assert (settings.port, settings.max_rows, settings.max_waiting, settings.models) == (9, 6, 3, ("spark",))
    assert [sources[name] for name in ("port", "max_rows", "max_waiting", "host")] == [
        "flag", "environment", "file", "default",
    ]  # fmt: skip
    named, _ = read_settings({}, environment={"ACCLIMATE_SERVE_CONFIG": str(file)})
    assert named.port == 1
    listed, _ = read_settings({"models": "spark, smollm2"}, environment={})
    assert listed.models == ("spark", "smollm2")


def test_every_setting_is_described_and_shown(tmp_path: Path) -> None:
    assert all(field.description for field in ServerSettings.model_fields.values())
    shown = CliRunner().invoke(main, ["config", "show", "--port", "77"], env={"ACCLIMATE_SERVE_MAX_ROWS": "5"})
    assert shown.exit_code == 0, shown.output
    assert "port = 77  # flag: Port to listen on" in shown.stdout
    assert "max_rows = 5  # environment: " in shown.stdout
    assert "# keys_file is not set  # default: " in shown.stdout
    assert "# replicas = 2 needs engine ray  # default: " in shown.stdout
    on_ray = CliRunner().invoke(main, ["config", "show", "--engine", "ray"], env={})
    assert "\nreplicas = 2  # default: " in on_ray.stdout
    # What is printed can be used as the file.
    (tmp_path / "again.toml").write_text(shown.stdout)
    again, sources = read_settings({}, config=tmp_path / "again.toml", environment={})
    assert (again.port, again.max_rows, sources["port"]) == (77, 5, "file")
    assert {name for name in ServerSettings.model_fields if name not in shown.stdout} == set()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"replicas": 2}, "replicas needs engine ray; add --engine ray, or leave replicas out"),
        ({"replicas": 3, "engine": "here"}, "replicas needs engine ray"),
        ({"ray_address": "127.0.0.1:6379"}, "ray_address needs engine ray"),
        ({"vllm_adapters": 16}, "vllm_adapters needs generate_with vllm; add --generate-with vllm, or leave"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused_wherever_it_stands(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        read_settings(settings, environment={})
    if "engine" in settings:
        return
    (name, value), (head, _, rest) = next(iter(settings.items())), said.partition(" ")
    with pytest.raises(ConfigError, match=rf"{head} \(from ACCLIMATE_SERVE_{name.upper()}\) {rest}"):
        read_settings({}, environment={f"ACCLIMATE_SERVE_{name.upper()}": str(value)})
    file = tmp_path / "serve.toml"
    file.write_text(f"{name} = {json.dumps(value)}\n")
    with pytest.raises(ConfigError, match=rf"{head} in {file} {rest}"):
        read_settings({}, config=file, environment={})
    if "engine ray" not in said:
        return
    # The engine may come from another place than the setting does.
    found, _ = read_settings({"engine": "ray"}, config=file, environment={})
    assert getattr(found, name) == value
    # Another engine than that of the file leaves out what the file sets for its own.
    file.write_text(f'engine = "ray"\n{name} = {json.dumps(value)}\n')
    found, sources = read_settings({"engine": "here"}, config=file, environment={})
    assert (found.engine, sources[name]) == ("here", "default")
    with pytest.raises(ConfigError, match=f"{name} needs"):
        read_settings({"engine": "here", name: value}, config=file, environment={})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 'x'", "port in"),
        ("prot = 1", "the nearest one is port"),
        ("port = [", "is not TOML"),
        ("adapting_share = 2.0", "adapting_share"),
        ("request_timeout_s = inf", "request_timeout_s"),
        ("default_answer_tokens = 9999", "must not be above max_answer_tokens"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_settings({}, config=file, environment={})


def test_keys_are_created_listed_and_revoked(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["keys", *arguments, "--file", file])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    secret = run("create", "the tests", "--scope", "infer").strip()
    assert secret.startswith("acclimate_")
    kept = Path(file).read_text()
    assert secret.split("_", 2)[2] not in kept
    assert "$argon2id$" in kept
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    key_id = json.loads(kept)["keys"][0]["id"]
    assert key_id in run("list")
    run("revoke", key_id)
    assert json.loads(Path(file).read_text())["keys"][0]["revoked"]


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("serve", "--host", "0.0.0.0"), {}, "can be reached from other machines"),
        (("serve", "--port", "99999"), {}, "port"),
        (("serve", "--replicas", "2"), {}, "add --engine ray"),
        (("config", "show"), {"ACCLIMATE_SERVE_REPLICAS": "2"}, "ACCLIMATE_SERVE_REPLICAS"),
        (("serve", "--set", "max_row=3"), {}, "the nearest one is max_rows"),
        (("serve", "--set", "max_rows"), {}, "NAME=VALUE"),
        (("serve",), {"ACCLIMATE_SERVE_MAX_ROWS": "many"}, "ACCLIMATE_SERVE_MAX_ROWS"),
        (("serve",), {"ACCLIMATE_SERVE_MAXROWS": "1"}, "the nearest one is MAX_ROWS"),
        (("serve", "--config", "none.toml"), {}, "none.toml"),
        (("serve", "--keys-file", "none.json"), {}, "no valid API key"),
        (("serve", "--set", "allow_lora_loading=true"), {}, "needs lora_folder"),
        (("keys", "revoke", "abc"), {}, "there is no key"),
        (("keys", "create", "me", "--scope", "root"), {}, "unknown scope 'root'"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert said in lines[-1], done.stderr
    assert sum(line.startswith("Error") for line in lines) == 1
