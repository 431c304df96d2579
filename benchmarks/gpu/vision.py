"""Cost of adapting networks of the size of ResNet-50 and ViT-B, with random weights and images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from measuring import busy_share, peak_mib, seconds
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from acclimate.core import Classification, Session
from acclimate.core.losses import softmax_entropy
from acclimate.core.placement import compute_in
from acclimate.core.source_images import SourceImages
from acclimate.core.spectrum import measure
from acclimate.methods import BatchNormStats, Blend, Tent

#: Number formats: of the weights, of automatic mixed precision, channels last, and TF32 products.
FORMATS: dict[str, tuple[torch.dtype, torch.dtype | None, bool, bool]] = {
    "float32": (torch.float32, None, False, False),
    "tf32": (torch.float32, None, False, True),
    "autocast bfloat16": (torch.float32, torch.bfloat16, False, True),
    "autocast bfloat16, channels last": (torch.float32, torch.bfloat16, True, True),
    "bfloat16 weights, channels last": (torch.bfloat16, None, True, True),
}


#: Passes that a step makes: forward, and backward to activations alone, because no matrix learns.
PASSES: dict[str, int] = {
    "plain": 1, "bn": 1, "bn, no guards": 1, "tent": 2, "tent, no guards": 2, "hand-written tent": 2,
}  # fmt: skip
ROWS = ("plain", "hand-written tent", "bn", "bn, no guards", "tent", "tent, no guards", "blend", "blend, no guards")


class Logits(nn.Module):
    """A classifier of transformers that takes and returns tensors."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images).logits  # type: ignore[no-any-return]


