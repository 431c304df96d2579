"""Learn the low-rank weights that the training of a model's adapters begins with.

    python benchmarks/learned_start/train.py --model spark --out start --work training

First-order meta-learning (Finn, Abbeel and Levine 2017, arXiv 1703.03400, section 5.2) of low-rank weights that are
adapted to one task afterwards, as in ABMLL (arXiv 2508.14285), here without its Bayesian part. For each task of a
batch a request is followed: adapters to both halves of the examples, then steps on all of them from the adapters' mean.
At the weights of the halves the loss on the examples held out of them is differentiated, and at the final weights that
on other questions; the sum of these gradients moves the start. ``--shared`` batches come first, in which no task is
adapted to: the gradient is that of all answers after the first few at the start itself (meta-training for in-context
learning, Min et al. 2022, arXiv 2110.15943), for a tenth of the time. Resumable: the same command goes on from the
last checkpoint in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("spark", "fewshot")]
import english_families
import string_families
import torch
from tasks import pairs
from torch import Tensor, nn
from train_families import training_task

from acclimate.core import lora
from acclimate.language import Adapter, Example, LanguageModel, PromptFormat, load
from acclimate.language.examples import folds
from acclimate.language.models.decoder import Decoder
from acclimate.language.models.learned_start import LearnedStart
from acclimate.language.training.recipes import Recipe
from acclimate.language.training.step_schedule import Targets, batch_of
from acclimate.language.training.trainer import train

#: Tokens of the examples of all tasks in a batch, which are filled with as many as fit.
LENGTHS = {"spark": (50, 75, 100, 130, 170, 220), "smollm2": (40, 60, 80, 100, 130)}
MOST_EXAMPLES, QUESTIONS = 12, 4
#: Share of spark's tasks that are drawn from the families that the model was trained on.
KNOWN_SHARE = 0.1
#: Share of the tasks in batches without adaptation that are written in a layout of :data:`LAYOUTS`.
OTHER_LAYOUT_SHARE = 0.5
#: What stands before inputs, before answers, at the beginning of an answer, and at its end.
LAYOUTS = (
    ("Q: ", "\nA:", " ", "\n\n"),
    ("Q: ", "\nA:", " ", "\n"),
    ("Question: ", "\nAnswer:", " ", "\n\n"),
    ("Text: ", "\nLabel:", " ", "\n\n"),
    ("Sentence: ", "\nResult:", " ", "\n\n"),
    ("In: ", "\nOut:", " ", "\n"),
    ("x: ", "\ny:", " ", "\n\n"),
    ("Source: ", "\nTarget:", " ", "\n---\n"),
    ("input = ", "\noutput =", " ", "\n\n"),
    ("User: ", "\nAssistant:", " ", "\n\n"),
    ("", " ->", " ", "\n"),
    ("", " =>", " ", "\n"),
    ("", " =", " ", "\n"),
    ("", ":", " ", "\n"),
    ("", " |", " ", "\n"),
    ("", "\t", "", "\n"),
    ("- ", ":", " ", "\n"),
    ("> ", "\n", "", "\n\n"),
    ("* ", " -->", " ", "\n"),
    ("<in>", "</in><out>", "", "</out>\n"),
    ("[item] ", " [class]", " ", "\n"),
    ("### Input\n", "\n### Output\n", "", "\n\n"),
    ("Given: ", " | Wanted:", " ", "\n"),
    ("Record: ", "\nRewritten:", " ", "\n\n"),
)
#: Of the gradient at the halves' weights; that at the final weights counts once.
HELD_OUT_WEIGHT = 0.3
#: Outer gradients of one task are scaled down to this norm, so that no task outweighs the others.
MOST_NORM = 0.1
Weights = dict[str, tuple[Tensor, Tensor]]


def task_of(model: LanguageModel, rng: random.Random) -> list[Example]:
    """Return pairs of one task for the model: strings for spark, English for every other."""
    count = MOST_EXAMPLES + QUESTIONS
    if model.name != "spark":
        found = english_families.start_task(rng, count)
    else:
        found = pairs(training_task(rng) if rng.random() < KNOWN_SHARE else string_families.start_task(rng), count, rng)
    return [Example(*pair) for pair in found]


def drawn(model: LanguageModel, rng: random.Random, count: int) -> tuple[list[list[Example]], list[list[Example]]]:
    """Return the examples of ``count`` tasks, of similar length, and questions."""
    room = rng.choice(LENGTHS.get(model.name, LENGTHS["smollm2"]))
    shown: list[list[Example]] = []
    asked: list[list[Example]] = []
    while len(shown) < count:
        found = task_of(model, rng)
        fitting, used = 0, 0
        for example in found[: min(MOST_EXAMPLES, len(found) - QUESTIONS)]:
            used += len(model.encoder.row([example]).tokens)
            fitting += used <= room
        if fitting >= 2:
            shown.append(found[:fitting])
            asked.append(found[fitting : fitting + QUESTIONS])
    return shown, asked


def layout_for(model: LanguageModel, rng: random.Random) -> PromptFormat | None:
    """Return a layout that users write, or None for the model's own format; a model that knows one format keeps it."""
    if model.encoder.format.is_only or rng.random() >= OTHER_LAYOUT_SHARE:
        return None
    before_input, before_answer, lead, after = rng.choice(LAYOUTS)
    return PromptFormat(
        before_input=before_input, before_answer=before_answer, answer_lead=lead, after_answer=after, single_line=True
    )


