"""A prompt with what was read in it: inputs, outputs and the question."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from acclimate.language.patterns import Detection

Part = Literal["input", "output", "query", "text"]
_TITLES: Final = {"input": "input of an example", "output": "output of an example", "query": "question"}
_KINDS: Final = {
    "explicit_examples": "examples",
    "io_pairs": "labelled inputs and outputs",
    "numbered_sequences": "a numbered list of examples",
    "analogical_reasoning": "analogies",
    "rule_learning": "a rule shown by examples",
    "conversation": "earlier turns of the conversation",
    "given": "examples that were given directly",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a prompt and what it was read as."""

    part: Part
    text: str


def pieces(prompt: str, detected: Detection | None) -> list[Piece]:
    """Return the pieces of a prompt in order; together they are the prompt."""
    found: list[Piece] = []
    at = 0
    for start, end, part in _parts(prompt, detected):
        # Readings never overlap; where one would, the earlier one is shown.
        if start < at or end <= start:
            continue
        if start > at:
            found.append(Piece("text", prompt[at:start]))
        found.append(Piece(part, prompt[start:end]))
        at = end
    if at < len(prompt):
        found.append(Piece("text", prompt[at:]))
    return found


def _parts(prompt: str, detected: Detection | None) -> list[tuple[int, int, Part]]:
    return [] if detected is None else sorted(_marked(detected))


def _marked(detected: Detection) -> Iterator[tuple[int, int, Part]]:
    for (start, end), example in zip(detected.spans, detected.examples, strict=False):
        yield start, start + len(example.input), "input"
        yield end - len(example.output), end, "output"
    if detected.query_span is not None:
        yield *detected.query_span, "query"


def marked_html(prompt: str, detected: Detection | None) -> str:
    """Return the prompt as HTML, its parts marked by colour, underline and title."""
    return "".join(
        html.escape(piece.text)
        if piece.part == "text"
        else f'<mark class="{piece.part}" title="{_TITLES[piece.part]}">{html.escape(piece.text)}</mark>'
        for piece in pieces(prompt, detected)
    )


def summary(detected: Detection | None) -> str:
    """Return in a sentence what was read."""
    if detected is None:
        return "No worked examples were found; the model answers the prompt as it stands."
    kind = kind_in_words(detected.kind)
    if detected.query is None or not detected.examples:
        return (
            f"This looks like {kind} (probability {detected.confidence:.0%}), but examples and question could not be "
            "told apart; the model answers the prompt as it stands."
        )
    count = len(detected.examples)
    words = f"{count} example{'s' if count > 1 else ''} and a question"
    return f"{words}: {kind}, read exactly with probability {detected.confidence:.0%}."


def kind_in_words(kind: str | None) -> str:
    """Return a kind of pattern in words."""
    return "none" if kind is None else _KINDS.get(kind, kind.replace("_", " "))
