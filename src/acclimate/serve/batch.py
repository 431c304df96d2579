"""Generating many answers side by side: rows of one pass, each with its own adapter, that join and leave at any time.

Rows that read their prompt and rows that generate are passed separately: a prompt brings many tokens, an answer one at
a time. Long prompts are read in pieces, so that answers go on between them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from acclimate.errors import TTTNotSupportedError, first_line
from acclimate.language import Adapter, LanguageModel
from acclimate.language.models.decoding import Answer, Continuation, Sampling, advance
from acclimate.language.models.generate import continuations
from acclimate.language.steps import Generate, generated_alone
from acclimate.language.training.memory import RequestMemory
from acclimate.serve.key_values import KeyValues
from acclimate.serve.prefixes import PrefixCache
from acclimate.serve.slots import AdapterSlots, OutOfSlotsError

_LOG = logging.getLogger(__name__)
#: Tokens of all rows together in one pass over prompts: about what a processor computes in half a second, and enough
#: to occupy a GPU for a few milliseconds.
_MOST_PROMPT_TOKENS: Final = 512
_MOST_PROMPT_TOKENS_GPU: Final = 8192
#: Largest differences of log-probabilities, in nats, that other orders of summing explain: in float32, and in formats
#: of 16 bits.
_TOLERANCE: Final = 1e-3
_TOLERANCE_HALF: Final = 0.3
_PROBE_TOKENS: Final = 4
#: Ordinary text: on other tokens models in formats of 16 bits differ from themselves by more than any error.
_PROBE_TEXTS: Final = (
    "the capital of the country is",
    "once upon a time there was a little girl who lived in a village near the forest",
    "one two three four",
)
#: The identity of the base model, which no adapter has.
BASE: Final = ""


@dataclass(slots=True)
class Row:
    """One prompt and its answer.

    Attributes:
        tokens: of the prompt.
        shared_tokens: at its beginning, that are worth keeping for other prompts.
        continuation: the answer so far.
        adapter: that answers; None for the base model.
        slot: of the adapter, from the time that the row joins.
        length: tokens whose keys and values are there.
        next_token: to be passed next, when the prompt has been read.
        error: that ended it.
    """

    tokens: tuple[int, ...]
    shared_tokens: int
    continuation: Continuation
    adapter: Adapter | None = None
    slot: int = 0
    length: int = 0
    next_token: int = 0
    error: Exception | None = None

    @property
    def identity(self) -> str:
        """Of the adapter, for what is kept of the prompt."""
        return BASE if self.adapter is None else self.adapter.identity

    @property
    def reads(self) -> bool:
        """Whether a part of the prompt is still to be read."""
        return self.length < len(self.tokens)


@dataclass(slots=True, eq=False)
class Generation:
    """The rows of one :class:`~acclimate.language.steps.Generate` step.

    Attributes:
        step: that they are of.
        rows: one for each prompt.
        owner: whatever the caller wants to find again; not looked at here.
    """

    step: Generate
    rows: list[Row]
    owner: Any = None

    def answers(self) -> list[Answer]:
        """Return what was generated.

        Raises:
            Exception: the error of the first row that failed.
        """
        for row in self.rows:
            if row.error is not None:
                raise row.error
        return [row.continuation.answer() for row in self.rows]


def generation_of(model: LanguageModel, step: Generate, owner: Any = None) -> Generation:
    """Return the rows of ``step``."""
    answers = continuations(
        model,
        len(step.prompts),
        max_tokens=step.max_tokens,
        open_ended=step.open_ended,
        sampling=step.sampling,
        on_text=step.on_text,
        ending=step.ending,
    )
    rows = [
        Row(tokens, step.shared_tokens, answer, step.adapter)
        for tokens, answer in zip(step.prompts, answers, strict=True)
    ]
    return Generation(step, rows, owner)


class Batch:
    """The rows that one network generates; for the thread that owns it and holds its lock.

    Args:
        model: to ask.
        slots: of its adapters.
        prefixes: the beginnings of prompts that are kept.
        max_rows: most rows at a time.
        max_bytes: most bytes of keys and values; a single row may exceed them.
    """

    def __init__(
        self, model: LanguageModel, slots: AdapterSlots, prefixes: PrefixCache, *, max_rows: int, max_bytes: int
    ) -> None:
        self._model, self._slots, self._prefixes = model, slots, prefixes
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._decoder = model.decoder(1.0)
        self._key_values = KeyValues(len(self._decoder.layers or ()), model.device)
        # Rows that generate come first, so that a pass over them is a pass over the first rows.
        self._rows: list[Row] = []
        self._generations: dict[int, Generation] = {}
        #: Called before each pass with its rows; tests let it raise.
        self.before_pass: Callable[[Sequence[Row]], None] = lambda _rows: None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values."""
        return self._key_values.held_bytes

    @property
    def reading(self) -> int:
        """Rows that read their prompt."""
        return sum(row.reads for row in self._rows)

    @property
    def generating(self) -> int:
        """Rows that generate."""
        return len(self._rows) - self.reading

    def owners(self, *, reading: bool) -> dict[Any, float]:
        """Return the owners of the rows that the next pass has, each with its share of them."""
        rows = self._rows[self.generating :] if reading else self._rows[: self.generating]
        shares: dict[Any, float] = {}
        for row in rows:
            owner = self._generations[id(row)].owner
            shares[owner] = shares.get(owner, 0.0) + 1 / len(rows)
        return shares

    def can_join(self, generation: Generation) -> bool:
        """Return whether there is room for the rows of a generation now."""
        rows = len(self._rows) + len(generation.rows)
        if not self._rows:
            return True
        if rows > self._max_rows:
            return False
        columns = max(_most_columns(row) for row in (*self._rows, *generation.rows))
        return rows * columns * self._key_values.token_bytes <= self._max_bytes

    def join(self, generation: Generation) -> bool:
        """Take up the rows of a generation; return False where every slot is in use by other adapters.

        Raises:
            CheckpointError: the network cannot use the adapter.
        """
        adapter = generation.step.adapter
        if adapter is not None:
            for number, row in enumerate(generation.rows):
                try:
                    row.slot = self._slots.acquire(adapter.identity, adapter)
                except OutOfSlotsError:
                    for _ in range(number):
                        self._slots.release(adapter.identity)
                    return False
        rows = (*self._rows, *generation.rows)
        self._key_values.fit(len(rows), max(max(row.length, len(row.tokens)) for row in rows))
        for row in generation.rows:
            self._rows.append(row)
            self._generations[id(row)] = generation
            stored = self._prefixes.find(row.identity, row.tokens)
            if stored is not None:
                self._key_values.put(len(self._rows) - 1, stored)
                row.length = stored.token_count
        return True

    def read(self) -> list[Generation]:
        """Pass the next piece of prompts; return the generations that ended."""
        first = self.generating
        # A pass is as long as its longest row: rows with about as much left to read go together.
        most = _MOST_PROMPT_TOKENS if self._model.device.type == "cpu" else _MOST_PROMPT_TOKENS_GPU
        longest = max(1, min(most, _left(self._rows[first])))
        last = first + 1
        while last < len(self._rows) and (last + 1 - first) * longest <= most:
            left = _left(self._rows[last])
            if not longest // 2 <= left <= longest:
                break
            last += 1
        rows = self._rows[first:last]
        pieces = [row.tokens[row.length : row.length + longest] for row in rows]
        logits = self._tried(first, rows, pieces)
        for number, row in enumerate(rows):
            if row.error is not None:
                continue
            before, row.length = row.length, row.length + len(pieces[number])
            if before < row.shared_tokens <= row.length:
                beginning = row.tokens[: row.shared_tokens]
                if not self._prefixes.has(row.identity, beginning):
                    self._prefixes.put(
                        row.identity, beginning, self._key_values.take(first + number, row.shared_tokens)
                    )
        done = [(number, row) for number, row in enumerate(rows) if row.error is None and not row.reads]
        if done:
            self._advance([row for _, row in done], logits[[number for number, _ in done]])
        self._order()
        return self._leave()

    def generate(self) -> list[Generation]:
        """Pass one token of every row that generates; return the generations that ended."""
        rows = self._rows[: self.generating]
        logits = self._tried(0, rows, [(row.next_token,) for row in rows])
        going = [(number, row) for number, row in enumerate(rows) if row.error is None]
        for _, row in going:
            row.length += 1
        if going:
            everyone = len(going) == len(rows)
            self._advance([row for _, row in going], logits if everyone else logits[[number for number, _ in going]])
        return self._leave()

    def drop_done(self) -> None:
        """Let go the rows that the caller has ended."""
        self._leave()

    def _advance(self, rows: Sequence[Row], logits: Tensor) -> None:
        def fails(number: int, error: Exception) -> None:
            rows[number].error = error

        tokens = advance([row.continuation for row in rows], logits, on_error=fails)
        for row, token in zip(rows, tokens, strict=True):
            row.next_token = token

    def _tried(self, first: int, rows: Sequence[Row], pieces: Sequence[Sequence[int]]) -> Tensor:
        """Pass ``pieces``; where that fails, each row by itself, so that only those fail that cannot be passed."""
        try:
            return self._passed(first, rows, pieces)
        except Exception as error:  # noqa: BLE001 - kept in the rows that it belongs to
            if len(rows) == 1:
                rows[0].error = error
                return torch.zeros(1, 1, device=self._model.device)
            _LOG.warning("a pass of %d rows failed (%s); each is passed by itself", len(rows), first_line(error))
        found: list[Tensor | None] = []
        for number, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            try:
                found.append(self._passed(first + number, [row], [piece]))
            except Exception as error:  # noqa: BLE001 - kept in the row that it belongs to
                row.error = error
                found.append(None)
        width = next((logits.shape[1] for logits in found if logits is not None), 1)
        empty = torch.zeros(1, width, device=self._model.device)
        return torch.cat([empty if logits is None else logits for logits in found])

    @torch.no_grad()
    def _passed(self, first: int, rows: Sequence[Row], pieces: Sequence[Sequence[int]]) -> Tensor:
        """Return the logits after the last token of each piece, ``(rows, vocabulary)``."""
        self.before_pass(rows)
        model, length = self._model, max(len(piece) for piece in pieces)
        # Rows that this pass leaves out keep their place too.
        columns = max(*(row.length for row in self._rows), *(row.length + length for row in rows))
        self._key_values.fit(len(self._rows), columns)
        tokens = torch.tensor([[*piece, *[model.pad] * (length - len(piece))] for piece in pieces], device=model.device)
        positions, seen = self._key_values.aim(first, [row.length for row in rows], length)
        mask = torch.zeros(seen.shape, dtype=model.dtype, device=model.device).masked_fill_(~seen, float("-inf"))
        with self._slots.rows([row.slot for row in rows]), self._decoder.quick_attention:
            hidden: Tensor = self._decoder.body(
                input_ids=tokens,
                # Behind the end of a shorter piece nothing is read, but a model may know no position there.
                position_ids=positions.clamp(max=model.encoder.max_tokens - 1),
                attention_mask=mask,
                past_key_values=self._key_values.cache,
                use_cache=True,
            )[0]
        at = torch.tensor([len(piece) - 1 for piece in pieces], device=model.device)
        return self._decoder.scores(hidden[torch.arange(len(rows), device=model.device), at])

    def _order(self) -> None:
        """Bring the rows that generate to the front."""
        first = 0
        for number, row in enumerate(self._rows):
            if row.reads:
                continue
            if number != first:
                other = self._rows[first]
                self._key_values.swap(first, number, max(row.length, other.length))
                self._rows[first], self._rows[number] = row, other
            first += 1

    def _leave(self) -> list[Generation]:
        """Let rows that are done go; return the generations of which no row is left."""
        ended: list[Generation] = []
        number = 0
        while number < len(self._rows):
            row = self._rows[number]
            if row.error is None and not row.continuation.done:
                number += 1
                continue
            self._replace(number)
            if row.adapter is not None:
                self._slots.release(row.adapter.identity)
            generation = self._generations.pop(id(row))
            if not any(id(other) in self._generations for other in generation.rows):
                ended.append(generation)
        return ended

    def _replace(self, number: int) -> None:
        """Fill the place of a row with the last one of its kind, so that those that generate stay in front."""
        for last in (self.generating - 1, len(self._rows) - 1):
            if number <= last and number != last:
                mover = self._rows[last]
                self._key_values.move(last, number, mover.length)
                self._rows[number] = mover
                number = last
        del self._rows[number]


