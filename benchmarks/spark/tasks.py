"""What a few-shot task is, and the strings that tasks are made of."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass

LOWER = string.ascii_lowercase
UPPER = string.ascii_uppercase
DIGITS = string.digits
VOWELS = "aeiou"
# As they stand in text; the model meets them rarely, but it has to be able to copy them.
ACCENTED = "àâäãåæçéèêëíîïñóôöõøùúûüß"

Sampler = Callable[[random.Random], str]
Rule = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Task:
    """One rule with the inputs it applies to: what a user would show by examples."""

    sample: Sampler
    rule: Rule


Family = Callable[[random.Random], Task]


def pairs(task: Task, count: int, rng: random.Random, *, distinct: bool = True) -> list[tuple[str, str]]:
    """Return ``count`` pairs of input and output; inputs differ where the task has enough of them."""
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    tries = 0
    while len(found) < count:
        given = task.sample(rng)
        tries += 1
        if distinct and given in seen and tries < 20 * count:
            continue
        seen.add(given)
        found.append((given, task.rule(given)))
    return found


def letters(alphabet: str, shortest: int, longest: int) -> Sampler:
    """Return a sampler of strings over ``alphabet``."""
    return lambda rng: "".join(rng.choice(alphabet) for _ in range(rng.randint(shortest, longest)))


def words(count: int, shortest: int = 2, longest: int = 4, *, separator: str = " ", alphabet: str = LOWER) -> Sampler:
    """Return a sampler of ``count`` words joined by ``separator``."""
    word = letters(alphabet, shortest, longest)
    return lambda rng: separator.join(word(rng) for _ in range(count))


def syllables(rng: random.Random, count: int) -> str:
    """Return a word that can be pronounced."""
    onsets = ("b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "v", "w", "st", "tr", "ch", "sh", "pl")
    codas = ("", "", "", "n", "r", "s", "t", "l", "ng", "ck")
    return "".join(rng.choice(onsets) + rng.choice(VOWELS) + rng.choice(codas) for _ in range(count))


def shifted(character: str, by: int) -> str:
    """Return the character ``by`` places further in its alphabet, going round."""
    for alphabet in (LOWER, UPPER, DIGITS):
        if character in alphabet:
            return alphabet[(alphabet.index(character) + by) % len(alphabet)]
    return character
