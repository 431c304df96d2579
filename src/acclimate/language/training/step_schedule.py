"""The token rows of each training step, the places of their answers, and the activations kept between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from acclimate.language.examples import Example, orderings
from acclimate.language.models.decoder import Decoder, Recording
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Encoder, Layout, Row
from acclimate.language.training.recipes import Recipe


class Targets(NamedTuple):
    """A batch of token rows, and where answers are predicted in it.

    Attributes:
        tokens: ``(rows, length)``, padded on the right.
        row, column: ``(n,)``: the place of the token before each answer token.
        wanted: ``(n,)``: the answer tokens.
        owner: ``(n,)``: the copy of the adapter that each belongs to.
        example: ``(n,)``: the number of the example that each belongs to.
    """

    tokens: Tensor
    row: Tensor
    column: Tensor
    wanted: Tensor
    owner: Tensor
    example: Tensor


def batch_of(rows: Sequence[Sequence[Row]], *, pad: int, device: torch.device) -> Targets:
    """Return the rows of each copy as one batch, with the places of their answers.

    Args:
        rows: per copy; shorter lists are filled up with empty rows.
        pad: token that fills rows up on the right, where no token attends to it.
        device: of the tensors.
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
    encoder: Encoder,
    examples: Sequence[Example],
    order: Sequence[int],
    loss: str,
    context_share: float = 0.0,
    layout: Layout | None = None,
) -> list[Row]:
    """Return the rows that one order of ``examples`` gives under a loss.

    ``all_answers`` is one row in which every answer after the first counts, or after the first ``context_share`` of
    them; ``last_answer`` is one row for each example, in which it comes last and only its answer counts; ``direct`` is
    each example by itself. They are written in ``layout``, None for the model's format.
    """
    if loss == "direct":
        return [encoder.row([examples[i]], answers=[i], layout=layout) for i in order]
    if loss == "last_answer":
        return [
            encoder.row([examples[j] for j in others] + [examples[i]], answers=[-1] * len(others) + [i], layout=layout)
            for k, i in enumerate(order)
            for others in [[*order[:k], *order[k + 1 :]]]
        ]
    # The first answer has no examples before it to follow: it counts only where it is the only one.
    shown = max(1, int(context_share * len(order))) if len(order) > 1 else 0
    return [encoder.row([examples[i] for i in order], answers=[*[-1] * shown, *order[shown:]], layout=layout)]


class StepSchedule:
    """The batch of each step; where an order comes again, the layers below the adapted ones run once for it.

    Args:
        model: whose lock the caller holds.
        decoder: of it, for the share of layers that is adapted.
        sets: of examples, one for each copy of the adapter.
        recipe: with ``steps`` decided.
        layouts: that each set is written in; None for the model's format.
    """

    def __init__(
        self,
        model: LanguageModel,
        decoder: Decoder,
        sets: Sequence[Sequence[Example]],
        recipe: Recipe,
        layouts: Sequence[Layout | None],
    ) -> None:
        self._model, self._decoder, self._sets, self._recipe = model, decoder, sets, recipe
        self._layouts = layouts
        # Every step gets an order of its own, unless lower layers would have to run for it.
        distinct = recipe.orderings if decoder.can_replay else max(recipe.orderings, (recipe.steps or recipe.steps_cap))
        self._orders_of_sets = [
            orderings(len(examples), distinct * recipe.orderings_per_step, seed=recipe.seed) for examples in sets
        ]
        self._distinct = distinct
        self._batches: dict[int, tuple[Recording, Targets]] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of the activations that are kept between steps."""
        return sum(recording.held_bytes for recording, _ in self._batches.values())

    def at(self, step: int) -> tuple[Recording, Targets]:
        """Return the recording of the batch of ``step``, and where its answers are predicted."""
        which = step % self._distinct
        if which not in self._batches:
            per_step = self._recipe.orderings_per_step
            blocks = [
                [
                    row
                    for order in orders[which * per_step : (which + 1) * per_step]
                    for row in training_rows(
                        self._model.encoder, examples, order, self._recipe.loss, self._recipe.context_share, layout
                    )
                ]
                for examples, orders, layout in zip(self._sets, self._orders_of_sets, self._layouts, strict=True)
            ]
            targets = batch_of(blocks, pad=self._model.pad, device=self._model.device)
            self._batches[which] = (self._decoder.record(targets.tokens), targets)
        return self._batches[which]
