"""Whether a GPU gives what a processor gives: every method on every small network of the tests, adapters, answers."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from measuring import wait
from tests.contract import test_methods as contract
from torch import nn

from acclimate.core import Classification, Session
from acclimate.core.method import UsesSourceImages
from acclimate.core.outputs import tensors
from acclimate.core.placement import compute_in
from acclimate.core.precision import dtype_of
from acclimate.core.source_images import SourceImages
from acclimate.core.spectrum import measure
from acclimate.language import Example, load
from acclimate.language.models.decoding import Sampling
from acclimate.language.steps import Generate, generated_alone
from acclimate.language.training.memory import RequestMemory
from acclimate.language.training.recipes import decided
from acclimate.language.training.trainer import train
from acclimate.methods import Tent
from acclimate.serve.batch import Batch, generation_of
from acclimate.serve.prefixes import PrefixCache
from acclimate.serve.slots import AdapterSlots

#: Largest difference of outputs, relative to the largest output, that another order of sums explains after 3 steps.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
STEPS = 3


def exact(on: bool = True) -> None:
    """Let the GPU compute float32 as float32: TF32 products keep ten bits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not on


def methods(device: torch.device, *, most_s: float = 80.0) -> dict[str, Any]:
    """Check every method on every small network; return the counts, the worst difference of each, and all failures."""
    exact()
    failures: list[dict[str, str]] = []
    worst: dict[str, dict[str, float]] = {}
    counts = {"compared": 0, "drawing random numbers": 0, "failed": 0, "left out": 0}
    counts["rounding of float32, equal in float64"] = 0
    rounded: list[dict[str, Any]] = []
    began = time.perf_counter()
    for case in contract.CASES:
        method, network = case.values
        if time.perf_counter() - began > most_s:
            counts["left out"] += 1
            continue
        try:
            difference, draws, problem = _compared(method, network, device)
        except Exception as error:  # noqa: BLE001 - recorded
            difference, draws, problem = math.nan, False, f"{type(error).__name__}: {str(error)[:300]}"
        if draws and problem is None:
            counts["drawing random numbers"] += 1
            continue
        counts["compared"] += 1
        if problem is None and math.isfinite(difference):
            kind = str(dtype_of(contract.NETWORKS[network]()[0])).removeprefix("torch.")
            worst.setdefault(kind, {})[method] = max(worst.get(kind, {}).get(method, 0.0), difference)
        if problem is not None and dtype_of(contract.NETWORKS[network]()[0]) == torch.float32:
            # Adam divides gradients that are zero but for rounding by their own size. In float64 they stay small.
            in_float64, _, still = _compared(method, network, device, dtype=torch.float64)
            if still is None:
                counts["rounding of float32, equal in float64"] += 1
                rounded.append({"method": method, "network": network, "float32": difference, "float64": in_float64})
                continue
        if problem is not None:
            counts["failed"] += 1
            failures.append({"method": method, "network": network, "problem": problem})
    return {"counts": counts, "worst_relative_difference": worst, "rounded": rounded, "failures": failures}


def _made(method: str, model: nn.Module, device: torch.device) -> Any:
    made = contract.METHODS[method]()
    if isinstance(made, UsesSourceImages):
        # As an adapter gives it: the stored spectrum is on the processor.
        source = SourceImages(spectrum=measure([contract.SMOOTH]))
        made = made.with_source(model, source, task=Classification())
    if method == "foa_shift":
        made = dataclasses.replace(made, source_mean=made.source_mean.to(device))
    return made


def _run(
    method: str, network: str, device: torch.device, dtype: torch.dtype | None
) -> tuple[list[Any], list[str], bool, torch.dtype]:
    model, batch, task = contract.NETWORKS[network]()
    model, batch = model.to(device, dtype), batch.to(device, dtype)
    outputs: list[Any] = []
    verdicts: list[str] = []
    with Session(model, _made(method, model, device), task=task) as session, tempfile.TemporaryDirectory() as folder:
        before = session._open().rng.get_state()
        for step in range(STEPS):
            found, report = session.adapt_and_predict(batch.roll(step, 0))
            outputs.append([tensor.detach().double().cpu() for tensor in tensors(found)])
            verdicts.append(report.verdict)
        outputs.append([tensor.detach().double().cpu() for tensor in tensors(session.predict(batch))])
        draws = not torch.equal(before, session._open().rng.get_state())
        # What was saved is read back to the same device, and the next step works with it.
        path = Path(folder) / "state.safetensors"
        session.save_state(path)
        session.load_state(path)
        _, report = session.adapt_and_predict(batch)
        verdicts.append(report.verdict)
        session.rollback()
        session.reset()
        session.predict_as_source(batch)
    return outputs, verdicts, draws, batch.dtype


def _compared(
    method: str, network: str, device: torch.device, *, dtype: torch.dtype | None = None
) -> tuple[float, bool, str | None]:
    expected, verdicts, _, used = _run(method, network, torch.device("cpu"), dtype)
    found, own_verdicts, draws, _ = _run(method, network, device, dtype)
    if draws or method == "memo":
        # A GPU draws other numbers: the run must repeat instead.
        again, repeated, _, _ = _run(method, network, device, dtype)
        same = all(_apart(one, other) <= 1e-3 for one, other in zip(found, again, strict=True))
        return 0.0, True, None if same and repeated == own_verdicts else "a second run gave other results"
    difference = max(_apart(one, other) for one, other in zip(found, expected, strict=True))
    if own_verdicts != verdicts:
        return difference, False, f"verdicts {own_verdicts}, on the processor {verdicts}"
    if difference > TOLERANCE[used]:
        return difference, False, f"outputs differ by {difference:.3g} of the largest"
    return difference, False, None


