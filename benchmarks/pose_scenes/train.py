"""Train the RT-DETR with pose heads that ships, from nothing, on generated scenes.

    python benchmarks/pose_scenes/train.py --out runs/pose_scenes        # over an hour on two cores; resumes
    python benchmarks/pose_scenes/train.py --out runs/pose_scenes --ship # then: weights and statistics into the package

64,000 scenes of the split train are drawn once and kept in memory; colour channels change places from one pass to the
next. What a step sees depends on its number alone, so a run that was interrupted sees what an uninterrupted one sees.
Backgrounds include crops of the two photos that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from acclimate.core import norm
from acclimate.core.outputs import map_tensors
from acclimate.core.spectrum import measure
from acclimate.core.views import patch_mask
from acclimate.vision.demos.pose_scenes import CLASSES, Scene, make_scene
from acclimate.vision.demos.pose_scenes.photos import sample_photos
from acclimate.vision.demos.pose_scenes.tensors import as_tensors
from acclimate.vision.models import rtdetr_pose
from acclimate.vision.models.rtdetr_pose import RTDETRPose, small_config

BATCH = 32
POOL = 2_000  # batches
STEPS = 12_000
LR, WARMUP, FINAL_LR = 1.2e-3, 400, 0.01  # the last as a fraction of the first
WEIGHT_DECAY = 1e-4
CLIP = 1.0
EMA_DECAY = 0.9995
MASKED_IMAGES, MASK_PROBABILITY, PATCH = 8, 0.6, 16
RECONSTRUCTION_WEIGHT = 10.0
STATISTICS_BATCHES = 128
SPECTRUM_BATCHES = 64
CHANNEL_ORDERS = [list(order) for order in itertools.permutations(range(3))]


class TrainingScenes(Dataset[Any]):
    """Batches of scenes, by step."""

    def __init__(self, steps: range, seed: int) -> None:
        self.steps, self.seed = steps, seed
        self._drawn: dict[int, list[Scene]] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
        step = self.steps[position]
        images, given, labels = as_tensors(self._batch(step % POOL))
        return images[:, CHANNEL_ORDERS[(step // POOL) % len(CHANNEL_ORDERS)]], given, labels

    def _batch(self, number: int) -> list[Scene]:
        # Scenes, not tensors, are kept: a tensor that another process has seen holds a file open.
        if number not in self._drawn:
            photos, first = sample_photos(), number * BATCH
            self._drawn[number] = [
                make_scene(first + k, split="train", seed=self.seed, photos=photos) for k in range(BATCH)
            ]
        return self._drawn[number]


def batches(steps: range, seed: int) -> Iterator[tuple[Tensor, Tensor, list[dict[str, Tensor]]]]:
    """Yield the batch of each step, made by another process."""

    def one_thread(_: int) -> None:
        cv2.setNumThreads(0)
        torch.set_num_threads(1)

    yield from DataLoader(
        TrainingScenes(steps, seed), batch_size=None, num_workers=1, prefetch_factor=8, worker_init_fn=one_thread
    )


def build(seed: int) -> RTDETRPose:
    """Return an untrained model."""
    torch.manual_seed(seed)
    model = RTDETRPose(small_config(CLASSES))
    for module in model.modules():
        # transformers draws these around zero, for weights that are loaded over them.
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model


def in_bfloat16(module: nn.Module) -> None:
    """Compute ``module`` in bfloat16 and hand on float32: boxes and losses need the precision, convolutions do not."""
    forward = module.forward

    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = forward(*args, **kwargs)
        return map_tensors(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, outputs)

    module.forward = cast  # type: ignore[method-assign]


def learning_rate(step: int) -> float:
    """Return the rate of a step: linear warm-up, then half a cosine."""
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return LR * (FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * progress)))


def reconstruction_loss(model: RTDETRPose, images: Tensor, rng: torch.Generator) -> Tensor:
    """Return the mean squared error on hidden pixels; BatchNorm's running statistics never see a masked image."""
    mask = patch_mask(images, patch_size=PATCH, probability=MASK_PROBABILITY, rng=rng)
    with norm.statistics(model):
        rebuilt = model.reconstruct(images.masked_fill(mask, 0.0))
    return (rebuilt - images)[mask.expand_as(images)].square().mean()


def train(out: Path, seed: int) -> None:
    """Train, from the last checkpoint if there is one."""
    out.mkdir(parents=True, exist_ok=True)
    model = build(seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    averaged = {name: value.clone() for name, value in model.state_dict().items()}
    start, seconds = 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        averaged, start, seconds = saved["averaged"], saved["step"], saved["seconds"]
    for module in (model.model.backbone, model.model.encoder, *model.model.encoder_input_proj):
        in_bfloat16(module)
    for module in model.model.decoder_input_proj:
        in_bfloat16(module)
    began, total = time.perf_counter() - seconds, 0.0
    for step, (images, given, labels) in enumerate(batches(range(start, STEPS), seed), start=start):
        torch.manual_seed(hash((seed, step)))
        rng = torch.Generator().manual_seed(hash((seed, step, 1)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        outputs = model(images, given, labels)
        rebuilt = reconstruction_loss(model, images[:MASKED_IMAGES], rng)
        (outputs.loss + RECONSTRUCTION_WEIGHT * rebuilt).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(EMA_DECAY, (step + 1) / (step + 100))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    averaged[name].lerp_(value, 1 - decay)
                else:
                    averaged[name].copy_(value)
        total += float(outputs.loss.detach())
        if (step + 1) % 100 == 0:
            line = {"step": step + 1, "seconds": round(time.perf_counter() - began), "loss": round(total / 100, 4)}
            parts = {
                name: round(float(value.detach()), 4)
                for name, value in outputs.loss_dict.items()
                if name.count("_") < 3
            }
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps({**line, "reconstruction": round(float(rebuilt.detach()), 5), **parts}) + "\n")
            total = 0.0
        if (step + 1) % 500 == 0 or step + 1 == STEPS:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "averaged": averaged,
                "step": step + 1,
                "seconds": time.perf_counter() - began,
            }
            torch.save(state, out / "checkpoint.part")
            (out / "checkpoint.part").replace(checkpoint)
    finish(out, averaged, seed)


def finish(out: Path, averaged: dict[str, Tensor], seed: int) -> None:
    """Write the averaged weights with BatchNorm statistics of their own: those of 4,096 training scenes."""
    model = build(seed)
    model.load_state_dict(averaged)
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over the batches
    model.train()
    with torch.no_grad():
        for images, given, _ in batches(range(STATISTICS_BATCHES), seed):
            model(images, given)
    model.eval().save_pretrained(out / "model")


def ship(out: Path, seed: int) -> None:
    """Write the model in half precision, and the spectrum of the scenes it was trained on, into the package."""
    folder = Path(rtdetr_pose.__file__).parent / "weights"
    folder.mkdir(exist_ok=True)
    weights = load_file(out / "model" / "model.safetensors")
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((out / "model" / "config.json").read_text())
    spectrum = measure(images for images, _, _ in batches(range(SPECTRUM_BATCHES), seed))
    save_file(spectrum.tensors(), folder / "spectrum.safetensors")


def main() -> None:
    """Train, or ship what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the checkpoint, the log and the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ship", action="store_true", help="write the trained model into the package")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.ship:
        ship(arguments.out, arguments.seed)
    else:
        train(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
