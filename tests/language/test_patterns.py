"""Pattern detection: prompts with worked examples are read exactly, prompts without are left alone."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example as always
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import ConfigError
from acclimate.language import DOMAIN_SENSITIVITY, detect
from acclimate.language.patterns import KINDS, detection
from acclimate.language.patterns.candidates import candidates
from acclimate.language.patterns.classifier import Classifier
from acclimate.language.patterns.detection import readings_trees
from acclimate.language.patterns.scoring import Trees
from acclimate.language.patterns.text import is_open, lines_of, unwrapped

CORPUS = Path(__file__).parents[1] / "data" / "patterns.jsonl"
ROWS = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]

SHOWN = [
    ("explicit_examples", "Example 1: Cat -> CAT\nExample 2: dog -> DOG\nExample 3: Owl -> OWL\nNow: bee ->",
     "Cat", "bee"),
    ("explicit_examples", "cat -> chat\ndog -> chien\nbird -> oiseau\nhorse ->", "cat", "horse"),
    ("io_pairs", "Input: 2\nOutput: 4\n\nInput: 5\nOutput: 10\n\nInput: 8\nOutput:", "2", "8"),
    ("io_pairs", "Q: capital of France?\nA: Paris\nQ: capital of Italy?\nA: Rome\nQ: capital of Spain?\nA:",
     "capital of France?", "capital of Spain?"),
    ("io_pairs", '{"input": "a", "output": "1"}\n{"input": "b", "output": "2"}\n{"input": "c", "output": ""}',
     "a", "c"),
    ("io_pairs", "User: hello\nAssistant: HELLO\nUser: bye\nAssistant: BYE\nUser: thanks\nAssistant:",
     "hello", "thanks"),
    ("io_pairs", "| input | output |\n| --- | --- |\n| red | RED |\n| blue | BLUE |\n| green | ? |", "red", "green"),
    ("numbered_sequences", "1. cat = 3\n2. horse = 5\n3. ant = 3\n4. mouse = ?", "cat", "mouse"),
    ("analogical_reasoning", "hot is to cold as up is to down, as big is to ?", "hot", "big"),
    ("rule_learning", "Find the rule: f(2) = 5, f(3) = 7, f(5) = 11. What is f(4)?", "2", "4"),
]  # fmt: skip

#: Ways of writing that were misread before, one or two prompts for each: examples, then the open item.
READ: dict[str, tuple[str, list[tuple[str, str]], str]] = {
    "answers that look open": (
        "Note: the tap drips\nUrgency: low\n\nNote: ???\nUrgency: ?\n\nNote: water on the stairs\nUrgency: high\n\n"
        "Note: zzz\nUrgency: N/A\n\nNote: smell of gas\nUrgency: Unknown\n\nNote: bulb is gone\nUrgency:",
        [("the tap drips", "low"), ("???", "?"), ("water on the stairs", "high"), ("zzz", "N/A"), ("smell of gas", "Unknown")],
        "bulb is gone",
    ),
    "a context above the question": (
        "Context: Ida keeps goats.\nQuestion: What does Ida keep?\nAnswer: goats\n\nContext: The pier is shut.\n"
        "Question: Is the pier open?\nAnswer: no\n\nContext: Bo sold his van in May.\nQuestion: When?\nAnswer:",
        [("Context: Ida keeps goats.\nQuestion: What does Ida keep?", "goats"),
         ("Context: The pier is shut.\nQuestion: Is the pier open?", "no")],
        "Context: Bo sold his van in May.\nQuestion: When?",
    ),
    "an answer of two fields": (
        "Case: tyre is flat\nReason: no air\nPart: tube\n\nCase: brake squeaks\nReason: pads are worn\nPart: pads\n\n"
        "Case: chain jumps\nReason:",
        [("tyre is flat", "Reason: no air\nPart: tube"), ("brake squeaks", "Reason: pads are worn\nPart: pads")],
        "chain jumps",
    ),
    "the same input twice": (
        "word: light\nsense: lamp\nword: seal\nsense: animal\nword: light\nsense: not heavy\nword: seal\nsense:",
        [("light", "lamp"), ("seal", "animal"), ("light", "not heavy")],
        "seal",
    ),
    "code with equals signs and colons": (
        "Docstring: add one\nCode:\ndef inc(n):\n    total = n + 1\n    return total\n\nDocstring: first of a list\nCode:\n"
        "def first(xs):\n    if not xs:\n        return None\n\n    return xs[0]\n\nDocstring: last of a list\nCode:\n",
        [("add one", "def inc(n):\n    total = n + 1\n    return total"),
         ("first of a list", "def first(xs):\n    if not xs:\n        return None\n\n    return xs[0]")],
        "last of a list",
    ),
    "answers that hold labels": (
        "Brief: a song about rain\nCard:\ntitle: Drops\nlength: short\n\nBrief: a story of a fox\nCard:\ntitle: Red\n"
        "length: long\n\nBrief: a play about tea\nCard:\n",
        [("a song about rain", "title: Drops\nlength: short"), ("a story of a fox", "title: Red\nlength: long")],
        "a play about tea",
    ),
    "several quotes": (
        'Line: "no" and "never"\nMood: firm\nLine: "maybe"\nMood: soft\nLine: say "yes" or "no"\nMood: firm\nLine: "fine"\nMood:',
        [('"no" and "never"', "firm"), ("maybe", "soft"), ('say "yes" or "no"', "firm")],
        "fine",
    ),
    "separators between the records": (
        "Dish: soup\nCourse: starter\n---\nDish: tart\nCourse: sweet\n---\nDish: trout\nCourse: main\n---\nDish: ice cream\nCourse:",
        [("soup", "starter"), ("tart", "sweet"), ("trout", "main")],
        "ice cream",
    ),
    "headings between the records": (
        "### Example 1\nDish: soup\nCourse: starter\n\n### Example 2\nDish: tart\nCourse: sweet\n\n### Your turn\nDish: trout\nCourse:",
        [("soup", "starter"), ("tart", "sweet")],
        "trout",
    ),
    "steps before the answer": (
        "Q: I had 3 pens and got 2 more. How many?\nA: 3 and 2 are 5.\nThe answer is 5.\n\nQ: A box holds 4 cups, I have 3 boxes."
        " How many cups?\nA: 3 times 4 is 12.\nThe answer is 12.\n\nQ: Of 9 eggs 2 broke. How many are left?\nA: Let's think step by step.",
        [("I had 3 pens and got 2 more. How many?", "3 and 2 are 5.\nThe answer is 5."),
         ("A box holds 4 cups, I have 3 boxes. How many cups?", "3 times 4 is 12.\nThe answer is 12.")],
        "Of 9 eggs 2 broke. How many are left?",
    ),
    "options of a question": (
        "Question: Which one floats?\nA. a nail\nB. a cork\nAnswer: B\n\nQuestion: Which one burns?\nA. paper\nB. sand\nAnswer: A\n\n"
        "Question: Which one melts?\nA. a brick\nB. butter\nAnswer:",
        [("Which one floats?\nA. a nail\nB. a cork", "B"), ("Which one burns?\nA. paper\nB. sand", "A")],
        "Which one melts?\nA. a brick\nB. butter",
    ),
    "options without a label in front": (
        "Animals, pick one.\n\nA bird that cannot fly is the\nA) wren  B) ostrich\nAnswer: B\n\nA fish that migrates is the\nA) eel  B) carp\nAnswer: A\n\n"
        "A mammal that lays eggs is the\nA) otter  B) platypus\nAnswer:",
        [("A bird that cannot fly is the\nA) wren  B) ostrich", "B"), ("A fish that migrates is the\nA) eel  B) carp", "A")],
        "A mammal that lays eggs is the\nA) otter  B) platypus",
    ),
    "a comma table with an open cell": (
        "Fill in the last cell.\n\nremark,desk\n\"late, and wet\",post\n\"no light in hall B\",electric\n\"door sticks\",wood\n\"lamp hums\",",
        [("late, and wet", "post"), ("no light in hall B", "electric"), ("door sticks", "wood")],
        "lamp hums",
    ),
    "a table of three columns": (
        "| part | price | shelf |\n|---|---|---|\n| screw | 1 | A |\n| saw | 9 | C |\n| drill | 40 | C |\n| nail | 1 | |",
        [("screw | 1", "A"), ("saw | 9", "C"), ("drill | 40", "C")],
        "nail | 1",
    ),
    "a template above the records": (
        "Fill in the mood.\n\nSaid: ${what was said}\nMood: ${one word}\n\nSaid: go away\nMood: angry\n\nSaid: thank you so much\n"
        "Mood: glad\n\nSaid: I do not know\nMood:",
        [("go away", "angry"), ("thank you so much", "glad")],
        "I do not know",
    ),
    "chat turns that hold fields": (
        "System: Name the shelf.\n\nUser: Title: Salt\nYear: 1997\nAssistant: S9\n\nUser: Title: Fog\nYear: 2003\nAssistant: F0\n\n"
        "User: Title: Tar\nYear: 1988\nAssistant:",
        [("Title: Salt\nYear: 1997", "S9"), ("Title: Fog\nYear: 2003", "F0")],
        "Title: Tar\nYear: 1988",
    ),
    "chat turns that hold JSON": (
        'User: {"a": 2, "b": 3}\nAssistant: 5\nUser: {"a": 1, "b": 1}\nAssistant: 2\nUser: {"a": 4, "b": 0}\nAssistant:',
        [('{"a": 2, "b": 3}', "5"), ('{"a": 1, "b": 1}', "2")],
        '{"a": 4, "b": 0}',
    ),
    "answers in JSON over several lines": (
        'Text: two lamps for Bo\nJSON: {\n  "item": "lamp",\n\n  "n": 2\n}\n\nText: nine nails for Ada\nJSON: {\n  "item": "nail",\n\n'
        '  "n": 9\n}\n\nText: one rug for Per\nJSON:',
        [("two lamps for Bo", '{\n  "item": "lamp",\n\n  "n": 2\n}'), ("nine nails for Ada", '{\n  "item": "nail",\n\n  "n": 9\n}')],
        "one rug for Per",
    ),
    "a cue that begins the answer": (
        "want: all hens\nquery: SELECT * FROM hens\nwant: number of eggs\nquery: SELECT SUM(eggs) FROM lay\nwant: names of coops\nquery: SELECT",
        [("all hens", "SELECT * FROM hens"), ("number of eggs", "SELECT SUM(eggs) FROM lay")],
        "names of coops",
    ),
    "tags, the last one open": (
        "<note>tap drips</note><desk>water</desk>\n<note>lamp hums</note><desk>power</desk>\n<note>no heat in hall</note><desk>",
        [("tap drips", "water"), ("lamp hums", "power")],
        "no heat in hall",
    ),
    "special tokens of a chat template": (
        "<|im_start|>user\nox<|im_end|>\n<|im_start|>assistant\noxen<|im_end|>\n<|im_start|>user\nmouse<|im_end|>\n"
        "<|im_start|>assistant\nmice<|im_end|>\n<|im_start|>user\nlouse<|im_end|>\n<|im_start|>assistant\n",
        [("ox", "oxen"), ("mouse", "mice")],
        "louse",
    ),
    "JSON messages": (
        '[{"role": "user", "content": "gold"}, {"role": "assistant", "content": "Au"}, {"role": "user", "content": "tin"},\n'
        ' {"role": "assistant", "content": "Sn"}, {"role": "user", "content": "lead"}]',
        [("gold", "Au"), ("tin", "Sn")],
        "lead",
    ),
    "a JSON line that is cut off": (
        '{"from": "he go", "to": "he goes"}\n{"from": "they was", "to": "they were"}\n{"from": "say \\"hi\\"", "to": "say \\"hi\\""}\n'
        '{"from": "I has", "to": "',
        [("he go", "he goes"), ("they was", "they were"), ('say \\"hi\\"', 'say \\"hi\\"')],
        "I has",
    ),
    "a session of an interpreter": (
        ">>> up('ab')\n'AB'\n>>> up('x')\n'X'\n>>> up('no')",
        [("up('ab')", "'AB'"), ("up('x')", "'X'")],
        "up('no')",
    ),
    "comments above code": (
        "# double of n\ndef double(n):\n    return 2 * n\n\n# half of n\ndef half(n):\n    return n / 2\n\n# square of n\n",
        [("double of n", "def double(n):\n    return 2 * n"), ("half of n", "def half(n):\n    return n / 2")],
        "square of n",
    ),
    "no labels, only lines and rules": (
        "call dentist re: crown\nCall dentist\n###\nmum bday cake!!\nBuy cake\n###\nlandlord - mould again\nAsk landlord\n###\nfix bike sat",
        [("call dentist re: crown", "Call dentist"), ("mum bday cake!!", "Buy cake"), ("landlord - mould again", "Ask landlord")],
        "fix bike sat",
    ),
    "instructions below the examples": (
        "mail: Minutes of the evening\nfolder: house\n\nmail: Locker 17 waits\nfolder: post\n\nmail: gnomes -60%\nfolder: junk\n\n"
        "Sort the next one too, with one word.\n\nmail: Wet paint on Friday\nfolder:",
        [("Minutes of the evening", "house"), ("Locker 17 waits", "post"), ("gnomes -60%", "junk")],
        "Wet paint on Friday",
    ),
    "many pairs on one line": (
        "Past tense. sing: sang, bring: brought, run: ran, weave:",
        [("sing", "sang"), ("bring", "brought"), ("run", "ran")],
        "weave",
    ),
    "labels in another script": (
        "文：雨が降る。\n判定：事実\n\n文：雨はきらいだ。\n判定：意見\n\n文：川は長い。\n判定：",
        [("雨が降る。", "事実"), ("雨はきらいだ。", "意見")],
        "川は長い。",
    ),
    "line breaks of another system": (
        "Q: red\r\nA: rot\r\n\r\nQ: blue\r\nA: blau\r\n\r\nQ: green\r\nA: ",
        [("red", "rot"), ("blue", "blau")],
        "green",
    ),
    "tools are used in steps": (
        "Question: How old is the mill?\nThought: look it up\nAction: find[mill]\nThought: 1811\nAnswer: 1811\n\nQuestion: Who built the pier?\n"
        "Thought: look it up\nAction: find[pier]\nThought: Ruth did\nAnswer: Ruth\n\nQuestion: Where is the bell?\nThought:",
        [("How old is the mill?", "Thought: look it up\nAction: find[mill]\nThought: 1811\nAnswer: 1811"),
         ("Who built the pier?", "Thought: look it up\nAction: find[pier]\nThought: Ruth did\nAnswer: Ruth")],
        "Where is the bell?",
    ),
}  # fmt: skip

TRAPS = [
    "milk\neggs\nbread\nbutter",
    "- milk: 2\n- eggs: 12\n- butter: 250 g\nAnything I forgot for pancakes?",
    "The mean rose from 3.5 to 4.25 and then fell to 2.75 within 1.5 hours.",
    "The war began in 1618. It ended in 1648 with the Peace of Westphalia. Sweden entered in 1630, France in 1635.",
    "I have a problem with logging in: the page stays blank.",
    "logging in:",
    "Write a haiku about autumn.",
    "What is 17 times 23?",
    "def f(x: int) -> int:\n    return x + 1\n\nWhy does mypy complain?",
    "Please give me five examples of irregular verbs.",
    "",
    "   \n ",
    "Text: The old bridge was built by Ada Holm in 1911. It fell in 1954.\n\nQuestion: Who built the bridge?\nAnswer:",
    "Which one is a metal?\nA. glass\nB. tin\nC. clay\n\nAnswer:",
    "Q: Where do I park?\nA: Behind the mill.\n\nQ: May I bring a dog?\nA: Yes.\n\nQ: Is there a lift?\nA: No.\n\nMake the tone warmer.",
    "[stove]\nfan = auto\nnight = 16\nday = 20\nname =\n\nWhy does the service not start with this file?",
    "09:30: Skarn\n12:00: Holm\n16:45: Skarn, Holm\n18:20:\n\nThe last row is cut off. Which boat gets me home for lunch?",
    "Human: my bread does not rise\nAI: How old is your yeast?\nHuman: a year or so\nAI: Old yeast dies, try a fresh packet.\n"
    "Human: tried that, same thing. What else could it be?\nAI:",
    "You sort letters.\n\n${examples}\n\nLetter: ${letter}\nDepartment:",
    "idle -> busy\nbusy -> done\nbusy -> failed\n\nCan a job come back from failed?",
    "Input: the van was late\nOutput: delivery\n\nInput: box was soaked\nOutput: packaging\n\nWhich labels would you change?",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "prompt", "first", "query"), SHOWN)
def test_ways_of_writing_examples(kind: str, prompt: str, first: str, query: str) -> None:
    found = detect(prompt)
    assert found is not None
    assert found.kind == kind
    assert found.examples[0].input == first
    assert found.query == query
    assert query not in {example.input for example in found.examples}
    assert 0.5 < found.confidence <= 1
    for example, (start, end) in zip(found.examples, found.spans, strict=True):
        assert prompt[start:end].startswith(example.input)
        assert prompt[start:end].endswith(example.output)


@pytest.mark.parametrize("name", READ)
def test_examples_and_open_item_are_read_exactly(name: str) -> None:
    prompt, examples, query = READ[name]
    found = detect(prompt)
    assert found is not None
    assert [(e.input, e.output) for e in found.examples] == examples
    assert found.query == query
    assert found.query_span is not None
    assert prompt[slice(*found.query_span)] == query
    assert found.block[0] <= found.spans[0][0] < found.query_span[1] <= found.block[1]


@pytest.mark.parametrize("prompt", TRAPS)
def test_traps_show_no_pattern(prompt: str) -> None:
    assert detect(prompt) is None


def test_an_unanswered_item_is_never_an_example_nor_glued_to_the_last_answer() -> None:
    prompt = "a -> 1\nb -> 2\nc ->\nd -> 4\ne ->"
    pairs = [
        [prompt[slice(*given)] + prompt[slice(*answer)] for given, answer in reading.pairs]
        for reading in candidates(prompt)
        if reading.query is not None and reading.form == "arrow"
    ]
    assert pairs == [["a1", "b2", "d4"]]
    found = detect(prompt)
    assert found is None or [(e.input, e.output) for e in found.examples] == [("a", "1"), ("b", "2"), ("d", "4")]


def test_case_is_kept() -> None:
    found = detect("McCoy -> McC\nDeVito -> DeV\nO'Brien -> O'B\nLeBron ->")
    assert found is not None
    assert found.examples[0].output == "McC"
    assert found.query == "LeBron"


def test_two_readings_that_are_near_each_other_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = READ["a context above the question"][0]
    assert detect(prompt) is not None
    monkeypatch.setattr(detection, "LEAST_ODDS_RATIO", 1e9)
    found = detect(prompt)
    assert found is None or (found.query is None and not found.examples)


def test_domains_lower_the_bar_for_their_kinds() -> None:
    prompts = [row["prompt"] for row in ROWS if row["split"] == "tuning"][:120]
    plain = {p for p in prompts if detect(p)}
    for domain in DOMAIN_SENSITIVITY:
        assert plain <= {p for p in prompts if detect(p, domain)}
    found = [d for p in prompts for domain in DOMAIN_SENSITIVITY if (d := detect(p, domain))]
    assert min(d.confidence for d in found) > detection.LEAST_READ_PROBABILITY
    with pytest.raises(ConfigError, match="domain must be one of mathematics"):
        detect("a", "cooking")


def test_the_corpus_is_what_it_says() -> None:
    assert len(ROWS) >= 800
    assert len({row["prompt"] for row in ROWS}) == len(ROWS)
    assert 0.4 < sum(row["kind"] is None for row in ROWS) / len(ROWS) < 0.6
    test = [row for row in ROWS if row["split"] == "test"]
    for kind in KINDS:
        assert sum(row["kind"] == kind for row in test) >= 60
    layouts = {split: {(r["kind"], r["layout"]) for r in ROWS if r["split"] == split} for split in ("test", "tuning")}
    assert not layouts["test"] & layouts["tuning"]


def test_the_corpus_is_mostly_read_right() -> None:
    """Floors a little below what benchmarks/patterns reports: the layouts are none that anything was tuned on."""
    test = [row for row in ROWS if row["split"] == "test"]
    found = [(row, detect(row["prompt"])) for row in test]
    seen = [row["kind"] is not None for row, d in found if d is not None]
    recalled = [d is not None for row, d in found if row["kind"] is not None]
    assert sum(seen) / len(seen) > 0.95
    assert sum(recalled) / len(recalled) > 0.83
    acted = [(row, d) for row, d in found if d is not None and d.query is not None and len(d.examples) >= 2]
    wrong = [
        row
        for row, d in acted
        if [[e.input, e.output] for e in d.examples] != row["examples"] or d.query != row["query"]
    ]
    assert len(wrong) / len(test) < 0.05
    for kind in KINDS:
        named = [row["kind"] == kind for row, d in found if d is not None and d.kind == kind]
        right = [d is not None and d.kind == kind for row, d in found if row["kind"] == kind]
        assert sum(named) / len(named) > 0.75, kind
        assert sum(right) / len(right) > 0.65, kind


def in_pieces(pieces: list[str], most: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), max_size=most).map("".join)


SEPARATOR_SIGNS = ["\t", " ~ ", " - ", " — ", " / ", " > ", "   ", *"-> => → ➡️ : :: \uff1a = == | || ....".split()]
MARKS = "\" ' ` “ ” « » ** * __ ( ) [ ] { } < > , ; . ? ! … ``` ### ---".split()
WORDS = [
    "a", "b", "cat", "1", "2", "é", "日本", "Q", "A", "Input", "Output", "Example 1", "f(", "is to", "as", "becomes", ">>> ", "# ", "\\",
]  # fmt: skip
INVISIBLE = ["\u200b", "\ufeff", "\u00a0", "\u2028", "\u00ad", "\x00", "\x0b", "\x0c", "\r"]
FRAMES = [
    '{"input": "%s", "output": "%s"}', '["%s", "%s"]', "<in>%s</in><out>%s</out>", "[INST]%s[/INST]%s",
    "Q: %s\nA: %s", "User: %s\nAssistant: %s", "| %s | %s |", "%s,%s", "<tr><td>%s</td><td>%s</td></tr>",
    "%s is to %s", "%s becomes %s.", "f(%s) = %s", "I say %s and you say %s.", "(%s) %s", "1. %s -> %s", "%s\n%s\n###",
    "%s\nLabel: %s\n", "<|user|>%s<|assistant|>%s", '{"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"},',
]  # fmt: skip
ITEM = in_pieces([*SEPARATOR_SIGNS, *MARKS, *WORDS, *INVISIBLE, " ", ""], 3)


@st.composite
def framed_pairs(draw: st.DrawFn) -> str:
    """Two to five pairs in one layout, most items of which are signs that parsers remove or split at."""
    frame = draw(st.sampled_from([*FRAMES, *(f"%s{sign}%s" for sign in SEPARATOR_SIGNS)]))
    rows = [frame % (draw(ITEM), draw(ITEM)) for _ in range(draw(st.integers(2, 5)))]
    return draw(st.sampled_from(["", "Now: ", "What is next? "])).join(["", draw(st.sampled_from("\n ")).join(rows)])


ADVERSARIAL = st.one_of(
    in_pieces([*SEPARATOR_SIGNS, *MARKS, *WORDS, *INVISIBLE, "\n", "\n", " "], 40),
    framed_pairs(),
    st.text(alphabet="ab1 ->=:?|\n\t,.\"'{}[]()<>/#*_QAIO", max_size=120),
    st.text(max_size=80),
)


def visible(text: str) -> bool:
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}  # control, format, surrogate, and separators
    return any(unicodedata.category(character) not in hidden for character in text)


@settings(max_examples=250)
@given(ADVERSARIAL)
@always("<:,\n<:")
@always("a -> ,\nb -> ;\nc ->")
@always("-> -> 1\n-> -> 2\n-> ->")
@always('{"input": " ", "output": "1"}\n{"input": "b", "output": "2"}\n{"input": "c", "output": ""}')
@always("cat -> \u200b\ndog -> DOG\nbird -> BIRD\nfish ->")
def test_every_part_of_a_reading_is_a_visible_piece_of_the_prompt(text: str) -> None:
    """Every parser's reading is looked at, not only the one that is taken."""
    for reading in candidates(text):
        spans = [span for pair in reading.pairs for span in pair] + ([reading.query] if reading.query else [])
        for start, end in spans:
            assert 0 <= start < end <= len(text), reading
            assert visible(text[start:end]), reading
        assert reading.query is not None or not reading.slot
    found = detect(text)
    if found is not None:
        assert all(visible(example.input) and visible(example.output) for example in found.examples)
        assert found.query is None or visible(found.query)
        assert len(found.spans) == len(found.examples)


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_prompts_are_read_without_an_error(data: st.DataObject) -> None:
    """Prompts with examples, cut, and with signs put in anywhere: what parsers find in them stays inside of them."""
    text = data.draw(st.sampled_from([prompt for prompt, _, _ in READ.values()]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(st.sampled_from([*SEPARATOR_SIGNS, *MARKS, *WORDS, *INVISIBLE, "\n", "\n\n"]))
        text = text[:at] + (piece + text[at:] if data.draw(st.booleans()) else "")
    for reading in candidates(text):
        spans = [span for pair in reading.pairs for span in pair] + ([reading.query] if reading.query else [])
        assert all(0 <= start < end <= len(text) for start, end in spans), reading
    detect(text)


@settings(max_examples=40)
@given(
    label=st.sampled_from([("Zug", "Ziel"), ("Remark", "Desk"), ("in", "out"), ("文", "型"), ("Old name", "New name")]),
    sign=st.sampled_from([": ", ":", ":\n"]),
    between=st.sampled_from(["\n", "\n\n", "\n---\n", "\n\n###\n\n"]),
    items=st.lists(
        st.text(alphabet="abcdefgh ", min_size=1).map(str.strip).filter(bool), min_size=6, max_size=12, unique=True
    ),
)
def test_labelled_records_are_among_the_readings(
    label: tuple[str, str], sign: str, between: str, items: list[str]
) -> None:
    items = items[: len(items) // 2 * 2]
    pairs = list(zip(items[::2], items[1::2], strict=True))
    query = pairs.pop()[0]
    records = [f"{label[0]}{sign}{a}\n{label[1]}{sign}{b}" for a, b in pairs]
    prompt = between.join([*records, f"{label[0]}{sign}{query}\n{label[1]}{sign.rstrip()}"])
    read = [
        ([(prompt[slice(*a)], prompt[slice(*b)]) for a, b in reading.pairs], prompt[slice(*reading.query)])
        for reading in candidates(prompt)
        if reading.query is not None
    ]
    assert (pairs, query) in read


@pytest.mark.parametrize("answer", [",", ";", '""', "**?**", "?,", "\u200b", "''."])
def test_an_output_that_is_only_markup_is_missing(answer: str) -> None:
    found = detect(f"cat -> CAT\ndog -> DOG\nowl -> OWL\nbee -> {answer}")
    assert found is not None
    assert [example.input for example in found.examples] == ["cat", "dog", "owl"]
    assert found.query == "bee"


@pytest.mark.parametrize(
    ("written", "field"),
    [
        ('"a"', "a"), ('"a" and "b"', '"a" and "b"'), ('"why 4 for "x""', 'why 4 for "x"'), ("**a**", "a"), ("'don't'", "don't"),
        ("**a** and **b**", "**a** and **b**"), ("`ls`", "ls"), ("```\nls\n```", "```\nls\n```"), ("“a”", "a"), ('"""a"""', "a"), ("*", "*"),
    ],
)  # fmt: skip
def test_marks_are_left_out_where_they_wrap_all_of_a_field(written: str, field: str) -> None:
    text = f"x {written} "
    assert text[slice(*unwrapped(text, (1, len(text))))] == field


def test_what_marks_a_missing_output() -> None:
    assert all(is_open(sign) for sign in ["", "?", "___", "...", "…", "[ ]", '""', "(?)", "<answer>", "TBD", "\u200b"])
    assert not any(is_open(sign) for sign in ["no", "+", "N/A", "0", "answer", "Unknown", "a?"])


def test_lines_know_where_they_are() -> None:
    text = "a\r\n  b \n\n\tc"
    assert [(text[line.start : line.end], line.indent, line.blank) for line in lines_of(text)] == [
        ("a", 0, False), ("b", 2, False), ("", 0, True), ("c", 1, False),
    ]  # fmt: skip


def test_a_classifier_reads_what_it_wrote(tmp_path: Path) -> None:
    made = Classifier(
        classes=("no", "yes"),
        features=("bias", "shape:w→9", "words:è la"),
        weights=np.array([[0.1, 0.0, -2.0], [-0.3, 1.7, 0.0]]),
        bias=np.array([0.25, -0.25]),
    )
    made.save(tmp_path / "weights.npz")
    read = Classifier.load(tmp_path / "weights.npz")
    given = {"bias": 1.0, "words:è la": 0.5, "unknown": 9.0}
    assert read.features == made.features
    assert read.probabilities(given) == made.probabilities(given)
    odds = math.exp((-0.25 - 0.3) - (0.25 + 0.1 - 1.0))
    assert read.probabilities(given)["yes"] == pytest.approx(odds / (1 + odds))
    assert sum(read.probabilities({}).values()) == pytest.approx(1)


def test_trees_add_up_their_leaves_and_read_what_they_wrote(tmp_path: Path) -> None:
    made = Trees(
        features=("a", "b"),
        base=0.5,
        split=np.array([[0, -1, 1, -1, -1], [-1, -1, -1, -1, -1]], np.int16),
        limit=np.array([[1.0, 0, 2.0, 0, 0], [0, 0, 0, 0, 0]], np.float32),
        left=np.array([[1, 0, 3, 0, 0], [0, 0, 0, 0, 0]], np.int16),
        right=np.array([[2, 0, 4, 0, 0], [0, 0, 0, 0, 0]], np.int16),
        value=np.array([[0, 10, 0, 20, 30], [1, 0, 0, 0, 0]], np.float32),
    )
    rows = [{}, {"a": 1.0}, {"a": 1.5}, {"a": 1.5, "b": 2.5}, {"unknown": 7.0, "b": 9.0}]
    assert made.log_odds(rows).tolist() == [11.5, 11.5, 21.5, 31.5, 11.5]
    made.save(tmp_path / "trees.npz")
    assert Trees.load(tmp_path / "trees.npz").log_odds(rows).tolist() == made.log_odds(rows).tolist()


def test_the_learned_files_are_small() -> None:
    folder = Path(__file__).parents[2] / "src/acclimate/language/patterns"
    assert sum(path.stat().st_size for path in folder.glob("*.npz")) < 2_000_000
    assert readings_trees().split.shape[0] < 400
