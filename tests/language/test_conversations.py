"""Conversations: their turns are checked, worked examples are found among them, and the rest is sent as it is."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from acclimate.errors import CheckpointError, DataError
from acclimate.language import Engine, Example
from acclimate.language.conversations import examples_in_turns, read_turns
from acclimate.language.prompts import Encoder, PromptFormat
from tests.language.models import SPARK_FOLDER, spark

WORDS = ("apple", "river", "stone", "cloud", "green", "house")


def turns(*pairs: tuple[str, str], last: str = "melon", system: str | None = None) -> list[dict[str, str]]:
    found = [] if system is None else [{"role": "system", "content": system}]
    for asked, reply in pairs:
        found += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    return [*found, {"role": "user", "content": last}]


LABELS = [("I love it", "positive"), ("Awful.", "negative"), ("It is fine", "neutral")]
TALK = [
    ("Hi, can you help me?", "Of course! What do you need?"),
    ("My sink leaks.", "Turn off the water first, and look where it comes from."),
    ("Done, it is the valve.", "Then close the valve and tighten the nut a little."),
]


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (turns(*LABELS), 3),
        (turns(*LABELS, system="Say how the text sounds."), 3),
        # Two turns are too few to tell them from a conversation with short replies.
        (turns(*LABELS[:2]), 0),
        (turns(*TALK), 0),
        (turns(("1", "yes"), ("2", "no."), ("3", "yes")), 0),
        (turns(*LABELS, ("multi", "one\ntwo")), 0),
        ([{"role": "user", "content": "a"}, *turns(*LABELS)], 0),
        (turns(), 0),
    ],
)
def test_short_replies_of_one_kind_are_worked_examples(given: list[dict[str, str]], count: int) -> None:
    found = examples_in_turns(read_turns(given))
    assert len(found) == count
    if count:
        assert found[0] == Example("I love it", "positive")


def test_who_says_that_turns_are_examples_is_believed() -> None:
    assert len(examples_in_turns(read_turns(turns(*TALK)), even_if_unlike=True)) == 3
    assert examples_in_turns(read_turns(turns(("a", ""), ("b", "c"))), even_if_unlike=True) == ()


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no messages"),
        ([{"role": "user"}], "needs 'role' and 'content'"),
        (["hello"], "needs 'role' and 'content'"),
        ([{"role": "tool", "content": "a"}], "the role 'tool'"),
        ([{"role": "user", "content": 3}], "no text"),
        ([{"role": "user", "content": " "}], "the last message"),
        (turns(("a", "b"))[:-1], "the last message must be a text of the user"),
    ],
)
def test_messages_that_are_none_are_refused(messages: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_turns(messages)


def test_developer_is_system_and_broken_characters_are_left_out() -> None:
    (first, _) = read_turns([{"role": "developer", "content": "a\ud800b"}, {"role": "user", "content": "x"}])
    assert first == {"role": "system", "content": "ab"}


def test_chat_adapts_to_turns_and_to_the_last_message() -> None:
    engine = Engine(spark())
    pairs = [(word, f"<q>{word}</q>") for word in WORDS]
    in_turns = engine.chat(turns(*pairs, system="Mark words."))
    assert (in_turns.answer, in_turns.status, in_turns.pattern) == ("<q>melon</q>", "adapted", "conversation")
    text = "".join(f"{word} -> <q>{word}</q>\n" for word in WORDS) + "melon ->"
    in_text = engine.chat([{"role": "user", "content": text}])
    assert (in_text.answer, in_text.status) == ("<q>melon</q>", "adapted")
    never = engine.chat(turns(*pairs), policy="never")
    assert (never.status, never.pattern, never.metadata.examples_used) == ("plain", None, 0)
    assert engine.chat(turns(*pairs[:1])).status == "plain"


def encoder(template: str | None) -> Encoder:
    tokenizer = transformers.AutoTokenizer.from_pretrained(SPARK_FOLDER)
    tokenizer.chat_template = template
    return Encoder(tokenizer, PromptFormat(), 256)


def test_the_chat_template_writes_around_contents_that_cannot_break_out() -> None:
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }};{% endfor %}[assistant]"
    known = encoder(template)
    given = turns(("a [user] b", "c"), last="d", system="s")
    text = known.tokenizer.decode(known.chat_tokens(given))
    assert text == "[system]s;[user]a [user] b;[assistant]c;[user]d;[assistant]"
    without = encoder(None)
    assert without.tokenizer.decode(without.chat_tokens(given)) == "s\n\na [user] b\n\nc\n\nd"


@pytest.mark.parametrize(
    ("template", "error", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", DataError, "refuses these messages"),
        ("{{ messages[0]['content'] }}", CheckpointError, "0 times instead of once"),
        ("{{ messages[1]['content'] }}{{ messages[0]['content'] }}", CheckpointError, "0 times instead of once"),
    ],
)
def test_templates_that_refuse_or_lose_messages_say_so(template: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        encoder(template).chat_tokens(turns(("a", "b"))[:2])
