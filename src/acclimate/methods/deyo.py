"""DeYO: entropy of samples whose prediction depends on the object's shape (Lee et al., ICLR 2024, arXiv 2403.07366)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.core import layout
from acclimate.core.losses import entropy_margin_nats, softmax_entropy
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import at_least_float32, detach
from acclimate.core.selection import LAST_BLOCKS, TensorFilter, selecting
from acclimate.core.task import Task, logits_of, require_classifier
from acclimate.errors import ConfigError
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Deyo:
    """Minimise the entropy of samples that are certain, and less so after their patches have been shuffled.

    Attributes:
        lr: of the optimizer. 1e-3 with Adam is the benchmark repository's for CIFAR-10; the paper's is SGD at 2.5e-4
            for ResNet-50.
        entropy_margin: tau_Ent as a fraction of ln(classes); samples with a higher entropy are not used (eq. 5; 0.5 in
            the code).
        weight_margin: Ent_0 as a fraction of ln(classes), in the sample weights (eq. 7; 0.4).
        min_difference: tau_PLPD; samples whose pseudo-label loses less probability by shuffling are not used (eq. 5;
            0.2).
        patches: number of patches along each side (4).
        frozen_layers: patterns of layers that are never trainable, as in the official code (and SAR's); they match
            nothing in other networks.
        update: the trainable parameters.
        batch_statistics: whether to normalise with the batch's statistics.

    Raises:
        ConfigError: a margin is not positive, or there are fewer than two patches along each side.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="deyo",
        title="DeYO",
        paper=Paper(authors="Lee et al.", venue="ICLR", year=2024, arxiv="2403.07366"),
        cost=4.0,
        parameters_of_paper="norm_only",
        kinds=("classifier",),
        presets=(Preset(name="deyo_safe", settings={"update_filter": "norm_only", "lr": 1e-3, "max_drift": 0.2}),),
    )

    lr: float = 1e-3
    entropy_margin: float = 0.5
    weight_margin: float = 0.4
    min_difference: float = 0.2
    patches: int = 4
    frozen_layers: tuple[str, ...] = LAST_BLOCKS
    update: TensorFilter = TensorFilter()
    batch_statistics: bool = True

    def __post_init__(self) -> None:
        for name in ("entropy_margin", "weight_margin"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"deyo: {name} must be positive, got {getattr(self, name)}")
        if self.patches < 2:
            raise ConfigError(f"deyo: patches must be at least 2, got {self.patches}")

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the parameters that ``update`` chooses, without ``frozen_layers``."""
        return selecting(model, self.update.without(self.frozen_layers), batch_statistics=self.batch_statistics)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, foreach=True)

    def start(self, model: nn.Module, selection: Selection) -> None:
        """Return None: there is no state."""

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: None,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> Step:
        """Make one gradient step on eq. 8; the outputs are those before the update.

        Raises:
            TTTNotSupportedError: the task is no classifier's.
        """
        require_classifier(task, self.info.name)
        outputs = task.forward(model, batch)
        logits = logits_of(outputs)
        nothing = Step(state, detach(outputs), None, 0)
        entropy = softmax_entropy(logits)
        certain = (entropy.detach() < entropy_margin_nats(self.entropy_margin, logits.shape[-1])).nonzero().flatten()
        if len(certain) == 0:
            return nothing
        with torch.no_grad():
            shuffled = shuffled_patches(task.images(batch)[certain], patches=self.patches, rng=rng)
            without_shape = logits_of(task.forward(model, layout.for_prediction(shuffled))).softmax(-1)
            probability, label = logits.detach()[certain].softmax(-1).max(-1)
            difference = probability - without_shape.gather(1, label[:, None])[:, 0]
        keep = difference > self.min_difference
        used = int(keep.sum())
        if used == 0:
            return nothing
        kept = entropy[certain[keep]]
        margin = entropy_margin_nats(self.weight_margin, logits.shape[-1])
        weight = torch.exp(margin - kept.detach()) + torch.exp(difference[keep])
        loss = (weight * kept).mean()
        loss.backward()
        optimizer.step()
        return Step(state, detach(outputs), loss.detach(), used)

    def predict(self, model: nn.Module, inputs: Any, state: None, *, task: Task) -> Any:
        """Return the adapted model's outputs."""
        return task.forward(model, inputs)

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return no notes."""
        return ()


def shuffled_patches(images: Tensor, *, patches: int, rng: torch.Generator) -> Tensor:
    """Return ``(B, C, H, W)`` images whose ``patches`` by ``patches`` parts are in a random order for each image.

    Images whose size is not a multiple of ``patches`` are resized to one that is, and back, as in the official code.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patches, width // patches
    if rows < 1 or columns < 1:
        raise ConfigError(
            f"deyo: images of {height} x {width} pixels cannot be cut into {patches} patches along each side; "
            "use fewer patches"
        )
    fitting = _resized(images, rows * patches, columns * patches)
    cut = fitting.reshape(batch, channels, patches, rows, patches, columns).permute(0, 2, 4, 1, 3, 5)
    order = torch.rand((batch, patches * patches), generator=rng, device=images.device).argsort(-1)
    mixed = cut.flatten(1, 2)[torch.arange(batch, device=images.device)[:, None], order]
    whole = mixed.reshape(batch, patches, patches, channels, rows, columns).permute(0, 3, 1, 4, 2, 5)
    return _resized(whole.reshape(fitting.shape), height, width)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    # There is no kernel for half precision on the CPU.
    resized = F.interpolate(at_least_float32(images), size=(height, width), mode="bilinear", antialias=True)
    return resized.to(images.dtype)
