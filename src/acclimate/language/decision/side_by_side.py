"""Several adapters, compared on the examples of a request that none of them was trained on, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from acclimate.language.decision.evidence import HeldOut
from acclimate.language.examples import Example, folds
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Layout
from acclimate.language.training.adapter import Adapter
from acclimate.language.training.memory import RequestMemory, tensor_bytes
from acclimate.language.training.step_schedule import batch_of

_LEAST_FOR_HALVES = 4


@torch.no_grad()
def compared(
    model: LanguageModel,
    examples: Sequence[Example],
    adapters: Sequence[Adapter],
    *,
    seed: int = 0,
    layout: Layout | None = None,
    memory: RequestMemory | None = None,
) -> list[HeldOut]:
    """Return how the examples are answered by the base model, and then with each adapter.

    Each example is asked once, after those of the other half and the earlier ones of its own; with fewer than four
    examples, after all others.

    Args:
        model: whose lock the caller holds.
        examples: at least two, that no adapter was trained on.
        adapters: at least one, each a single copy.
        seed: of the halves.
        layout: that the examples are written in; None for the model's format.
        memory: what the request holds.
    """
    memory = memory or RequestMemory()
    count, copies = len(examples), len(adapters) + 1
    splits = folds(examples, 2 if count >= _LEAST_FOR_HALVES else count, seed=seed)
    rows = [
        model.encoder.row([examples[i] for i in (*kept, *out)], answers=[*[-1] * len(kept), *out], layout=layout)
        for kept, out in splits
    ]
    targets = batch_of([rows] * copies, pad=model.pad, device=model.device)
    together = Adapter.side_by_side([None, *adapters])
    decoder = model.decoder(1.0)
    with memory.holding("adapters", 2 * together.held_bytes), together.installed(model.network):
        hidden = decoder.hidden(decoder.record(targets.tokens))
    logits = decoder.logits(hidden[targets.row, targets.column])
    with memory.holding("logits of held-out examples", tensor_bytes(logits) + tensor_bytes(hidden)):
        losses = nn.functional.cross_entropy(logits, targets.wanted, reduction="none")
        wrong = (logits.argmax(-1) != targets.wanted).float()
    at = targets.owner * count + targets.example
    likelihoods = torch.zeros(copies * count, device=logits.device).index_add_(0, at, -losses).view(copies, count)
    mistakes = torch.zeros(copies * count, device=logits.device).index_add_(0, at, wrong).view(copies, count)
    found = []
    for likelihood, mistake in zip(likelihoods, mistakes, strict=True):
        exact = tuple(bool(m == 0) for m in mistake.tolist())
        found.append(HeldOut(sum(exact) / count, float(likelihood.mean()), float(likelihood.min()), exact))
    return found
