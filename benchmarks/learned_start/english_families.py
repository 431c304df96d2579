"""Tasks in English that smollm2's start of low-rank weights is learned on.

Each task is drawn with constants of its own: which fields of a record are taken, how they are changed and written,
which classes get which labels. What is held out stays out: a task is drawn again where its inputs and answers look as
those of a family in :mod:`english_tasks` do, and none labels praise and blame, living things, colours or odd numbers,
which families there do.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("spark", "fewshot")]
import english_tasks
import string_families
from tasks import pairs

Maker = Callable[[random.Random], tuple[str, str]]
Draw = Callable[[random.Random], str]
Change = Callable[[str], str]
#: Longest input and answer, in characters.
LONGEST = 160
#: Pairs by which a task is compared with those that are held out.
COMPARED = 12

NAMES = (
    "Aisha Bruno Chloe Dmitri Elena Farid Gita Hugo Ines Jonas Kofi Lena Marco Nadia Omar Petra Quinn Ravi Sofia Tom "
    "Uma Vera Walter Xenia Yusuf Zoe Emma Liam Mia Lucas Nina Oscar"
).split()
SURNAMES = (
    "Adams Brown Chen Dubois Eriksen Ford Greene Haddad Ivanov Jones Kaya Lund Moreau Nguyen Okafor Park Quist Reyes "
    "Smith Tanaka Ueda Vogel Wang Young Zhou Miller Taylor Walker"
).split()
TOWNS = (
    "Geneva Milan Warsaw Zurich Bergen Porto Lyon Hamburg Sydney Toronto Chicago Denver Mumbai Nairobi Osaka Busan "
    "Havana Bogota Quito Dallas Leeds Ghent Turin Malmo"
).split()
JOBS = (
    "teacher nurse baker lawyer farmer pilot painter engineer doctor waiter plumber singer writer chemist driver clerk"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
STATES = "open closed pending ready failed done active late paid lost new shipped".split()
CLASSES: Mapping[str, Sequence[str]] = {
    "fruit": "apple pear plum grape cherry mango peach lemon melon kiwi orange banana fig lime apricot".split(),
    "vegetable": "carrot onion potato cabbage spinach leek turnip celery pepper lettuce garlic radish pumpkin".split(),
    "vehicle": "bus truck tram bicycle ship ferry taxi van plane helicopter scooter tractor canoe rocket".split(),
    "clothing": "coat scarf glove sock jacket skirt trousers boot sweater belt dress tie vest pyjamas".split(),
    "body": "arm leg knee elbow nose ear eye hand finger neck shoulder back hip ankle chin wrist".split(),
    "country": "France Japan Brazil Kenya Norway Canada Egypt Peru Spain Chile Turkey Vietnam Ghana Poland".split(),
    "town": TOWNS,
    "job": JOBS,
    "sport": "football tennis rugby boxing golf hockey chess rowing cricket judo skiing fencing cycling".split(),
    "instrument": "violin flute drum trumpet cello harp banjo oboe clarinet organ tuba saxophone".split(),
    "weather": "rain snow fog storm hail wind sunshine frost thunder drizzle sleet cloud".split(),
    "tool": "drill saw wrench pliers axe shovel rake screwdriver chisel spade anvil file".split(),
    "drink": "tea milk juice water wine beer cocoa lemonade cider soda rum whisky".split(),
    "metal": "iron gold silver copper tin lead zinc nickel steel brass aluminium titanium".split(),
    "family": "mother uncle aunt cousin brother sister nephew niece grandfather daughter son father".split(),
    "room": "kitchen bedroom attic cellar hall bathroom garage pantry balcony study nursery".split(),
    "science": "physics biology chemistry geology botany astronomy algebra statistics genetics ecology".split(),
    "feeling": "anger joy fear envy pride shame grief hope guilt relief boredom surprise".split(),
}
GOODS = [*CLASSES["fruit"], *CLASSES["clothing"], *CLASSES["tool"], *CLASSES["instrument"], *CLASSES["drink"]]
ACTIONS = (
    "bought sold found lost painted carried repaired washed borrowed returned opened packed dropped ordered hid broke"
).split()
SITUATIONS: Mapping[str, Sequence[str]] = {
    "urgent": (
        "The server is down and customers cannot pay",
        "We need an answer before noon today",
        "Water is coming through the ceiling",
        "Please call back at once",
        "The deadline is in one hour",
        "The alarm does not stop",
        "Nobody can log in since this morning",
        "The patient must be seen now",
    ),
    "idle": (
        "Take your time with the report",
        "We could repaint the fence next year",
        "No need to reply",
        "Just a thought for some later meeting",
        "The old files may stay where they are",
        "It would be nice to have at some point",
        "We can talk about it in autumn",
        "There is no hurry with the forms",
    ),
    "sport": (
        "The keeper saved a penalty in the last minute",
        "She won the final in three sets",
        "The team is top of the league",
        "He ran the marathon in under three hours",
        "The match ended in a draw",
        "Their coach was sacked after the defeat",
        "The cyclists start the mountain stage today",
        "A new record in the long jump",
    ),
    "money": (
        "The bank raised its interest rate",
        "Shares fell by four percent",
        "The company doubled its profit",
        "Inflation is lower than last year",
        "Investors wait for the quarterly report",
        "The loan must be paid back by May",
        "The currency lost a tenth of its value",
        "Taxes on fuel will rise",
    ),
    "health": (
        "Take two tablets after each meal",
        "The patient has a fever and a cough",
        "Her blood pressure is too high",
        "The vaccine protects for ten years",
        "He broke his wrist and needs a cast",
        "Sleep is good for the heart",
        "The surgeon removed the appendix",
        "The clinic tests for allergies",
    ),
    "computing": (
        "The update fixes a bug in the parser",
        "My laptop does not start after the update",
        "The database needs more memory",
        "She wrote a script that sorts the files",
        "Reset your password to log in",
        "The compiler reports an error in line ten",
        "The new phone has a faster chip",
        "Back up the disk before you format it",
    ),
    "travel": (
        "The train to the coast leaves at six",
        "Our flight was delayed by two hours",
        "The hostel is near the old harbour",
        "You need a visa for more than ninety days",
        "We hired a car and drove along the cliffs",
        "The museum is free on Sundays",
        "The ferry crosses twice a day",
        "Pack light for the mountain hut",
    ),
    "cooking": (
        "Simmer the sauce for twenty minutes",
        "Beat the eggs with the sugar",
        "The bread has to rise for an hour",
        "Add a pinch of salt to the dough",
        "Fry the onions until they are golden",
        "Let the soup cool before serving",
        "Grate the cheese over the pasta",
        "Roast the chicken at two hundred degrees",
    ),
}
#: What is known of words, as ``word=answer``.
KNOWN: Mapping[str, Mapping[str, str]] = {
    name: dict(pair.split("=") for pair in pairs_of.split())
    for name, pairs_of in {
        "capital": (
            "France=Paris Japan=Tokyo Spain=Madrid Italy=Rome Germany=Berlin Egypt=Cairo Peru=Lima Norway=Oslo "
            "Greece=Athens Portugal=Lisbon Austria=Vienna Russia=Moscow China=Beijing Cuba=Havana Poland=Warsaw "
            "Kenya=Nairobi Ireland=Dublin Hungary=Budapest Canada=Ottawa Sweden=Stockholm"
        ),
        "opposite": (
            "hot=cold big=small up=down old=new fast=slow wet=dry day=night rich=poor open=closed early=late "
            "hard=soft long=short left=right full=empty light=dark high=low strong=weak young=old loud=quiet "
            "first=last inside=outside near=far cheap=expensive thick=thin"
        ),
        "past": (
            "go=went see=saw eat=ate run=ran give=gave take=took write=wrote sing=sang swim=swam buy=bought "
            "think=thought bring=brought catch=caught drive=drove fly=flew know=knew grow=grew speak=spoke "
            "break=broke find=found sleep=slept keep=kept leave=left teach=taught"
        ),
        "plural": (
            "man=men woman=women child=children foot=feet tooth=teeth city=cities baby=babies box=boxes "
            "leaf=leaves wolf=wolves potato=potatoes dish=dishes party=parties bus=buses story=stories "
            "shelf=shelves watch=watches church=churches berry=berries wife=wives"
        ),
        "language": (
            "France=French Japan=Japanese Brazil=Portuguese Italy=Italian Germany=German Egypt=Arabic "
            "Norway=Norwegian Greece=Greek Austria=German Russia=Russian China=Chinese Mexico=Spanish "
            "Poland=Polish Hungary=Hungarian Sweden=Swedish Turkey=Turkish Denmark=Danish Finland=Finnish"
        ),
        "noun": (
            "happy=happiness sad=sadness kind=kindness dark=darkness weak=weakness strong=strength wide=width "
            "long=length warm=warmth true=truth free=freedom wise=wisdom brave=bravery deep=depth young=youth "
            "hot=heat angry=anger honest=honesty ill=illness high=height"
        ),
        "maker": (
            "bread=baker bed=carpenter painting=painter novel=writer crop=farmer meal=cook suit=tailor "
            "photo=photographer song=singer house=builder film=director poem=poet statue=sculptor beer=brewer "
            "law=politician pot=potter"
        ),
        "ordinal": (
            "one=first two=second three=third four=fourth five=fifth six=sixth seven=seventh eight=eighth "
            "nine=ninth ten=tenth eleven=eleventh twelve=twelfth twenty=twentieth thirty=thirtieth"
        ),
        "french": (
            "dog=chien cat=chat house=maison bread=pain water=eau book=livre red=rouge white=blanc friend=ami "
            "school=école milk=lait cheese=fromage day=jour night=nuit tree=arbre king=roi good=bon big=grand "
            "green=vert black=noir"
        ),
        "comparative": (
            "good=better bad=worse big=bigger hot=hotter easy=easier happy=happier tall=taller cheap=cheaper "
            "far=farther thin=thinner heavy=heavier old=older busy=busier long=longer wet=wetter nice=nicer"
        ),
    }.items()
}


def _number(low: int, high: int) -> Draw:
    return lambda rng: str(rng.randint(low, high))


def _of(values: Sequence[str]) -> Draw:
    return lambda rng: rng.choice(values)


def _code(rng: random.Random) -> str:
    return "".join(rng.choice("ABCDEFGHKLMNPRST") for _ in range(2)) + str(rng.randint(10, 999))


def _clock(rng: random.Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"


#: Fields of records: what they are called, and how one is drawn.
FIELDS: Mapping[str, Draw] = {
    "name": _of(NAMES),
    "person": lambda rng: f"{rng.choice(NAMES)} {rng.choice(SURNAMES)}",
    "town": _of(TOWNS),
    "job": _of(JOBS),
    "day": _of(DAYS),
    "status": _of(STATES),
    "item": _of(GOODS),
    "quantity": _number(2, 60),
    "price": lambda rng: f"{rng.randint(1, 99)}.{rng.randint(0, 99):02d}",
    "code": _code,
    "year": _number(1900, 2030),
    "time": _clock,
    "country": _of(CLASSES["country"]),
    "sport": _of(CLASSES["sport"]),
    "score": _number(0, 100),
    "temperature": lambda rng: f"{rng.randint(-9, 35)}C",
    "version": lambda rng: f"{rng.randint(0, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}",
    "mail": lambda rng: f"{rng.choice(NAMES).lower()}@{rng.choice(TOWNS).lower()}.net",
    "day_month": lambda rng: f"{rng.randint(1, 28)} {rng.choice(english_tasks.MONTHS)[:3]}",
}


def _label(rng: random.Random) -> str:
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice("ABCDEFGHXYZ")
    if kind == 1:
        return str(rng.randint(0, 99))
    if kind == 2:
        return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 2)))
    if kind == 3:
        return rng.choice(GOODS).upper() if rng.random() < 0.3 else rng.choice(GOODS)
    return rng.choice(["yes", "no", "left", "right", "up", "low", "alpha", "beta", "blue", "+", "-", "ok", "skip"])


def _labels(rng: random.Random, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        label = _label(rng)
        if label not in found:
            found.append(label)
    return found


def _input_template(rng: random.Random, names: Sequence[str]) -> str:
    kind = rng.randrange(8)
    slots = [f"{{{name}}}" for name in names]
    if kind < 3:
        return rng.choice([", ", " | ", "; ", " / ", " - ", ","]).join(slots)
    if kind == 3:
        joint, mark = rng.choice([", ", "; ", " "]), rng.choice([": ", "=", " = "])
        return joint.join(f"{name}{mark}{slot}" for name, slot in zip(names, slots, strict=True))
    if kind == 4:
        return "{{" + ", ".join(f'"{name}": "{slot}"' for name, slot in zip(names, slots, strict=True)) + "}}"
    if kind == 5:
        return f"{slots[0]} ({', '.join(slots[1:])})"
    if kind == 6:
        return f"[{slots[0]}] " + rng.choice([" ", ": ", " -> "]).join(slots[1:])
    joints = rng.sample([" from ", " with ", " at ", " for ", " by ", " on ", " in "], len(names) - 1)
    return slots[0] + "".join(a + b for a, b in zip(joints, slots[1:], strict=True))


def _output_template(rng: random.Random, names: Sequence[str]) -> str:
    kind = rng.randrange(10)
    slots = [f"{{{name}}}" for name in names]
    if kind < 2 or (len(names) == 1 and kind < 6):
        frame = rng.choice(["{}", "{}", "{}", "<{}>", "[{}]", "{}!", "#{}", "'{}'", "({})", "{};"])
        return frame.format(rng.choice([" ", "-", ", ", "/", ":", "_", " > ", ""]).join(slots))
    if kind == 2:
        mark = rng.choice(["=", ": ", ":", " is "])
        return rng.choice([", ", "; ", "\\n", " & "]).join(
            f"{name}{mark}{slot}" for name, slot in zip(names, slots, strict=True)
        )
    if kind == 3:
        return "{{" + ", ".join(f'"{name[0]}": "{slot}"' for name, slot in zip(names, slots, strict=True)) + "}}"
    if kind == 4:
        return f"{rng.choice(['add', 'set', 'f', 'row', 'put', 'entry'])}({', '.join(slots)})"
    if kind == 5:
        word = rng.choice(["row", "entry", "x", "data"])
        return f"<{word}>{' '.join(slots)}</{word}>"
    if kind == 6:
        return f"{slots[0]} [{', '.join(slots[1:])}]" if len(slots) > 1 else f"-- {slots[0]}"
    if kind == 7:
        return f"{rng.choice(['INSERT', 'GET', 'UPDATE', 'note', 'ref'])} {' '.join(slots)}"
    if kind == 8:
        return f"{rng.choice(['The', 'Our', 'One'])} {rng.choice(['record', 'case', 'entry'])} is " + " and ".join(
            slots
        )
    return " ".join(f"{rng.choice(['*', '@', '%', '~', '+'])}{slot}" for slot in slots)


def _change(rng: random.Random, name: str) -> Change:
    if name in ("quantity", "year", "score"):
        by = rng.choice([1, 2, 5, 10])
        return rng.choice([str, str, str, lambda text: str(int(text) + by), lambda text: text.zfill(4)])
    size = rng.randint(2, 4)
    return rng.choice(
        [
            str,
            str,
            str,
            str,
            str.upper,
            str.upper,
            str.lower,
            lambda t: t[:size],
            lambda t: t[0],
            lambda t: t[:size].upper(),
            lambda t: t.split()[-1],
            lambda t: t.replace(" ", "_").replace(":", ""),
        ]
    )


def _record(rng: random.Random) -> Maker:
    """Fields of a record, some changed, written in another form."""
    names = rng.sample(list(FIELDS), rng.randint(2, 4))
    given = _input_template(rng, names)
    taken = rng.sample(names, rng.randint(1, len(names)))
    changes = {name: _change(rng, name) for name in taken}
    answer = _output_template(rng, taken)

    def make(draw: random.Random) -> tuple[str, str]:
        values = {name: FIELDS[name](draw) for name in names}
        return given.format(**values), answer.format(**{name: changes[name](values[name]) for name in taken})

    return make


def _classes(rng: random.Random) -> Maker:
    """A label for the class that a word is of."""
    kinds = rng.sample(list(CLASSES), rng.choice((2, 2, 2, 3, 3, 4)))
    labels = dict(zip(kinds, kinds if rng.random() < 0.25 else _labels(rng, len(kinds)), strict=True))
    frame = rng.choice(["{}", "{}", "{}", "the {}", "{}?", '"{}"', "word: {}"])

    def make(draw: random.Random) -> tuple[str, str]:
        kind = draw.choice(kinds)
        return frame.format(draw.choice(CLASSES[kind])), labels[kind]

    return make


def _situations(rng: random.Random) -> Maker:
    """A label for what a sentence is about."""
    kinds = rng.sample(list(SITUATIONS), rng.choice((2, 2, 3)))
    labels = dict(zip(kinds, kinds if rng.random() < 0.3 else _labels(rng, len(kinds)), strict=True))
    before = rng.choice(["", "", "", "Message: ", "> "])

    def make(draw: random.Random) -> tuple[str, str]:
        kind = draw.choice(kinds)
        return f"{before}{draw.choice(SITUATIONS[kind])}.", labels[kind]

    return make


def _condition(rng: random.Random) -> Maker:
    """A label by a condition on a number, a word or a record."""
    yes, no = _labels(rng, 2)
    kind, limit = rng.randrange(6), rng.randint(20, 80)
    letters = set(rng.sample("abcdefghijklmnoprstw", 10))
    words = [word for values in CLASSES.values() for word in values]
    chosen, state = rng.choice(DAYS[:5]), rng.sample(STATES, 4)

    def make(draw: random.Random) -> tuple[str, str]:
        word, number = draw.choice(words), draw.randint(0, 100)
        if kind == 0:
            return f"{draw.choice(GOODS)}: {number}", yes if number > limit else no
        if kind == 1:
            return word, yes if word[0].lower() in letters else no
        if kind == 2:
            return word, yes if len(word) > 5 else no
        if kind == 3:
            day = draw.choice(DAYS)
            return f"{draw.choice(NAMES)} comes on {day}", yes if day in (chosen, "Saturday", "Sunday") else no
        if kind == 4:
            now = draw.choice(state)
            return f"{_code(draw)} is {now}", yes if now in state[:2] else no
        return f"{number} {word}", yes if number > limit and len(word) > 4 else no

    return make


def _known(rng: random.Random) -> Maker:
    """What is known of a word, in a form of its own."""
    table = KNOWN[rng.choice(list(KNOWN))]
    given = rng.choice(["{}", "{}", "{}", "the {}", "({})", "{} =", "word: {}"])
    answer = rng.choice(["{}", "{}", "{}", "{}!", "<{}>", "it is {}", "{1} - {0}", "{1}/{0}", "-> {}", "{}."])
    change = rng.choice([str, str, str, str.upper, str.title])

    def make(draw: random.Random) -> tuple[str, str]:
        word = draw.choice(list(table))
        return given.format(word), answer.format(change(table[word]), word)

    return make


def _sentence(rng: random.Random) -> str:
    return rng.choice(
        [
            f"{rng.choice(NAMES)} {rng.choice(ACTIONS)} {rng.randint(2, 20)} {rng.choice(GOODS)}s "
            f"in {rng.choice(TOWNS)}",
            f"the {rng.choice(JOBS)} {rng.choice(ACTIONS)} a {rng.choice(GOODS)} on {rng.choice(DAYS)}",
            f"{rng.choice(NAMES)} met the {rng.choice(JOBS)} in the {rng.choice(CLASSES['room'])}",
            f"my {rng.choice(CLASSES['family'])} likes {rng.choice(CLASSES['sport'])} "
            f"and {rng.choice(CLASSES['drink'])}",
        ]
    )


def _places(rng: random.Random) -> Maker:
    """Some words of a sentence, chosen or changed by their places."""
    shape, at, other = rng.randrange(4), rng.choice((0, 1, 2, -1, -2)), rng.choice((0, 1, -1, -3))
    frame = rng.choice(["{}", "[{}]", "*{}*", "'{}'", "<{}>", "_{}_"])
    kind = rng.randrange(9)
    low, high = rng.randint(0, 1), rng.randint(2, 3)
    joint, mark = rng.choice(["_", "-", " ", "/", "+"]), rng.choice([";", "...", " END", "!!", " ~"])

    def make(draw: random.Random) -> tuple[str, str]:
        text = (
            " ".join(draw.choice([*GOODS, *JOBS, *STATES]) for _ in range(4 if shape < 2 else 3))
            if shape < 3 else _sentence(draw)
        )  # fmt: skip
        words = text.split()
        if kind == 0:
            return text, frame.format(words[at if -len(words) <= at < len(words) else 0])
        if kind == 1:
            words[at] = frame.format(words[at])
            return text, " ".join(words)
        if kind == 2:
            del words[at]
            return text, " ".join(words) + mark
        if kind == 3:
            words[at], words[other] = words[other], words[at]
            return text, joint.join(words)
        if kind == 4:
            return text, joint.join(words[low:high])
        if kind == 5:
            return text, joint.join(word.capitalize() if i % 2 == low else word for i, word in enumerate(words))
        if kind == 6:
            return text, " ".join(sorted(words, key=str.lower))
        if kind == 7:
            return text, f"{words[at]} x{len(words)}"
        return text, joint.join(words) + mark

    return make


def _replaced(rng: random.Random) -> Maker:
    """A sentence with one kind of word replaced or taken out."""
    kind, put = rng.randrange(7), rng.choice(["___", "X", "[...]", "someone", "REDACTED", "?"])

    def make(draw: random.Random) -> tuple[str, str]:
        name, action, count, item, town = (
            draw.choice(NAMES), draw.choice(ACTIONS), draw.randint(2, 40), draw.choice(GOODS), draw.choice(TOWNS),
        )  # fmt: skip
        text = f"{name} {action} {count} {item}s in {town}"
        return text, (
            f"{put} {action} {count} {item}s in {town}",
            f"{name} {action} {count} {item}s in {put}",
            f"{name} {action} {put} {item}s in {town}",
            f"{item} ({count})",
            f"{count} {item}s were {action} by {name}",
            f"In {town}, {name} {action} {item}s",
            f"who: {name}, where: {town}",
        )[kind]

    return make


def _spoken(rng: random.Random) -> Maker:
    """A sentence in another person, tense or mood."""
    kind = rng.randrange(8)
    verbs = {
        "buys": "buy", "sells": "sell", "paints": "paint", "needs": "need", "likes": "like", "carries": "carry",
        "wants": "want", "draws": "draw", "eats": "eat", "builds": "build", "sees": "see", "finds": "find",
    }  # fmt: skip

    def make(draw: random.Random) -> tuple[str, str]:
        name, verb, item = draw.choice(NAMES), draw.choice(list(verbs)), draw.choice(GOODS)
        text = f"{name} {verb} a {item}"
        return text, (
            f"{name} will {verbs[verb]} a {item}",
            f"They {verbs[verb]} a {item}",
            f"What does {name} {verbs[verb]}?",
            f"{name} never {verb} a {item}",
            f"Let {name} {verbs[verb]} the {item}",
            f"She said that {name} {verb} a {item}",
            f"{name} and I {verbs[verb]} a {item}",
            f"{verbs[verb]}({name}, {item})",
        )[kind]

    return make


def _numbers(rng: random.Random) -> Maker:
    """A number from numbers in a sentence."""
    kind, factor, unit = (
        rng.randrange(9),
        rng.choice((3, 4, 5, 10, 100)),
        rng.choice(["kg", "km", "cm", "litres", "days"]),
    )

    def make(draw: random.Random) -> tuple[str, str]:
        a, b = draw.randint(11, 60), draw.randint(2, 10)
        item = draw.choice(GOODS)
        return (
            (f"{a} minus {b}", str(a - b)),
            (f"{b} boxes of {factor} {item}s", str(b * factor)),
            (f"{a} {unit}", f"{a * 10} {unit}"),
            (f"{item}: {b} x {factor}", f"{item} {b * factor}"),
            (f"{a}, {b}, {a - 1}", str(min(a, b, a - 1))),
            (f"from {a} to {a + b}", str(b)),
            (f"{a}.{b} {unit}", f"{a} {unit}"),
            (f"{a} {unit}", f"about {round(a, -1)} {unit}"),
            (f"{a}, {a + 2}, {a + 4}", str(a + 6)),
        )[kind]

    return make


def _questions(rng: random.Random) -> Maker:
    """A question about a sentence or two, answered from them."""
    kind, frame = rng.randrange(6), rng.choice(["{}", "{}", "{}", "({})", "= {}", "{}."])

    def make(draw: random.Random) -> tuple[str, str]:
        one, other = draw.sample(NAMES, 2)
        job, second = draw.sample(JOBS, 2)
        town, place = draw.sample(TOWNS, 2)
        item, thing = draw.sample(GOODS, 2)
        asked = draw.random() < 0.5
        who = one if asked else other
        text, found = (
            (f"{one} is a {job}. {other} is a {second}. What is {who}?", job if asked else second),
            (f"{one} went to {town} and {other} to {place}. Where is {who}?", town if asked else place),
            (f"{one} has a {item}, {other} has a {thing}. Who has the {item if asked else thing}?", who),
            (f"{one} gave the {item} to {other}. Who {'gave it' if asked else 'has it'}?", who),
            (f"{one} the {job} lives in {town}. Which town?", town),
            (f"First {one} came, then {other}. Who was {'first' if asked else 'second'}?", who),
        )[kind]
        return text, frame.format(found)

    return make


def _lists(rng: random.Random) -> Maker:
    """A list, of which some are taken, ordered or marked."""
    kind, size = rng.randrange(7), rng.randint(3, 4)
    wanted, other = rng.sample([name for name in CLASSES if name != "town"], 2)
    joint = rng.choice(["; ", " + ", " | ", " and ", ","])

    def make(draw: random.Random) -> tuple[str, str]:
        words = draw.sample(CLASSES[other], size)
        one = draw.choice(CLASSES[wanted])
        mixed = [*words[:-1], one]
        draw.shuffle(mixed)
        text = ", ".join(words)
        return (
            (", ".join(mixed), one),
            (", ".join(mixed), joint.join(word for word in mixed if word != one)),
            (text, joint.join(sorted(words, key=str.lower))),
            (text, joint.join(words[1:])),
            (text, f"{words[0]} first, {words[-1]} last"),
            (text, joint.join(f"{i + 1}.{word}" for i, word in enumerate(words))),
            (text, min(words, key=len) if len({len(w) for w in words}) == size else words[0]),
        )[kind]

    return make


def _string(rng: random.Random) -> Maker:
    """A task on strings, of those in :mod:`string_families`."""
    found = pairs(string_families.start_task(rng), 24, rng)
    return lambda draw: draw.choice(found)


#: How often each kind is drawn.
START: Mapping[Callable[[random.Random], Maker], float] = {
    _record: 5,
    _classes: 3,
    _situations: 2,
    _condition: 2,
    _known: 2,
    _places: 3,
    _replaced: 1.5,
    _spoken: 1.5,
    _numbers: 1.5,
    _questions: 1.5,
    _lists: 2,
    _string: 1.5,
}


def shape(text: str) -> str:
    """Return ``text`` with words and numbers replaced by their kinds."""
    text = re.sub(r"[A-Z]{2,}", "U", re.sub(r"[A-Z]?[a-z]+", lambda m: "C" if m[0][0].isupper() else "w", text))
    return re.sub(r"\d+", "0", text)


@cache
def _held_out_shapes() -> frozenset[tuple[str, str]]:
    """Return shapes of inputs and answers of the families that are held out, labels of one word left out."""
    rng, found = random.Random(0), set()
    for family in (
        *english_tasks.DEVELOPMENT.values(),
        *english_tasks.CALIBRATION.values(),
        *english_tasks.TEST.values(),
    ):
        for _ in range(40):
            given, answer = family(rng)
            if shape(answer) not in ("w", "C", "U", "0"):
                found.add((shape(given), shape(answer)))
    return frozenset(found)


def start_task(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Return pairs of inputs and answers, at least 4 and at most ``count``, of a task that none held out looks like."""
    kinds, shares = list(START), list(START.values())
    while True:
        maker = rng.choices(kinds, shares)[0](rng)
        try:
            found = english_tasks.drawn(maker, count, rng)
        except IndexError:
            # Too short a sentence for the places that were drawn.
            continue
        fits = len(found) >= min(count, 6) and all(g and a.strip() and len(g) + len(a) < LONGEST for g, a in found)
        alike = sum((shape(g), shape(a)) in _held_out_shapes() for g, a in found[:COMPARED])
        if fits and len({a for _, a in found}) > 1 and all(g != a for g, a in found[:2]) and alike < 2:
            return found
