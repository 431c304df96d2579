from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from acclimate.vision.run.runners import TentRunner, run_ttt_mim
from tests.networks import classifier, images, tensors_of


class Autoencoder(nn.Module):
    """A model with a reconstruction head, as RTDETRPose has."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)
        self.decoder = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(inputs).mean((2, 3)))
        return logits

    def reconstruct(self, inputs: Tensor) -> Tensor:
        rebuilt: Tensor = self.decoder(self.encoder(inputs))
        return rebuilt


def test_mim_on_pixels_learns_to_reconstruct() -> None:
    torch.manual_seed(0)
    model = Autoencoder().eval()
    result = run_ttt_mim(model, [images(16)] * 40, lr=1e-2, patch_size=4, steps=1)
    losses = [loss for loss in result.losses if loss is not None]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert result.mask_ratio == 0.6
    assert result.updated_param_count == sum(p.numel() for p in model.parameters())
    assert "mim: the target is pixels" in result.report.notes


def test_mim_on_predictions_works_on_any_model() -> None:
    model = classifier()
    before = tensors_of(model)
    result = run_ttt_mim(model, [images()], patch_size=4, update_filter="norm_only", steps=2)
    assert len(result.losses) == 2
    assert result.updated_param_count == 16
    assert not torch.equal(model.state_dict()["1.weight"], before["1.weight"])


def test_tent_lowers_the_entropy_of_its_batches() -> None:
    runner = TentRunner(classifier(), lr=1e-2)
    assert runner.updated_param_count == 0
    report = runner.run([images()] * 20)
    assert runner.updated_param_count == 16
    losses = report.losses
    assert losses[-1] == pytest.approx(min(loss for loss in losses if loss is not None))
    assert losses[-1] < losses[0]  # type: ignore[operator]
