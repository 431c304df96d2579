"""What a request asks of its model, step by step, so that it can be run alone or beside other requests.

A request is a generator: it yields a :data:`Step`, is sent what came of it, and returns its result. :func:`run_alone`
makes the steps of one request as they come. The server makes those of many requests, and lets those share passes that
can. Either way the request is the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from acclimate.language.models.deadlines import Deadline
from acclimate.language.models.decoding import GREEDY, Answer, OnText, Sampling
from acclimate.language.models.generate import generate
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Ending
from acclimate.language.training.adapter import Adapter
from acclimate.language.training.memory import RequestMemory
from acclimate.language.training.recipes import Recipe
from acclimate.language.training.trainer import TrainingJob, trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train low-rank weights; the step results in an :class:`~acclimate.language.training.adapter.Adapter`.

    Attributes:
        job: what is to be trained.
        recipe: with rank and steps decided.
    """

    job: TrainingJob
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Generate an answer to each prompt; the step results in a list of answers.

    Attributes:
        prompts: token ids, all of one length.
        max_tokens: most tokens of an answer.
        memory: of the request.
        adapter: that answers; None for the base model.
        shared_tokens: how many tokens at the beginning of each prompt other requests are likely to begin with too.
        open_ended: the prompts have no worked examples.
        sampling: how tokens are chosen.
        cancelled: called before every token.
        on_text: called with the text of the first answer, piece by piece.
        ending: where answers end; None means where they do in the model's format.
        deadline: of the request; answers end there, incomplete.
    """

    prompts: Sequence[tuple[int, ...]]
    max_tokens: int
    memory: RequestMemory
    adapter: Adapter | None = None
    shared_tokens: int = 0
    open_ended: bool = False
    sampling: Sampling = GREEDY
    cancelled: Callable[[], bool] | None = None
    on_text: OnText | None = None
    ending: Ending | None = None
    deadline: Deadline | None = None


@dataclass(frozen=True, slots=True)
class Together:
    """Generate several sets of answers that do not wait for each other; the step results in a list for each.

    Attributes:
        steps: one for each set.
    """

    steps: tuple[Generate, ...]


Step = Train | Generate | Together
T = TypeVar("T")
Steps = Generator[Step, Any, T]


def run_alone(model: LanguageModel, steps: Steps[T]) -> T:
    """Make ``steps`` one after the other, with nothing beside them, and return what they return.

    An error of a step is raised inside the generator, which may go on in another way.
    """
    with model.lock:
        try:
            step = next(steps)
            while True:
                try:
                    result = alone(model, step)
                except Exception as error:  # noqa: BLE001 - handed on: the generator decides what it means
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]
        finally:
            # What the generator holds is let go now, also where the process is interrupted.
            steps.close()


def alone(model: LanguageModel, step: Step) -> Adapter | list[Answer] | list[list[Answer]]:
    """Return the result of one step; the caller holds the model's lock."""
    if isinstance(step, Train):
        return trained(model, step.job, step.recipe)
    if isinstance(step, Together):
        return generated_together(model, step.steps)
    return generated_alone(model, step)


def generated_together(model: LanguageModel, steps: Sequence[Generate]) -> list[list[Answer]]:
    """Return the answers of several steps; the caller holds the model's lock.

    Steps that differ in prompts and adapter alone share the passes of all their answers, each row with its adapter.
    """
    first, shapes = steps[0], {len(prompt) for step in steps for prompt in step.prompts}
    alike = all(replace(step, prompts=first.prompts, adapter=first.adapter) == first for step in steps)
    rows = [step.adapter for step in steps for _ in step.prompts]
    if len(shapes) > 1 or not alike or first.on_text is not None or not any(rows):
        return [generated_alone(model, step) for step in steps]
    prompts = [prompt for step in steps for prompt in step.prompts]
    answers = iter(generated_alone(model, replace(first, prompts=prompts, adapter=Adapter.side_by_side(rows))))
    return [[next(answers) for _ in step.prompts] for step in steps]


def generated_alone(model: LanguageModel, step: Generate) -> list[Answer]:
    """Return the answers of one step, made by themselves; the caller holds the model's lock."""
    with ExitStack() as installed:
        if step.adapter is not None:
            installed.enter_context(step.memory.holding("attached adapter", step.adapter.held_bytes))
            installed.enter_context(step.adapter.installed(model.network))
        return generate(
            model,
            step.prompts,
            max_tokens=step.max_tokens,
            cancelled=step.cancelled,
            open_ended=step.open_ended,
            memory=step.memory,
            sampling=step.sampling,
            on_text=step.on_text,
            ending=step.ending,
            deadline=step.deadline,
        )
