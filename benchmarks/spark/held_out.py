"""Families that spark never saw in training: for choosing settings, for calibrating the gate, and for reporting."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from tasks import DIGITS, LOWER, UPPER, VOWELS, Family, Rule, Sampler, Task, letters, shifted, syllables, words


def _fixed(sample: Sampler, rule: Rule) -> Family:
    return lambda _rng: Task(sample, rule)


def _one_of(rng: random.Random, shortest: int = 2, longest: int = 4) -> str:
    return letters(LOWER, shortest, longest)(rng)


def _each(change: Callable[[int, str], str]) -> Rule:
    return lambda text: "".join(change(i, c) for i, c in enumerate(text))


# --- settings of adaptation are chosen on these


def _insert(rng: random.Random) -> Task:
    place, mark = rng.randint(2, 3), rng.choice("-_=+*")
    return Task(letters(LOWER, 4, 6), lambda text: text[:place] + mark + text[place:])


def _swap_key_value(rng: random.Random) -> Task:
    joint = rng.choice("=:")
    return Task(words(2, separator=joint), lambda text: joint.join(reversed(text.split(joint))))


def _third_label(rng: random.Random) -> Task:
    names = [_one_of(rng) for _ in range(3)]
    return Task(letters(LOWER, 3, 6), lambda text: names[(text[0] > "i") + (text[0] > "r")])


def _bracket_third(rng: random.Random) -> Task:
    left, right = rng.choice(("()", "[]", "<>"))
    return Task(letters(LOWER, 4, 6), lambda text: text[:2] + left + text[2] + right + text[3:])


DEVELOPMENT: Mapping[str, Family] = {
    "swap_ends": _fixed(letters(LOWER, 4, 6), lambda text: text[-1] + text[1:-1] + text[0]),
    "every_second": _fixed(letters(LOWER, 4, 7), lambda text: text[::2]),
    "upper_vowels": _fixed(letters(LOWER, 4, 6), _each(lambda _, c: c.upper() if c in VOWELS else c)),
    "insert": _insert,
    "triple_last": _fixed(letters(LOWER, 3, 6), lambda text: text + text[-1] * 2),
    "reverse_if_early": _fixed(letters(LOWER[:12], 3, 5), lambda text: text[::-1] if text[0] in "abcdef" else text),
    "swap_key_value": _swap_key_value,
    "third_label": _third_label,
    "bracket_third": _bracket_third,
}


# --- the gate is calibrated on these; some are easy, some beyond the model, some have no rule at all


def _no_rule(rng: random.Random) -> Task:
    table: dict[str, str] = {}
    word = letters(LOWER, 2, 5)
    seed = rng.random()
    return Task(letters(LOWER, 3, 6), lambda text: table.setdefault(text, word(random.Random(f"{seed}{text}"))))


def _random_label(rng: random.Random) -> Task:
    names, seed = [_one_of(rng) for _ in range(2)], rng.random()
    return Task(letters(LOWER, 3, 6), lambda text: random.Random(f"{seed}{text}").choice(names))


def _replace_one(rng: random.Random) -> Task:
    old, new = rng.sample("aeiou", 2)
    return Task(lambda r: syllables(r, 2) + old, lambda text: text.replace(old, new))


def _mark_word(rng: random.Random) -> Task:
    place, mark = rng.randrange(2), rng.choice("*_~`")
    return Task(
        words(2), lambda text: " ".join(mark + w + mark if i == place else w for i, w in enumerate(text.split()))
    )


def _past_tense(rng: random.Random) -> Task:
    subject, end = _one_of(rng, 2, 3), _one_of(rng, 1, 2)
    return Task(lambda r: syllables(r, 1), lambda text: f"{subject} {text}{end}")


def _clock(rng: random.Random) -> Task:
    by = rng.randint(1, 3)
    return Task(
        lambda r: f"{r.randint(1, 9)}:{r.randint(10, 59)}", lambda text: f"{int(text.split(':')[0]) + by}h{text[-2:]}"
    )


def _middle(rng: random.Random) -> Task:
    return Task(letters(LOWER, 5, 5), lambda text: text[1:4])


def _digit_sum_label(rng: random.Random) -> Task:
    low, high = _one_of(rng), _one_of(rng)
    return Task(letters(DIGITS, 2, 3), lambda text: high if sum(map(int, text)) > 9 else low)


def _unit(rng: random.Random) -> Task:
    unit, other = rng.sample(["m", "kg", "km", "lb", "ft", "mi", "g", "oz"], 2)
    return Task(lambda r: f"{r.randint(1, 99)} {unit}", lambda text: f"{text.split()[0]}0 {other}")


def _letter_number(rng: random.Random) -> Task:
    return Task(letters("abcdefghi", 2, 4), lambda text: "".join(str(LOWER.index(c) + 1) for c in text))


def _case_label(rng: random.Random) -> Task:
    yes, no = _one_of(rng), _one_of(rng)
    either = [letters(LOWER, 3, 5), letters(UPPER, 3, 5)]
    return Task(lambda r: r.choice(either)(r), lambda text: yes if text.isupper() else no)


CALIBRATION: Mapping[str, Family] = {
    "no_rule": _no_rule,
    "random_label": _random_label,
    "replace_one": _replace_one,
    "mark_word": _mark_word,
    "past_tense": _past_tense,
    "clock": _clock,
    "middle": _middle,
    "digit_sum_label": _digit_sum_label,
    "unit": _unit,
    "letter_number": _letter_number,
    "case_label": _case_label,
    "double_vowels": _fixed(letters(LOWER, 4, 6), _each(lambda _, c: c + c if c in VOWELS else c)),
    "first_to_end_twice": _fixed(letters(LOWER, 3, 5), lambda text: text[1:] + text[0] * 2),
    "drop_second": _fixed(letters(LOWER, 4, 6), lambda text: text[0] + text[2:]),
    "last_upper": _fixed(letters(LOWER, 4, 6), lambda text: text[:-1] + text[-1].upper()),
    "second_word_reversed": _fixed(words(2, 3, 4), lambda text: text.split()[0] + " " + text.split()[1][::-1]),
    "hash_between_words": _fixed(words(2, 2, 3), lambda text: text.split()[0] + "#" + text.split()[1].upper()),
    "even_digits": _fixed(letters(DIGITS, 4, 6), lambda text: "".join(c for c in text if c in "02468") or "none"),
    "last_then_rest": _fixed(letters(LOWER, 4, 6), lambda text: text[-1] + "." + text[:-1]),
    "count_a": _fixed(letters("abc", 3, 6), lambda text: "a" + str(text.count("a"))),
    "double_number": _fixed(lambda r: str(r.randint(10, 49)), lambda text: f"{text}+{text}"),
    "trim_ends": _fixed(letters(LOWER, 5, 7), lambda text: text[1:-1]),
}


# --- results are reported on these


def _alternate_shift(rng: random.Random) -> Task:
    by = rng.choice((1, 2, -1))
    return Task(letters(LOWER, 4, 6), _each(lambda i, c: shifted(c, by if i % 2 else 0)))


def _wrap(rng: random.Random) -> Task:
    left, right = rng.choice(("()", "[]", "{}"))
    return Task(letters(LOWER, 4, 6), lambda text: left + text + right)


def _half_alphabet(rng: random.Random) -> Task:
    early, late = rng.sample(UPPER, 2)
    return Task(letters(LOWER, 3, 5), lambda text: early if text[0] <= "m" else late)


def _digit_words(rng: random.Random) -> Task:
    table = dict(zip(DIGITS, rng.sample(LOWER, 10), strict=True))
    return Task(letters(DIGITS, 3, 5), lambda text: "".join(table[c] for c in text))


def _multiply(rng: random.Random) -> Task:
    by = rng.randint(2, 3)
    return Task(lambda r: str(r.randint(2, 49)), lambda text: str(int(text) * by))


def _alternating(rng: random.Random) -> str:
    first, second = (letters(LOWER, 2, 2)(rng) for _ in range(2))
    return f"{first} {second} {first} {second}"


def _tag(rng: random.Random) -> Task:
    name = _one_of(rng, 1, 2)
    return Task(letters(LOWER, 3, 5), lambda text: f"<{name}>{text}</{name}>")


def _plural(rng: random.Random) -> Task:
    end, other = _one_of(rng, 1, 2), _one_of(rng, 1, 2)
    return Task(lambda r: syllables(r, 2), lambda text: text + (end if text[-1] in VOWELS else other))


def _greeting(rng: random.Random) -> Task:
    hello = syllables(rng, 1)
    return Task(lambda r: syllables(r, 2), lambda text: f"{hello}, {text}!")


def _fraction(rng: random.Random) -> Task:
    joint = rng.choice(" -_")
    return Task(lambda r: f"{r.randint(1, 9)}/{r.randint(10, 99)}", lambda text: joint.join(text.split("/")[::-1]))


TEST: Mapping[str, Family] = {
    "mirror": _fixed(letters(LOWER, 3, 5), lambda text: text + text[::-1]),
    "swap_halves": _fixed(
        lambda r: letters(LOWER, *[r.choice((4, 6))] * 2)(r),
        lambda text: text[len(text) // 2 :] + text[: len(text) // 2],
    ),
    "alternate_shift": _alternate_shift,
    "capitalise": _fixed(letters(LOWER, 4, 6), lambda text: text[0].upper() + text[1:]),
    "alternate_case": _fixed(letters(LOWER, 4, 6), _each(lambda i, c: c.upper() if i % 2 else c)),
    "wrap": _wrap,
    "drop_middle": _fixed(
        lambda r: letters(LOWER, *[r.choice((5, 7))] * 2)(r),
        lambda text: text[: len(text) // 2] + text[len(text) // 2 + 1 :],
    ),
    "nines_complement": _fixed(letters(DIGITS, 4, 6), _each(lambda _, c: str(9 - int(c)))),
    "half_alphabet": _half_alphabet,
    "first_and_last_twice": _fixed(letters(LOWER, 4, 6), lambda text: text[0] + text + text[-1]),
    "digit_words": _digit_words,
    "date": _fixed(lambda r: f"{r.randint(10, 28)}.{r.randint(10, 99)}", lambda text: "-".join(text.split(".")[::-1])),
    "initials": _fixed(words(2, 3, 4), lambda text: "".join(w[0].upper() + "." for w in text.split())),
    "multiply": _multiply,
    "alternating": _fixed(_alternating, lambda text: text.replace(" ", "")[:4]),
    "tag": _tag,
    "plural": _plural,
    "greeting": _greeting,
    "fraction": _fraction,
    "first_then_rest_reversed": _fixed(letters(LOWER, 4, 6), lambda text: text[0] + text[:0:-1]),
    "pair_dashes": _fixed(letters(LOWER, 4, 6), lambda text: "-".join(text[i : i + 2] for i in range(0, len(text), 2))),
    "longer_word": _fixed(
        lambda r: " ".join(r.sample([letters(LOWER, 2, 3)(r), letters(LOWER, 4, 6)(r)], 2)),
        lambda text: max(text.split(), key=len),
    ),
    "last_word_first_letter": _fixed(words(3, 2, 4), lambda text: text.split()[-1][0].upper() + text.split()[0]),
    "equal_ends": _fixed(letters("abc", 3, 5), lambda text: "same" if text[0] == text[-1] else "other"),
}

#: The first fifteen of :data:`TEST` are the families of the earlier measurement that results are compared with.
REFERENCE_FAMILIES = tuple(TEST)[:15]
