"""Language and store commands with arguments that nobody would type: no traceback, one line of error.

Arguments are drawn as in ``test_fuzz_vision.py``, with the same rules: a scratch file system for each invocation, no
device paths, nothing that is sent or run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acclimate.cli.main import main
from acclimate.monitoring import Store, database
from tests.cli.fuzzing import invoke
from tests.monitoring.databases import fill

EXAMPLES = [{"input": word, "output": word.upper()} for word in ("cat", "dog", "owl", "hen")]
PROMPTS = (
    "cat -> CAT\ndog -> DOG\nowl -> OWL\nhen ->", "", " \n", "-", "What is a melon?", "\x00", "\udcff", "-> \n ->\n->",
    "[bold]", "a" * 5000,
)  # fmt: skip
INPUTS = (
    "examples.jsonl", "prompt.txt", "one.jsonl", "deep.jsonl", "number.jsonl", "binary", "empty", "pipe", "loop",
    "nowhere", "", ".", "/", "\udcff", "x" * 300,
)  # fmt: skip
# A program or a network is never named by chance, and a name that looks like one on a hub would be looked up there.
MODELS = ("spark", "spark", "./empty", "./binary", "./nowhere", "./broken", "", "/", "./loop/x", "\udcff")
STORES = (
    "store.db", "store.db", "new.db", "deep/new.db", "binary", "empty", "loop", "pipe", "binary/below", "nowhere/",
    "", "\udcff", "x" * 300, "sqlite:///store.db", "mysql://x", "postgresql://nobody@127.0.0.1:1/x", "postgresql://",
)  # fmt: skip
OUTPUTS = ("new.json", "new.csv", "new.parquet", "deep/new.json", "binary/below", "loop", "empty", "\udcff", "x" * 300)
NUMBERS = ("-1", "0", "1", "2", "0.5", "nan", "inf", "-inf", "1e-300", "1e300", "", "x", "٣")
TEXTS = ("", "a", "one", "policy=never", "policy=perhaps", "=", "votes=2", "steps=-1", "\udcff", "[bold]", "5")
# What sends, runs a program, or does not end by itself; and the model and the store, which are drawn apart.
EXCLUDED = {"webhook", "email", "smtp", "smtp_user", "smtp_starttls", "command", "watch", "help", "device"}
APART = {"model", "db"}
NAMES: tuple[tuple[str, ...], ...] = (
    ("ask",), ("ask",), ("prime",), ("calibrate",), ("health",), ("analyze",), ("report",), ("experiment", "create"),
    ("experiment", "report"), ("experiment", "status"), ("experiment", "stop"), ("feedback",), ("metrics", "export"),
    ("metrics", "label"), ("audit",), ("maintain",),
)  # fmt: skip


def command_of(names: tuple[str, ...]) -> click.Command:
    command: click.Command = main
    for name in names:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None, names
        command = found
    return command


COMMANDS = {names: command_of(names) for names in NAMES}


def values_of(option: click.Parameter) -> st.SearchStrategy[str]:
    name = option.name or ""
    if name in APART:
        return st.sampled_from(MODELS if name == "model" else STORES)
    if isinstance(option.type, click.Choice):
        return st.sampled_from([*map(str, option.type.choices), "unknown"])
    if isinstance(option.type, click.Path):
        return st.sampled_from(OUTPUTS if {"out", "output", "save", "folder"} & {name} else INPUTS)
    if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType):
        return st.sampled_from(NUMBERS)
    return st.sampled_from(PROMPTS if name == "prompt" else TEXTS)


def flags_of(option: click.Option) -> list[st.SearchStrategy[list[str]]]:
    flags = (*option.opts, *option.secondary_opts)
    if option.is_flag:
        return [st.just([flag]) for flag in flags]
    return [values_of(option).map(lambda value, flag=flag: [flag, value]) for flag in flags]


@st.composite
def invocations(draw: st.DrawFn) -> list[str]:
    names = draw(st.sampled_from(NAMES))
    command = COMMANDS[names]
    options = [p for p in command.params if isinstance(p, click.Option) and p.name not in EXCLUDED | APART]
    arguments = [*names]
    for option in command.params:
        if isinstance(option, click.Argument):
            arguments.append(draw(values_of(option)))
        elif option.name in APART or option.required:
            arguments += [option.opts[0], draw(values_of(option))]
    drawn = [strategy for option in options for strategy in flags_of(option)]
    for more in draw(st.lists(st.one_of(drawn), max_size=3)) if drawn else []:
        arguments += more
    return arguments


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("[" * 100_000)
    (root / "examples.jsonl").write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))
    (root / "one.jsonl").write_text('{"input": "a", "output": "b"}\n')
    (root / "deep.jsonl").write_text("[" * 100_000)
    (root / "number.jsonl").write_text("3\n")
    (root / "prompt.txt").write_text(PROMPTS[0])
    (root / "binary").write_bytes(bytes(range(256)))
    (root / "loop").symlink_to("loop")
    with Store(root / "store.db") as store:
        for status in ("adapted", "declined", "fallback", "plain"):
            fill(store, 4, status)
    return root


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACCLIMATE_DB_URL", raising=False)
    # Nobody listens there, and waiting for a server to start is tested elsewhere.
    monkeypatch.setattr(database, "REFUSED_PATIENCE_S", 0.0)
    return tmp_path


@given(arguments=invocations())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arguments_are_work_or_one_line_of_error(template: Path, scratch: Path, arguments: list[str]) -> None:
    invoke(template, scratch, arguments, typed="melon ->")


@pytest.mark.slow
@given(arguments=invocations())
@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arguments_are_work_or_one_line_of_error_for_longer(
    template: Path, scratch: Path, arguments: list[str]
) -> None:
    invoke(template, scratch, arguments, typed="melon ->")
