"""What is read and predicted in each training step: rows of tokens, where their answers stand, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from acclimate.language.examples import Example, orderings
from acclimate.language.models.decoder import Decoder, Recording
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Encoder, Row
from acclimate.language.training.recipes import Recipe


class Targets(NamedTuple):
    """Where answers are predicted in a block of rows, and what they are.

    Attributes:
        tokens: ``(rows, length)``, padded on the right.
        row, column: ``(n,)``: where the token before each answer token stands.
        wanted: ``(n,)``: the answer tokens.
        owner: ``(n,)``: the copy of the adapter each belongs to.
        example: ``(n,)``: the number of the example each belongs to.
    """

    tokens: Tensor
    row: Tensor
    column: Tensor
    wanted: Tensor
    owner: Tensor
    example: Tensor


def laid_out(rows: Sequence[Sequence[Row]], *, pad: int, device: torch.device) -> Targets:
    """Return the rows of each copy as one block, with the places of their answers.

    Args:
        rows: per copy; shorter lists are filled up with empty rows.
        pad: token that fills rows up on the right, where nothing looks.
        device: for the tensors.
    """
    most = max(len(block) for block in rows)
    length = max(len(row.tokens) for block in rows for row in block)
    tokens: list[list[int]] = []
    places: list[tuple[int, int, int, int, int]] = []
    for owner, block in enumerate(rows):
        for row in block:
            for column, example in enumerate(row.answer):
                if example >= 0:
                    places.append((len(tokens), column - 1, row.tokens[column], owner, example))
            tokens.append([*row.tokens, *[pad] * (length - len(row.tokens))])
        tokens += [[pad] * length] * (most - len(block))
    columns = [torch.tensor(column, device=device) for column in zip(*places, strict=True)]
    return Targets(torch.tensor(tokens, device=device), *columns)


def training_rows(
    encoder: Encoder, examples: Sequence[Example], order: Sequence[int], loss: str, context_share: float = 0.0
) -> list[Row]:
    """Return the rows that one ordering of ``examples`` gives under a loss.

    ``all_answers`` is one row in which every answer after the first counts, or after the first ``context_share`` of
    them; ``last_answer`` one row for each example, in which it comes last and only its answer counts; ``direct`` each
    example by itself.
    """
    if loss == "direct":
        return [encoder.row([examples[i]], answers=[i]) for i in order]
    if loss == "last_answer":
        return [
            encoder.row([examples[j] for j in others] + [examples[i]], answers=[-1] * len(others) + [i])
            for k, i in enumerate(order)
            for others in [[*order[:k], *order[k + 1 :]]]
        ]
    # The first answer has nothing to be learned from, unless it is the only one.
    shown = max(1, int(context_share * len(order))) if len(order) > 1 else 0
    return [encoder.row([examples[i] for i in order], answers=[*[-1] * shown, *order[shown:]])]


class StepSchedule:
    """The rows of each step, read once below the adapted layers where the same order comes again.

    Args:
        model: that reads them.
        decoder: of it, for the share of layers that is adapted.
        sets: of examples, one for each copy of the adapter.
        recipe: with ``steps`` decided.
    """

    def __init__(
        self, model: LanguageModel, decoder: Decoder, sets: Sequence[Sequence[Example]], recipe: Recipe
    ) -> None:
        self._model, self._decoder, self._sets, self._recipe = model, decoder, sets, recipe
        # A new order at every step, unless reading it anew would cost more than the step.
        distinct = recipe.orderings if decoder.can_replay else max(recipe.orderings, (recipe.steps or recipe.steps_cap))
        self._orders = [
            orderings(len(examples), distinct * recipe.orderings_per_step, seed=recipe.seed) for examples in sets
        ]
        self._distinct = distinct
        self._read: dict[int, tuple[Recording, Targets]] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes that are kept from step to step."""
        return sum(recording.held_bytes for recording, _ in self._read.values())

    def at(self, step: int) -> tuple[Recording, Targets]:
        """Return what is read in ``step``, and where its answers are predicted."""
        which = step % self._distinct
        if which not in self._read:
            per_step = self._recipe.orderings_per_step
            blocks = [
                [
                    row
                    for order in orders[which * per_step : (which + 1) * per_step]
                    for row in training_rows(
                        self._model.encoder, examples, order, self._recipe.loss, self._recipe.context_share
                    )
                ]
                for examples, orders in zip(self._sets, self._orders, strict=True)
            ]
            targets = laid_out(blocks, pad=self._model.pad, device=self._model.device)
            self._read[which] = (self._decoder.record(targets.tokens), targets)
        return self._read[which]
