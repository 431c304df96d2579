"""How the user wrote examples and question, so that they can be written again in the same way.

A layout is what stands around inputs and answers: the instruction before the first example, labels, separators, quotes,
and what leads to the answer of the question. The first examples of a prompt in their own order and the question give
the prompt as it was typed; fewer examples, or the same in another order, fill the same places from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from acclimate.language.examples import Example
from acclimate.language.patterns import Detection
from acclimate.language.patterns.text import is_open
from acclimate.language.prompts import Encoder, Ending, Layout, Message, Piece, PromptFormat

_LINE_ENDS: Final = "\n"
_SPACE: Final = " \t"
#: Fewer words around a question only lead to it.
_LEAST_WORDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedLayout:
    """The layout of a prompt that was typed.

    Attributes:
        before: what stands before the input of each example, the end of the answer before it left out; the first one
            has the instruction too. Further examples get the last one.
        between: of each example, what stands between its input and what the model predicts.
        leads: of each example, what the model predicts before the answer itself: white space, an opening quote.
        after_answer: what ends an answer, predicted too.
        before_query, after_query: around the question.
        ending: where a generated answer ends.
    """

    before: tuple[str, ...]
    between: tuple[str, ...]
    leads: tuple[str, ...]
    after_answer: str
    before_query: str
    after_query: str
    ending: Ending

    writes_start = False

    def example(self, number: int, example: Example) -> tuple[tuple[Piece, ...], str]:
        """Return what stands before the answer of the example in place ``number``, and the answer."""
        at = min(number, len(self.before) - 1)
        return (self.before[at] + example.input + self.between[at],), self.leads[at] + example.output

    def question(self, query: str) -> tuple[Piece, ...]:
        """Return the question, up to where its answer begins."""
        return (self.before_query + query + self.after_query,)

    def text(self, examples: Sequence[Example], query: str) -> str:
        """Return the whole prompt."""
        parts = []
        for number, example in enumerate(examples):
            given, answer = self.example(number, example)
            parts += [*(str(piece) for piece in given), answer, self.after_answer]
        return "".join([*parts, *(str(piece) for piece in self.question(query))])

    @property
    def key(self) -> str:
        """What training on examples in this layout depends on, whatever is asked afterwards."""
        return repr((self.before, self.between, self.leads, self.after_answer))


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLayout:
    """The layout of a conversation, as the chat template of the model writes it.

    Attributes:
        before: tokens and texts before each example's question.
        between: tokens between a question and its reply, of each example.
        after_answer: the tokens that end a reply.
        before_query, after_query: around the last question.
        ending: where a generated answer ends: at the tokens that end any text.
    """

    before: tuple[tuple[Piece, ...], ...]
    between: tuple[tuple[int, ...], ...]
    after_answer: tuple[int, ...]
    before_query: tuple[Piece, ...]
    after_query: tuple[int, ...]
    ending: Ending

    writes_start = True

    def example(self, number: int, example: Example) -> tuple[tuple[Piece, ...], str]:
        """Return what stands before the reply in place ``number``, and the reply."""
        at = min(number, len(self.before) - 1)
        return (*self.before[at], example.input, self.between[at]), example.output

    def question(self, query: str) -> tuple[Piece, ...]:
        """Return the last question, up to where its reply begins."""
        return (*self.before_query, query, self.after_query)

    @property
    def key(self) -> str:
        """What training on examples in this layout depends on, whatever is asked afterwards."""
        return repr((self.before, self.between, self.after_answer))


def layout_of_prompt(
    encoder: Encoder, text: str, found: Detection, *, dropped: int = 0, head: str = ""
) -> Layout | None:
    """Return the layout that examples and question are written in: the user's own where that can be written again.

    Otherwise it is the model's format after the user's instruction. None means the model's format alone: that of a
    model that knows no other.

    Args:
        encoder: of the model.
        text: of the prompt.
        found: examples and question in it.
        dropped: examples at the beginning that are left out.
        head: what was said before.
    """
    if encoder.format.is_only:
        return None
    layout = typed_layout(text, found, dropped=dropped, head=head)
    outside = (head, text[: found.block[0]], text[found.block[1] :])
    return layout or format_with_head(encoder.format, "\n\n".join(part.strip() for part in outside if _has_word(part)))


def layout_of_turns(encoder: Encoder, turns: Sequence[Message]) -> Layout | None:
    """Return the layout of turns that are worked examples: as the chat template writes them, where there is one.

    Otherwise it is the model's format after the system messages; see :func:`layout_of_prompt` about None.

    Raises:
        DataError: the chat template refuses these messages.
    """
    if encoder.format.is_only:
        return None
    found = None
    if encoder.has_chat_template:
        found = turn_layout(turns, encoder.around_contents(turns), encoder.special_tokens)
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    return found or format_with_head(encoder.format, system)


def typed_layout(text: str, found: Detection, *, dropped: int = 0, head: str = "") -> TypedLayout | None:
    """Return the layout of a prompt, or None where its examples cannot be written again in the same way.

    That is where answers stand before inputs, the question before the examples, or where nothing ends an answer.

    Args:
        text: of the prompt.
        found: examples and question in it.
        dropped: examples at the beginning that are left out.
        head: stands before everything, for instance the system message of a conversation.
    """
    places = _places(text, found)
    if places is None or found.query_span is None or found.query_span[0] < places[-1][3]:
        return None
    gaps = [_without_blanks(text[a[3] : b[0]]) for a, b in pairwise(places)]
    labels = [text[end:start] for _, end, start, _ in places]
    if not gaps or not all(labels):
        return None
    asked_before = _without_blanks(text[places[-1][3] : found.query_span[0]])
    asked_after = text[found.query_span[1] :].rstrip()
    if _same_last_line([*gaps, text[: places[0][0]]], asked_before):
        instruction, after, given_first = _after_question(asked_after, labels[-1].rstrip())
    else:
        # The question stands in a sentence of its own: it is written like the examples, the sentence before them.
        instruction = asked_before.strip() if len(asked_before.split()) >= _LEAST_WORDS else ""
        asked_before, after, given_first = gaps[-1], labels[-1].rstrip(), ""
    outputs = [example.output for example in found.examples]
    after_answer = _end_of_answers([*gaps, asked_before])
    stop = _stop_text(_shared([*gaps, asked_before]), outputs)
    if after_answer is None or stop is None:
        return None
    splits = [_split(label, given_first) for label in labels]
    head = head + (instruction + "\n\n" if instruction else "")
    before = [head + text[: places[0][0]], *(gap.removeprefix(after_answer) for gap in gaps)]
    return TypedLayout(
        before=(before[0], *before[1 + dropped :]),
        between=tuple(between for between, _ in splits)[dropped:],
        leads=tuple(lead for _, lead in splits)[dropped:],
        after_answer=after_answer,
        before_query=asked_before.removeprefix(after_answer),
        after_query=after,
        ending=Ending(stop=stop, lead=splits[-1][1], by_text=True),
    )


def format_with_head(shape: PromptFormat, head: str) -> TypedLayout | PromptFormat:
    """Return the model's own format with ``head``, an instruction, before the first example."""
    if not head.strip():
        return shape
    first = head.strip() + "\n\n" + shape.before_input
    return TypedLayout(
        before=(first, shape.before_input),
        between=(shape.before_answer, shape.before_answer),
        leads=(shape.answer_lead, shape.answer_lead),
        after_answer=shape.after_answer,
        before_query=shape.before_input,
        after_query=shape.before_answer,
        ending=Ending(stop=shape.after_answer, lead=shape.answer_lead, by_text=True),
    )


