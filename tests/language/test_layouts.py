"""Prompts are written again as the user wrote them, and what is not adapted is sent as it was typed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers

from acclimate.language import AskReport, Engine, Example, Gate, LanguageModel, PromptFormat, detect
from acclimate.language.layouts import TypedLayout, layout_of_prompt, typed_layout
from acclimate.language.prompts import Encoder, Ending
from tests.language.models import SPARK_FOLDER, small, spark

ARROWS = "Name the opposite.\n\nhot -> cold\nbig -> small\nwet -> dry\nold ->"
LABELS = "How is?\n\nText: I love it\nTone: good\n\nText: No.\nTone: bad\n\nText: Nice\nTone: good\n\nText: Hm\nTone:"
NUMBERED = "Opposites, please.\n1. hot -> cold\n2. big -> small\n3. wet -> dry\n4. old ->"
TAGS = "<in>hot</in><out>cold</out>\n<in>big</in><out>small</out>\n<in>wet</in><out>dry</out>\n<in>old</in><out>"
QUERIES = """nl: all hens older than two years
sql: SELECT * FROM hens WHERE age > 2
nl: average number of eggs by coop
sql: SELECT coop, AVG(eggs) FROM lay GROUP BY coop
nl: the coop with the most hens
sql: SELECT coop FROM hens GROUP BY coop ORDER BY COUNT(*) DESC LIMIT 1
nl: coops
sql: SELECT"""
QUOTES = 'Opposites.\n"hot" -> "cold"\n"big" -> "small"\n"wet" -> "dry"\n"old" ->'


def layout_of(prompt: str) -> TypedLayout:
    found = detect(prompt)
    assert found is not None
    layout = typed_layout(prompt, found)
    assert layout is not None
    return layout


def read(prompt: str) -> tuple[tuple[Example, ...], str]:
    found = detect(prompt)
    assert found is not None
    assert found.query is not None
    return found.examples, found.query


@pytest.mark.parametrize("prompt", [ARROWS, LABELS, NUMBERED, TAGS, QUOTES])
def test_a_layout_writes_the_prompt_as_it_was_typed(prompt: str) -> None:
    assert layout_of(prompt).text(*read(prompt)) == prompt


def test_other_orders_and_fewer_examples_fill_the_same_places() -> None:
    layout, (examples, query) = layout_of(NUMBERED), read(NUMBERED)
    turned = "Opposites, please.\n1. wet -> dry\n2. big -> small\n3. hot -> cold\n4. old ->"
    assert layout.text(examples[::-1], query) == turned
    found = detect(NUMBERED)
    assert found is not None
    assert typed_layout(NUMBERED, found, dropped=1).text(examples[1:], query) == (  # type: ignore[union-attr]
        "Opposites, please.\n1. big -> small\n3. wet -> dry\n4. old ->"
    )


@pytest.mark.parametrize(
    ("prompt", "end"),
    [
        # What stands for the missing answer makes room for it, and what closes it is left out.
        (ARROWS + " ?", "\nold ->"),
        ('[{"a": "hot", "b": "cold"},\n{"a": "big", "b": "small"},\n{"a": "old", "b": ""}]', '"a": "old", "b": "'),
        # A question without its label, or in a sentence of its own, is written like the examples.
        (ARROWS.removesuffix(" ->"), "\nold ->"),
        (ARROWS.removesuffix("old ->") + "What about old?", "\nold ->"),
        # The beginning of the answer that was typed stays.
        (QUERIES, "\nnl: coops\nsql: SELECT"),
    ],
)
def test_the_question_ends_where_its_answer_begins(prompt: str, end: str) -> None:
    assert layout_of(prompt).text(*read(prompt)).endswith(end)


def test_instructions_behind_the_examples_go_before_them() -> None:
    text = layout_of(LABELS + "\n\nAnswer with one word only, please.").text(*read(LABELS))
    assert text == "Answer with one word only, please.\n\n" + LABELS


def test_what_cannot_be_written_again_is_in_the_models_format_after_the_instruction() -> None:
    prompt = "Opposites.\nhot->cold big->small wet->dry old->"
    found = detect(prompt)
    assert found is not None
    encoder = replace(small(), encoder=Encoder(small().encoder.tokenizer, PromptFormat(), 256)).encoder
    assert typed_layout(prompt, found) is None
    layout = layout_of_prompt(encoder, prompt, found)
    assert layout is not None
    shown = encoder.text(encoder.row(found.examples[:1], query="old", layout=layout).tokens)
    assert shown == "Opposites.\n\nInput: hot\nOutput: cold\n\nInput: old\nOutput:"
    assert layout_of_prompt(spark().encoder, prompt, found) is None


@pytest.mark.parametrize(
    ("ending", "text", "answer", "has_ended"),
    [
        (Ending(stop="\n", lead=" ", by_text=True), " cold\nbig", "cold", True),
        (Ending(stop="\n", lead=" ", by_text=True), "\nbig", "", True),
        (Ending(stop="\n", lead="\n", by_text=True), "\ncold", "cold", False),
        (Ending(stop='"', lead=' "', by_text=True), ' "cold"\n', "cold", True),
        (Ending(stop="\n\n", lead="\n", by_text=True), "\none\ntwo\n\nthree", "one\ntwo", True),
    ],
)
def test_answers_end_where_those_of_the_examples_do(ending: Ending, text: str, answer: str, has_ended: bool) -> None:
    assert ending.cut(text) == answer
    assert ending.is_in(text) == has_ended


def asked(prompt: str, *, template: str | None = None, **how: object) -> AskReport:
    return Engine(knowing(template), max_answer_tokens=4, gate=Gate()).ask(prompt, **how)  # type: ignore[arg-type]


def knowing(template: str | None) -> LanguageModel:
    """Return a small model that knows more than one format."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(SPARK_FOLDER)
    tokenizer.chat_template = template
    return replace(small(), encoder=Encoder(tokenizer, PromptFormat(), 256))


TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }};{% endfor %}[assistant]"


@pytest.mark.parametrize("prompt", ["How are you?  ", ARROWS, "Twice:\n\thot -> cold\nbig -> small\nold -> "])
def test_what_is_not_adapted_is_sent_exactly_as_it_was_typed(prompt: str) -> None:
    plain = asked(prompt, policy="never")
    assert plain.prompt_sent == prompt
    assert plain.to_dict()["prompt_sent"] == prompt
    assert plain.prompt_tokens == len(knowing(None).encoder.text_tokens(prompt))
    by_template = asked(prompt, policy="never", template=TEMPLATE)
    assert by_template.prompt_sent == f"[user]{prompt};[assistant]"
    assert by_template.status == "plain"


def test_what_fails_or_has_too_few_examples_is_sent_as_it_was_typed() -> None:
    late = Engine(knowing(TEMPLATE), max_answer_tokens=4, max_seconds=0.0).ask(ARROWS)
    assert (late.reason, late.prompt_sent) == ("timeout", f"[user]{ARROWS};[assistant]")
    repeated = "hot -> cold\nhot -> cool\nbig -> small\nold ->"
    few = asked(repeated, template=TEMPLATE)
    assert (few.reason, few.prompt_sent) == ("contradictory_examples", f"[user]{repeated};[assistant]")


def test_what_the_gate_declines_is_continued_where_it_was_measured() -> None:
    report = Engine(knowing(TEMPLATE), max_answer_tokens=4, gate=Gate(threshold=1.0, margin=1.0)).ask(ARROWS)
    assert report.reason in ("no_held_out_gain", "low_confidence")
    assert report.prompt_sent == ARROWS


def test_what_is_adapted_keeps_the_instruction_and_every_example() -> None:
    again = ARROWS.replace("big -> small", "big -> small\nbig -> small\nshy -> bold\nshy -> loud")
    report = asked(again, template=TEMPLATE, policy="always")
    assert (report.status, report.prompt_sent) == ("adapted", again)
    assert report.metadata.examples_used == 3
    assert any("'shy'" in warning and "stays in the prompt" in warning for warning in report.warnings)


def test_conversations_are_adapted_to_in_the_words_of_the_template() -> None:
    engine = Engine(with_special_ends(), max_answer_tokens=4)
    turns = [{"role": "system", "content": "Opposites."}]
    for one, other in (("hot", "cold"), ("big", "small"), ("wet", "dry")):
        turns += [{"role": "user", "content": one}, {"role": "assistant", "content": other}]
    turns.append({"role": "user", "content": "old"})
    told = engine.chat(turns, policy="always")
    assert told.status == "adapted"
    expected = "[system]Opposites.</s>[user]hot</s>[assistant]cold</s>[user]big</s>[assistant]small</s>[user]wet</s>"
    assert told.prompt_sent == expected + "[assistant]dry</s>[user]old</s>[assistant]"
    assert engine.chat(turns, policy="never").prompt_sent == told.prompt_sent


def with_special_ends() -> LanguageModel:
    model = knowing(TEMPLATE.replace(";", "</s>"))
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["</s>"]})
    model.network.resize_token_embeddings(len(model.tokenizer))
    return model


def test_a_model_that_knows_one_format_gets_it() -> None:
    report = Engine(spark()).ask(ARROWS, policy="always")
    assert report.prompt_sent == "hot\tcold\nbig\tsmall\nwet\tdry\nold\t"
