from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st

from acclimate.language.patterns import detect
from acclimate.ui.reading_shown import marked_html, pieces, summary
from acclimate.ui.ready_prompts import READY

_LINES = st.lists(st.tuples(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8)), min_size=1, max_size=6)


@given(lines=_LINES, separator=st.sampled_from([" -> ", ": ", "\n=> ", "<", "&"]))
def test_the_pieces_are_the_prompt_whatever_was_read(lines: list[tuple[str, str]], separator: str) -> None:
    prompt = (
        "\n".join(f"{given}{separator}{wanted}" for given, wanted in lines) + f"\n{lines[0][0]}{separator}".rstrip()
    )
    detected = detect(prompt)
    assert "".join(piece.text for piece in pieces(prompt, detected)) == prompt
    assert html.unescape(re.sub(r"</?mark[^>]*>", "", marked_html(prompt, detected))) == prompt


def test_inputs_outputs_and_question_are_marked() -> None:
    prompt = "Say it louder.\nstone -> STONE\nlamp -> LAMP\nriver -> RIVER\ncabin -> CABIN\nmelon ->"
    found = [(piece.part, piece.text.strip()) for piece in pieces(prompt, detect(prompt)) if piece.part != "text"]
    assert found[:2] == [("input", "stone"), ("output", "STONE")]
    assert found[-1] == ("query", "melon")
    assert len(found) == 9


def test_markup_in_a_prompt_stays_text() -> None:
    prompt = (
        "<b>a</b> -> <script>x</script>\n<b>c</b> -> <script>y</script>\n<b>d</b> -> <script>z</script>\n<b>e</b> ->"
    )
    assert "<script" not in marked_html(prompt, detect(prompt))


def test_what_was_read_is_said_in_a_sentence() -> None:
    assert summary(None).startswith("No worked examples were found")
    for ready in READY:
        assert re.match(r"\d examples and a question: ", summary(detect(ready.prompt)))
