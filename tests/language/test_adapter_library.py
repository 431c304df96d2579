"""The library of adapters: what is kept and for how long, damaged entries, and several processes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from acclimate.errors import CheckpointError, ConfigError, DataError, InputError
from acclimate.language import Adapter, AdapterLibrary, LanguageModel, Retention, as_examples
from acclimate.language.training.adapter_library import ENTRY_FILE, MARKER, HeldOutGain, digest_of
from acclimate.language.training.task_features import distance, task_features
from tests import preloaded
from tests.language.models import small

GAIN = HeldOutGain(
    before_exact=0.25, after_exact=1.0, before_log_likelihood=-3.0, after_log_likelihood=-0.1, fold_loss=0.02
)
TAGGED = as_examples([("secret", "<q>secret</q>"), ("lamp", "<q>lamp</q>"), ("river", "<q>river</q>")])
DAY_S = 86400.0


class Clock:
    now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def some_adapter(model: LanguageModel, value: float = 0.5) -> Adapter:
    weights = {}
    for name in model.decoder(model.recipe.share_adapted).targets:
        out, inner = model.network.get_submodule(name).weight.shape
        weights[name] = torch.full((4, inner), value), torch.full((out, 4), value)
    return Adapter.of_weights(weights, rank=4, fingerprint=model.fingerprint)


def key(number: int) -> str:
    return f"{number:064x}"


def filled(library: AdapterLibrary, model: LanguageModel, *numbers: int, examples: Any = TAGGED) -> None:
    for number in numbers:
        assert library.add(some_adapter(model), key=key(number), examples=examples, gain=GAIN, model=model)


def test_what_is_added_comes_back_without_any_text(tmp_path: Path) -> None:
    model, clock = small(), Clock()
    library = AdapterLibrary(tmp_path / "library", clock=clock)
    assert not library.exists
    assert library.read().entries == ()
    filled(library, model, 1)
    (entry,) = AdapterLibrary(tmp_path / "library").read().entries
    assert (entry.key, entry.model, entry.examples, entry.gain) == (key(1), model.name, 3, GAIN)
    assert (entry.created, entry.last_used, entry.times_used) == (clock.now, clock.now, 0)
    assert entry.features == task_features(TAGGED)
    assert entry.held_bytes == sum(p.stat().st_size for p in (library.folder / key(1)).iterdir())
    loaded = library.load(entry, model)
    for name, (down, up) in some_adapter(model).weights.items():
        assert torch.equal(loaded.weights[name][0], down)
        assert torch.equal(loaded.weights[name][1], up)
    for path in library.folder.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()
    assert library.folder.stat().st_mode & 0o077 == 0
    assert not library.add(some_adapter(model), key=key(1), examples=TAGGED, gain=GAIN, model=model)


def test_texts_are_kept_where_the_user_asked_for_it(tmp_path: Path) -> None:
    library = AdapterLibrary(tmp_path, keep_content=True)
    filled(library, small(), 1)
    lines = (tmp_path / key(1) / "examples.jsonl").read_text().splitlines()
    assert [json.loads(line)["input"] for line in lines] == ["secret", "lamp", "river"]


def test_entries_go_so_many_days_after_their_last_use(tmp_path: Path) -> None:
    model, clock = small(), Clock()
    library = AdapterLibrary(tmp_path, retention=Retention(keep_days=10), clock=clock)
    filled(library, model, 1, 2)
    library.note_use(key(1))
    used = clock.now + 8 * DAY_S
    os.utime(tmp_path / key(1) / "uses", (used, used))
    clock.now += 11 * DAY_S
    assert library.clean() == (key(2),)
    (entry,) = library.read().entries
    assert (entry.key, entry.times_used, entry.last_used) == (key(1), 1, used)
    clock.now += 8 * DAY_S
    assert library.clean() == (key(1),)
    assert sorted(p.name for p in tmp_path.iterdir()) == [MARKER]


@pytest.mark.parametrize("by", ["number", "bytes"])
def test_what_was_used_longest_ago_makes_room(tmp_path: Path, by: str) -> None:
    model, clock = small(), Clock()
    library = AdapterLibrary(tmp_path, clock=clock)
    for number in (1, 2, 3):
        clock.now += 1
        filled(library, model, number)
    size = library.read().entries[0].held_bytes
    limits: dict[str, int] = {"max_entries": 2} if by == "number" else {"max_bytes": 2 * size + 1}
    smaller = AdapterLibrary(tmp_path, retention=Retention(**limits), clock=clock)
    assert smaller.clean() == (key(1),)
    assert [e.key for e in smaller.read().entries] == [key(3), key(2)]


def test_what_a_process_left_unfinished_is_deleted_after_a_while(tmp_path: Path) -> None:
    library = AdapterLibrary(tmp_path)
    filled(library, small(), 1)
    old, new, other = (tmp_path / f".{name}" for name in ("1" * 32 + ".part", "2" * 32 + ".removed", "mine.part"))
    for folder in (old, new, other):
        folder.mkdir()
    for folder in (old, other):
        os.utime(folder, (0, 0))
    library.clean()
    assert (old.exists(), new.exists(), other.exists()) == (False, True, True)
    assert len(library.read().entries) == 1


def test_the_nearest_tasks_of_the_same_model_come_first_unless_they_saw_an_example(tmp_path: Path) -> None:
    model, other = small(), small("gpt2")
    library = AdapterLibrary(tmp_path)
    filled(library, model, 1, examples=as_examples([("ab", "BA"), ("cd", "DC")]))
    filled(library, model, 2, examples=as_examples([("ab", "[ab]"), ("cde", "[cde]")]))
    filled(library, other, 3, examples=TAGGED)
    filled(library, model, 4, examples=(*TAGGED, *as_examples([("melon", "<q>melon</q>")])))
    asked = as_examples([("melon", "<q>melon</q>"), ("tiger", "<q>tiger</q>")])
    near = library.nearest(library.read(), model.fingerprint, asked, limit=5)
    assert [e.key for e in near] == [key(2), key(1)]
    assert [e.key for e in library.nearest(library.read(), model.fingerprint, asked, limit=1)] == [key(2)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def changed(name: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "cannot be read"),
        (Path.unlink, "lacks entry.json"),
        (changed("features", [0.5]), "has 1 features"),
        (changed("features_version", 0), "another version"),
        (changed("gain", {"before_exact": 1.0}), "cannot be read"),
        (changed("gain", 5), "cannot be read"),
        (changed("created", None), "None where a number belongs"),
        (changed("created", "soon"), "'soon' where a number belongs"),
        (changed("created", 1e300), "1e+300 where a number belongs"),
        (changed("created", float("nan")), "nan where a number belongs"),
        (changed("steps", 10**400), "where a number belongs"),
        (changed("seen", 5), "cannot be read"),
    ],
)
def test_a_damaged_entry_is_one_line_and_the_others_are_read(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    library = AdapterLibrary(tmp_path)
    filled(library, small(), 1, 2)
    damage(tmp_path / key(1) / ENTRY_FILE)
    listing = library.read()
    assert [e.key for e in listing.entries] == [key(2)]
    (problem,) = listing.problems
    assert said in problem
    assert "\n" not in problem
    assert listing.damaged == (key(1),)
    assert library.remove(key(1))
    assert library.read().problems == ()


def test_damaged_weights_and_those_of_another_model_are_refused(tmp_path: Path) -> None:
    model = small()
    library = AdapterLibrary(tmp_path)
    filled(library, model, 1)
    bad = some_adapter(model, float("nan"))
    library.add(bad, key=key(2), examples=TAGGED, gain=GAIN, model=model)
    entries = {e.key: e for e in library.read().entries}
    with pytest.raises(CheckpointError, match="not finite"):
        library.load(entries[key(2)], model)
    with pytest.raises(CheckpointError, match="trained for another model"):
        library.load(entries[key(1)], small("gpt2"))
    for damage in ({"r": "four"}, {"r": 0}, {"lora_alpha": "x"}, {"lora_alpha": float("inf")}):
        settings = tmp_path / key(1) / "adapter_config.json"
        whole = settings.read_text()
        settings.write_text(json.dumps(json.loads(whole) | damage))
        with pytest.raises(InputError):
            library.load(entries[key(1)], model)
        settings.write_text(whole)
    assert library.load(entries[key(1)], model).rank == 4
    cut(tmp_path / key(1) / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        library.load(entries[key(1)], model)


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="no library of adapters"):
        AdapterLibrary(tmp_path)
    with pytest.raises(DataError, match="is a file"):
        AdapterLibrary(tmp_path / "thesis.txt")
    library = AdapterLibrary(tmp_path / "library")
    filled(library, small(), 1)
    outside = tmp_path / "outside"
    shutil.move(library.folder / key(1), outside)
    (library.folder / key(1)).symlink_to(outside)
    assert library.read().entries == ()
    assert not library.remove("..")
    assert not library.remove(key(9))
    assert outside.is_dir()


@pytest.mark.parametrize("limit", [{"keep_days": -1.0}, {"max_entries": -1}, {"max_bytes": -1}])
def test_negative_limits_are_refused(limit: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        Retention(**limit)


def test_features_say_which_tasks_are_alike_and_nothing_of_their_texts() -> None:
    tag = task_features(as_examples([("stone", "<b>stone</b>"), ("lamp", "<b>lamp</b>")]))
    other_tag = task_features(as_examples([("paper", "<em>paper</em>"), ("cloud", "<em>cloud</em>")]))
    upper = task_features(as_examples([("paper", "PAPER"), ("cloud", "CLOUD")]))
    assert distance(tag, tag) == 0
    assert distance(tag, other_tag) < distance(tag, upper)
    assert all(0 <= value <= 1 for value in (*tag, *other_tag, *upper))
    # Letters may be exchanged for others: nothing is known of them.
    assert task_features(as_examples([("ab", "ba")])) == task_features(as_examples([("xy", "yx")]))
    assert digest_of(TAGGED[0]) != digest_of(dataclasses.replace(TAGGED[0], output="x"))


def written_and_deleted(folder: Path, first: int) -> None:
    """Add, use and delete entries that the other process adds, uses and deletes too."""
    model = small()
    library = AdapterLibrary(folder, retention=Retention(max_entries=5))
    for number in range(first, first + 12):
        library.add(some_adapter(model), key=key(number % 17), examples=TAGGED, gain=GAIN, model=model)
        listing = library.read()
        assert not listing.problems, listing.problems
        for entry in listing.entries:
            library.note_use(entry.key)
        library.remove(key((number + 3) % 17))


def test_two_processes_may_write_and_delete_at_once(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    there, here = tmp_path / "there", tmp_path / "library"
    code = (
        "from pathlib import Path\n"
        "from tests.language.test_adapter_library import written_and_deleted\n"
        f"Path({str(there)!r}).touch()\n"
        f"written_and_deleted(Path({str(here)!r}), 8)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "errors").open("wb") as errors:
        other = preloaded.start(code=code, stderr=errors, env=environment, cwd=root)
    while not there.exists() and other.poll() is None:
        time.sleep(0.05)
    written_and_deleted(here, 0)
    assert other.wait(300) == 0, (tmp_path / "errors").read_text()
    library, model = AdapterLibrary(here), small()
    listing = library.read()
    assert listing.problems == ()
    assert listing.entries
    assert not [p for p in here.iterdir() if p.name.startswith(".")]
    for entry in listing.entries:
        library.load(entry, model)


def test_no_use_is_lost_among_threads_or_processes(tmp_path: Path) -> None:
    library = AdapterLibrary(tmp_path)
    filled(library, small(), 1)
    threads = [
        threading.Thread(target=lambda: [AdapterLibrary(tmp_path).note_use(key(1)) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert library.read().entries[0].times_used == 200
    library.note_use(key(2))
    assert not (tmp_path / key(2)).exists()
