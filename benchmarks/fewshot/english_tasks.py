"""Transformation and labelling tasks in English for models that know words: some to calibrate on, some to report."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from datetime import date

Maker = Callable[[random.Random], tuple[str, str]]

FIRST = (
    "Anna Ben Carla David Eva Felix Grace Henry Iris Jack Karen Leo Maria Noah Olga Paul Rosa Sam Tina Victor".split()
)
LAST = (
    "Berg Costa Diaz Evans Fischer Garcia Hansen Ito Jensen Kim Lopez Meyer Novak Olsen Patel Rossi Silva Weber".split()
)
CITIES = "Oslo Rome Paris Berlin Madrid Lisbon Vienna Dublin Athens Prague Tokyo Cairo Lima Boston Delhi Seoul".split()
ANIMALS = (
    "dog cat horse cow sheep goat tiger lion eagle shark whale mouse rabbit snake frog bear wolf fox deer duck goose "
    "monkey camel zebra turtle salmon owl crow bee ant spider hen pig donkey elephant giraffe dolphin penguin"
).split()
THINGS = (
    "hammer table chair lamp bottle knife spoon clock phone book bridge car train boat brick window door pencil camera "
    "mirror bucket ladder wheel engine guitar piano shirt shoe hat coin key ring rope basket carpet candle towel"
).split()
PLANTS = (
    "rose oak tulip fern cactus pine moss ivy daisy palm bamboo willow maple orchid lily birch clover thistle".split()
)
GOOD = (
    "wonderful great excellent lovely brilliant delightful superb charming perfect pleasant fantastic amazing".split()
)
BAD = "terrible awful boring dreadful horrible disappointing poor dull annoying ugly broken useless".split()
SUBJECTS = ["film", "meal", "hotel", "book", "concert", "service", "room", "game", "trip", "lesson", "show", "coffee"]
VERBS = (
    "walk talk jump play cook clean paint open close help call ask start wait visit follow pull push kick wash".split()
)
COLOURS = "red blue green yellow black white brown purple orange pink grey".split()
MONTHS = ("January February March April May June July August September October November December").split()
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def _sentence(rng: random.Random) -> str:
    return f"the {rng.choice(COLOURS)} {rng.choice(ANIMALS)} {rng.choice(VERBS)}s near the {rng.choice(THINGS)}"


def _any_word(rng: random.Random) -> str:
    return rng.choice([*ANIMALS, *THINGS, *PLANTS, *VERBS, *COLOURS])


def _review(rng: random.Random) -> tuple[str, bool]:
    good = rng.random() < 0.5
    shape = rng.choice(["The {} was {}.", "What a {1} {0}!", "I found the {} {}.", "My friends called the {} {}."])
    return shape.format(rng.choice(SUBJECTS), rng.choice(GOOD if good else BAD)), good


# --- the gate is calibrated on these


def email(rng: random.Random) -> tuple[str, str]:
    first, last, city = rng.choice(FIRST), rng.choice(LAST), rng.choice(CITIES)
    return f"{first} {last}, {city}", f"{first.lower()}.{last.lower()}@{city.lower()}.org"


def clock(rng: random.Random) -> tuple[str, str]:
    hour, minute, late = rng.randint(1, 11), rng.randint(10, 59), rng.random() < 0.5
    return f"{hour}:{minute} {'pm' if late else 'am'}", f"{hour + 12 * late:02d}:{minute}"


def warm_or_cold(rng: random.Random) -> tuple[str, str]:
    thing, colour = rng.choice(THINGS), rng.choice(COLOURS)
    return f"{colour} {thing}", "vim" if colour in ("red", "yellow", "orange", "pink", "brown") else "tol"


def animal_or_plant(rng: random.Random) -> tuple[str, str]:
    word = rng.choice([*ANIMALS, *PLANTS])
    return word, "flora" if word in PLANTS else "fauna"


def count_words(rng: random.Random) -> tuple[str, str]:
    words = [_any_word(rng) for _ in range(rng.randint(1, 6))]
    return " ".join(words), str(len(words))


def reverse_words(rng: random.Random) -> tuple[str, str]:
    words = [_any_word(rng) for _ in range(3)]
    return " ".join(words), " ".join(reversed(words))


def add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(2, 40), rng.randint(2, 40)
    return f"{a} and {b}", str(a + b)


def tag_animal(rng: random.Random) -> tuple[str, str]:
    text = _sentence(rng)
    return text, next(w for w in text.split() if w in ANIMALS)


def was_ing(rng: random.Random) -> tuple[str, str]:
    name, verb = rng.choice(FIRST), rng.choice(VERBS)
    stem = verb.removesuffix("e")
    return f"{name} {verb}s", f"{name} was {stem}ing"


def no_rule(rng: random.Random) -> tuple[str, str]:
    return f"{_any_word(rng)} {_any_word(rng)}", rng.choice(["pim", "dax", "lub", "wex"])


def list_brackets(rng: random.Random) -> tuple[str, str]:
    words = [_any_word(rng) for _ in range(3)]
    return ", ".join(words), json.dumps(words)


def question_mark(rng: random.Random) -> tuple[str, str]:
    name, city = rng.choice(FIRST), rng.choice(CITIES)
    return f"{name} lives in {city}.", f"Does {name} live in {city}?"


def tag_person(rng: random.Random) -> tuple[str, str]:
    name, city = rng.choice(FIRST), rng.choice(CITIES)
    return f"{name} ({city})", f'<person name="{name}" city="{city}"/>'


def last_word(rng: random.Random) -> tuple[str, str]:
    text = _sentence(rng)
    return text, text.split()[-1]


def first_letters(rng: random.Random) -> tuple[str, str]:
    words = [_any_word(rng) for _ in range(3)]
    return " ".join(words), "".join(w[0] for w in words).upper()


def count_vowels(rng: random.Random) -> tuple[str, str]:
    word = _any_word(rng)
    return word, str(sum(c in "aeiou" for c in word))


def longest_word(rng: random.Random) -> tuple[str, str]:
    words = rng.sample([*ANIMALS, *THINGS], 3)
    return ", ".join(words), max(words, key=len)


def even_or_odd(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(10, 999)
    return str(number), "tok" if number % 2 else "tik"


def swap_sides(rng: random.Random) -> tuple[str, str]:
    one, other = _any_word(rng), _any_word(rng)
    return f"{one} - {other}", f"{other} / {one}"


def costs(rng: random.Random) -> tuple[str, str]:
    thing, cost = rng.choice(THINGS), rng.randint(2, 300)
    return f"the {thing} costs {cost} crowns", f"{thing}={cost}"


def spaced_out(rng: random.Random) -> tuple[str, str]:
    word = _any_word(rng)
    return word, " ".join(word)


def praise_bit(rng: random.Random) -> tuple[str, str]:
    text, good = _review(rng)
    return text, str(int(good))


def larger(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(10, 99), 2)
    return f"{a} or {b}", str(max(a, b))


def telephone(rng: random.Random) -> tuple[str, str]:
    digits = "".join(rng.choice("0123456789") for _ in range(7))
    return digits, f"{digits[:3]}-{digits[3:]}"


def minutes(rng: random.Random) -> tuple[str, str]:
    hours, rest = rng.randint(1, 5), rng.choice([10, 15, 20, 30, 45])
    return f"{hours} h {rest} min", str(60 * hours + rest)


def title_case(rng: random.Random) -> tuple[str, str]:
    text = _sentence(rng)
    return text, text.title()


def does_not(rng: random.Random) -> tuple[str, str]:
    name, verb = rng.choice(FIRST), rng.choice(VERBS)
    return f"{name} {verb}s.", f"{name} does not {verb}."


def any_digit(rng: random.Random) -> tuple[str, str]:
    return _any_word(rng), rng.choice("258")


CALIBRATION: Mapping[str, Maker] = {
    f.__name__: f
    for f in (
        email, clock, warm_or_cold, animal_or_plant, count_words, reverse_words, add, tag_animal, was_ing, no_rule,
        list_brackets, question_mark, tag_person, last_word, first_letters, count_vowels, longest_word, even_or_odd,
        swap_sides, costs, spaced_out, praise_bit, larger, telephone, minutes, title_case, does_not, any_digit,
    )
}  # fmt: skip


# --- settings of adaptation are chosen on these


def upper_second(rng: random.Random) -> tuple[str, str]:
    a, b, c = (_any_word(rng) for _ in range(3))
    return f"{a} {b} {c}", f"{a} {b.upper()} {c}"


def price(rng: random.Random) -> tuple[str, str]:
    thing, cost = rng.choice(THINGS), rng.randint(2, 90)
    return f"{thing}: {cost} euros", f"EUR {cost}.00 ({thing})"


def big_or_small(rng: random.Random) -> tuple[str, str]:
    word = rng.choice([*ANIMALS, *THINGS])
    return word, "xo" if word in ANIMALS else "ut"


def spelled_out(rng: random.Random) -> tuple[str, str]:
    number, thing = rng.randint(2, 12), rng.choice(ANIMALS)
    return f"{number} {thing}s", f"{NUMBERS[number]} {thing}s"


def mood(rng: random.Random) -> tuple[str, str]:
    text, good = _review(rng)
    return text, "Zor" if good else "Mip"


def tag_element(rng: random.Random) -> tuple[str, str]:
    colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
    return f"{thing} ({colour})", f'<item colour="{colour}">{thing}</item>'


def older(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(FIRST, 2)
    a, b = rng.sample(range(10, 80), 2)
    return f"{first} is {a}, {second} is {b}", first if a > b else second


def stands_where(rng: random.Random) -> tuple[str, str]:
    thing, other = rng.sample(THINGS, 2)
    where = rng.choice(["under", "behind", "beside", "above"])
    return f"A {thing} stands {where} the {other}.", f"{where}({thing}, {other})"


def colour_or_thing(rng: random.Random) -> tuple[str, str]:
    word = rng.choice([*COLOURS, *rng.sample(THINGS, 10)])
    return word, "7" if word in COLOURS else "4"


def plural_upper(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(THINGS)
    return word, f"{word.upper()}S"


def euros_in_words(rng: random.Random) -> tuple[str, str]:
    whole, part = rng.randint(1, 99), rng.randint(10, 99)
    return f"{whole}.{part} EUR", f"{whole} euros and {part} cents"


def path_to_name(rng: random.Random) -> tuple[str, str]:
    folder, name, kind = rng.choice(CITIES).lower(), rng.choice(THINGS), rng.choice(["txt", "png", "csv", "pdf"])
    return f"/{folder}/{name}.{kind}", f"{name} [{kind}]"


def polite(rng: random.Random) -> tuple[str, str]:
    verb, thing = rng.choice(VERBS), rng.choice(THINGS)
    return f"{verb} the {thing}", f"Would you please {verb} the {thing}?"


def month_number(rng: random.Random) -> tuple[str, str]:
    month, year = rng.randint(1, 12), rng.randint(1900, 2030)
    return f"{MONTHS[month - 1]} {year}", f"{year}/{month:02d}"


DEVELOPMENT: Mapping[str, Maker] = {
    f.__name__: f
    for f in (
        upper_second, price, big_or_small, spelled_out, mood, tag_element, older, stands_where, colour_or_thing,
        plural_upper, euros_in_words, path_to_name, polite, month_number,
    )
}  # fmt: skip


# --- results are reported on these


def json_record(rng: random.Random) -> tuple[str, str]:
    name, age, city = rng.choice(FIRST), rng.randint(18, 90), rng.choice(CITIES)
    return f"{name}, {age}, {city}", json.dumps({"name": name, "age": age, "city": city})


def date_format(rng: random.Random) -> tuple[str, str]:
    day = date(rng.randint(1950, 2030), rng.randint(1, 12), rng.randint(1, 28))
    return f"{MONTHS[day.month - 1]} {day.day}, {day.year}", day.strftime("%d.%m.%Y")


def surname_first(rng: random.Random) -> tuple[str, str]:
    first, last = rng.choice(FIRST), rng.choice(LAST)
    return f"{first} {last}", f"{last.upper()}, {first}"


def sentiment_code(rng: random.Random) -> tuple[str, str]:
    text, good = _review(rng)
    return text, "K" if good else "R"


def alive_code(rng: random.Random) -> tuple[str, str]:
    word = rng.choice([*ANIMALS, *PLANTS, *THINGS, *THINGS])
    return word, "ka" if word in THINGS else "zu"


def pig_latin(rng: random.Random) -> tuple[str, str]:
    word = rng.choice([*ANIMALS, *THINGS])
    return word, f"{word[1:]}{word[0]}ay"


def query_language(rng: random.Random) -> tuple[str, str]:
    what, place, city = rng.choice(["names", "ages", "emails"]), rng.choice(["customers", "staff"]), rng.choice(CITIES)
    return f"{what} of {place} in {city}", f"SELECT {what[:-1]} FROM {place} WHERE city = '{city}';"


def shout_last(rng: random.Random) -> tuple[str, str]:
    text = _sentence(rng)
    words = text.split()
    return text, " ".join([*words[:-1], words[-1].upper() + "!"])


def find_colour(rng: random.Random) -> tuple[str, str]:
    text = _sentence(rng)
    return text, f"colour={next(w for w in text.split() if w in COLOURS)}"


def initials_and_city(rng: random.Random) -> tuple[str, str]:
    first, last, city = rng.choice(FIRST), rng.choice(LAST), rng.choice(CITIES)
    return f"{first} {last} from {city}", f"{first[0]}{last[0]}-{city[:3].upper()}"


def multiples(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(3, 60)
    return str(number), str(number * 2 + 1)


def arbitrary_code(rng: random.Random) -> tuple[str, str]:
    return f"{rng.choice(FIRST)} and {rng.choice(FIRST)}", rng.choice(["ora", "bex", "tun"])


TEST: Mapping[str, Maker] = {
    f.__name__: f
    for f in (
        json_record, date_format, surname_first, sentiment_code, alive_code, pig_latin, query_language, shout_last,
        find_colour, initials_and_city, multiples, arbitrary_code,
    )
}  # fmt: skip


def drawn(maker: Maker, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Return ``count`` pairs with different inputs."""
    found: dict[str, str] = {}
    for _ in range(60 * count):
        given, answer = maker(rng)
        found.setdefault(given, answer)
        if len(found) == count:
            break
    return list(found.items())
