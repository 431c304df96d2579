"""Answering and training from adapters of similar tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from acclimate.language import Adapter, AdapterLibrary, AskReport, Engine, Gate, as_examples, held_out, train
from acclimate.language.decision.side_by_side import compared
from acclimate.language.examples import Example, folds
from tests.language.models import digest, small, spark
from tests.language.test_adapter_library import GAIN, key, some_adapter

WORDS = ("stone", "lamp", "river", "cabin", "piano", "tiger")
OTHERS = ("paper", "cloud", "garden", "rocket", "table")


def tagged(name: str, words: Sequence[str] = WORDS) -> tuple[Example, ...]:
    return as_examples([(w, f"<{name}>{w}</{name}>") for w in words])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> AdapterLibrary:
    """Return a library with an adapter for a tag, which no test changes but for its uses."""
    found = AdapterLibrary(tmp_path_factory.mktemp("adapters") / "library")
    report = Engine(spark(), library=found, max_seconds=None).answer(tagged("q"), "melon")
    assert report.library is not None
    assert (report.library.added, report.library.use, report.library.tried) == (True, None, 0)
    return found


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    before = digest(spark())
    yield
    assert digest(spark()) == before


def asked(library: AdapterLibrary, examples: Sequence[Example], policy: str = "gate", **settings: object) -> AskReport:
    return Engine(spark(), library=library, max_seconds=None, **settings).answer(  # type: ignore[arg-type]
        examples, "melon", policy=policy  # type: ignore[arg-type]
    )  # fmt: skip


def test_adapters_side_by_side_answer_as_each_does_alone() -> None:
    model = small()
    examples = as_examples([("ab", "ba"), ("cd", "dc"), ("efg", "gfe"), ("hi", "ih"), ("jkl", "lkj")])
    splits = folds(examples, 2, seed=0)
    one = some_adapter(model, 0.05)
    other = Adapter.combined([some_adapter(model, 0.02), some_adapter(model, -0.03)], [0.5, 2.0])
    part = Adapter.of_weights(dict(list(one.weights.items())[:1]), rank=4, alpha=8, fingerprint=one.fingerprint)
    together = compared(model, examples, [one, other, part], seed=0)
    alone = [held_out(model, examples, splits, adapter) for adapter in (None, one, other, part)]
    assert len({round(found.log_likelihood, 4) for found in alone}) == 4
    for found, expected in zip(together, alone, strict=True):
        assert found.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-4)
        assert found.lowest_log_likelihood == pytest.approx(expected.lowest_log_likelihood, rel=1e-4)
        assert found.exact == expected.exact


def test_copies_that_start_from_an_adapter_are_those_trained_alone_from_it() -> None:
    model = small()
    examples = as_examples([("ab", "ba"), ("cd", "dc"), ("efg", "gfe"), ("hi", "ih")])
    halves, start = [examples[:2], examples[2:]], train(model, [examples], model.recipe)
    both = train(model, halves, model.recipe, start=start.repeated(2))
    assert start.repeated(1) is start
    for number, half in enumerate(halves):
        alone = train(model, [half], model.recipe, start=start)
        for name, (down, up) in alone.weights.items():
            torch.testing.assert_close(both.weights[name][0][number], down, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(both.weights[name][1][number], up, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_a_similar_task_answers_without_training(library: AdapterLibrary) -> None:
    uses = library.read().entries[0].times_used
    report = asked(library, tagged("z", OTHERS))
    (entry,) = library.read().entries
    assert (report.answer, report.status, report.cached) == ("<z>melon</z>", "adapted", True)
    assert report.library is not None
    assert (report.library.use, report.library.entry, report.library.tried) == ("answered", entry.key, 1)
    assert (report.metadata.training_steps, report.trained_tokens) == (0, 0)
    assert report.held_out_after == 1
    assert report.held_out_before is not None
    assert report.held_out_before < 1
    assert not report.calibrated
    assert "gate" not in report.seconds
    assert "training" not in report.seconds
    assert f"adapter {entry.key[:12]} from the library, no steps" in report.status_line
    assert "nothing was trained" in report.explanation
    assert report.to_dict()["library"]["use"] == "answered"
    assert entry.times_used == uses + 1


def test_the_same_examples_are_recognised_and_decided_on_their_evidence(library: AdapterLibrary) -> None:
    report = asked(library, tagged("q"))
    assert report.library is not None
    assert (report.library.use, report.status, report.calibrated) == ("same_examples", "adapted", True)
    assert report.metadata.training_steps == 0
    assert report.held_out_after == library.read().entries[0].gain.after_exact


def test_training_starts_from_an_adapter_that_does_not_answer_well_enough(library: AdapterLibrary) -> None:
    # No adapter is certain enough to answer without training.
    report = asked(library, tagged("z", OTHERS), gate=Gate(threshold=0.999), policy="always")
    cold = Engine(spark(), max_seconds=None).answer(tagged("z", OTHERS), "melon", policy="always")
    assert report.library is not None
    assert (report.library.use, report.library.added) == ("start", False)
    assert (report.status, report.warm_start, report.cached) == ("adapted", True, False)
    assert 0 < report.metadata.training_steps < cold.metadata.training_steps
    assert "from adapter" in report.status_line


def test_nothing_changes_where_no_adapter_helps(library: AdapterLibrary) -> None:
    reversed_words = as_examples([(w, w[::-1]) for w in WORDS])
    report, plain = asked(library, reversed_words), Engine(spark(), max_seconds=None).answer(reversed_words, "melon")
    assert report.library is not None
    assert report.library.use is None
    assert (report.status, report.reason, report.answer) == (plain.status, plain.reason, plain.answer)
    assert len(library.read().entries) == 1
    assert plain.library is None


def test_policy_never_does_not_look(library: AdapterLibrary) -> None:
    assert asked(library, tagged("q"), policy="never").library is None


def test_a_damaged_adapter_is_a_warning_and_training_goes_on(tmp_path: Path) -> None:
    model = spark()
    library = AdapterLibrary(tmp_path)
    library.add(train(model, [tagged("q")], model.recipe), key=key(1), examples=tagged("q"), gain=GAIN, model=model)
    weights = tmp_path / key(1) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    report = asked(library, tagged("z", OTHERS))
    assert (report.status, report.answer) == ("adapted", "<z>melon</z>")
    assert report.metadata.training_steps > 0
    (warning,) = report.warnings
    assert warning.startswith("left out of the library")
    assert "\n" not in warning


def test_an_adapter_that_makes_the_model_fail_is_not_used(tmp_path: Path) -> None:
    model, library = spark(), AdapterLibrary(tmp_path)
    good = train(model, [tagged("q")], model.recipe)
    huge = {name: (down * 1e20, up * 1e20) for name, (down, up) in good.weights.items()}
    bad = Adapter.of_weights(huge, rank=good.rank, fingerprint=good.fingerprint)
    for number, adapter in enumerate((bad, good)):
        library.add(adapter, key=key(number), examples=tagged("q"), gain=GAIN, model=model)
    report = asked(library, tagged("z", OTHERS))
    assert report.library is not None
    assert (report.library.tried, report.library.use, report.library.entry) == (2, "answered", key(1))
    assert report.answer == "<z>melon</z>"


def test_adapters_of_another_model_are_not_tried(tmp_path: Path) -> None:
    model = small()
    library = AdapterLibrary(tmp_path)
    library.add(some_adapter(model), key=key(1), examples=tagged("z"), gain=GAIN, model=model)
    report = asked(library, tagged("z", OTHERS))
    assert report.library is not None
    assert report.library.tried == 0
    assert report.warnings == ()
    assert report.library.added


def test_a_library_that_cannot_be_written_to_costs_no_answer(tmp_path: Path) -> None:
    library = AdapterLibrary(tmp_path / "library")
    (tmp_path / "library").write_text("in the way")
    report = asked(library, tagged("q"))
    assert (report.status, report.answer) == ("adapted", "<q>melon</q>")
    (warning,) = report.warnings
    assert warning.startswith("not kept in the library of adapters")


def test_without_time_or_memory_for_it_nothing_is_compared(library: AdapterLibrary) -> None:
    late = Engine(spark(), library=library, max_seconds=0).answer(tagged("z", OTHERS), "melon")
    assert late.reason == "timeout"
    full = asked(library, tagged("z", OTHERS), max_bytes=10)
    assert full.reason == "memory"
    assert full.library is not None
    assert full.library.tried == 0
