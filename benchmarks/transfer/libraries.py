"""Requests and libraries of adapters for them: with other tasks of the same family, and without."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "spark"))
import held_out
import tasks as string_tasks

from acclimate.language import AdapterLibrary, Engine, Example, LanguageModel, Retention

#: Families that fill libraries only: the gate is calibrated on them.
FILLING = "CALIBRATION"
SHOTS = (4, 6, 8)


@dataclass(frozen=True)
class Request:
    """A task to be answered.

    Attributes:
        family: its name.
        same_rule: a task in the library has its rule, with other examples; otherwise the family's tasks there have
            other parameters (another tag, another shift).
        examples: shown.
        questions: asked.
    """

    family: str
    same_rule: bool
    examples: tuple[Example, ...]
    questions: tuple[Example, ...]


def examples_of(task: string_tasks.Task, count: int, rng: random.Random) -> tuple[Example, ...]:
    """Return ``count`` pairs of a task."""
    return tuple(Example(*pair) for pair in string_tasks.pairs(task, count, rng))


class Filled:
    """Folders of adapters that were worth it, one for each family.

    Args:
        model: that they are trained for.
        split: of the families that requests come from.
        folder: for them.
        per: tasks of each family.
        seed: of everything drawn.
    """

    def __init__(self, model: LanguageModel, split: str, folder: Path, *, per: int, seed: int) -> None:
        self._folder = folder
        self.rules: dict[str, list[string_tasks.Task]] = {}
        self.kept: dict[str, int] = {}
        rng = random.Random(seed)
        families: Mapping[str, string_tasks.Family] = {**getattr(held_out, split), **getattr(held_out, FILLING)}
        for name, family in families.items():
            self.rules[name] = [family(rng) for _ in range(per)]
            self.kept[name] = 0
            for number, task in enumerate(self.rules[name]):
                shown = examples_of(task, rng.choice(SHOTS) + 1, rng)
                # A library of its own: no task is trained from another's adapter.
                library = AdapterLibrary(folder / name / str(number), retention=Retention(keep_days=None))
                engine = Engine(model, library=library, max_seconds=None)
                report = engine.answer(shown[1:], shown[0].input)
                self.kept[name] += report.library is not None and report.library.added

    def library(self, folder: Path, *, without: str | None = None) -> AdapterLibrary:
        """Return a new library in ``folder`` with the adapters of all families but one."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in self.rules:
            if name == without:
                continue
            for one in (self._folder / name).glob("*"):
                shutil.copytree(one, folder, dirs_exist_ok=True)
        return AdapterLibrary(folder, retention=Retention(keep_days=None))


def requests(split: str, filled: Filled, *, per: int, questions: int, seed: int) -> Iterator[Request]:
    """Yield ``per`` tasks of each family, with a rule that no task in the library has where the family has others."""
    rng = random.Random(seed)
    families: Mapping[str, string_tasks.Family] = getattr(held_out, split)
    for name, family in families.items():
        for _ in range(per):
            count = rng.choice(SHOTS)
            for _ in range(50):
                task = family(rng)
                drawn = examples_of(task, count + questions, rng)
                same = any(_is_rule_of(one, drawn) for one in filled.rules[name])
                if not same:
                    break
            yield Request(name, same, drawn[:count], drawn[count:])


def _is_rule_of(task: string_tasks.Task, examples: Sequence[Example]) -> bool:
    return all(task.rule(example.input) == example.output for example in examples)
