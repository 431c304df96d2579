"""Tasks with known answers for both models: families of strings for spark, English for models that know words."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "spark"), str(Path(__file__).parent)]
import english_tasks
import held_out
import tasks as string_tasks

from acclimate.language import Example
from acclimate.language.decision.trials import KnownTask

REFERENCE_FAMILIES = held_out.REFERENCE_FAMILIES
#: Tasks in data/bbh, and how many of their questions are asked.
BIG_BENCH_HARD = (
    "boolean_expressions", "date_understanding", "dyck_languages", "hyperbaton", "navigate", "object_counting",
    "ruin_names", "temporal_sequences", "word_sorting",
)  # fmt: skip


def known_tasks(
    model: str, split: str, *, per: int, shots: int | tuple[int, ...], questions: int, seed: int
) -> list[KnownTask]:
    """Return ``per`` tasks of each family of a split.

    Args:
        model: ``spark`` gets strings, every other English.
        split: ``DEVELOPMENT``, ``CALIBRATION`` or ``TEST``.
        per: tasks of each family.
        shots: examples of each task; of several, one is drawn.
        questions: of each task.
        seed: of everything drawn.
    """
    rng = random.Random(seed)
    families = getattr(held_out if model == "spark" else english_tasks, split)
    found = []
    for name, family in families.items():
        for _ in range(per):
            count = shots if isinstance(shots, int) else rng.choice(shots)
            if model == "spark":
                drawn = string_tasks.pairs(family(rng), count + questions, rng)
            else:
                drawn = english_tasks.drawn(family, count + questions, rng)
            pairs = [Example(*pair) for pair in drawn]
            found.append(KnownTask(name, tuple(pairs[:count]), tuple(pairs[count:])))
    return found


def big_bench_hard(folder: Path, name: str, *, shots: int, questions: int, seed: int) -> KnownTask:
    """Return one task of BIG-Bench Hard (Suzgun et al. 2022), examples and questions drawn by ``seed``."""
    rows = json.loads((folder / f"{name}.json").read_text())["examples"]
    chosen = random.Random(seed).sample(rows, shots + questions)
    pairs = [Example(row["input"], row["target"]) for row in chosen]
    return KnownTask(name, tuple(pairs[:shots]), tuple(pairs[shots:]))
