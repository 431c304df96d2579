"""MIM: adaptation on masked images, by reconstructing them or by predicting the same as on the whole images.

Reconstruction at test time follows Gandelsman et al., NeurIPS 2022 (arXiv 2209.07522), based on He et al., CVPR 2022
(arXiv 2111.06377); masked image consistency follows Hoyer et al., CVPR 2023 (arXiv 2212.01322).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from acclimate.core import layout
from acclimate.core.losses import weighted_mean
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import detach
from acclimate.core.selection import TensorFilter, selecting
from acclimate.core.task import Task
from acclimate.core.views import patch_mask
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.registry import MethodInfo, Paper, Preset


@runtime_checkable
class Reconstructs(Protocol):
    """A model with a reconstruction head."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return the reconstruction ``(B, C, H, W)`` of partly masked images of the same shape."""
        ...


@dataclass(frozen=True, slots=True)
class MimState:
    """The target that is used in this session: ``Mim.target``, with ``auto`` resolved for the model."""

    target: Literal["pixels", "predictions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mim:
    """Mask random patches of each image, and minimise the difference from the pixels or predictions of the whole image.

    Attributes:
        lr: of Adam. 1e-4 is this package's choice; the papers use SGD and AdamW on other networks.
        mask_probability: the probability that a patch is masked (0.75 in MAE, 0.7 in MIC; the default is this
            package's).
        patch_size: side of a patch in pixels.
        mask_value: value of masked pixels, in the units of the batch.
        target: ``pixels``: the loss is the mean squared error on masked pixels, for models with ``reconstruct``;
            ``predictions``: the loss is the divergence of the prediction on the masked image from that on the whole
            image; ``auto``: pixels for models with ``reconstruct``, predictions for others.
        update: the trainable parameters.
        batch_statistics: whether to normalise with the batch's statistics.

    Raises:
        ConfigError: a field is out of range.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="mim",
        title="Masked images",
        paper=Paper(authors="Gandelsman et al.", venue="NeurIPS", year=2022, arxiv="2209.07522"),
        cost=4.5,
        presets=(
            Preset(
                name="mim_safe",
                settings={"update_filter": "norm_only", "lr": 1e-4, "max_drift": 0.2},
                detector={"lr": 1e-5},
            ),
        ),
        own_settings={"mask_probability": "mask_prob", "patch_size": "patch_size", "mask_value": "mask_value"},
    )
    state_types: ClassVar[tuple[type, ...]] = (MimState,)

    lr: float = 1e-4
    mask_probability: float = 0.6
    patch_size: int = 16
    mask_value: float = 0.0
    target: Literal["auto", "pixels", "predictions"] = "auto"
    update: TensorFilter = TensorFilter()
    batch_statistics: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.mask_probability < 1:
            raise ConfigError(f"mim: mask_probability must lie between 0 and 1, got {self.mask_probability}")
        if self.patch_size < 1:
            raise ConfigError(f"mim: patch_size must be at least 1 pixel, got {self.patch_size}")
        if self.target not in ("auto", "pixels", "predictions"):
            raise ConfigError(f"mim: target must be auto, pixels or predictions, got {self.target!r}")

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the parameters that ``update`` chooses.

        Raises:
            TTTNotSupportedError: the target is ``pixels`` and the model cannot reconstruct images.
        """
        if self.target == "pixels" and not isinstance(model, Reconstructs):
            raise TTTNotSupportedError(
                f"mim with target 'pixels' needs a model with a reconstruction head (a method reconstruct(images)) and "
                f"{type(model).__name__} has none; use target 'predictions', which works on any model"
            )
        return selecting(model, self.update, batch_statistics=self.batch_statistics)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, foreach=True)

    def start(self, model: nn.Module, selection: Selection) -> MimState:
        """Return the target for this model."""
        return MimState(self._target(model))

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: MimState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> Step:
        """Make one gradient step on the loss; the outputs are those on the whole images before the update."""
        images = task.images(batch)
        mask = patch_mask(images, patch_size=self.patch_size, probability=self.mask_probability, rng=rng)
        masked = images.masked_fill(mask, self.mask_value)
        with torch.no_grad():
            outputs = task.forward(model, layout.for_prediction(batch))
        if state.target == "pixels":
            rebuilt: Tensor = model.reconstruct(masked)  # type: ignore[operator]
            hidden = mask.expand_as(images)
            loss, used = (rebuilt - images)[hidden].square().mean(), len(images)
        else:
            divergence = task.divergence(task.forward(model, task.with_images(batch, masked)), outputs)
            used = len(divergence)
            if used == 0:
                return Step(state, detach(outputs), None, 0)
            loss = weighted_mean(divergence, None)
        loss.backward()
        optimizer.step()
        return Step(state, detach(outputs), loss.detach(), used)

    def predict(self, model: nn.Module, inputs: Any, state: MimState, *, task: Task) -> Any:
        """Return the adapted model's outputs."""
        return task.forward(model, inputs)

    def learns_from_outputs(self, model: nn.Module) -> bool:
        """Return whether the target is predictions."""
        return self._target(model) == "predictions"

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return the target for this model."""
        return (f"mim: the target is {self._target(model)}",)

    def _target(self, model: nn.Module) -> Literal["pixels", "predictions"]:
        if self.target == "auto":
            return "pixels" if isinstance(model, Reconstructs) else "predictions"
        return self.target
