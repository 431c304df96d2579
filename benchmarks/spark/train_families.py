"""The mixture that spark is trained on. Nothing here is one of the families in ``held_out.py``."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tasks import (
    ACCENTED,
    DIGITS,
    LOWER,
    UPPER,
    VOWELS,
    Family,
    Rule,
    Sampler,
    Task,
    letters,
    shifted,
    syllables,
    words,
)

LONGEST_OUTPUT = 24
Primitive = Callable[[random.Random], Rule]


def _text(rng: random.Random, alphabet: str, shortest: int, longest: int) -> str:
    return letters(alphabet, shortest, longest)(rng)


def _caesar(rng: random.Random) -> Rule:
    by = rng.choice((1, 2, 3, -1, -2, 4, 5))
    return lambda text: "".join(shifted(c, by) for c in text)


def _suffix(rng: random.Random) -> Rule:
    end = _text(rng, LOWER + DIGITS + "!?.", 1, 3)
    return lambda text: text + end


def _prefix(rng: random.Random) -> Rule:
    start = _text(rng, LOWER + DIGITS + "#@.", 1, 3)
    return lambda text: start + text


def _drop_first(rng: random.Random) -> Rule:
    count = rng.randint(1, 2)
    return lambda text: text[count:]


def _drop_last(rng: random.Random) -> Rule:
    count = rng.randint(1, 2)
    return lambda text: text[:-count]


def _rotate(rng: random.Random) -> Rule:
    by = rng.choice((1, 2, -1))
    return lambda text: text[by:] + text[:by]


def _remove_characters(rng: random.Random) -> Rule:
    unwanted = {*rng.sample(LOWER, 3), *rng.sample(DIGITS, 2)}
    return lambda text: "".join(c for c in text if c not in unwanted)


def _replace_characters(rng: random.Random) -> Rule:
    old, new = set(rng.sample(LOWER, 6)), rng.choice(LOWER + DIGITS + "*_-")
    return lambda text: "".join(new if c in old else c for c in text)


def _kth(rng: random.Random) -> Rule:
    k = rng.choice((0, 1, 2, -1, -2))
    return lambda text: text[k] if -len(text) <= k < len(text) else text[-1:]


def _separate(rng: random.Random) -> Rule:
    separator = rng.choice(" -_.,:")
    return lambda text: separator.join(text)


def _cipher(rng: random.Random) -> Rule:
    table = dict(zip(LOWER, rng.sample(LOWER, 26), strict=True))
    return lambda text: "".join(table.get(c, c) for c in text)


def _swap_neighbours(_: random.Random) -> Rule:
    def rule(text: str) -> str:
        found = list(text)
        for i in range(0, len(found) - 1, 2):
            found[i], found[i + 1] = found[i + 1], found[i]
        return "".join(found)

    return rule


def _constant(rng: random.Random) -> Rule:
    word = _text(rng, LOWER, 2, 4)
    return lambda _text: word


def _mask(rng: random.Random) -> Rule:
    kept, mark = rng.randint(1, 3), rng.choice("*#x_")
    return lambda text: text[:kept] + mark * max(0, len(text) - kept)


def _truncate(rng: random.Random) -> Rule:
    kept = rng.randint(2, 4)
    return lambda text: text[:kept]


def _last(rng: random.Random) -> Rule:
    kept = rng.randint(2, 3)
    return lambda text: text[-kept:]


def _wrap_first(rng: random.Random) -> Rule:
    left, right = rng.choice(("()", "[]", "<>", "{}", '""', "--"))
    return lambda text: left + text[:1] + right + text[1:]


def _label_by(test: Callable[[str], bool]) -> Primitive:
    def primitive(rng: random.Random) -> Rule:
        yes, no = (_text(rng, LOWER, 1, 4) for _ in range(2))
        return lambda text: yes if test(text) else no

    return primitive


def _label_contains(rng: random.Random) -> Rule:
    wanted = set(rng.sample(LOWER, 8))
    yes, no = (_text(rng, LOWER, 1, 4) for _ in range(2))
    return lambda text: yes if wanted & set(text) else no


def _count_of(rng: random.Random) -> Rule:
    wanted = set(rng.sample(LOWER, rng.randint(4, 9)))
    return lambda text: str(sum(c in wanted for c in text))


def _character_classes(rng: random.Random) -> Rule:
    vowel, other = rng.sample("vcox.-+*#01ab", 2)
    return lambda text: "".join(vowel if c in VOWELS else other for c in text)


def _double_where(rng: random.Random) -> Rule:
    chosen = set(rng.sample(LOWER, 10))
    return lambda text: "".join(c * 2 if c in chosen else c for c in text)


def _insert_after(rng: random.Random) -> Rule:
    chosen, mark = set(rng.sample(LOWER, 8)), rng.choice("'.:~^")
    return lambda text: "".join(c + mark if c in chosen else c for c in text)


def _unique(_: random.Random) -> Rule:
    return lambda text: "".join(dict.fromkeys(text))


def _repeat_times(rng: random.Random) -> Rule:
    separator = rng.choice(("", " ", "-", ","))
    return lambda text: separator.join([text, text])


def _plain(rule: Rule) -> Primitive:
    return lambda _rng: rule


PRIMITIVES: Sequence[Primitive] = (
    _plain(lambda text: text),
    _plain(lambda text: text[::-1]),
    _plain(str.upper),
    _plain(str.swapcase),
    _plain(lambda text: "".join(c + c for c in text)),
    _plain(lambda text: "".join(sorted(text))),
    _plain(lambda text: "".join(sorted(text, reverse=True))),
    _plain(lambda text: text[:1] + text[-1:]),
    _plain(lambda text: str(len(text))),
    _plain(lambda text: "".join(c for c in text if c not in VOWELS)),
    _plain(lambda text: "".join(c for c in text if c in VOWELS)),
    _plain(lambda text: text[:1] * 3 + text[1:]),
    _label_by(lambda text: len(text) % 2 == 1),
    _label_by(lambda text: text[:1] in VOWELS),
    _label_by(lambda text: text[-1:] in VOWELS),
    _label_by(lambda text: len(text) > 4),
    _caesar, _suffix, _prefix, _drop_first, _drop_last, _rotate, _remove_characters, _replace_characters, _kth,
    _separate, _cipher, _swap_neighbours, _constant, _mask, _truncate, _last, _wrap_first, _label_contains, _count_of,
    _character_classes, _double_where, _insert_after, _unique, _repeat_times,
)  # fmt: skip


def _strings(rng: random.Random) -> Sampler:
    kind = rng.random()
    shortest = rng.randint(3, 4)
    longest = shortest + rng.randint(1, 4)
    if kind < 0.45:
        return letters(LOWER, shortest, longest)
    if kind < 0.60:
        return letters("".join(rng.sample(LOWER, rng.randint(6, 14))), shortest, longest)
    if kind < 0.68:
        return letters(DIGITS, shortest, longest)
    if kind < 0.76:
        return letters(LOWER + DIGITS, shortest, longest)
    if kind < 0.82:
        return letters(LOWER + UPPER, shortest, longest)
    if kind < 0.85:
        return letters(LOWER + ACCENTED, shortest, longest)
    if kind < 0.88:
        return letters(LOWER + "()[]{}<>+-*/.,:;!?_#@&%$^~|'\"=`\\", shortest, longest)
    count = rng.randint(1, 2)
    return lambda sampler: syllables(sampler, sampler.randint(1, count + 1))


def composed(rng: random.Random) -> Task:
    """Return a rule of one to three primitives on strings."""
    rules = [primitive(rng) for primitive in rng.sample(PRIMITIVES, rng.choices((1, 2, 3), (0.6, 0.32, 0.08))[0])]

    def rule(text: str) -> str:
        for one in rules:
            text = one(text)
        return text[:LONGEST_OUTPUT]

    return Task(_strings(rng), rule)


def _numbers(count: int, low: int, high: int) -> Sampler:
    return lambda rng: " ".join(str(rng.randint(low, high)) for _ in range(count))


def _add(rng: random.Random) -> Task:
    by = rng.randint(-20, 50)
    return Task(_numbers(1, 20, 99), lambda text: str(int(text) + by))


def _arithmetic_sequence(rng: random.Random) -> Task:
    step = rng.randint(1, 9)

    def sample(sampler: random.Random) -> str:
        first = sampler.randint(1, 60)
        return " ".join(str(first + i * step) for i in range(3))

    return Task(sample, lambda text: str(int(text.split()[-1]) + step))


def _sum(rng: random.Random) -> Task:
    by = rng.choice((0, 0, 1, 10))
    return Task(_numbers(2, 1, 20), lambda text: str(sum(map(int, text.split())) + by))


def _difference(rng: random.Random) -> Task:
    top = rng.randint(20, 100)
    return Task(_numbers(1, 1, 19), lambda text: str(top - int(text)))


def _number_label(rng: random.Random) -> Task:
    bound, (low, high) = rng.randint(30, 70), (_text(rng, LOWER, 2, 4) for _ in range(2))
    return Task(_numbers(1, 1, 99), lambda text: high if int(text) > bound else low)


def _parity_label(rng: random.Random) -> Task:
    even, odd = (_text(rng, LOWER, 2, 4) for _ in range(2))
    return Task(_numbers(1, 1, 99), lambda text: odd if int(text) % 2 else even)


def _letter_sequence(rng: random.Random) -> Task:
    step = rng.randint(1, 3)

    def sample(sampler: random.Random) -> str:
        first = sampler.randint(0, 25)
        return " ".join(LOWER[(first + i * step) % 26] for i in range(3))

    return Task(sample, lambda text: shifted(text[-1], step))


def _pick_word(rng: random.Random) -> Task:
    count, separator = rng.randint(2, 4), rng.choice((" ", " ", ",", ";", "/", "|"))
    k = rng.randrange(count)
    return Task(words(count, separator=separator), lambda text: text.split(separator)[k])


def _permute_words(rng: random.Random) -> Task:
    order, separator = rng.sample(range(3), 3), rng.choice((" ", " ", ",", ":"))
    return Task(
        words(3, 2, 3, separator=separator), lambda text: separator.join(text.split(separator)[i] for i in order)
    )


def _change_separator(rng: random.Random) -> Task:
    old, new = rng.sample([" ", ",", "-", "_", "/", ";", "|"], 2)
    return Task(words(rng.randint(2, 3), separator=old), lambda text: text.replace(old, new))


def _each_word(rng: random.Random) -> Task:
    rule = rng.choice(PRIMITIVES)(rng)
    return Task(words(2), lambda text: " ".join(rule(word) for word in text.split())[:LONGEST_OUTPUT])


def _key_value(rng: random.Random) -> Task:
    joint, part = rng.choice("=:"), rng.randrange(2)
    return Task(words(2, separator=joint), lambda text: text.split(joint)[part])


def _in_brackets(rng: random.Random) -> Task:
    left, right = rng.choice(("()", "[]", "<>", "{}"))
    word = letters(LOWER, 2, 4)
    return Task(lambda r: word(r) + left + word(r) + right, lambda text: text.split(left)[1][:-1])


def _count_words(_: random.Random) -> Task:
    return Task(lambda r: words(r.randint(1, 5), 1, 3)(r), lambda text: str(len(text.split())))


def _lookup(rng: random.Random) -> Task:
    """A few names that come again and again, each with its own label: to be remembered, not to be computed."""
    names = [syllables(rng, rng.randint(1, 2)) for _ in range(rng.randint(2, 6))]
    labels = [_text(rng, LOWER, 1, 4) for _ in range(rng.randint(2, 3))]
    table = {name: rng.choice(labels) for name in names}
    return Task(lambda r: r.choice(names), lambda text: table[text])


def _word_label(rng: random.Random) -> Task:
    """The label depends on which of a few key words is in the text."""
    keys = [syllables(rng, 1) for _ in range(4)]
    labels = [syllables(rng, 1) for _ in range(2)]
    table = {key: labels[i % 2] for i, key in enumerate(keys)}
    filler = letters(LOWER, 2, 4)

    def sample(sampler: random.Random) -> str:
        found = [filler(sampler), sampler.choice(keys)]
        sampler.shuffle(found)
        return " ".join(found)

    return Task(sample, lambda text: next((table[w] for w in text.split() if w in table), labels[0]))


def _analogy(rng: random.Random) -> Task:
    end = _text(rng, LOWER, 1, 2)
    rule = rng.choice((lambda w: w + end, lambda w: end + w, lambda w: w[:-1] + end))
    word = letters(LOWER, 3, 4)

    def sample(sampler: random.Random) -> str:
        first = word(sampler)
        return f"{first} : {rule(first)} :: {word(sampler)} :"

    return Task(sample, lambda text: rule(text.split()[-2]))


WHOLE_TASKS: Sequence[Family] = (
    _add, _arithmetic_sequence, _sum, _difference, _number_label, _parity_label, _letter_sequence, _pick_word,
    _permute_words, _change_separator, _each_word, _key_value, _in_brackets, _count_words, _lookup, _word_label,
    _analogy,
    lambda _: Task(_numbers(3, 1, 99), lambda text: str(max(map(int, text.split())))),
    lambda _: Task(_numbers(3, 1, 99), lambda text: str(min(map(int, text.split())))),
)  # fmt: skip


def training_task(rng: random.Random) -> Task:
    """Return a task of the training mixture: a quarter whole tasks, the rest compositions of primitives."""
    return rng.choice(WHOLE_TASKS)(rng) if rng.random() < 0.25 else composed(rng)
