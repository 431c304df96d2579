"""Tasks with known answers, answered with and without adapting: the data of calibrations and benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from acclimate.errors import DataError
from acclimate.json_values import from_json
from acclimate.language.decision.calibration import Calibration, area_under_roc, expected_calibration_error, fit
from acclimate.language.decision.evidence import Evidence, cross_fit
from acclimate.language.examples import Example, as_examples, orderings
from acclimate.language.models.decoding import Answer
from acclimate.language.models.generate import PERMUTED_PROMPTS, agreement, generate, run_prefix
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Layout, Row
from acclimate.language.training.adapter import Adapter
from acclimate.language.training.parts import adapter_to
from acclimate.language.training.recipes import Recipe, decided
from acclimate.language.training.step_schedule import batch_of
from acclimate.language.training.trainer import TrainingJob


@dataclass(frozen=True, slots=True)
class KnownTask:
    """Examples to show, and questions whose answers are known.

    Attributes:
        name: of the task or its family.
        examples: shown and trained on.
        questions: asked.
    """

    name: str
    examples: tuple[Example, ...]
    questions: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One question, answered by the base model and by the adapted model.

    Attributes:
        task: its name.
        evidence: for the gate, after training.
        icl, adapted: the answers of the base model and of the adapted model.
        icl_right, adapted_right: whether they are exactly the known one.
        gate_seconds, train_seconds: CPU seconds of the thread for the task's cross-fit and training, the same for all
            its questions; those of torch's own worker threads are not in them.
    """

    task: str
    evidence: Evidence
    icl: Answer
    adapted: Answer
    icl_right: bool
    adapted_right: bool
    gate_seconds: float
    train_seconds: float


def read_tasks(path: Path, *, shots: int, questions: int | None = None) -> list[KnownTask]:
    """Return tasks from JSON lines ``{"task": name, "examples": [[input, output], ...]}``.

    Args:
        path: of the file.
        shots: the first so many examples of each line are shown, the others asked.
        questions: most questions of each task.

    Raises:
        DataError: a line cannot be read, or has not more examples than ``shots``.
    """
    tasks = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
            examples = as_examples(row["examples"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}, line {number}: expected {{"task": ..., "examples": [[input, output], ...]}}'
            ) from error
        if len(examples) <= shots:
            raise DataError(f"{path}, line {number} has {len(examples)} examples; more than {shots} are needed")
        end = None if questions is None else shots + questions
        tasks.append(KnownTask(str(row.get("task", number)), examples[:shots], examples[shots:end]))
    if not tasks:
        raise DataError(f"{path} holds no tasks")
    return tasks


def answers(
    model: LanguageModel, examples: Sequence[Example], queries: Sequence[Example], adapter: Adapter | None = None
) -> list[Answer]:
    """Return the answers to ``queries``; prompts of one length are generated side by side."""
    rows = [model.encoder.row(examples, query=query.input).tokens for query in queries]
    limit = 2 * max(model.encoder.answer_tokens(e) for e in (*examples, *queries)) + 16
    found: list[Answer | None] = [None] * len(rows)
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(index)
    with _with_adapter(model, adapter):
        prefix = run_prefix(model, model.encoder.row(examples).tokens)
        for indices in by_length.values():
            made = generate(model, [rows[i] for i in indices], max_tokens=limit, prefix=prefix)
            for index, answer in zip(indices, made, strict=True):
                found[index] = answer
    return [answer for answer in found if answer is not None]


@torch.no_grad()
def scored(
    model: LanguageModel,
    examples: Sequence[Example],
    questions: Sequence[Example],
    adapter: Adapter | None = None,
    *,
    batch_size: int = 8,
    layout: Layout | None = None,
) -> list[bool]:
    """Return whether greedy decoding answers each question exactly; nothing is generated.

    Greedy decoding gives the known answer where each of its tokens is the likeliest one after those before it, which
    one forward pass over the known answer shows. See :func:`answer_scores` for the arguments.
    """
    found = answer_scores(model, examples, questions, adapter, batch_size=batch_size, layout=layout)
    return [exact for exact, _ in found]