def turn_layout(
    turns: Sequence[Message], around: Sequence[tuple[int, ...]], special: frozenset[int]
) -> TurnLayout | None:
    """Return the layout of a conversation whose turns are examples, or None where nothing ends a reply.

    Args:
        turns: system messages first, then questions and replies in turns, then the question.
        around: the tokens of the chat template before, between and after the contents.
        special: tokens that no text has.
    """
    system = [turn for turn in turns if turn["role"] == "system"]
    if any(turn["role"] == "system" for turn in turns[len(system) :]):
        return None
    first: list[Piece] = []
    for number, turn in enumerate(system):
        first += [around[number], turn["content"]]
    rest = around[len(system) :]
    asked, replied = rest[0::2], rest[1::2]
    ends = [_up_to_special(tokens, special) for tokens in asked[1:]]
    if not ends or None in ends or len(set(ends)) > 1:
        return None
    end = ends[0] or ()
    before: list[tuple[Piece, ...]] = [(*first, asked[0])]
    before += [(tokens[len(end) :],) for tokens in asked[1:]]
    return TurnLayout(
        before=tuple(before[:-1]),
        between=tuple(replied[:-1]),
        after_answer=end,
        before_query=before[-1],
        after_query=replied[-1],
        ending=Ending(stop="", lead="", by_text=True),
    )


