"""The commands as a user types them, in a process of their own or through click's runner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from acclimate.cli.main import main
from tests import preloaded
from tests.networks import write_images

ROOT = Path(__file__).parent.parent.parent
FACTORIES = "tests.vision.factories"
MODEL = ("--adapter", "torch", "--model", f"{FACTORIES}:classifier")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_images(tmp_path / "images", 5, side=24)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_export_and_evaluate(folder: Path) -> None:
    done = run(
        "export",
        "images",
        *MODEL,
        "-o",
        "p.json",
        "--ttt",
        "--ttt-reset",
        "online",
        "--wrap",
        "--ttt-log-out",
        "log.json",
    )
    assert done.exit_code == 0, done.output
    assert "5 images predicted" in done.stderr
    assert "preset 'safe' filled in" in done.stderr
    assert json.loads(Path("p.json").read_text())["meta"]["ttt"]["preset"] == "safe"
    assert json.loads(Path("log.json").read_text())["ttt"]["method"] == "tent"
    Path("labels.csv").write_text("".join(f"image_{n:03d}.png,{n}\n" for n in range(5)))
    scored = run("evaluate", "p.json", "--ground-truth", "labels.csv")
    assert scored.exit_code == 0
    assert "accuracy" in scored.stdout
    as_json = json.loads(run("evaluate", "p.json", "--ground-truth", "labels.csv", "--json").stdout)
    assert as_json["images"] == 5
    assert 0 <= as_json["accuracy"] <= 1


def test_a_flag_that_was_typed_beats_the_preset_even_at_its_default(folder: Path) -> None:
    done = run(
        "export", "images", *MODEL, "-o", "p.json", "--wrap", "--ttt", "--ttt-lr", "0.0001", "--ttt-batch-size", "1"
    )
    assert done.exit_code == 0, done.output
    ttt = json.loads(Path("p.json").read_text())["meta"]["ttt"]
    assert (ttt["lr"], ttt["batch_size"], ttt["update_filter"]) == (1e-4, 1, "norm_only")


def test_preset_none_gives_the_plans_defaults(folder: Path) -> None:
    assert run("export", "images", *MODEL, "-o", "p.json", "--wrap", "--ttt", "--ttt-preset", "none").exit_code == 0
    ttt = json.loads(Path("p.json").read_text())["meta"]["ttt"]
    assert (ttt["steps"], ttt["lr"], ttt["batch_size"], ttt["update_filter"]) == (1, 1e-4, 1, "all")


def test_method_options_and_low_rank_weights(folder: Path) -> None:
    done = run(
        "export",
        "images",
        *MODEL,
        "-o",
        "p.json",
        "--wrap",
        "--ttt",
        "--ttt-method",
        "cotta",
        "--ttt-option",
        "view_count=2",
        "--ttt-update-filter",
        "lora_only",
        "--lora-rank",
        "2",
        "--lora-targets",
        "5",
        "--ttt-seed",
        "3",
    )
    assert done.exit_code == 0, done.output
    report = json.loads(Path("p.json").read_text())["meta"]["ttt"]["report"]
    assert report["updated_param_count"] == 2 * 32 + 5 * 2
    assert report["session"]["settings"]["view_count"] == 2


def test_coco_results_can_be_scored(folder: Path) -> None:
    content = {
        "images": [{"id": 40 + n, "file_name": f"image_{n:03d}.png", "width": 24, "height": 24} for n in range(5)],
        "categories": [{"id": 7, "name": "x"}, {"id": 8, "name": "y"}, {"id": 9, "name": "z"}],
        "annotations": [{"image_id": 40 + n, "category_id": 7, "bbox": [2, 2, 9, 9]} for n in range(5)],
    }
    Path("gt.json").write_text(json.dumps(content))
    model = ("--adapter", "torch", "--model", f"{FACTORIES}:detector")
    scores = []
    for extra in ((), ("--format", "coco")):
        exported = run("export", "gt.json", "--images-root", "images", *model, "-o", "p.json", *extra)
        assert exported.exit_code == 0, exported.output
        scored = run("evaluate", "p.json", "--ground-truth", "gt.json", "--json")
        assert scored.exit_code == 0, scored.output
        scores.append(json.loads(scored.stdout))
    assert scores[0] == scores[1]
    assert set(scores[0]) == {"images", "mAP", "mAP50", "mAP75", "AR100"}


def test_a_rotated_photo_is_predicted_as_viewers_show_it(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.open("images/image_000.png").resize((40, 24))
    Path("photos").mkdir()
    stored.save("photos/a.jpg", exif=exif)
    model = ("--adapter", "torch", "--model", f"{FACTORIES}:detector")

    def exported(width: int, height: int, *extra: str) -> Result:
        image = {"id": 1, "file_name": "a.jpg", "width": width, "height": height}
        categories = [{"id": n, "name": name} for n, name in enumerate("xyz")]
        annotation = {"image_id": 1, "category_id": 0, "bbox": [1, 1, 9, 9]}
        content = {"images": [image], "categories": categories, "annotations": [annotation]}
        Path("photos/gt.json").write_text(json.dumps(content))
        return run("export", "photos/gt.json", *model, "-o", "p.json", *extra)

    assert exported(24, 40).exit_code == 0
    (entry,) = json.loads(Path("p.json").read_text())
    assert (entry["width"], entry["height"]) == (24, 40)
    for refused in (exported(40, 24), exported(24, 40, "--no-exif-orientation")):
        assert refused.exit_code == 2
        assert "EXIF orientation" in refused.stderr
    assert exported(40, 24, "--no-exif-orientation").exit_code == 0
    assert run("evaluate", "p.json", "--ground-truth", "photos/gt.json").exit_code == 0
    assert run("corrupt", "photos", "foggy", "--name", "fog:1").exit_code == 0
    assert Image.open("foggy/a.png").size == (24, 40)


def test_dry_run(folder: Path) -> None:
    done = run("export", "images", *MODEL, "--ttt", "--ttt-dry-run")
    assert done.stdout.splitlines() == [
        "1.weight  8",
        "1.bias  8",
        "tent: 2 tensors with 16 elements are trainable; nothing was changed",
    ]
    assert not Path("predictions.json").exists()


BAD = {
    "missing folder": (("export", "nowhere", *MODEL), "does not exist"),
    "empty folder": (("export", "empty", *MODEL), "contains no images"),
    "unknown method": (("export", "images", *MODEL, "--ttt", "--ttt-method", "magic"), "magic"),
    "no TTT support": (("export", "images", "--adapter", "dummy", "--ttt"), "does not support test-time training"),
    "empty selection": (("export", "images", *MODEL, "--ttt", "--ttt-update-filter", "lora_only"), "--lora-rank"),
    "pickle": (("export", "images", *MODEL, "--checkpoint", "weights.pt"), "--trust-pickle"),
    "no model": (
        (
            "export",
            "images",
        ),
        "needs --model",
    ),
    "no such model": (("export", "images", "--model", "empty"), "cannot load a model"),
    "strict": (("export", "bad", *MODEL, "--strict"), "1 images cannot be used"),
    "settings without --ttt": (("export", "images", *MODEL, "--ttt-lr", "1"), "without --ttt"),
    "state without --ttt": (
        ("export", "images", *MODEL, "--ttt-save-state", "s"),
        "the integration plan ignores them in this case; here they are an error",
    ),
    "bad option": (("export", "images", *MODEL, "--ttt", "--ttt-option", "speed=1"), "no option 'speed'"),
    "option without value": (("export", "images", *MODEL, "--ttt", "--ttt-option", "speed"), "NAME=VALUE"),
    "bad corruption": (("export", "images", *MODEL, "--corrupt", "rain"), "unknown corruption 'rain'"),
    "bad steps": (("export", "images", *MODEL, "--ttt", "--ttt-steps", "0"), "steps must be at least 1"),
    "coco and wrap": (("export", "images", *MODEL, "--format", "coco", "--wrap"), "leave one out"),
    "archive and wrap": (("export", "images", *MODEL, "--format", "webdataset", "--wrap"), "leave one out"),
    "coco and ray": (("export", "images", *MODEL, "--format", "coco", "--engine", "ray"), "or use webdataset"),
    "no predictions": (("evaluate", "nowhere.json", "--ground-truth", "x"), "does not exist"),
    "unknown compare method": (("compare", "images", *MODEL, "--methods", "magic"), "unknown method 'magic'"),
    "nothing to corrupt": (("corrupt", "images"), "give IMAGES, OUTPUT and --name"),
}


BAD |= {
    "strict and a raw photo": (("export", "raw", *MODEL, "--strict"), "1 images cannot be used; the first: raw/b.cr2"),
    "root of a folder": (("export", "images", *MODEL, "--images-root", "."), "a list or a COCO file"),
    "no such device": (("export", "images", *MODEL, "--device", "cuda:77"), "cannot be used"),
    "nonsense device": (("export", "images", *MODEL, "--device", "toaster"), "'toaster'"),
    "output is a folder": (("export", "images", *MODEL, "-o", "images"), "it is a folder"),
    "low rank without rank": (("export", "images", *MODEL, "--ttt", "--lora-targets", "5"), "--lora-rank"),
    "mim flag without mim": (("export", "images", *MODEL, "--ttt", "--ttt-mask-prob", "0.5"), "--ttt-method mim"),
    "source without eata": (("export", "images", *MODEL, "--ttt", "--ttt-source", "images"), "no effect with tent"),
    "tta flag without tta": (("export", "images", *MODEL, "--tta-seed", "3"), "--tta"),
    "batch size with ttt": (("export", "images", *MODEL, "--ttt", "--batch-size", "3"), "--ttt-batch-size"),
    "guard without guards": (("export", "images", *MODEL, "--ttt", "--no-ttt-guards", "--ttt-probe"), "without guards"),
    "model for dummy": (("export", "images", "--adapter", "dummy", "--model", "x"), "dummy"),
    "lr for bn": (("export", "images", *MODEL, "--ttt", "--ttt-method", "bn", "--ttt-lr", "1"), "bn has no gradient"),
    "collapse and sample": (
        ("export", "images", *MODEL, "--ttt", "--ttt-reset", "sample", "--ttt-collapse-share", "0.9"),
        "collapse_share",
    ),
    "too few betas": (("export", "images", *MODEL, "--ttt", "--ttt-option", "betas=0.9"), "2 values"),
    "factory that fails": (("export", "images", "--adapter", "torch", "--model", f"{FACTORIES}:fails"), "is missing"),
    "detector as classifier": (
        ("export", "images", "--adapter", "torch", "--model", f"{FACTORIES}:undeclared_detector"),
        "kind='detector'",
    ),
    "weights that are not finite": (
        ("export", "images", "--adapter", "torch", "--model", f"{FACTORIES}:broken"),
        "finite",
    ),
    "option that no method has": (("compare", "images", *MODEL, "--ttt-option", "speed=1"), "has an option 'speed'"),
    "no method to compare": (("compare", "images", *MODEL, "--methods", "none"), "at least one method"),
    "labels that are not there": (("compare", "images", *MODEL, "--ground-truth", "gone.csv"), "gone.csv"),
    "corrupt over the originals": (("corrupt", "images", "images", "--name", "fog"), "is not overwritten"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_line_and_exit_code_two_and_writes_nothing(folder: Path, case: str) -> None:
    (folder / "empty").mkdir()
    write_images(folder / "bad", 1)
    (folder / "bad" / "broken.png").write_text("no image")
    write_images(folder / "raw", 1)
    (folder / "raw" / "b.cr2").write_bytes(b"II*\0 raw")
    (folder / "weights.pt").write_bytes(b"pickle")
    before = sorted(path for path in folder.rglob("*"))
    arguments, message = BAD[case]
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert sorted(path for path in folder.rglob("*")) == before


def test_compare_prints_a_table(folder: Path) -> None:
    done = run(
        "compare", "images", *MODEL, "--methods", "bn,tent", "-o", "out", "--ttt-batch-size", "5", "--corrupt", "fog:2"
    )
    assert done.exit_code == 0, done.output
    for word in ("method", "agreement", "95 % interval", "tent", "cost", "out/comparison.png"):
        assert word in done.stdout
    assert Path("out/comparison.png").exists()


def test_corrupt_writes_copies(folder: Path) -> None:
    (folder / "images" / "broken.png").write_text("no image")
    done = run("corrupt", "images", "foggy", "--name", "fog:3")
    assert done.stdout.strip() == "5 images written to foggy, 1 skipped"
    assert sorted(path.name for path in Path("foggy").iterdir()) == [f"image_{n:03d}.png" for n in range(5)]
    assert "gaussian_noise" in run("corrupt", "--list").stdout
    assert run("corrupt", "images", "images/image_000.png", "--name", "fog").exit_code == 2
    Image.new("RGB", (8, 8)).save(folder / "images" / "image_000.jpg")
    clash = run("corrupt", "images", "clash", "--name", "fog:3")
    assert clash.exit_code == 2
    assert "the same file" in clash.stderr
    assert not Path("clash").exists()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_plans_script_is_the_same_command_and_quiet_in_a_pipe(folder: Path) -> None:
    script = (ROOT / "tools" / "export_predictions.py").read_text(encoding="utf-8")
    done = preloaded.run("images", "--adapter", "dummy", code=script, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert len(json.loads((folder / "predictions.json").read_text())) == 5
    refused = preloaded.run("images", "--adapter", "dummy", "--ttt", code=script, cwd=folder)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_a_run_killed_from_outside_leaves_nothing_half_written_and_resumes(folder: Path) -> None:
    write_images(folder / "many", 400, side=64)
    command = ["export", "many", *MODEL, "-o", "out/p.json", "--batch-size", "1"]
    process = preloaded.start(*command, cwd=folder, env=environment())
    partial = folder / "out" / ".p.json.partial.jsonl"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not (partial.exists() and partial.stat().st_size > 2000):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "out" / "p.json").exists(), "the run ended before it could be killed"
    assert partial.exists()
    resumed = preloaded.run(*command, "--resume", cwd=folder, env=environment())
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads((folder / "out" / "p.json").read_text())) == 400
    assert not partial.exists()


def test_ctrl_c_says_how_to_go_on(folder: Path) -> None:
    # So many that the run cannot end before the signal, on however busy a machine: the same images again and again.
    paths = write_images(folder / "many", 500, side=64)
    (folder / "many.txt").write_text("".join(f"{path}\n" for path in paths * 40))
    command = ["export", "many.txt", *MODEL, "-o", "out/p.json", "--batch-size", "1"]
    with (folder / "errors").open("wb") as errors:
        process = preloaded.start(*command, cwd=folder, env=environment(), stderr=errors)
    partial = folder / "out" / ".p.json.partial.jsonl"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not (partial.exists() and partial.stat().st_size > 2000):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "--resume" in (folder / "errors").read_text()
    assert partial.exists()


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from acclimate.cli.main import main; main(['--help'], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_of_a_command_wait_briefly_unless_somebody_said_otherwise(given: dict[str, str], spins: str) -> None:
    code = (
        "import os, click; from acclimate.cli.main import main; main.get_command(click.Context(main), 'state');"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spins


def test_version() -> None:
    assert run("--version").stdout.startswith("acclimate, version ")
    assert run("nonsense").exit_code == 2