@torch.no_grad()
def answer_scores(
    model: LanguageModel,
    examples: Sequence[Example],
    questions: Sequence[Example],
    adapter: Adapter | None = None,
    *,
    batch_size: int = 8,
    layout: Layout | None = None,
) -> list[tuple[bool, float]]:
    """Return of the answer to each question whether greedy decoding gives it, and its log-likelihood in nats.

    The examples are run once for all questions.

    Args:
        model: to ask.
        examples: shown before every question.
        questions: with their answers.
        adapter: installed while asking.
        batch_size: questions in one forward pass.
        layout: that examples and questions are written in; None for the model's format.
    """
    shown = model.encoder.row(examples, layout=layout).tokens
    rows = [model.encoder.row([*examples, q], answers=[*[-1] * len(examples), 0], layout=layout) for q in questions]
    found = [(False, 0.0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    decoder = model.decoder(1.0)
    with _with_adapter(model, adapter):
        prefix = run_prefix(model, shown)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rest = [Row(rows[i].tokens[len(shown) :], rows[i].answer[len(shown) :]) for i in chosen]
            targets = batch_of([rest], pad=model.pad, device=model.device)
            key_values = prefix.repeated(len(chosen))
            hidden = model.network.base_model(input_ids=targets.tokens, past_key_values=key_values, use_cache=True)[0]
            logits = decoder.logits(hidden[targets.row, targets.column])
            wrong = logits.argmax(-1) != targets.wanted
            losses = torch.nn.functional.cross_entropy(logits, targets.wanted, reduction="none")
            missed = set(targets.row[wrong].tolist())
            sums = torch.zeros(len(chosen), device=losses.device).index_add_(0, targets.row, -losses).tolist()
            for place, index in enumerate(chosen):
                found[index] = place not in missed, sums[place]
    return found


@contextmanager
def _with_adapter(model: LanguageModel, adapter: Adapter | None) -> Iterator[None]:
    """Hold the model's lock, with ``adapter`` installed if there is one, inside the block."""
    with model.lock:
        if adapter is None:
            yield
        else:
            with adapter.installed(model.network):
                yield


def trials(
    model: LanguageModel,
    tasks: Sequence[KnownTask],
    *,
    recipe: Recipe | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Trial]:
    """Yield every question of every task, answered by the base model and after adapting.

    Args:
        model: to ask.
        tasks: with at least two examples each.
        recipe: of training; None takes the model's.
        progress: called with tasks done and their number.
    """
    for number, task in enumerate(tasks, 1):
        chosen = decided(recipe or model.recipe, task.examples)
        start = time.thread_time()
        evidence, parts = cross_fit(model, task.examples, chosen, even_if_perfect=True)
        gate_seconds = time.thread_time() - start
        adapter = adapter_to(model, TrainingJob(sets=[task.examples]), chosen, parts if evidence.likelier else None)
        train_seconds = time.thread_time() - start - gate_seconds
        base = answers(model, task.examples, task.questions)
        adapted = answers(model, task.examples, task.questions, adapter)
        order = orderings(len(task.examples), PERMUTED_PROMPTS, seed=chosen.seed)[-1]
        permuted = answers(model, [task.examples[i] for i in order], task.questions, adapter)
        for question, before, after, again in zip(task.questions, base, adapted, permuted, strict=True):
            known = evidence.answered(adapter, adapted=after, icl=before, agreement=agreement([after, again]))
            wanted = model.encoder.format.clean(question.output)
            yield Trial(
                task.name, known, before, after, before.text == wanted, after.text == wanted, gate_seconds,
                train_seconds,
            )  # fmt: skip
        if progress is not None:
            progress(number, len(tasks))


def fit_trials(model: str, found: Sequence[Trial], *, fitted_on: str) -> Calibration:
    """Return a calibration fitted to ``found``; see :func:`acclimate.language.decision.calibration.fit`."""
    return fit(
        model,
        [t.evidence for t in found],
        [t.adapted_right for t in found],
        [t.icl_right for t in found],
        fitted_on=fitted_on,
    )


def held_out_quality(model: str, found: Sequence[Trial], *, parts: int = 5) -> dict[str, float]:
    """Return how good the confidences are on tasks that were held out of the fit, tasks of one name together.

    The keys are ``auroc`` (adapted answer right), ``expected_calibration_error``, and the shares of right answers
    ``icl``, ``adapted`` and ``gated``.

    Raises:
        DataError: there are too few tasks, or those that are fitted on have one outcome.
    """
    names = sorted({t.task for t in found})
    parts = min(parts, len(names))
    if parts < 2:
        raise DataError("all tasks have one name; give tasks of at least two names, so that some can be held out")
    confidence: list[float] = []
    right: list[bool] = []
    gated = 0
    for part in range(parts):
        held_out = set(names[part::parts])
        fitted = fit_trials(model, [t for t in found if t.task not in held_out], fitted_on="")
        for trial in (t for t in found if t.task in held_out):
            adapted = fitted.probability(trial.evidence, "adapted")
            confidence.append(adapted)
            right.append(trial.adapted_right)
            better = adapted > fitted.probability(trial.evidence, "icl")
            gated += trial.adapted_right if better else trial.icl_right
    return {
        "auroc": area_under_roc(confidence, right),
        "expected_calibration_error": expected_calibration_error(confidence, right),
        "icl": sum(t.icl_right for t in found) / len(found),
        "adapted": sum(t.adapted_right for t in found) / len(found),
        "gated": gated / len(found),
    }