def token_losses(decoder: Decoder, targets: Targets) -> Tensor:
    """Return the cross-entropy of each answer token, ``(n,)``, in nats."""
    hidden = decoder.hidden(decoder.record(targets.tokens))
    scores = decoder.scores(hidden[targets.row, targets.column])
    return nn.functional.cross_entropy(scores, targets.wanted, reduction="none")


def shared_gradient(
    model: LanguageModel, start: Mapping[str, lora.LowRank], rng: random.Random, count: int
) -> tuple[Weights, dict[str, float]]:
    """Return the gradient at ``start`` of the answers of ``count`` tasks after their first few, and its mean loss."""
    shown, asked = drawn(model, rng, count)
    rows = []
    for before, after in zip(shown, asked, strict=True):
        known = rng.randint(1, max(1, len(before) // 2))
        both = [*before, *after[:2]]
        marks = [i if i >= known else -1 for i in range(len(both))]
        rows.append(model.encoder.row(both, answers=marks, layout=layout_for(model, rng)))
    targets = batch_of([rows], pad=model.pad, device=model.device)
    decoder = model.decoder(1.0)
    found: Weights = {}
    with lora.in_use(model.network, start), decoder.quick_attention, torch.enable_grad():
        losses = token_losses(decoder, targets)
        counts = torch.bincount(targets.row, minlength=count).clamp(min=1)
        loss = (losses / counts[targets.row]).sum() / count
        loss.backward()
        for name, pair in start.items():
            assert pair.lora_A.grad is not None
            assert pair.lora_B.grad is not None
            found[name] = pair.lora_A.grad, pair.lora_B.grad
            pair.lora_A.grad = pair.lora_B.grad = None
    return found, {"shared_nats": float(loss.detach())}


def gradients(
    model: LanguageModel, adapter: Adapter, shown: Sequence[Sequence[Example]], asked: Sequence[Sequence[Example]]
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """Return the gradient, for each copy of ``adapter``, of the loss on what is asked after what is shown; its mean."""
    rows = []
    for before, after in zip(shown, asked, strict=True):
        marks = [*[-1] * len(before), *range(len(before), len(before) + len(after))]
        rows.append([model.encoder.row([*before, *after], answers=marks)])
    targets = batch_of(rows, pad=model.pad, device=model.device)
    decoder = model.decoder(1.0)
    with adapter.installed(model.network), decoder.quick_attention, torch.enable_grad():
        losses = token_losses(decoder, targets)
        counts = torch.bincount(targets.owner, minlength=adapter.copies).clamp(min=1)
        each = torch.zeros(adapter.copies, device=model.device).index_add(
            0, targets.owner, losses / counts[targets.owner]
        )
        each.sum().backward()
        found = {}
        for name in adapter.weights:
            pair = model.network.get_submodule(name).low_rank
            found[name] = pair.lora_A.grad, pair.lora_B.grad
    norms = torch.stack([g.flatten(1).square().sum(1) for pair in found.values() for g in pair]).sum(0).sqrt()
    scale = (MOST_NORM / (norms + 1e-6)).clamp(max=1.0)[:, None, None]
    return {name: (down * scale, up * scale) for name, (down, up) in found.items()}, float(each.detach().mean())


def followed(
    model: LanguageModel, recipe: Recipe, rng: random.Random, count: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    """Return the outer gradient of a batch of ``count`` tasks, and mean losses on the way."""
    shown, asked = drawn(model, rng, count)
    recipe = replace(recipe, seed=rng.randrange(1 << 30), initial_weights="learned")
    parts = recipe.parts
    assert parts is not None
    assert recipe.steps is not None
    splits = [folds(examples, 2, seed=recipe.seed) for examples in shown]
    kept = [[examples[i] for i in split[0]] for examples, both in zip(shown, splits, strict=True) for split in both]
    out = [[examples[i] for i in split[1]] for examples, both in zip(shown, splits, strict=True) for split in both]
    first = replace(
        recipe, steps=round(recipe.steps * parts.share), learning_rate=recipe.learning_rate * parts.rate_factor
    )
    halves = train(model, kept, first)
    at_halves, held_out_loss = gradients(model, halves, kept, out)
    means = {
        name: tuple(part.unflatten(0, (count, 2)).mean(1) for part in pair) for name, pair in halves.weights.items()
    }
    middle = replace(halves, weights=means, copies=count)
    last = replace(
        recipe,
        steps=round(recipe.steps * parts.finishing_share),
        learning_rate=recipe.learning_rate * parts.finishing_rate_factor,
    )
    order = [rng.sample(examples, len(examples)) for examples in shown]
    adapter = train(model, order, last, start=middle)
    at_end, question_loss = gradients(model, adapter, order, asked)
    total = {
        name: tuple(
            HELD_OUT_WEIGHT * half.mean(0) + end.mean(0)
            for half, end in zip(at_halves[name], at_end[name], strict=True)
        )
        for name in at_end
    }
    losses = {"first_nats": halves.losses[0], "held_out_nats": held_out_loss, "questions_nats": question_loss}
    return total, losses  # type: ignore[return-value]


def main() -> None:
    """Learn, save, and write the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="spark")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished weights")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the log")
    parser.add_argument("--begin", type=Path, help="folder with such weights to go on from, instead of random ones")
    parser.add_argument("--steps", type=int, default=400, help="batches of tasks")
    parser.add_argument("--shared", type=int, default=0, help="batches before them in which no task is adapted to")
    parser.add_argument("--tasks", type=int, default=16, help="in a batch")
    parser.add_argument("--rate", type=float, default=2e-3, help="of Adam, on the start")
    parser.add_argument("--rank", type=int, help="of the start; by default that of the model's recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    model = load(given.model, device=given.device)
    recipe = replace(
        model.recipe,
        rank=given.rank or model.recipe.rank_or_default,
        steps=model.recipe.steps_cap,
        early_stop_loss=1e-9,
    )
    pairs_of = lora.created(model.network, model.decoder(1.0).targets, rank=recipe.rank_or_default, seed=given.seed)
    if given.begin is not None:
        with lora.loaded(model.network, given.begin) as pairs_of:
            pass
    learned = {name: (pair.lora_A, pair.lora_B) for name, pair in sorted(pairs_of.items())}
    flat = [part for pair in learned.values() for part in pair]
    optimizer = torch.optim.Adam(flat, lr=given.rate, betas=(0.9, 0.98), foreach=True)
    checkpoint, begin, cpu_before_s = given.work / "start.pt", 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=model.device)
        with torch.no_grad():
            for part, stored in zip(flat, saved["weights"], strict=True):
                part.copy_(stored)
        optimizer.load_state_dict(saved["optimizer"])
        begin, cpu_before_s = saved["step"], saved["cpu_s"]
    cpu = time.process_time()
    log = (given.work / "log.jsonl").open("a")
    recent: list[dict[str, float]] = []
    steps = given.shared + given.steps
    for step in range(begin, steps):
        rng = random.Random(f"{given.seed}/{step}")
        if step < given.shared:
            found, losses = shared_gradient(model, pairs_of, rng, given.tasks)
        else:
            start = LearnedStart({name: (down.detach(), up.detach()) for name, (down, up) in learned.items()})
            found, losses = followed(replace(model, learned_start=start), recipe, rng, given.tasks)
        for name, pair in learned.items():
            for part, grad in zip(pair, found[name], strict=True):
                part.grad = grad
        done = step / steps
        optimizer.param_groups[0]["lr"] = given.rate * (1.0 if done < 0.5 else max(0.03, 2 - 2 * done))
        optimizer.step()
        recent.append(losses)
        if step % 10 == 9 or step == steps - 1:
            cpu_s = cpu_before_s + time.process_time() - cpu
            row: dict[str, Any] = {"step": step + 1, "cpu_s": round(cpu_s, 1)}
            row |= {name: round(mean(r[name] for r in recent if name in r), 4) for name in losses}
            print(json.dumps(row), file=log, flush=True)
            recent.clear()
            state = {"weights": [part.detach() for part in flat], "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1, "cpu_s": cpu_s}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    weights: Weights = {name: (down.detach().half(), up.detach().half()) for name, (down, up) in learned.items()}
    rank = recipe.rank_or_default
    lora.write(given.out, weights, rank=rank, alpha=rank, base_model=given.model, task_type="CAUSAL_LM")
    print(f"{sum(part.numel() for part in flat)} weights, {steps} batches of {given.tasks} tasks -> {given.out}")


if __name__ == "__main__":
    main()