def network(name: str, *, small: bool) -> nn.Module:
    """Return a network of the default sizes of transformers, which are those of ResNet-50 and ViT-B/16."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    if name == "resnet":
        sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]} if small else {}
        return Logits(ResNetForImageClassification(ResNetConfig(num_labels=1000, **sizes))).eval()
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return Logits(ViTForImageClassification(ViTConfig(num_labels=1000, **(sizes if small else {})))).eval()


@torch.no_grad()
def fitted(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return a network whose BatchNorm statistics are those of ``images`` and whose logits differ as a trained one's.

    With random statistics and flat outputs guards reject every step, and what is measured is their remedy.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    model(images)
    model.eval()
    spread = model(images).std(0).mean()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    head.weight.mul_(4 / spread)
    return model


def smooth_images(count: int, side: int, device: torch.device) -> torch.Tensor:
    coarse = torch.rand(count, 3, 8, 8, device=device)
    return nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def flops_per_image(model: nn.Module, side: int) -> int:
    """Return the floating-point operations of one prediction of one image."""
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    return int(counted.get_total_flops())


def hand_written_tent(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Return one step of Tent as a careful user writes it: no guard, no snapshot, no report."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    model.requires_grad_(False)
    for norm in norms:
        norm.requires_grad_(True)
        if isinstance(norm, nn.BatchNorm2d):
            norm.train()
            norm.track_running_stats = False
    parameters = [p for norm in norms for p in norm.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-5, foreach=True)

    def step() -> None:
        optimizer.zero_grad()
        softmax_entropy(model(images).float()).mean().backward()
        optimizer.step()

    return step


def methods(device: torch.device, side: int) -> dict[str, Any]:
    smooth = nn.functional.interpolate(torch.rand(64, 3, 8, 8), size=side, mode="bicubic").clamp(0, 1)
    spectrum = measure([smooth])
    blend = Blend().with_source(
        nn.Linear(1, 1, device=device), SourceImages(spectrum=spectrum), task=Classification(pixel_range=(0.0, 1.0))
    )
    # A small rate: random weights must stay finite over many steps.
    return {"bn": BatchNormStats(), "tent": Tent(lr=1e-5), "blend": blend}


def measured(
    device: torch.device, limits: dict[str, Any], *, which: str, batch: int, formats: list[str], small: bool
) -> dict[str, Any]:
    """Return the cost of each method in each number format; failures are recorded with the rest."""
    side = 64 if small and which == "resnet" else 224
    batch = 4 if small else batch
    plain = network(which, small=small)
    flops = flops_per_image(plain, side)
    found: dict[str, Any] = {"network": which, "batch": batch, "side": side, "gflop_per_image": round(flops / 1e9, 2)}
    found["parameters"] = sum(p.numel() for p in plain.parameters())
    for name in formats:
        dtype, autocast, channels_last, products = FORMATS[name]
        peak = limits.get(
            "tf32_tflops" if products and dtype == torch.float32 and autocast is None else
            "float32_tflops" if dtype == torch.float32 and autocast is None else "bfloat16_tflops"
        )  # fmt: skip
        rows: dict[str, Any] = {}
        found[name] = rows
        for method in ROWS:
            if method.startswith("bn") and which == "vit":
                continue
            try:
                with tf32(products):
                    rows[method] = _row(which, method, device, batch, side, dtype, autocast, channels_last, small)
            except Exception as error:  # noqa: BLE001 - one failure must not end the measurement
                rows[method] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
                continue
            finally:
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            row = rows[method]
            if "ms" in rows.get("plain", {}):
                row["times_plain"] = round(row["ms"] / rows["plain"]["ms"], 3)
            if peak and method in PASSES:
                row["share_of_matmul"] = round(PASSES[method] * flops * batch / row["ms"] * 1e3 / 1e12 / peak, 3)
    return found


def _row(
    which: str,
    method: str,
    device: torch.device,
    batch: int,
    side: int,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    channels_last: bool,
    small: bool,
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = fitted(network(which, small=small).to(device), smooth_images(batch, side, device)).to(dtype)
    compute_in(model, autocast=autocast, channels_last=channels_last)
    torch.manual_seed(1)
    # Noise over smooth images: the filter of blend has work to do.
    images = smooth_images(batch, side, device)
    images = (images + 0.05 * torch.randn_like(images)).clamp(0, 1).to(dtype)
    least_s = 0.05 if small else 0.4
    with ExitStack() as stack:
        if method == "hand-written tent":
            work: Callable[[], Any] = hand_written_tent(model, images)
        elif method == "plain":

            def work() -> None:
                with torch.no_grad():
                    model(images)

        else:
            task = Classification(pixel_range=(0.0, 1.0))
            name, guards = (method.partition(",")[0], () if "no guards" in method else None)
            session = stack.enter_context(Session(model, methods(device, side)[name], task=task, guards=guards))

            def work() -> None:
                session.adapt_and_predict(images)

            # The comparisons of the first images are not what a stream costs.
            for _ in range(max(6, 1024 // batch if not small else 2)):
                work()
        taken = seconds(work, device, least_s=least_s)
        row: dict[str, Any] = {"ms": round(1e3 * taken, 3), "images_per_s": round(batch / taken, 1)}
        row["peak_mib"] = peak_mib(device, work)
        if batch == 64 and not small:
            row |= busy_share(device, work)
        if method not in ("plain", "hand-written tent"):
            report = session.report()
            row |= {"verdicts": dict(report.counts), "held_mib": round(report.held_bytes / 2**20, 1)}
    return row


def compiled(device: torch.device, *, small: bool) -> dict[str, Any]:
    """Return what ``torch.compile`` gains for prediction and for a step of Tent, in bfloat16 with channels last."""
    if device.type != "cuda":
        return {"left out": "compiling for a processor takes minutes"}
    found: dict[str, Any] = {}
    batch, side = (2, 224) if small else (64, 224)
    for which in ("resnet", "vit"):
        for work_name in ("plain", "hand-written tent"):
            rows: dict[str, Any] = {}
            found[f"{which}, {work_name}"] = rows
            for is_compiled in (False, True):
                torch._dynamo.reset()
                model = network(which, small=small).to(device)
                compute_in(model, channels_last=True)
                images = torch.rand(batch, 3, side, side, device=device)
                called = torch.compile(model) if is_compiled else model
                step = None if work_name == "plain" else hand_written_tent(called, images)

                def work(step: Any = step, called: Any = called, images: torch.Tensor = images) -> None:
                    with torch.autocast(device.type, dtype=torch.bfloat16), torch.set_grad_enabled(step is not None):
                        called(images) if step is None else step()

                name = "compiled" if is_compiled else "not compiled"
                start = time.perf_counter()
                try:
                    work()
                    rows[name] = {"first_call_s": round(time.perf_counter() - start, 2)}
                    rows[name]["ms"] = round(1e3 * seconds(work, device, least_s=0.05 if small else 0.4), 3)
                except Exception as error:  # noqa: BLE001 - one failure must not end the measurement
                    rows[name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    return found
