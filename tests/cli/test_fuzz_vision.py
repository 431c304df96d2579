"""Vision commands with arguments that nobody would type: exit code 0 or 2, one line of error, no traceback.

Arguments are drawn from every option that a command has, on a scratch file system that is made anew for each
invocation. Device paths are never used; FIFOs occur as inputs only, because writing to one waits for a reader.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from acclimate.cli.main import main
from acclimate.core.session import Session
from acclimate.methods import Tent
from tests.cli.fuzzing import invoke
from tests.networks import classifier, images, write_images

FACTORIES = "tests.vision.factories"
INPUTS = (
    "images", "images/image_000.png", "images/broken.png", "empty", "list.txt", "bom.txt", "gt.json", "crowds.json",
    "labels.csv", "labels.json", "classes.json", "boxes.json", "results.json", "deep.json", "number.json", "text.json",
    "label_images", "masks.json", "state.safetensors", "binary", "pipe", "loop", "link", "linked", "nowhere", "", ".",
    "/", "\udcff", "x" * 300,
)  # fmt: skip
OUTPUTS = (
    "new.json", "deep/er/new.json", "images", "binary/below", "loop", "link", "dangling", "gt.json", "out", "\udcff",
    "x" * 300,
)  # fmt: skip
BLOCKED = ("gt.json", "binary/below", "loop", "link", "pipe", "x" * 300)
TEXTS = (
    "",
    "tent",
    "none",
    "fog",
    "fog:2",
    "fog:9",
    "a=1",
    "=",
    "steps=-1",
    "lr=nan",
    "worse_than_source",
    "\udcff",
    "5",
)
NUMBERS = ("-1", "0", "1", "2", "3", "0.5", "nan", "inf", "-inf", "1e-300", "1e300", "", "x", "٣")
MODELS = (
    "classifier",
    "normalised",
    "detector",
    "segmenter",
    "softmax_detector",
    "linear",
    "wrong",
    "fails",
    "broken",
    "not_callable",
)
# Others check these: the store, and devices. A factory of another package is not called.
EXCLUDED = {"record", "db", "db_url", "session", "actor", "device", "model", "adapter", "help", "methods", "verbose"}


def make_files(root: Path) -> None:
    """Write inputs of every kind, good and bad."""
    write_images(root / "images", 3, side=16)
    (root / "images" / "broken.png").write_text("no image")
    (root / "empty").mkdir()
    (root / "list.txt").write_text("images/image_000.png\nimages/image_001.png\nimages/gone.png\n")
    (root / "bom.txt").write_text("\ufeffimages/image_002.png\n", encoding="utf-8")
    names = [f"image_{n:03d}.png" for n in range(3)]
    truth = {
        "images": [{"id": n, "file_name": f"images/{name}", "width": 16, "height": 16} for n, name in enumerate(names)],
        "categories": [{"id": n, "name": name} for n, name in enumerate("xyz")],
        "annotations": [{"id": 0, "image_id": n, "category_id": n, "bbox": [1, 1, 8, 8]} for n in range(3)],
    }
    crowds = {**truth, "annotations": [{**annotation, "iscrowd": 1} for annotation in truth["annotations"]]}
    detection = {"class_id": 1, "score": 0.9, "bbox": {"cx": 0.3, "cy": 0.3, "w": 0.5, "h": 0.5}}
    contents: dict[str, Any] = {
        "gt.json": truth,
        "crowds.json": crowds,
        "labels.json": {name: n for n, name in enumerate(names)},
        "classes.json": [
            {"image": f"images/{name}", "classification": {"class_id": 1, "score": 1.0}} for name in names
        ],
        "boxes.json": [{"image": f"images/{name}", "detections": [detection]} for name in names],
        "results.json": [{"image_id": 0, "category_id": 0, "bbox": [1, 1, 8, 8], "score": 0.5}],
        "masks.json": [
            {
                "image": f"images/{name}",
                "width": 16,
                "height": 16,
                "segments": [{"class_id": 1, "score": 1.0, "segmentation": {"size": [16, 16], "counts": "0P8"}}],
            }
            for name in names
        ],
        "number.json": 3,
        "text.json": "text",
    }
    for name, content in contents.items():
        (root / name).write_text(json.dumps(content))
    (root / "deep.json").write_text("[" * 100_000)
    (root / "labels.csv").write_text("image,class\n" + "".join(f"{name},{n}\n" for n, name in enumerate(names)))
    (root / "label_images").mkdir()
    for name in names:
        Image.fromarray(np.ones((16, 16), np.uint8)).save(root / "label_images" / name)
    (root / "binary").write_bytes(np.random.default_rng(0).bytes(200))
    (root / "loop").symlink_to("loop")
    (root / "link").symlink_to("binary")
    (root / "dangling").symlink_to("not_there")
    (root / "linked").symlink_to("images")
    with Session(classifier(), Tent()) as session:
        session.adapt(images(4))
        session.save_state(root / "state.safetensors")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    make_files(root)
    return root


@pytest.fixture
def scratch(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values_of(option: click.Parameter) -> st.SearchStrategy[str]:
    if isinstance(option.type, click.Choice):
        return st.sampled_from([*map(str, option.type.choices), "unknown"])
    if isinstance(option.type, click.Path):
        is_output = "out" in (option.name or "") or "save" in (option.name or "")
        return st.sampled_from(OUTPUTS if is_output else INPUTS)
    if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType):
        return st.sampled_from(NUMBERS)
    return st.sampled_from(TEXTS)


def options_of(command: click.Command) -> st.SearchStrategy[list[str]]:
    """Draw up to three options of a command, each with a value where it takes one."""
    drawn = []
    for option in command.params:
        if not isinstance(option, click.Option) or option.name in EXCLUDED:
            continue
        for flag in (*option.opts, *option.secondary_opts)[:3]:
            if option.is_flag:
                drawn.append(st.just([flag]))
            else:
                drawn.append(values_of(option).map(lambda value, flag=flag: [flag, value]))
    return st.lists(st.one_of(drawn), max_size=3).map(lambda parts: [text for part in parts for text in part])


def options_by_command() -> dict[str, st.SearchStrategy[list[str]]]:
    found = {name: main.get_command(click.Context(main), name) for name in NAMES}
    return {name: options_of(command) for name, command in found.items() if command is not None}


NAMES = ("export", "compare", "evaluate", "corrupt", "pose-scenes")
OPTIONS = options_by_command()


@st.composite
def invocations(draw: st.DrawFn) -> list[str]:
    name = draw(st.sampled_from(["export"] * 6 + [*NAMES, "evaluate", "demo", "state"]))
    inputs, outputs = st.sampled_from(INPUTS), st.sampled_from(OUTPUTS)
    if name == "state":
        action = draw(st.sampled_from(["show", "diff"]))
        files = [draw(inputs) for _ in range(1 if action == "show" else 2)]
        return ["state", action, *files, *draw(st.sampled_from([[], ["--json"], ["--top", "0"]]))]
    more = draw(OPTIONS.get(name, st.just([])))
    model = ["--adapter", "torch", "--model", f"{FACTORIES}:{draw(st.sampled_from(MODELS))}"]
    good = st.sampled_from(["images", "list.txt", "gt.json", "linked", "images/image_000.png"])
    source = draw(st.one_of(good, good, inputs))
    if name == "export":
        ttt = draw(st.sampled_from([[], ["--ttt"], ["--ttt"], ["--ttt", "--ttt-reset", "online"], ["--tta"]]))
        return [name, source, *draw(st.sampled_from([model, model, ["--adapter", "dummy"]])), *ttt, *more]
    if name == "compare":
        methods = draw(st.sampled_from(["bn", "none,tent", "magic", "", "lame,memo"]))
        return [name, source, *model, "--methods", methods, *more]
    if name == "demo":
        # Only where it cannot write, because the demonstrations themselves take long.
        return [name, draw(st.sampled_from(["vision", "detect"])), "-o", draw(st.sampled_from(BLOCKED))]
    if name == "evaluate" and draw(st.booleans()):
        scored = draw(st.sampled_from([("classes.json", "labels"), ("boxes.json", "gt"), ("results.json", "gt")]))
        return [name, scored[0], "--ground-truth", f"{scored[1]}.json", *more]
    if name == "evaluate":
        return [name, draw(inputs), "--ground-truth", draw(inputs), *more]
    if name == "corrupt":
        return [name, source, draw(outputs), *more]
    return [name, "--out", draw(outputs), "--images", draw(st.sampled_from(["1", "2"])), "--side", "32", *more]


@given(arguments=invocations())
@settings(max_examples=75, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arguments_are_work_or_one_line_of_error(template: Path, scratch: Path, arguments: list[str]) -> None:
    invoke(template, scratch, arguments)


@pytest.mark.slow
@given(arguments=invocations())
@settings(max_examples=4000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arguments_are_work_or_one_line_of_error_for_longer(
    template: Path, scratch: Path, arguments: list[str]
) -> None:
    invoke(template, scratch, arguments)
