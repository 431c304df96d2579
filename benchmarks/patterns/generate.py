"""Prompts in generated layouts, to tune on: a random layout, then the items of a hand-written prompt put into it.

A layout is drawn at random: how fields are labelled and divided, what stands around the examples, how the open item ends.
Half of the prompts have no open item and are no request to go on: finished lists with a question about them, single
items, templates, lists whose last value is missing for a reason. Layouts are named, so that cross-validation can hold
whole layouts out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Pair = tuple[str, str]

LABELS: list[tuple[str, str]] = [
    ("Input", "Output"), ("Q", "A"), ("Question", "Answer"), ("Text", "Label"), ("Sentence", "Class"), ("x", "y"), ("User", "Assistant"),
    ("Human", "AI"), ("Review", "Sentiment"), ("Message", "Intent"), ("Source", "Target"), ("Before", "After"), ("Chirp", "Mood"),
    ("Row", "Shelf"), ("Remark", "Desk"), ("Entrada", "Saída"), ("Eingabe", "Ausgabe"), ("Frage", "Antwort"), ("Texte", "Catégorie"),
    ("Ticket text", "Priority"), ("Raw", "Clean"), ("EN", "IT"), ("Wrong", "Right"), ("Problem", "Solution"), ("Story", "Moral"),
    ("Customer", "Clerk"), ("Nurse note", "Ward"), ("Item", "Aisle"), ("Title", "Genre"), ("Cue", "Reply"), ("Phrase", "Paraphrase"),
    ("Вход", "Выход"), ("文本", "标签"), ("質問", "答え"), ("Command", "Action"), ("Observation", "Verdict"), ("Prompt", "Completion"),
    ("Instruction", "Response"), ("Old name", "New name"), ("said", "meant"), ("Tweet", "Topic"), ("Email", "Folder"), ("Given", "Then"),
]  # fmt: skip
FIELDS: list[tuple[tuple[str, ...], str]] = [
    (("Context", "Question"), "Answer"), (("Passage", "Query"), "Reply"), (("Premise", "Hypothesis"), "Relation"),
    (("Title", "Body"), "Tag"), (("Name", "Age", "Town"), "Group"), (("Product", "Complaint"), "Team"), (("Schema", "Request"), "SQL"),
    (("Speaker", "Line"), "Tone"), (("Text", "Aspect"), "Polarity"), (("Sender", "Subject"), "Folder"), (("Article", "Claim"), "Verdict"),
    (("Background", "Statement"), "True or false"), (("Kontext", "Frage"), "Antwort"), (("Word", "Sentence"), "Meaning"),
]  # fmt: skip
TASKS = [
    "Complete the last one.", "Answer in the same style.", "Classify each item.", "Convert as shown.", "You are a careful clerk. One word only.",
    "Give the matching value, nothing else.", "Follow the pattern of the examples below.", "Decide which label fits.\nDo not explain.",
    "Translate.", "Please fill in the missing one", "your job: same as above the line, no chatter", "Reply with the label only. If unsure say other.",
    "Below are a few cases with their answers. Read them first.", "# Task\nPut every entry into the right box.\n\n## Notes\n- be brief\n- no punctuation",
    "Extract what is asked for.", "Act as a form filler.", "Rewrite each line: shorter, plain, no jargon.",
]  # fmt: skip
ORDINALS = ["Tenth", "First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth"]
RULES = [
    "- One label per item, lower case, no full stop.",
    "- TEXTILE: clothes, bags, tents",
    "- WOOD: chairs, frames, toys",
    "- Never promise anything.",
    "- If two fit, take the first (a chair with a torn seat goes to TEXTILE).",
    "- People write in a hurry: expect missing letters.",
    "- Dates as day and month, e.g. 4 May.",
    "1. Umbrellas: the cloth is TEXTILE, a rib is BIKE.",
    "2. Watches: ELECTRO when a battery is in them.",
    "* Money: with two decimals, e.g. 12.00",
    "## Tone",
    "## Rules",
    "There is none.",
    "You are the intake desk of a small museum that opens every second Sunday. People bring things and you decide where they go.",
    "A label has one sentence in the present tense. Numbers up to twelve are spelled out; materials come in the order you would touch them.",
    "Should the notes be too thin for a sentence, write CARD PENDING and nothing besides.",
    "Keep accents as they are in the notes.",
    "Do not explain your choice.",
]
ANNOUNCE = [
    "Examples:",
    "Here are some examples.",
    "Some that are done:",
    "For example:",
    "## Examples",
    "Beispiele:",
    "Samples",
    "Cases so far:",
]
NOW = [
    "Now you:",
    "Your turn:",
    "Now the real one:",
    "## Query",
    "Next:",
    "And now:",
    "Question to answer:",
    "Now do this one:",
    "Jetzt du:",
    "The new one:",
]
REQUESTS = [
    "Which of these would you change, and why?", "Summarise this in two sentences.", "Is anything wrong in this list?", "How balanced are the classes?",
    "Write a short intro for this page.", "Turn this into a table please.", "Sort them by length.", "What is the most common answer?",
    "Can you make the tone friendlier?", "Does the second one make sense?", "Write a JSON schema for this.", "Explain the last one to a child.",
    "Put the three most important first.", "Why does my parser choke on this?", "Who should I write to about the first?", "Shorten all of these.",
    "Give me five more questions of this kind.", "tell me which are mistakes", "Convert the whole thing to CSV", "Translate everything to French.",
    "Mark my homework.", "how many are there in total", "Which entries are duplicates?", "Find the odd one out and say why it is odd.",
    "Write a test that covers these.", "What would a typical customer say to that?", "Could you check the spelling?", "Please proofread.",
]  # fmt: skip
STORIES = [
    "The last line is cut off in my copy, does it matter?", "I could not read the last one. What are my options?", "Is it a problem that the last value is empty?",
    "Why does the service not start with this?", "I lost the page with the rest. Can I still hand it in on Monday?", "Where would I look up the missing one?",
    "The printer ran out of ink there. Please reformat the others.", "Do I need to fill in that one at all?", "We still have to decide on that. Draft a mail to the team about it.",
]  # fmt: skip
LONG: list[list[Pair]] = [
    [
        ("A bird of the night is the\nA) wren  B) owl  C) gull", "B"),
        ("A tree with needles is the\nA) pine  B) beech  C) elm", "A"),
        ("A tool for wood is the\nA) trowel  B) sieve  C) plane", "C"),
        ("A boat with a sail is the\nA) raft  B) sloop  C) punt", "B"),
    ],
    [
        ("Which one floats? (A) nail (B) cork", "(B)"),
        ("Which one is hot? (A) stove (B) snow", "(A)"),
        ("Which one is sour? (A) honey (B) lemon", "(B)"),
        ("Which one sings? (A) wren (B) crab", "(A)"),
    ],
    [
        ("The lamp arrived with a crack.\nI wrote twice and nobody answered.", "complaint"),
        ("Could you tell me the size of the table?\nThe page says two things.", "question"),
        ("My sister loved it.\nShe has hung it over the stove.", "praise"),
        ("Is there a spare key?\nOurs is gone.", "question"),
    ],
    [
        ("A jar has 12 beads, 5 roll away. How many are left?", "12 - 5 = 7.\nThe answer is 7."),
        ("Two boats carry 8 people each. How many people?", "There are 2 boats.\n2 * 8 = 16.\nThe answer is 16."),
        (
            "Ada has 3 times as many pens as Bo, who has 4. How many has Ada?",
            "Bo has 4.\n3 * 4 = 12.\nThe answer is 12.",
        ),
        ("A rope of 9 m is cut in 3. How long is a piece?", "9 / 3 = 3.\nThe answer is 3."),
    ],
    [
        ("add two numbers", "def add(a, b):\n    total = a + b\n    return total"),
        ("first letter of a word", "def first(word):\n    if not word:\n        return None\n\n    return word[0]"),
        ("count the vowels", 'def vowels(s):\n    n = 0\n    for c in s:\n        n += c in "aeiou"\n    return n'),
        ("reverse a list", "def reverse(xs):\n    return xs[::-1]"),
    ],
    [
        ("Mia ordered 3 lamps for Friday.", '{"who": "Mia", "item": "lamp", "count": 3}'),
        ("Send Jonas one rug.", '{"who": "Jonas", "item": "rug", "count": 1}'),
        ("Two stools for the Bergs, please.", '{"who": "Berg", "item": "stool", "count": 2}'),
        ("Olu wants nine hooks.", '{"who": "Olu", "item": "hook", "count": 9}'),
    ],
    [
        ("Which gas do plants take in?\nA. oxygen\nB. carbon dioxide\nC. helium", "B"),
        ("Which is a mammal?\nA. trout\nB. heron\nC. otter", "C"),
        ("What is frozen water?\nA. ice\nB. salt\nC. sand", "A"),
        ("Which one is a metal?\nA. glass\nB. tin\nC. clay", "B"),
    ],
    [
        ("hens older than two", "SELECT * FROM hens WHERE age > 2;"),
        ("number of eggs by coop", "SELECT coop, SUM(eggs)\nFROM lay\nGROUP BY coop;"),
        ("the oldest hen", "SELECT name FROM hens\nORDER BY age DESC\nLIMIT 1;"),
        ("all coops", "SELECT DISTINCT coop FROM lay;"),
    ],
    [
        (
            "I waited an hour and then the door was locked. Nobody told me that the place closes early in winter, and the sign was covered with snow.",
            "negative",
        ),
        ("Warm room, good tea, and the owner let our dog sleep by the stove. We will be back in May.", "positive"),
        ("It is a shop. It has shelves.", "?"),
        ("They mended my boot while I waited and would not take money for it. Who does that any more?", "positive"),
    ],
    [
        ("asdf", "N/A"),
        ("the bill is too high", "money"),
        ("who is this", "Unknown"),
        ("pay me back", "money"),
        ("hm", "N/A"),
    ],
    [
        ('make it "short"', '"short" it is'),
        ("say 'no' twice", "no, no"),
        ('call it "the hut"', "the hut"),
        ('skip "and" here', "skipped"),
    ],
]
MULTI: list[list[tuple[tuple[str, ...], str]]] = [
    [
        (("The mill burned down in 1911 and was built again in brick.", "When did it burn?"), "1911"),
        (("Lena keeps hives behind the school.", "Who keeps hives?"), "Lena"),
        (("The boat leaves from pier 2.\nIt takes an hour.", "Where does it leave from?"), "pier 2"),
        (("Pim sold the van in March.", "What did Pim sell?"), "the van"),
    ],
    [
        (("A dog sleeps on the mat.", "An animal is resting."), "yes"),
        (("Two men paint a wall.", "Nobody is working."), "no"),
        (("A girl holds a red kite.", "It is windy."), "maybe"),
        (("The shop is shut.", "You can buy bread."), "no"),
    ],
    [
        (("kettle", "does not switch off"), "electrics"),
        (("tent", "zip is torn"), "textiles"),
        (("chair", "one leg loose"), "wood"),
        (("radio", "hums: loud"), "electrics"),
    ],
    [
        (("late again", "third time this week, do you care"), "angry"),
        (("your lamp", "it shines, thank you!"), "happy"),
        (("keys", "left them at the desk, please hold them"), "neutral"),
        (("re: keys", "got them"), "happy"),
    ],
]


TALK: list[list[str]] = [
    [
        "hi, can you help me with a trip?",
        "Of course! Where would you like to go?",
        "somewhere warm in March, by train",
        "Then look at the coast south of Lyon.",
        "and what would that cost for two?",
    ],
    [
        "what is a good present for a beekeeper",
        "A hive tool, or a label printer for jars.",
        "he has both",
        "Then perhaps a book on heather honey.",
        "ok thanks! how do i wrap a book nicely",
    ],
    [
        "my bread does not rise",
        "How old is your yeast?",
        "about a year, why?",
        "Old yeast dies. Try a fresh packet.",
        "tried it, same thing. what else could it be?",
    ],
    [
        "Which tool opens a .dat file?",
        "It depends on the program that wrote it. Do you know which?",
        "no idea, it came by mail",
        "Then do not open it, ask the sender first.",
        "she says it is the minutes of the meeting",
    ],
    [
        "Hello",
        "Hello! What can I do for you?",
        "do you know anything about mosses",
        "A little. Are you growing or removing them?",
        "removing, from a roof. and is vinegar ok for that?",
    ],
    [
        "explain tides",
        "The moon pulls the water, and the earth turns below it.",
        "why two a day then",
        "Because there is a bulge on the far side too.",
        "that still makes no sense to me, can you draw it in words?",
    ],
    [
        "write a toast for my aunt",
        "Gladly. How old is she, and what does she love?",
        "70, gardens, bad puns",
        "Dear aunt, seventy years and still growing...",
        "shorter please and with a joke about slugs",
    ],
    [
        "I need to cancel my order",
        "I am sorry to hear that. What is the order number?",
        "8812, it was placed yesterday",
        "Thank you. It has left the warehouse, so I would have to issue a return.",
        "fine, how long does the refund take?",
    ],
    [
        "is it safe to eat green potatoes",
        "Better not, they contain solanine.",
        "what about peeled",
        "Peeling helps but does not remove all of it.",
        "I ate one at noon, should I worry?",
    ],
]
FORMATS = [
    "Use the following format:\n\n@A: the input that you must answer\nThought: think about what to do\n@B: the final result\n\nBegin!\n\n@A: @X\nThought:",
    "The reply must look like this.\n\n@A: <the @A as given>\n@B: <the @B, one word>\n\nHere is the text: @X",
    "{{#each shots}}\n@A: {{this.A}}\n@B: {{this.B}}\n{{/each}}\n\n@A: {{text}}\n@B:",
    "Criteria:\n1: wrong\n2: half right\n3: right\n\n@A: @X\n@B:",
    "Make ten pairs in this form:\n\n@A: ...\n@B: ...\n\nThey are for adults.",
    "You have these tools:\n\nsearch: looks things up\nadd: adds numbers\nnote: keeps a note\n\n@A: @X\n@B:",
    "Labels: red, green, blue\n\n@A: @X\n@B:",
    "Sample @A: 3 4\nSample @B: 7\n\nWrite the program.",
    "@A\n5\n1 2 3\n\n@B\n6\n\n@A\n2\n7 8\n\n@B\n15\n\nSolve this in Rust.",
]


def item_sets(rows: Sequence[dict[str, Any]]) -> list[list[Pair]]:
    """Return the items of prompts of a corpus, with the open item as the last."""
    found = []
    for row in rows:
        pairs = [(a, b) for a, b in row["examples"]]
        if (
            len(pairs) >= 3
            and row["kind"] in {"io_pairs", "explicit_examples", "numbered_sequences"}
            and len({a for a, _ in pairs}) == len(pairs)
            and not any(t[0] + t[-1] in {'""', "''", "``"} for p in pairs for t in p)
        ):
            found.append(pairs[:6])
    return found


def _join(rng: random.Random, task: str, announce: str, body: str, tail: str = "") -> str:
    gap = rng.choice(["\n", "\n\n", "\n\n"])
    parts = [p for p in (task, announce, body) if p]
    text = gap.join(parts)
    return text + (rng.choice(["\n", "\n\n"]) + tail if tail else "")


class Layout:
    """One way of writing records down; the same for every prompt of the layout."""

    def __init__(self, rng: random.Random, number: int) -> None:
        self.name = f"g{number}"
        self.family = rng.choice(
            ["label"] * 7
            + ["fields"] * 3
            + ["arrow"] * 3
            + [
                "table",
                "csv",
                "json",
                "jsonl",
                "tags",
                "chat",
                "blocks",
                "inline",
                "below",
                "doctest",
                "comment",
                "list",
                "steps",
            ]
        )
        self.label = rng.choice(LABELS)
        if rng.random() < 0.25:
            self.label = (
                (self.label[0].upper(), self.label[1].upper())
                if rng.random() < 0.5
                else (self.label[0].lower(), self.label[1].lower())
            )
        self.fields = rng.choice(FIELDS)
        self.sign = (
            rng.choice([": ", ": ", ": ", ":", ":\n", " = ", " - ", ") "])
            if self.label[0] != "Q"
            else rng.choice([": ", ". ", ":", ":\n"])
        )
        if self.sign == ") ":
            self.sign = ": "
        self.mark = rng.choice(["", "", "", "", "**", "### ", "[", "## ", "number"])
        self.between = rng.choice(["\n", "\n\n", "\n\n", "\n\n", "\n---\n", "\n###\n", "\n\n---\n\n", "\n=====\n"])
        self.inner = rng.choice(["\n", "\n", "\n", "\n\n"]) if self.between.count("\n") > 1 else "\n"
        self.heading = rng.choice(["", "", "", "", "Example {}", "### Example {}", "Case {}:", "#{}", "{}.", "ordinal"])
        self.task = rng.choice(["", *TASKS])
        if rng.random() < 0.15:
            self.task = "\n".join(f"\n{r}\n" if r[0] == "#" else r for r in rng.sample(RULES, rng.randint(5, 12)))
        self.announce = rng.choice(["", "", "", *ANNOUNCE])
        self.now = rng.choice(["", "", "", "", *NOW])
        self.arrow = rng.choice(
            [
                " -> ",
                " => ",
                " → ",
                "->",
                ": ",
                ": ",
                " = ",
                " - ",
                " | ",
                "\t",
                " :: ",
                " ~ ",
                "=",
                " – ",
                " --> ",
                " / ",
                "; ",
            ]
        )
        self.bullet = rng.choice(["", "", "", "- ", "* ", "{}. ", "{}) ", "({}) "])
        self.quote = rng.choice(["", "", "", '"', "'"])
        self.delimiter = rng.choice([",", ",", ";", "\t"])
        self.cue = rng.choice(["", "", "", "", "", " ", "?", "___"])
        self.cue_words = rng.choice(
            ["", "", "", "", "", "", "The answer is", "because", "Let's think step by step.", "First,"]
        )
        self.stem = rng.choice(
            [*[""] * 9, "The word that is meant here:", "Say it in other words,", "All numbers in this row are even:"]
        )
        self.out_fields = rng.random() < 0.3
        self.no_cue = rng.random() < 0.12
        self.tail = rng.choice(["", "", "", "", "\n", "  \n"])
        self.crlf = rng.random() < 0.08
        self.header = rng.random() < 0.6

    @property
    def kind(self) -> str:
        """The kind of pattern that the layout counts as."""
        if self.family in {"arrow", "blocks", "comment"}:
            return "numbered_sequences" if "{}" in self.bullet and self.family == "arrow" else "explicit_examples"
        return "io_pairs"

    def few(self, rng: random.Random, sets: list[list[Pair]]) -> tuple[str, list[Pair], str]:
        """Return a prompt with an open item, its examples and the item."""
        if self.family == "fields":
            chosen = rng.choice(MULTI)
            body, pairs, query = self._multi(rng, chosen)
        else:
            items = list(
                rng.choice(LONG)
                if rng.random() < 0.3 and self.family in {"label", "below", "tags", "chat", "comment"}
                else rng.choice(sets)
            )
            if self.family in {"arrow", "table", "csv", "inline", "jsonl", "json", "blocks", "list", "steps"}:
                items = [(a.replace("\n", " "), b.replace("\n", " ")) for a, b in items]
            rng.shuffle(items)
            query = items.pop()[0]
            pairs = items[: rng.randint(2, 8)]
            if rng.random() < 0.08:
                # An input may come twice, and be asked about again.
                again = rng.choice(pairs)[0]
                query = again if rng.random() < 0.6 else query
                pairs = [*pairs, (again, rng.choice(pairs)[1])] if len(pairs) < 6 else pairs
            if self.stem and self.family in {"below", "label", "arrow"}:
                # All inputs begin with the same words.
                pairs, query = [(f"{self.stem} {a}", b) for a, b in pairs], f"{self.stem} {query}"
            if self.cue_words and self.family in {"label", "below"} and self.mark == "" and self.sign != ":\n":
                pairs = [(a, f"{self.cue_words} {b}") for a, b in pairs]
            if self.family == "comment":
                pairs, query = [(a.replace("\n", " "), b) for a, b in pairs], query.replace("\n", " ")
            if self.family == "steps":
                names = (
                    ("Follow up", "Intermediate answer", "Final answer")
                    if self.header
                    else ("Thought", "Action", "Answer")
                )
                pairs = [
                    (a, f"{names[0]}: look for {n}\n{names[1]}: found {n}\n" * (1 + n % 2) + f"{names[2]}: {b}")
                    for n, (a, b) in enumerate(pairs)
                ]
                query_end = f"{names[0]}:"
                rows = [f"{self.label[0]}: {a}\n{b}" for a, b in [*pairs, (query, query_end)]]
                body = self.between.join(rows)
            else:
                body = getattr(self, "_" + self.family)(rng, pairs, query)
            if self.family in {"json", "jsonl", "list"}:
                pairs = [(_escaped(a), _escaped(b)) for a, b in pairs]
                query = _escaped(query)
            if self.family == "doctest":
                pairs = [(f'change("{a}")', self._printed(b)) for a, b in pairs]
                query = f'change("{query}")'
        task = self.task if self.family not in {"doctest"} else ""
        if self.family == "chat":
            task = ""
        text = _join(rng, task, self.announce if task else "", body)
        if self.crlf:
            text = text.replace("\n", "\r\n")
            pairs = [(a.replace("\n", "\r\n"), b.replace("\n", "\r\n")) for a, b in pairs]
            query = query.replace("\n", "\r\n")
        return text, pairs, query

    def _name(self, label: str, number: int) -> str:
        if self.mark == "**":
            return (
                f"**{label}{self.sign.rstrip() if self.sign.strip() == ':' else ':'}** "
                if ":" in self.sign
                else f"**{label}**{self.sign}"
            )
        if self.mark in {"### ", "## "}:
            return f"{self.mark}{label}\n" if self.sign != ": " else f"{self.mark}{label}:\n"
        if self.mark == "[":
            return f"[{label}] "
        if self.mark == "number":
            return f"{label} {number}{self.sign if ':' in self.sign else ': '}"
        return f"{label}{self.sign}"

    def _records(self, rng: random.Random, texts: list[str], last: str) -> str:
        out = []
        for number, body in enumerate([*texts, last], 1):
            head = self.heading.format(number)
            if head == "ordinal":
                head = f"{ORDINALS[number % len(ORDINALS)]} example"
            if number == len(texts) + 1 and self.now:
                head = self.now
            out.append(f"{head}\n{body}" if head and not head.endswith(".") else f"{head} {body}" if head else body)
        return self.between.join(out)

    def _label(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        texts = [
            f"{self._name(self.label[0], n)}{a}{self.inner}{self._name(self.label[1], n)}{b}"
            for n, (a, b) in enumerate(pairs, 1)
        ]
        if self.cue_words and self.mark == "" and self.sign != ":\n" and not self.no_cue and rng.random() < 0.8:
            self.cue = " " + self.cue_words if not self.sign.endswith(" ") else self.cue_words
            return self._records(
                rng,
                texts,
                f"{self._name(self.label[0], len(pairs) + 1)}{query}{self.inner}{self._name(self.label[1], len(pairs) + 1)}{self.cue}",
            )
        end = (
            ""
            if self.no_cue
            else f"{self.inner}{self._name(self.label[1], len(pairs) + 1).rstrip(' ' if rng.random() < 0.8 else '')}{self.cue}"
        )
        return self._records(rng, texts, f"{self._name(self.label[0], len(pairs) + 1)}{query}{end}{self.tail}")

    def _multi(self, rng: random.Random, chosen: list[tuple[tuple[str, ...], str]]) -> tuple[str, list[Pair], str]:
        names, out = self.fields
        names = names[:2]
        sign = self.sign if self.sign in {": ", ":\n", ":"} else ": "
        items = list(chosen)
        rng.shuffle(items)
        blocks = [
            ("\n".join(f"{n}{sign}{v}" for n, v in zip(names, values, strict=True)), answer) for values, answer in items
        ]
        query = blocks.pop()[0]
        cue = f"{out}{sign.rstrip(' ')}"
        if self.out_fields:
            # Reasons before the answer, as labelled fields of their own.
            why = rng.choice(["Reason", "Thought", "Rationale", "Notes"])
            blocks = [(a, f"{why}{sign}see {n}\n{out}{sign}{b}") for n, (a, b) in enumerate(blocks, 3)]
            texts = [f"{a}\n{b}" for a, b in blocks]
            cue = f"{why}{sign.rstrip(' ')}"
        else:
            texts = [f"{a}\n{out}{sign}{b}" for a, b in blocks]
        last = f"{query}\n{cue}"
        if self.heading.endswith("."):
            self.heading = ""
        return self._records(rng, texts, last), blocks, query

    def _arrow(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        q = self.quote
        rows = [f"{self.bullet.format(n)}{q}{a}{q}{self.arrow}{b}" for n, (a, b) in enumerate(pairs, 1)]
        arrow = self.arrow.rstrip(" ") if self.arrow != "\t" else "\t"
        open_row = f"{self.bullet.format(len(pairs) + 1)}{q}{query}{q}{arrow}"
        if self.cue in {"?", "___"}:
            open_row += " " + self.cue
        if self.now and rng.random() < 0.4 and self.now.endswith(":"):
            return "\n".join(rows) + f"\n\n{self.now}\n{open_row}"
        return rng.choice(["\n", "\n", "\n\n"]).join([*rows, open_row])

    def _table(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        rows = [f"| {self.label[0]} | {self.label[1]} |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in pairs)]
        rows.append(f"| {query} | {self.cue.strip()} |" if rng.random() < 0.7 else f"| {query} |")
        return "\n".join(rows)

    def _csv(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        d = self.delimiter
        wrap: Callable[[str], str] = (
            (lambda t: f'"{t}"') if self.quote or any(d in a + b for a, b in [*pairs, (query, "")]) else (lambda t: t)
        )
        rows = [f"{self.label[0].lower()}{d}{self.label[1].lower()}"] if self.header else []
        return "\n".join([*rows, *(f"{wrap(a)}{d}{wrap(b) if d in b else b}" for a, b in pairs), f"{wrap(query)}{d}"])

    def _json(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        a_key, b_key = self.label[0].lower(), self.label[1].lower()
        rows = [f'{{"{a_key}": "{_escaped(a)}", "{b_key}": "{_escaped(b)}"}}' for a, b in pairs]
        rows.append(
            f'{{"{a_key}": "{_escaped(query)}", "{b_key}": {rng.choice([chr(34) * 2, "null", chr(34) + "?" + chr(34)])}}}'
        )
        return "[\n  " + ",\n  ".join(rows) + "\n]"

    def _list(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        opening, closing = ("[", "]") if self.header else ("(", ")")
        rows = [f'{opening}"{_escaped(a)}", "{_escaped(b)}"{closing}' for a, b in pairs]
        return "[\n  " + ",\n  ".join(
            [*rows, f'{opening}"{_escaped(query)}", ' + rng.choice(['"', "", '""' + closing])]
        )

    def _jsonl(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        a_key, b_key = self.label[0].lower(), self.label[1].lower()
        rows = [f'{{"{a_key}": "{_escaped(a)}", "{b_key}": "{_escaped(b)}"}}' for a, b in pairs]
        rows.append(f'{{"{a_key}": "{_escaped(query)}", "{b_key}": ' + rng.choice(['"', "", '""}']))
        return "\n".join(rows)

    def _tags(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        a, b = (
            (self.label[0].lower().replace(" ", "_"), self.label[1].lower().replace(" ", "_"))
            if self.label[0].isascii() and self.label[1].isascii()
            else ("in", "out")
        )
        nl = "\n" if self.inner == "\n\n" else ""
        rows = [f"<{a}>{nl}{x}{nl}</{a}>\n<{b}>{nl}{y}{nl}</{b}>" for x, y in pairs]
        if self.heading:
            rows = [f"<example>\n{row}\n</example>" for row in rows]
        return (
            self.between.replace("-", "")
            .replace("#", "")
            .replace("=", "")
            .join([*rows, f"<{a}>{nl}{query}{nl}</{a}>\n<{b}>"])
        )

    def _chat(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        if self.header:
            turn = "<|im_start|>{}\n{}<|im_end|>\n"
            head = turn.format("system", rng.choice(TASKS))
            return (
                head
                + "".join(turn.format("user", a) + turn.format("assistant", b) for a, b in pairs)
                + turn.format("user", query)
                + "<|im_start|>assistant\n"
            )
        return f"System: {rng.choice(TASKS)}\n\n".replace("\n- ", " ") + self.between.join(
            [*(f"User: {a}\nAssistant: {b}" for a, b in pairs), f"User: {query}\nAssistant:"]
        )

    def _blocks(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        return rng.choice(["\n\n", "\n###\n", "\n---\n"]).join([*(f"{a}\n{b}" for a, b in pairs), query])

    def _inline(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        sep = rng.choice([" ", " / ", " | ", " // ", ", ", "; "])
        rows = [f"{self.label[0]}: {a}{sep}{self.label[1]}: {b}" for a, b in pairs]
        return rng.choice(["\n", "\n", " ", "\n\n"]).join([*rows, f"{self.label[0]}: {query}{sep}{self.label[1]}:"])

    def _below(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        name = (
            f"{self.label[1]}{self.sign if ':' in self.sign else ': '}"
            if self.mark != "["
            else rng.choice(["=> ", "-> ", "→ "])
        )
        return "\n\n".join([*(f"{a}\n{name}{b}" for a, b in pairs), f"{query}\n{name.rstrip()}"])

    def _printed(self, answer: str) -> str:
        return f'[("{answer}", 1),\n ("{answer}", 2)]' if self.header else f'"{answer}"'

    def _doctest(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        return "\n".join([*(f'>>> change("{a}")\n{self._printed(b)}' for a, b in pairs), f'>>> change("{query}")'])

    def _comment(self, rng: random.Random, pairs: list[Pair], query: str) -> str:
        sign = rng.choice(["# ", "-- ", "// "])
        return "\n\n".join([*(f"{sign}{a}\n{b}" for a, b in pairs), f"{sign}{query}"])

    def none(self, rng: random.Random, sets: list[list[Pair]]) -> str:
        """Return a prompt of the same layout that does not ask to go on."""
        way = rng.choice(
            ["finished", "finished", "story", "single", "template", "facts", "finished_bare", "talk", "format"]
        )
        if way == "talk":
            said = rng.choice(TALK)
            asks, answers = rng.choice(
                [
                    ("User", "Assistant"),
                    ("Human", "AI"),
                    ("Human", "Assistant"),
                    ("user", "assistant"),
                    ("Me", "Bot"),
                    ("Customer", "Agent"),
                    ("Q", "A"),
                ]
            )
            sep = rng.choice(["\n", "\n\n"])
            if rng.random() < 0.2:
                turns = [f"<|im_start|>{('user', 'assistant')[i % 2]}\n{t}<|im_end|>" for i, t in enumerate(said)]
                return "\n".join(turns) + rng.choice(["", "\n<|im_start|>assistant\n"])
            turns = [f"{(asks, answers)[i % 2]}: {t}" for i, t in enumerate(said)]
            head = rng.choice(
                [
                    "",
                    "",
                    "You are a helpful assistant.",
                    "The following is a conversation with a friendly program.",
                    "Be brief.",
                ]
            )
            return (head + "\n\n" if head else "") + sep.join(turns) + rng.choice(["", f"{sep}{answers}:"])
        if way == "format":
            a, b = self.label
            one = rng.choice(rng.choice(sets))[0]
            return rng.choice(FORMATS).replace("@A", a).replace("@B", b).replace("@X", one)
        text, pairs, _ = self.few(rng, sets)
        text = text.replace("\r\n", "\n")
        request = rng.choice(REQUESTS)
        if self.family == "doctest" and way in {"finished", "finished_bare"}:
            text = text.rstrip() + f'\n"{pairs[0][1]}"'
        if way in {"finished", "finished_bare"}:
            answer = pairs[0][1]
            body = text.rstrip()
            if self.family in {"json", "jsonl"}:
                body = (
                    body.replace('": ""', f'": "{answer}"')
                    .replace('": null', f'": "{answer}"')
                    .replace('": "?"', f'": "{answer}"')
                )
                if body.endswith(': "'):
                    body += answer + '"}'
                elif body.endswith('":'):
                    body += f' "{answer}"}}'
            elif self.family == "table":
                body = body.rstrip(" |?_") + f" | {answer} |"
            elif self.family not in {"doctest"}:
                body = body.rstrip("?_ ") + (" " if not body.endswith(("\n", "\t", ",", ";", ">")) else "") + answer
                if self.family == "tags":
                    body += body[body.rfind("<") :].split(">")[0].replace("<", "</") + ">" if False else ""
            if way == "finished_bare" and self.family in {"label", "fields", "arrow", "table"}:
                return body
            return (
                body + "\n\n" + request
                if rng.random() < 0.7
                else request + "\n\n" + body.removeprefix(self.task).lstrip()
            )
        if way == "story":
            return text.removeprefix(self.task).lstrip().rstrip() + "\n\n" + rng.choice(STORIES)
        if way == "single":
            a, b = self.label
            one = rng.choice(rng.choice(LONG) if rng.random() < 0.5 else rng.choice(sets))
            if self.family == "fields":
                values, _ = rng.choice(rng.choice(MULTI))
                names, out = self.fields
                return (
                    f"{rng.choice(TASKS)}\n\n"
                    + "\n".join(f"{n}: {v}" for n, v in zip(names[:2], values, strict=True))
                    + f"\n{out}:"
                )
            return f"{rng.choice(TASKS)}\n\n{a}: {one[0]}\n{b}:"
        if way == "template":
            a, b = self.label
            wrap = rng.choice(["{{{}}}", "${{{}}}", "<{}>", "[{}]"])
            slot = wrap.format(a.lower().replace(" ", "_"))
            return f"{rng.choice(TASKS)}\n\n{rng.choice(['{examples}', '${shots}', '<examples here>', ''])}\n\n{a}: {slot}\n{b}:"
        items = list(rng.choice(sets))
        sign = rng.choice([": ", " = ", " - ", ", ", " -> "])
        rows = [f"{a}{sign}{b}" for a, b in items]
        return "\n".join(rows) + "\n\n" + request if rng.random() < 0.6 else request + "\n\n" + "\n".join(rows)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def generated(
    rows: Sequence[dict[str, Any]], layouts: int = 240, each: int = 4, seed: int = 7
) -> Iterator[dict[str, Any]]:
    """Yield prompts with their labels in the form of the corpus: ``examples`` and ``query`` are None without examples."""
    rng = random.Random(seed)
    sets = item_sets(rows)
    for number in range(layouts):
        layout = Layout(rng, number)
        for turn in range(each):
            if turn % 2 == 0:
                text, pairs, query = layout.few(rng, sets)
                yield {
                    "layout": layout.name,
                    "kind": layout.kind,
                    "prompt": text,
                    "examples": [list(p) for p in pairs],
                    "query": query,
                    "few_shot": True,
                }
            else:
                yield {
                    "layout": layout.name,
                    "kind": None,
                    "prompt": layout.none(rng, sets),
                    "examples": [],
                    "query": None,
                    "few_shot": False,
                }
