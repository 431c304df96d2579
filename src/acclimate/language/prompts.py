"""How worked examples become a prompt: its text, its tokens, and which of the tokens are answers."""

from __future__ import annotations

import copy
import json
import re
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from acclimate.errors import CheckpointError, DataError, first_line
from acclimate.json_values import from_json
from acclimate.language.examples import Example
from acclimate.output_files import write_output

#: A turn of a conversation: ``role`` and ``content``.
Message = Mapping[str, str]
#: A part of a prompt: a text, or tokens that a chat template wrote.
Piece = str | tuple[int, ...]
FORMAT_FILE: Final = "prompt_format.json"
_MAX_KNOWN_PIECES: Final = 4096
_BLANK_LINES: Final = re.compile(r"\n[^\S\n]*(?=\n)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Where a generated answer ends, and what is not a part of it.

    Attributes:
        stop: ends the answer; empty where only the tokens that end any text do.
        lead: what may stand before the answer.
        by_text: the answer ends as soon as its text holds ``stop``, whatever tokens it is made of; otherwise when the
            tokens of ``stop`` come.
    """

    stop: str
    lead: str
    by_text: bool = False

    def cut(self, text: str) -> str:
        """Return the answer in a generated ``text``."""
        if not self.by_text:
            return text.split(self.stop, 1)[0].removeprefix(self.lead).rstrip("\n")
        text = self._without_lead(text)
        return (text.split(self.stop, 1)[0] if self.stop else text).rstrip()

    def is_in(self, text: str) -> bool:
        """Say whether a generated ``text`` shows that the answer has ended."""
        return self.by_text and bool(self.stop) and self.stop in self._without_lead(text)

    def _without_lead(self, text: str) -> str:
        # Line breaks lead to an answer only where they do in the examples: elsewhere they end an empty one.
        blanks = " \t\n" if "\n" in self.lead or not self.stop else " \t"
        return text.lstrip(blanks).removeprefix(self.lead.strip()) if self.lead.strip() else text.lstrip(blanks)


class Layout(Protocol):
    """How examples and a question are written in a prompt."""

    @property
    def after_answer(self) -> Piece:
        """What ends an answer; the model predicts it too."""
        ...

    @property
    def ending(self) -> Ending:
        """Where a generated answer ends."""
        ...

    @property
    def writes_start(self) -> bool:
        """Whether the first piece has the token that begins a text."""
        ...

    @property
    def key(self) -> str:
        """What training on examples in this layout depends on."""
        ...

    def example(self, number: int, example: Example) -> tuple[tuple[Piece, ...], str]:
        """Return what stands before the answer of the example in place ``number``, and the answer."""
        ...

    def question(self, query: str) -> tuple[Piece, ...]:
        """Return the question, up to where its answer begins."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """The text around inputs and answers.

    Attributes:
        before_input: stands in front of every input.
        before_answer: between an input and its answer; the model generates from there.
        answer_lead: the first characters of every answer; the model predicts them too.
        after_answer: ends an answer; when the model predicts it, the answer is complete.
        single_line: line breaks inside inputs and answers become spaces, because ``after_answer`` is a line break.
        is_only: the model was trained on this format and knows no other: examples are written in it however they were
            typed, as a chat template is used for a chat model.
    """

    before_input: str = "Input: "
    before_answer: str = "\nOutput:"
    answer_lead: str = " "
    after_answer: str = "\n\n"
    single_line: bool = False
    is_only: bool = False

    writes_start = False

    @property
    def ending(self) -> Ending:
        """Where a generated answer ends."""
        return Ending(stop=self.after_answer, lead=self.answer_lead)

    @property
    def key(self) -> str:
        """What training on examples in this format depends on."""
        return repr(self)

    def example(self, number: int, example: Example) -> tuple[tuple[Piece, ...], str]:
        """Return what stands before the answer of an example, and the answer."""
        given = self.before_input + self.clean(example.input) + self.before_answer
        return (given,), self.answer_lead + self.clean(example.output)

    def question(self, query: str) -> tuple[Piece, ...]:
        """Return the question, up to where its answer begins."""
        return (self.before_input + self.clean(query) + self.before_answer,)

    def clean(self, text: str) -> str:
        """Return ``text`` without control characters, and without the blank lines or line breaks that end items."""
        text = "".join(c for c in text.replace("\r\n", "\n") if c in "\n\t" or unicodedata.category(c) != "Cc").strip()
        if self.single_line:
            return re.sub(r"\s*[\n\t]\s*", " ", text)
        return _BLANK_LINES.sub("", text)

    def save(self, folder: Path) -> None:
        """Write the format into the folder of a model."""
        write_output(folder / FORMAT_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> PromptFormat | None:
        """Return the format in the folder of a model, or None.

        Raises:
            CheckpointError: the file is there and cannot be read as a format.
        """
        path = folder / FORMAT_FILE
        if not path.exists():
            return None
        try:
            return cls(**from_json(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is not a prompt format ({error}); save the model again") from error


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt as tokens.

    Attributes:
        tokens: ids.
        answer: per token, the index of the example whose answer it belongs to, or -1.
    """

    tokens: tuple[int, ...]
    answer: tuple[int, ...]


class Encoder:
    """Turns examples into rows of tokens; may be used from several threads.

    Args:
        tokenizer: of the model; the encoder works with a copy.
        prompt_format: of the model.
        max_tokens: longest row the model can read.

    Attributes:
        tokenizer: the copy.
        stop_ids: the tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, prompt_format: PromptFormat, max_tokens: int) -> None:
        # A tokenizer keeps settings of one call (special tokens, truncation) for the next, so that every use is locked;
        # the copy sees to it that nobody else uses this one.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.format = prompt_format
        self.max_tokens = max_tokens
        self._lock = threading.RLock()
        self._known: dict[str, tuple[int, ...]] = {}
        start: int | None = getattr(tokenizer, "bos_token_id", None)
        first: list[int] = self.tokenizer("a", add_special_tokens=True).input_ids[:1]
        self._start: tuple[int, ...] = tuple(first) if first == [start] else ()
        self.stop_ids = self._ids(prompt_format.after_answer)

    def _ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of one piece of text; pieces that come again are encoded once."""
        with self._lock:
            found = self._known.get(text)
            if found is None:
                # Special tokens that a user types are encoded as the characters they are made of.
                found = tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
                if len(self._known) > _MAX_KNOWN_PIECES:
                    self._known.clear()
                self._known[text] = found
            return found

    def row(
        self,
        examples: Sequence[Example],
        *,
        query: str | None = None,
        answers: Sequence[int] | None = None,
        layout: Layout | None = None,
    ) -> Row:
        """Return the tokens of ``examples`` in order, then of ``query`` up to where its answer begins.

        Args:
            examples: as :func:`acclimate.language.examples.validated` returns them.
            query: the input to answer.
            answers: the number that each example's answer is marked with, -1 for none; None numbers them in order.
            layout: how they are written; None means the model's format.

        Raises:
            DataError: the row is longer than the model can read.
        """
        shape: Layout = layout or self.format
        start = () if shape.writes_start else self._start
        tokens, marks = list(start), [-1] * len(start)
        end = self._piece(shape.after_answer)
        for index, example in enumerate(examples):
            pieces, written = shape.example(index, example)
            given = [token for piece in pieces for token in self._piece(piece)]
            answer = self._ids(written) + end
            tokens += [*given, *answer]
            marks += [-1] * len(given) + [index if answers is None else answers[index]] * len(answer)
        if query is not None:
            asked = [token for piece in shape.question(query) for token in self._piece(piece)]
            tokens += asked
            marks += [-1] * len(asked)
        if len(tokens) > self.max_tokens:
            raise DataError(
                f"the examples take {len(tokens)} tokens and the model reads {self.max_tokens}; "
                f"give fewer or shorter ones"
            )
        return Row(tuple(tokens), tuple(marks))

    def _piece(self, piece: Piece) -> tuple[int, ...]:
        return self._ids(piece) if isinstance(piece, str) else piece

    def answer_tokens(self, example: Example, layout: Layout | None = None) -> int:
        """Return how many tokens the answer of ``example`` takes, its end included."""
        shape: Layout = layout or self.format
        return len(self._ids(shape.example(0, example)[1])) + len(self._piece(shape.after_answer))

    @property
    def has_chat_template(self) -> bool:
        """Whether messages are written by a template of the model."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def special_tokens(self) -> frozenset[int]:
        """The tokens that no text has."""
        return frozenset(self.tokenizer.all_special_ids)

    def prompt_tokens(self, prompt: str) -> tuple[int, ...]:
        """Return the tokens of a prompt without examples: a chat turn if the model has a chat template, else the text.

        Raises:
            CheckpointError: the chat template fails, or does not write the prompt once.
            DataError: it is longer than the model can read.
        """
        return self.chat_tokens(({"role": "user", "content": prompt},))

    def chat_tokens(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the tokens of a conversation, up to where the model's next turn begins.

        Without a chat template these are the contents of the messages, with blank lines between them.

        Args:
            messages: each with ``role`` and ``content``.

        Raises:
            CheckpointError: the chat template fails on a single message, or does not write it once.
            DataError: the chat template refuses these messages, or they are longer than the model can read.
        """
        contents = [message["content"] for message in messages]
        with self._lock:
            if self.has_chat_template:
                around = self.around_contents(messages)
                tokens = [
                    token for pair in zip(around, contents, strict=False) for token in (*pair[0], *self._ids(pair[1]))
                ]
                tokens += around[-1]
                return self._short_enough(tokens)
        return self.text_tokens("\n\n".join(contents))

    def text_tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that the model is to continue.

        Raises:
            DataError: it is longer than the model can read.
        """
        return self._short_enough([*self._start, *self._ids(text)])

    def _short_enough(self, tokens: Sequence[int]) -> tuple[int, ...]:
        if len(tokens) >= self.max_tokens:
            raise DataError(f"the prompt takes {len(tokens)} tokens and the model reads {self.max_tokens}; shorten it")
        return tuple(tokens)

    def around_contents(self, messages: Sequence[Message]) -> list[tuple[int, ...]]:
        """Return the tokens that the chat template writes before, between and after the contents of ``messages``.

        Raises:
            CheckpointError: the chat template fails on a single message, or does not write it once.
            DataError: it refuses these messages.
        """
        # Only the template may write special tokens: those in the contents are split into characters.
        markers = [f"\u2063message {number}\u2063" for number in range(len(messages))]
        turns = [{**turn, "content": marker} for turn, marker in zip(messages, markers, strict=True)]
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # A template is a program by the author of the model; it may raise anything.
            why = f"{type(error).__name__}: {first_line(error)}"
            if len(messages) > 1:
                raise DataError(
                    f"the chat template of the model refuses these messages ({why}); give other roles or another order"
                ) from error
            raise CheckpointError(
                f"the chat template of the model fails ({why}); correct it, or remove it to ask without one"
            ) from error
        parts = []
        for marker in markers:
            if (times := text.count(marker)) != 1:
                who = "the message of the user" if len(messages) == 1 else "a message"
                raise CheckpointError(
                    f"the chat template of the model writes {who} {times} times instead of once; "
                    f"correct it, or remove it to ask without one"
                )
            before, text = text.split(marker)
            parts.append(before)
        with self._lock:
            return [tuple(self.tokenizer(part, add_special_tokens=False).input_ids) for part in (*parts, text)]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of a prompt, the special tokens in it included."""
        with self._lock:
            text: str = self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
        return text

    def token_text(self, token: int) -> str:
        """Return the text of one token."""
        with self._lock:
            text: str = self.tokenizer.decode([token])
        return text

    def answer_text(self, ids: Sequence[int], *, open_ended: bool = False, ending: Ending | None = None) -> str:
        """Return the text of generated ``ids`` up to the end of the answer; all of it where it is ``open_ended``."""
        text = self.generated_text(ids)
        return text.strip() if open_ended else (ending or self.format.ending).cut(text)

    def generated_text(self, ids: Sequence[int]) -> str:
        """Return the text of generated ``ids``, special tokens left out."""
        with self._lock:
            text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
