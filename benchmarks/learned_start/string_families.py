"""Tasks that spark's start of low-rank weights is learned on: families that the model itself was not trained on.

What adapting has to do is follow a rule that the model cannot follow from its context alone, so the rules are longer
and more conditional than those of :mod:`train_families`. No rule equals one of the families in :mod:`held_out` on the
inputs that are drawn for it: :func:`start_task` draws another one then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from held_out import CALIBRATION, DEVELOPMENT, TEST
from tasks import DIGITS, LOWER, UPPER, VOWELS, Family, Rule, Sampler, Task, letters, shifted, syllables, words
from train_families import LONGEST_OUTPUT, PRIMITIVES

CharacterRule = Callable[[str], str]
#: Outputs that a rule is compared with a held-out one on.
COMPARED = 6


def _label(rng: random.Random) -> str:
    return letters(LOWER, 1, 4)(rng)


def _strings(rng: random.Random) -> Sampler:
    shortest = rng.randint(3, 5)
    alphabet = rng.choice((LOWER, LOWER, LOWER, LOWER[:10], "abcd", DIGITS, LOWER + DIGITS, UPPER))
    return letters(alphabet, shortest, shortest + rng.randint(0, 3))


def _deeper(rng: random.Random) -> Task:
    """Two to four primitives, one after the other."""
    rules = [primitive(rng) for primitive in rng.sample(PRIMITIVES, rng.choice((2, 3, 3, 4)))]

    def rule(text: str) -> str:
        for one in rules:
            text = one(text)
        return text

    return Task(_strings(rng), rule)


def _test(rng: random.Random) -> Callable[[str], bool]:
    """Return a condition on a string."""
    kind = rng.randrange(7)
    place, other = rng.sample((0, 1, 2, -1, -2), 2)
    chosen, length, times = set(rng.sample(LOWER + DIGITS, 18)), rng.randint(3, 6), rng.randint(1, 2)
    if kind == 0:
        return lambda text: text[place] in chosen
    if kind == 1:
        return lambda text: len(text) > length
    if kind == 2 and {place, other} != {0, -1}:
        return lambda text: text[place] < text[other]
    if kind == 3:
        return lambda text: sum(c in chosen for c in text) > times
    if kind == 4:
        return lambda text: text[place] in chosen and len(text) > length - 1
    if kind == 5:
        return lambda text: any(a == b for a, b in pairwise(text))
    return lambda text: text[place] in VOWELS


def _conditional(rng: random.Random) -> Task:
    """One rule where a condition holds, another where it does not."""
    test = _test(rng)
    first, second = (primitive(rng) for primitive in rng.sample(PRIMITIVES, 2))
    return Task(_strings(rng), lambda text: first(text) if test(text) else second(text))


def _labels(rng: random.Random) -> Task:
    """One of two to four labels, by up to two conditions."""
    first, second = _test(rng), _test(rng)
    names = [_label(rng) for _ in range(4)]
    if rng.random() < 0.5:
        return Task(_strings(rng), lambda text: names[0] if first(text) else names[1])
    return Task(_strings(rng), lambda text: names[2 * first(text) + second(text)])


def _piece(rng: random.Random) -> Rule:
    """Return a rule that takes a part of a string, or gives a fixed one."""
    kind, place, size = rng.randrange(9), rng.choice((0, 1, 2, -1, -2)), rng.randint(2, 3)
    text_of = letters(LOWER + DIGITS + "-_./:;#+", 1, 2)(rng)
    by = rng.choice((1, -1, 2))
    return (
        lambda text: text[place],
        lambda text: text[place].upper(),
        lambda text: text[place : place + size] if place >= 0 else text[place:],
        lambda text: text[:size][::-1],
        lambda text: text[-size:],
        lambda text: shifted(text[place], by),
        lambda text: text[place] * size,
        lambda _text: text_of,
        lambda text: text,
    )[kind]


def _pieces(rng: random.Random) -> Task:
    """Parts of the input and fixed strings in a row."""
    parts = [_piece(rng) for _ in range(rng.randint(2, 4))]
    return Task(_strings(rng), lambda text: "".join(part(text) for part in parts))


def _character_rule(rng: random.Random) -> CharacterRule:
    by, mark, other = rng.choice((1, -1, 2, 3)), rng.choice("*#x_-.'"), rng.choice("0123456789abcxyz")
    return rng.choice(
        (
            str.swapcase,
            lambda c: shifted(c, by),
            lambda c: c + c,
            lambda c: mark,
            lambda c: c + mark,
            lambda c: mark + c,
            lambda c: "",
            lambda c: c,
            lambda c: other,
        )
    )


def _by_place(rng: random.Random) -> Task:
    """Every third character, or those up to one place, otherwise than the others."""
    first, second, at = _character_rule(rng), _character_rule(rng), rng.randrange(3)
    if rng.random() < 0.5:
        return Task(
            _strings(rng), lambda text: "".join((first if i % 3 == at else second)(c) for i, c in enumerate(text))
        )
    return Task(_strings(rng), lambda text: "".join((first if i <= at else second)(c) for i, c in enumerate(text)))


def _by_class(rng: random.Random) -> Task:
    """Some characters otherwise than the others."""
    alphabet = rng.choice((LOWER, LOWER[:12], DIGITS, LOWER + DIGITS))
    chosen = set(rng.sample(alphabet, len(alphabet) // 2))
    first, second = _character_rule(rng), _character_rule(rng)
    return Task(letters(alphabet, 3, 6), lambda text: "".join((first if c in chosen else second)(c) for c in text))


def _by_neighbour(rng: random.Random) -> Task:
    """Characters that depend on the one before them."""
    mark, kind = rng.choice("*#_-."), rng.randrange(3)
    alphabet = rng.choice(("ab", "abc", "abcd", "012"))

    def rule(text: str) -> str:
        pairs = zip(text[0] + text, text, strict=False)
        if kind == 0:
            return "".join(mark if a == b and i else b for i, (a, b) in enumerate(pairs))
        if kind == 1:
            return "".join((mark if a > b else "") + b for a, b in pairs)
        return "".join(b.upper() if a == "a" and i else b for i, (a, b) in enumerate(pairs))

    return Task(letters(alphabet, 4, 7), rule)


def _substitution(rng: random.Random) -> Task:
    """A fixed character or two for each character of a small alphabet."""
    alphabet = rng.choice((LOWER[:5], LOWER[5:11], "xyz", UPPER[:6]))
    table = {c: letters(LOWER + UPPER + "+-*", 1, 2)(rng) for c in alphabet}
    return Task(letters(alphabet, 3, 5), lambda text: "".join(table[c] for c in text))


def _words(rng: random.Random) -> Task:
    """Words, each with a rule of its own, in another order and with another joint."""
    count, old, new = rng.randint(2, 3), rng.choice(" ,;/|"), rng.choice(" ,;/|-+_")
    order = [rng.randrange(count) for _ in range(rng.randint(2, 3))]
    rules = [rng.choice(PRIMITIVES)(rng) if rng.random() < 0.6 else (lambda text: text) for _ in order]
    return Task(
        words(count, 2, 4, separator=old),
        lambda text: new.join(rule(text.split(old)[i]) for i, rule in zip(order, rules, strict=True)),
    )


def _word_choice(rng: random.Random) -> Task:
    """The word of which a condition holds, or a label."""
    test, none = _test(rng), _label(rng)
    return Task(words(rng.randint(2, 3), 3, 4), lambda text: next((w for w in text.split() if test(w)), none))


def _numbers(rng: random.Random) -> Task:
    """A number by an arithmetic rule with two constants, or a comparison."""
    a, b, kind = rng.randint(2, 4), rng.randint(1, 9), rng.randrange(6)
    low, high = _label(rng), _label(rng)

    def one(sampler: random.Random) -> str:
        return str(sampler.randint(2, 40))

    def two(sampler: random.Random) -> str:
        return f"{one(sampler)} {one(sampler)}"

    rules: Sequence[tuple[Sampler, Rule]] = (
        (one, lambda text: str(a * int(text) + b)),
        (one, lambda text: str(int(text) % (a + 1))),
        (one, lambda text: str(int(text) + b if int(text) % 2 else int(text) - 1)),
        (two, lambda text: str(abs(int(text.split()[0]) - int(text.split()[1])))),
        (two, lambda text: high if int(text.split()[0]) > int(text.split()[1]) else low),
        (two, lambda text: str(int(text.split()[0]) * 10 + int(text.split()[1]) % 10)),
    )
    sampler, rule = rules[kind]
    return Task(sampler, rule)


def _record(rng: random.Random) -> Task:
    """Fields of a record of three, some of them changed, in a new form."""
    old, new = rng.choice(".-/:,"), rng.choice(" -/:,+|")
    shown = rng.sample(range(3), rng.randint(2, 3))
    before, after = rng.choice(("", "<", "[", "=")), rng.choice(("", ">", "]", ";"))
    field = rng.choice((letters(DIGITS, 1, 2), letters(LOWER, 2, 3)))
    return Task(
        lambda sampler: old.join(field(sampler) for _ in range(3)),
        lambda text: before + new.join(text.split(old)[i] for i in shown) + after,
    )


def _ending(rng: random.Random) -> Task:
    """Another ending, by the last characters of a word."""
    ends = [letters(LOWER, 1, 2)(rng) for _ in range(3)]
    cut = rng.randint(0, 1)

    def rule(text: str) -> str:
        end = ends[0] if text[-1] in "aeiourl" else ends[1] if text[-1] in "nst" else ends[2]
        return (text[:-1] if cut else text) + end

    return Task(lambda sampler: syllables(sampler, 2), rule)


START: Mapping[str, Family] = {
    "deeper": _deeper,
    "conditional": _conditional,
    "labels": _labels,
    "pieces": _pieces,
    "by_place": _by_place,
    "by_class": _by_class,
    "by_neighbour": _by_neighbour,
    "substitution": _substitution,
    "words": _words,
    "word_choice": _word_choice,
    "numbers": _numbers,
    "record": _record,
    "ending": _ending,
}


def is_held_out(task: Task, rng: random.Random) -> bool:
    """Whether the rule gives the answers of a held-out family on inputs drawn for the task, or on the family's."""
    drawn = [task.sample(rng) for _ in range(COMPARED)]
    for family in (*DEVELOPMENT.values(), *CALIBRATION.values(), *TEST.values()):
        other = family(rng)
        for inputs in (drawn, [other.sample(rng) for _ in range(COMPARED)]):
            if _answers(task.rule, inputs) == _answers(other.rule, inputs):
                return True
    return False


def _answers(rule: Rule, inputs: Sequence[str]) -> list[str] | None:
    try:
        return [rule(text) for text in inputs]
    except (IndexError, KeyError, ValueError):
        # A rule for numbers or words has no answer for other strings.
        return None


def start_task(rng: random.Random) -> Task:
    """Return a task of a random family whose rule no held-out family has, with answers that differ and are short."""
    while True:
        task = rng.choice(tuple(START.values()))(rng)
        drawn = [task.sample(rng) for _ in range(COMPARED)]
        answers = _answers(task.rule, drawn)
        if answers is None or len(set(answers)) < 2 or answers == drawn or not all(answers):
            continue
        if max(map(len, answers)) <= LONGEST_OUTPUT and not is_held_out(task, rng):
            return task