def _left(row: Row) -> int:
    return len(row.tokens) - row.length


def _most_columns(row: Row) -> int:
    """Return how many tokens a row can have in the end."""
    return len(row.tokens) + row.continuation.max_tokens


def complete(batch: Batch, generations: Sequence[Generation]) -> None:
    """Generate until all of ``generations``, which fit into the batch together, have ended."""
    for generation in generations:
        batch.join(generation)
    while len(batch):
        if batch.reading:
            batch.read()
        if batch.generating:
            batch.generate()


def why_not(model: LanguageModel) -> str | None:
    """Return why rows of this model cannot share passes, or None where they can.

    Three prompts of different lengths are asked side by side, one of them with an adapter, and compared with what the
    model answers to each alone.
    """
    name = type(model.network).__name__
    try:
        with model.lock:
            difference = _difference(model)
    except (TTTNotSupportedError, TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        return f"{name}: {first_line(error)}"
    limit = _TOLERANCE if model.dtype == torch.float32 else _TOLERANCE_HALF
    return None if difference <= limit else f"{name} answers otherwise beside other prompts (by {difference:.2g} nats)"


def _difference(model: LanguageModel) -> float:
    """Return how far log-probabilities of tokens side by side are from those alone, in nats."""
    slots = AdapterSlots(model, 2)
    try:
        batch = Batch(model, slots, PrefixCache(0), max_rows=4, max_bytes=2**40)
        adapter = slots.random_adapter(seed=0, size=0.3)
        asked = [
            Generate(
                prompts=[model.encoder.text_tokens(text)],
                max_tokens=_PROBE_TOKENS,
                memory=RequestMemory(),
                adapter=used,
                open_ended=True,
                sampling=Sampling(alternatives=2),
            )
            for text, used in zip(_PROBE_TEXTS, (None, adapter, None), strict=True)
        ]
        together = [generation_of(model, step) for step in asked]
        complete(batch, together)
    finally:
        slots.close()
    largest = 0.0
    for step, generation in zip(asked, together, strict=True):
        (beside,), (by_itself,) = generation.answers(), generated_alone(model, step)
        for one, other in zip(beside.chosen, by_itself.chosen, strict=False):
            if one.token != other.token:
                # From here on the texts differ; by rounding alone only if the two tokens are about as likely.
                largest = max(largest, other.alternatives[0][1] - other.alternatives[1][1])
                break
            largest = max(largest, abs(one.log_probability - other.log_probability))
    return largest
