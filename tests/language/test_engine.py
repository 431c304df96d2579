"""The engine: every way a request can go, and that the model is bit-identical after each."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from acclimate.errors import CancelledError, ConfigError, DataError
from acclimate.language import (
    DECLINED,
    REASONS,
    Adapter,
    AdapterManager,
    AskReport,
    DebugLog,
    Engine,
    Gate,
    LanguageModel,
    adaptation,
    as_examples,
    steps,
)
from acclimate.language import engine as engine_module
from acclimate.language.models.decoding import Answer
from acclimate.language.work import Policy
from tests.language.models import digest, small, spark

WORDS = ("stone", "lamp", "river", "cabin", "piano", "tiger")
TAGGED = [(w, f"<q>{w}</q>") for w in WORDS]
PROMPT = "\n".join(f"{a} -> {b}" for a, b in TAGGED) + "\nmelon ->"


@pytest.fixture(autouse=True)
def bit_identical() -> Iterator[None]:
    """Every test in this file leaves spark as it was."""
    before = digest(spark())
    yield
    assert digest(spark()) == before
    assert not any(module._forward_hooks for module in spark().network.modules())


def checked(report: AskReport) -> AskReport:
    """Check what holds for every report."""
    assert report.reason is None or report.reason in REASONS
    assert (report.status == "declined") == (report.reason in DECLINED)
    assert report.method == ("ttt" if report.status == "adapted" else "icl")
    assert report.metadata.fallback_reason == report.reason
    assert report.seconds["total"] >= sum(v for k, v in report.seconds.items() if k != "total") * 0.99
    assert report.status_line
    assert report.explanation
    assert json.loads(json.dumps(report.to_dict()))["answer"] == report.answer
    return report


def test_a_prompt_with_examples_is_adapted_to() -> None:
    report = checked(Engine(spark()).ask(PROMPT, compare=True))
    assert report.status == "adapted"
    assert report.answer == report.ttt_answer == "<q>melon</q>"
    assert report.icl_answer is not None
    assert report.pattern == "explicit_examples"
    assert report.metadata.training_steps > 0
    assert report.metadata.examples_used == 6
    assert report.metadata.confidence_score is not None
    assert 0 < report.metadata.confidence_score <= 1
    assert report.calibrated
    assert report.peak_bytes < 50e6
    assert "TTT active" in report.status_line
    assert "fine-tuned on your 6 examples" in report.explanation


def test_examples_given_directly_bypass_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module.patterns, "detect", lambda *_: pytest.fail("detected"))
    report = checked(Engine(spark()).answer(TAGGED, "melon"))
    assert report.answer == "<q>melon</q>"
    assert report.pattern == "given"


def test_what_icl_knows_already_is_declined() -> None:
    report = checked(Engine(spark()).answer([(w, w.upper()) for w in WORDS], "melon"))
    assert (report.status, report.reason) == ("declined", "no_held_out_gain")
    assert report.answer == "MELON"
    assert report.metadata.training_steps == 0


def test_a_prompt_without_examples_is_plain() -> None:
    report = checked(Engine(spark(), max_answer_tokens=5).ask("How are you today?"))
    assert (report.status, report.reason, report.pattern) == ("plain", None, None)
    assert "no worked examples" in report.explanation


@pytest.mark.parametrize(
    ("examples", "reason"),
    [
        ([("a", "b")], "insufficient_examples"),
        ([("a", "b"), ("a", "c")], "contradictory_examples"),
        ([("a", "b"), ("a", "b")], "insufficient_examples"),
    ],
)
def test_too_little_to_learn_from_is_declined(examples: list[tuple[str, str]], reason: str) -> None:
    report = checked(Engine(spark()).answer(examples, "x"))
    assert (report.status, report.reason) == ("declined", reason)


def test_contradictions_are_reported_and_the_rest_is_used() -> None:
    report = checked(Engine(spark()).answer([*TAGGED, ("dog", "1"), ("dog", "2")], "melon"))
    assert report.metadata.examples_used == 6
    assert any("'dog'" in warning for warning in report.warnings)


@pytest.mark.parametrize(("settings", "reason"), [({"max_seconds": 0.0}, "timeout"), ({"max_bytes": 100}, "memory")])
def test_limits_make_it_fall_back(settings: dict[str, Any], reason: str) -> None:
    report = checked(Engine(spark(), **settings).answer(TAGGED, "melon"))
    assert (report.status, report.reason) == ("fallback", reason)
    assert report.answer == report.icl_answer


def test_numbers_that_run_away_make_it_fall_back() -> None:
    recipe = dataclasses.replace(spark().recipe, learning_rate=1e38, gradient_clip_norm=None)
    report = checked(Engine(spark(), recipe=recipe).answer(TAGGED, "melon"))
    assert (report.status, report.reason) == ("fallback", "non_finite")


@pytest.mark.parametrize("error", [MemoryError("no room"), torch.OutOfMemoryError("no room")])
def test_running_out_of_memory_makes_it_fall_back(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def no_room(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr(steps, "trained", no_room)
    report = checked(Engine(spark()).answer(TAGGED, "melon", policy="always"))
    assert (report.status, report.reason) == ("fallback", "memory")


def test_a_model_that_cannot_be_adapted_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    monkeypatch.setattr(type(model), "decoder", _unsupported)
    report = checked(Engine(model, max_answer_tokens=4).answer(TAGGED, "melon"))
    assert (report.status, report.reason) == ("fallback", "unsupported_model")


def _unsupported(*_: object) -> None:
    from acclimate.errors import TTTNotSupportedError

    raise TTTNotSupportedError("no layers")


def test_a_pattern_without_an_open_item_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    found = engine_module.patterns.Detection("explicit_examples", 0.9, as_examples(TAGGED), None, ())
    monkeypatch.setattr(engine_module.patterns, "detect", lambda *_: found)
    report = checked(Engine(spark(), max_answer_tokens=4).ask("whatever"))
    assert (report.status, report.reason) == ("fallback", "detection_failed")


def test_a_sequence_has_no_examples_to_adapt_to() -> None:
    report = checked(Engine(spark(), max_answer_tokens=4).ask("2, 4, 6, 8, ?"))
    assert (report.status, report.reason, report.pattern) == ("declined", "insufficient_examples", "numbered_sequences")


def test_a_threshold_that_is_not_reached_declines() -> None:
    report = checked(Engine(spark(), gate=Gate(threshold=1.0)).answer(TAGGED, "melon"))
    assert (report.status, report.reason) == ("declined", "low_confidence")
    assert report.ttt_answer == "<q>melon</q>"


def test_policies_always_and_never() -> None:
    engine = Engine(spark())
    upper = [(w, w.upper()) for w in WORDS]
    assert checked(engine.answer(upper, "melon", policy="always")).status == "adapted"
    never = checked(engine.answer(TAGGED, "melon", policy="never"))
    assert (never.status, never.method) == ("plain", "icl")


def test_cancelling_in_the_middle_leaves_nothing_behind() -> None:
    for after in (1, 5, 12, 16):
        calls = iter(range(10_000))
        with pytest.raises(CancelledError):
            Engine(spark()).answer(TAGGED, "melon", cancelled=lambda calls=calls, after=after: next(calls) >= after)  # type: ignore[misc]


def test_an_exception_in_the_middle_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("from outside")

    monkeypatch.setattr(steps, "generate", breaks)
    with pytest.raises(RuntimeError, match="from outside"):
        Engine(spark()).answer(TAGGED, "melon")


def test_a_cancelled_prime_keeps_nothing() -> None:
    cache, calls = AdapterManager(), iter(range(100))
    with pytest.raises(CancelledError):
        Engine(spark(), cache=cache).prime(TAGGED, cancelled=lambda: next(calls) >= 2)
    assert len(cache) == 0


def test_what_was_declined_is_not_trained_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(spark(), cache=AdapterManager())
    upper = [(w, w.upper()) for w in WORDS]
    first = checked(engine.answer(upper, "melon"))
    monkeypatch.setattr(adaptation, "cross_fit_steps", lambda *_a, **_k: pytest.fail("tried again"))
    again = checked(engine.answer(upper, "apple"))
    assert first.reason == again.reason == "no_held_out_gain"
    assert not again.cached


def test_comparing_asks_the_adapted_model_even_where_it_was_declined() -> None:
    report = checked(Engine(spark()).answer([(w, w.upper()) for w in WORDS], "melon", compare=True))
    assert report.status == "declined"
    assert report.ttt_answer == report.icl_answer == "MELON"
    broken = dataclasses.replace(spark().recipe, learning_rate=1e38, gradient_clip_norm=None)
    assert Engine(spark(), recipe=broken).answer(TAGGED, "melon", compare=True).ttt_answer is None


def test_switching_it_off_is_not_called_a_prompt_without_examples() -> None:
    report = checked(Engine(spark()).answer(TAGGED, "melon", policy="never"))
    assert "switched off" in report.status_line
    assert "switched off" in report.explanation


def test_prompts_with_more_or_longer_examples_than_allowed_still_get_an_answer() -> None:
    many = "\n".join(f"{a} -> {b}" for a, b in TAGGED) + "\nmelon ->"
    report = checked(Engine(spark(), max_examples=4).ask(many))
    assert report.metadata.examples_used == 4
    assert any("the last 4 are used" in warning for warning in report.warnings)


@pytest.mark.parametrize("text", ["\ud800melon", "melon\x00\x1b"])
def test_characters_that_are_none_are_left_out(text: str) -> None:
    assert Engine(spark()).answer(TAGGED, text).answer == "<q>melon</q>"


def test_loading_an_adapter_waits_for_the_request_that_is_running(tmp_path: Path) -> None:
    engine = Engine(spark())
    engine.prime(TAGGED).save(tmp_path)
    errors: list[BaseException] = []

    def keep_loading() -> None:
        try:
            for _ in range(10):
                Adapter.load(tmp_path, spark())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test reports it
            errors.append(error)

    thread = threading.Thread(target=keep_loading)
    thread.start()
    answers = {engine.answer(TAGGED, "melon", policy="always").answer for _ in range(3)}
    thread.join()
    assert not errors
    assert answers == {"<q>melon</q>"}


def test_repeated_examples_cost_no_training() -> None:
    engine = Engine(spark(), cache=AdapterManager())
    first = checked(engine.answer(TAGGED, "melon"))
    again = checked(engine.answer(TAGGED, "apple"))
    assert not first.cached
    assert again.cached
    assert again.answer == "<q>apple</q>"
    assert again.metadata.training_steps == 0
    assert "training" not in again.seconds
    assert again.metadata.adaptation_time == 0


def test_votes_ask_in_several_orders() -> None:
    report = checked(Engine(spark(), votes=3).answer(TAGGED, "melon"))
    assert report.votes == 3
    assert report.agreement is not None
    assert report.answer == "<q>melon</q>"


@pytest.mark.parametrize(("policy", "orders"), [("gate", 2), ("always", 1)])
def test_another_order_is_asked_only_where_the_gate_decides(
    policy: Policy, orders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    alone = steps.generated_alone

    def noted(model: LanguageModel, step: steps.Generate) -> list[Answer]:
        if step.adapter is not None:
            asked.extend(step.prompts)
        return alone(model, step)

    monkeypatch.setattr(steps, "generated_alone", noted)
    report = checked(Engine(spark()).answer(TAGGED, "melon", policy=policy))
    assert (report.status, report.answer) == ("adapted", "<q>melon</q>")
    assert len(set(asked)) == orders
    # The gate compares with the base model's answer, which is generated in the same passes.
    assert len(asked) == orders + (policy == "gate")
    assert report.agreement == (1.0 if orders == 2 else None)


def test_warm_start_begins_at_a_cached_adapter_that_helps() -> None:
    cache = AdapterManager()
    engine = Engine(spark(), cache=cache, warm_start=True)
    engine.answer(TAGGED, "melon", policy="always")
    other = [(w, f"<q>{w}</q>") for w in ("paper", "cloud", "garden", "rocket")]
    warm = checked(engine.answer(other, "melon", policy="always"))
    assert warm.warm_start
    cold = checked(Engine(spark()).answer(other, "melon", policy="always"))
    assert not cold.warm_start
    assert warm.metadata.final_loss is not None
    assert cold.metadata.final_loss is not None
    assert warm.metadata.training_steps <= cold.metadata.training_steps


def test_a_primed_adapter_answers_without_training(tmp_path: Path) -> None:
    engine = Engine(spark())
    adapter = engine.prime(TAGGED)
    report = checked(engine.answer(TAGGED, "melon", adapter=adapter))
    assert (report.answer, report.cached, report.status) == ("<q>melon</q>", True, "adapted")
    with pytest.raises(DataError, match="another model"):
        Engine(small()).answer(TAGGED, "melon", adapter=adapter)
    with pytest.raises(DataError, match="give at least 2"):
        engine.prime(TAGGED[:1])
    with pytest.raises(DataError, match="memory budget"):
        Engine(spark(), max_bytes=10).prime(TAGGED)


def test_requests_from_many_threads_do_not_see_each_other() -> None:
    engine = Engine(spark())
    marks, answers = "qxyz", {}

    def work(mark: str) -> None:
        examples = [(w, f"<{mark}>{w}</{mark}>") for w in WORDS]
        answers[mark] = engine.answer(examples, "melon", policy="always").answer

    threads = [threading.Thread(target=work, args=(mark,)) for mark in marks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mark in marks:
        examples = [(w, f"<{mark}>{w}</{mark}>") for w in WORDS]
        assert answers[mark] == Engine(spark()).answer(examples, "melon", policy="always").answer


def test_reports_and_debug_lines_are_written_without_text(tmp_path: Path) -> None:
    reports: list[AskReport] = []
    path = tmp_path / "logs" / "debug.jsonl"
    engine = Engine(spark(), on_report=reports.append, debug=DebugLog(path))
    engine.ask(PROMPT)
    engine.ask("How are you today?")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["status"] for row in rows] == [r.status for r in reports] == ["adapted", "plain"]
    assert rows[0]["losses"]
    assert rows[0]["evidence"]["count"] == 6
    assert not any(word in path.read_text() for word in ("stone", "melon"))
    content = DebugLog(path, content=True, losses=False)
    Engine(spark(), debug=content).ask(PROMPT)
    last = json.loads(path.read_text().splitlines()[-1])
    assert last["examples"][0] == {"input": "stone", "output": "<q>stone</q>"}
    assert "losses" not in last


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"votes": 0}, "votes"), ({"min_examples": 1}, "min_examples"), ({"environment": "x"}, "environment")],
)  # fmt: skip
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Engine(spark(), **settings)


def test_empty_questions_are_refused() -> None:
    engine = Engine(spark())
    with pytest.raises(DataError, match="the prompt is empty"):
        engine.ask(" \n")
    with pytest.raises(DataError, match="the query is empty"):
        engine.answer(TAGGED, " ")
    with pytest.raises(DataError, match="the model reads 1024"):
        engine.answer([(w * 60, w) for w in WORDS], "x")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma", "neox"])
def test_other_architectures_go_all_the_way(kind: str) -> None:
    model = small(kind)
    before = digest(model)
    report = checked(Engine(model, max_answer_tokens=6).answer(TAGGED[:4], "melon", policy="always", compare=True))
    assert report.status == "adapted"
    assert report.metadata.lora_rank == 4
    assert digest(model) == before