def _apart(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return math.inf
        if one.numel():
            worst = max(worst, float((one - other).abs().max() / other.abs().max().clamp(min=1e-6)))
    return worst


def precision(device: torch.device) -> dict[str, Any]:
    """Return how far outputs and Tent's weights move with automatic mixed precision and channels last."""
    exact()
    found: dict[str, Any] = {}
    for name, autocast, channels_last in (
        ("channels last", None, True),
        ("autocast bfloat16", torch.bfloat16, False),
        ("autocast bfloat16, channels last", torch.bfloat16, True),
        ("autocast float16", torch.float16, False),
    ):
        reference = None
        for changed in (False, True):
            model, batch, task = contract.NETWORKS["classifier-bn"]()
            model, batch = model.to(device), batch.to(device)
            if changed:
                compute_in(model, autocast=autocast, channels_last=channels_last)
            with Session(model, Tent(lr=1e-3), task=task) as session:
                outputs = [session.adapt_and_predict(batch)[0].detach().double().cpu() for _ in range(3)]
                verdicts = [step.verdict for step in session.report().steps]
            if reference is None:
                reference = outputs
                continue
            found[name] = {
                "difference_of_outputs": max(_apart([a], [b]) for a, b in zip(outputs, reference, strict=True)),
                "verdicts": verdicts,
                "float32_outputs": outputs[0].dtype == torch.float64,
            }
    return found


def language(device: torch.device) -> dict[str, Any]:
    """Check training, answers alone, and answers side by side with spark in float32."""
    exact()
    examples = [Example(word, word[::-1]) for word in "river stone cloud table green house light water".split()]
    runs: dict[str, Any] = {}
    for place in ("cpu", str(device)):
        model = load("spark", device=place, dtype=torch.float32)
        recipe = decided(model.recipe, examples)
        adapter = train(model, [examples], recipe)
        several = train(model, [examples, examples[:5], examples[3:]], recipe)
        slots = AdapterSlots(model, 4)
        random = [None, *(slots.random_adapter(seed=number) for number in range(3)), adapter]
        steps = [
            Generate(
                prompts=[tuple(model.encoder.row(examples[: 2 + n % 5], query="melon").tokens)],
                max_tokens=8,
                memory=RequestMemory(),
                adapter=random[n % len(random)],
                open_ended=True,
                sampling=Sampling(alternatives=2),
            )
            for n in range(12)
        ]
        with model.lock:
            alone = [generated_alone(model, step)[0] for step in steps]
            batch = Batch(model, slots, PrefixCache(2**20), max_rows=8, max_bytes=2**30)
            together = _together(model, batch, steps)
            slots.close()
        wait(device)
        runs[place] = {
            "losses": list(adapter.losses),
            "several": list(several.losses),
            "alone": [[one.token for one in answer.chosen] for answer in alone],
            "together": [[one.token for one in answer.chosen] for answer in together],
            "probabilities": [[one.log_probability for one in answer.chosen] for answer in alone],
            "repeats": list(train(model, [examples], recipe).losses) == list(adapter.losses),
        }
    one, other = runs["cpu"], runs[str(device)]
    return {
        "losses_on_processor": [round(loss, 4) for loss in one["losses"]],
        "largest_difference_of_losses": max(
            abs(a - b)
            for key in ("losses", "several")
            for a, b in zip(one[key], other[key], strict=False)
        ),
        "steps_equal": len(one["losses"]) == len(other["losses"]),
        "answers_equal": sum(a == b for a, b in zip(one["alone"], other["alone"], strict=True)),
        "answers_beside_others_equal_those_alone": sum(
            a == b for a, b in zip(other["together"], other["alone"], strict=True)
        ),
        "answers": len(one["alone"]),
        "training_repeats_to_the_bit": other["repeats"],
    }  # fmt: skip


def _together(model: Any, batch: Batch, steps: list[Generate]) -> list[Any]:
    waiting = [generation_of(model, step, number) for number, step in enumerate(steps)]
    ended: dict[int, Any] = {}
    while waiting or len(batch):
        while waiting and batch.can_join(waiting[0]) and batch.join(waiting[0]):
            del waiting[0]
        done = batch.read() if batch.reading else []
        done += batch.generate() if batch.generating else []
        ended |= {generation.owner: generation.answers()[0] for generation in done}
    return [ended[number] for number in range(len(steps))]


def exported(device: torch.device) -> dict[str, Any]:
    """Export images with the command's own code on the processor and on the device; compare the predictions."""
    exact()
    from tests.networks import write_images

    from acclimate.vision.models.loading import AdapterOptions
    from acclimate.vision.run.export import ExportJob, export

    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_images(folder / "images", 24)
        for reset, method in (("stream", "tent"), ("online", "bn"), ("sample", "tent"), ("none", "")):
            entries = {}
            for place in ("cpu", str(device)):
                job = ExportJob(
                    source=folder / "images",
                    output=folder / f"{reset}_{place.replace(':', '_')}.json",
                    adapter=AdapterOptions(adapter="torch", model="tests.vision.factories:classifier", device=place),
                    ttt=None if reset == "none" else {"method": method, "reset": reset, "lr": 1e-3, "batch_size": 8},
                )
                entries[place] = export(job).entries
            one, other = entries["cpu"], entries[str(device)]
            scores = [
                abs(a["classification"]["score"] - b["classification"]["score"])
                for a, b in zip(one, other, strict=True)
            ]
            classes = sum(
                a["classification"]["class_id"] == b["classification"]["class_id"]
                for a, b in zip(one, other, strict=True)
            )
            name = f"{reset} {method}".strip()
            found[name] = {"largest_difference_of_scores": max(scores), "classes_equal": classes, "images": len(one)}
    return found
