"""How examples are written down, and which tokens are answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from acclimate.errors import CheckpointError, DataError
from acclimate.language import Example, PromptFormat
from acclimate.language.prompts import Encoder
from tests.language.models import SPARK_FOLDER, small

EXAMPLES = [Example("cat", "CAT"), Example("dog", "DOG")]


def test_a_row_reads_as_text_and_marks_answers() -> None:
    encoder = small().encoder
    row = encoder.row(EXAMPLES, query="owl")
    assert encoder.tokenizer.decode(list(row.tokens)) == "cat\tCAT\ndog\tDOG\nowl\t"
    marked = "".join("." if mark < 0 else str(mark) for mark in row.answer)
    assert marked == "....0000" + "....1111" + "...."


def test_input_and_output_are_words_for_other_models() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(SPARK_FOLDER)
    encoder = Encoder(tokenizer, PromptFormat(), 256)
    assert (
        tokenizer.decode(list(encoder.row(EXAMPLES[:1], query="owl").tokens))
        == "Input: cat\nOutput: CAT\n\nInput: owl\nOutput:"
    )


def test_what_looks_like_the_format_is_neutralised() -> None:
    encoder = small().encoder
    row = encoder.row([Example("a\tb\nc", "x\ny")])
    assert encoder.tokenizer.decode(list(row.tokens)) == "a b c\tx y\n"
    assert PromptFormat().clean("a\n\n\nb") == "a\nb"


def test_special_tokens_in_text_stay_text() -> None:
    encoder = small().encoder
    special = {encoder.tokenizer.pad_token_id, encoder.tokenizer.bos_token_id}
    assert not special & set(encoder.row([Example("<pad>", "<s>")], query="<unk>").tokens)


@given(st.text(alphabet="abc <>/|_\t\n", max_size=20), st.text(alphabet="abc <s>", min_size=1, max_size=20))
def test_answers_come_back_from_their_tokens(given_text: str, answer: str) -> None:
    encoder = small_encoder()
    row = encoder.row([Example(given_text, answer)])
    ids = [token for token, mark in zip(row.tokens, row.answer, strict=True) if mark == 0]
    assert encoder.answer_text(ids) == encoder.format.clean(answer)
    assert len(ids) == encoder.answer_tokens(Example(given_text, answer))


_ENCODERS: list[Encoder] = []


def small_encoder() -> Encoder:
    if not _ENCODERS:
        _ENCODERS.append(small().encoder)
    return _ENCODERS[0]


def test_too_long_rows_say_so() -> None:
    with pytest.raises(DataError, match="the model reads 256"):
        small().encoder.row([Example("a" * 200, "b" * 100)])
    with pytest.raises(DataError, match="shorten it"):
        small().encoder.prompt_tokens("a" * 300)


def test_the_format_is_saved_beside_the_model(tmp_path: Path) -> None:
    shape = PromptFormat(before_input=">", single_line=True)
    shape.save(tmp_path)
    assert PromptFormat.load(tmp_path) == shape
    assert PromptFormat.load(tmp_path / "none") is None
    (tmp_path / "prompt_format.json").write_text('{"colour": 1}')
    with pytest.raises(CheckpointError, match="is not a prompt format"):
        PromptFormat.load(tmp_path)


def test_a_chat_template_frames_plain_prompts() -> None:
    encoder = small().encoder
    encoder.tokenizer.chat_template = "{{ '[' }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ ']' }}"
    assert encoder.tokenizer.decode(list(encoder.prompt_tokens("hi <s>"))) == "[hi <s>]"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for %}", "fails (TemplateSyntaxError"),
        ("{{ raise_exception('only\\nJSON') }}", "fails (TemplateError: only"),
        ("{{ messages.__class__.__mro__ }}", "fails (SecurityError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "fails (OverflowError"),
        ("{{ messages[7]['content'] }}", "fails (UndefinedError"),
        ("{{ 1 / 0 }}", "fails (ZeroDivisionError"),
        ("{{ 'hello' }}", "0 times instead of once"),
        ("{{ messages[0]['content'] * 2 }}", "2 times instead of once"),
    ],
)
def test_a_chat_template_that_does_not_frame_the_prompt_is_one_line(template: str, said: str) -> None:
    encoder = small().encoder
    encoder.tokenizer.chat_template = template
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        encoder.prompt_tokens("hi")
    assert "\n" not in str(caught.value)