def _places(text: str, found: Detection) -> list[tuple[int, int, int, int]] | None:
    """Return where each example's input begins and ends, and its answer; None unless they follow each other."""
    places, last = [], 0
    for (start, end), example in zip(found.spans, found.examples, strict=True):
        inner, outer = start + len(example.input), end - len(example.output)
        as_read = text.startswith(example.input, start) and text.startswith(example.output, outer)
        if not as_read or start < last or outer < inner:
            return None
        places.append((start, inner, outer, end))
        last = end
    return places or None


def _after_question(after: str, label: str) -> tuple[str, str, str]:
    """Return an instruction behind the question, what leads to its answer, and as much of a label as was typed."""
    if after and label.startswith(after) and not _has_word(label[len(after) :]):
        return "", after, after
    follows = after.startswith(label)
    begun, _, more = (after[len(label) :] if follows else after).partition("\n\n")
    if follows and _has_word(begun) and not is_open(begun):
        # The beginning of the answer was typed.
        return more.strip() if _has_word(more) else "", label + begun, label
    tail = begun + "\n\n" + more if not follows and len(begun.split()) >= _LEAST_WORDS else more
    return tail.strip() if _has_word(tail) else "", label, label


def _split(label: str, given_first: str) -> tuple[str, str]:
    """Return what stands between input and answer, and the characters at its end that the model predicts."""
    if given_first and label.startswith(given_first) and not _has_word(label[len(given_first) :]):
        return given_first, label[len(given_first) :]
    kept = label.rstrip()
    return kept, label[len(kept) :]


def _same_last_line(texts: Sequence[str], asked: str) -> bool:
    """Say whether ``asked`` ends in a line that begins like that of one of ``texts``, numbers aside."""
    return _last_line(asked) in {_last_line(text) for text in texts}


def _last_line(text: str) -> str:
    line = text.rpartition(_LINE_ENDS)[2] if _LINE_ENDS in text else text
    return "".join(c for c in line if not c.isdigit() and not c.isspace())


def _shared(texts: Sequence[str]) -> str:
    """Return the beginning that all texts have."""
    low, high = min(texts), max(texts)
    size = 0
    while size < min(len(low), len(high)) and low[size] == high[size]:
        size += 1
    return low[:size]


def _end_of_answers(gaps: Sequence[str]) -> str | None:
    """Return what ends every answer: the beginning of all gaps, up to the end of the first run of line breaks."""
    shared = _shared(gaps)
    if (at := shared.find(_LINE_ENDS)) >= 0:
        while at < len(shared) and shared[at] == _LINE_ENDS:
            at += 1
        return shared[:at]
    size = 0
    while size < len(shared) and not shared[size].isalnum():
        size += 1
    return shared[:size].rstrip(_SPACE) or None


def _stop_text(shared: str, outputs: Sequence[str]) -> str | None:
    """Return the shortest beginning of ``shared`` that is in no answer, and more than blanks."""
    for size in range(1, len(shared) + 1):
        text = shared[:size]
        if text.strip(_SPACE) and not any(text in output for output in outputs):
            return text
    return None


def _up_to_special(tokens: tuple[int, ...], special: frozenset[int]) -> tuple[int, ...] | None:
    """Return ``tokens`` up to the first special one, or None."""
    return next((tokens[: at + 1] for at, token in enumerate(tokens) if token in special), None)


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _without_blanks(gap: str) -> str:
    """Return what stands between an answer and the next input, without blanks at the end of the answer's line."""
    stripped = gap.lstrip(_SPACE)
    return stripped if stripped.startswith(_LINE_ENDS) else gap
