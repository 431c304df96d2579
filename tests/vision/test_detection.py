from __future__ import annotations

import pytest
import torch
from torch import Tensor

from acclimate.core.losses import sigmoid_entropy, sigmoid_to_softmax, softmax_entropy, weighted_mean
from acclimate.errors import ConfigError
from acclimate.vision.data import boxes
from acclimate.vision.models.detection import Detection
from acclimate.vision.run.tta import Augmenter, TTAConfig


def outputs(scores: list[list[float]], places: list[list[float]], *, head: str = "sigmoid") -> dict[str, Tensor]:
    """Return the outputs on one image, from the class probabilities and the box of each query."""
    probabilities = torch.tensor([scores])
    logits = torch.logit(probabilities) if head == "sigmoid" else probabilities.log()
    return {"logits": logits, "pred_boxes": torch.tensor([places])}


SOMEWHERE = [0.3, 0.3, 0.2, 0.2]
ELSEWHERE = [0.7, 0.6, 0.2, 0.2]


def test_a_sigmoid_equals_a_softmax_with_a_zero_logit() -> None:
    logits = torch.tensor([[0.3], [-2.0]])
    torch.testing.assert_close(sigmoid_to_softmax(logits).softmax(-1)[:, :1], logits.sigmoid())
    torch.testing.assert_close(softmax_entropy(sigmoid_to_softmax(logits)), sigmoid_entropy(logits))


def test_background_is_no_candidate_even_with_high_certainty() -> None:
    task = Detection(head="softmax", min_foreground=0.3)
    decisions = task.decisions(
        outputs([[0.001, 0.001, 0.998], [0.5, 0.1, 0.4]], [SOMEWHERE, ELSEWHERE], head="softmax")
    )
    assert len(decisions) == 1
    torch.testing.assert_close(decisions.weights, torch.tensor([0.5]))
    assert decisions.class_probabilities().shape == (1, 2)
    sigmoid = Detection(head="sigmoid", min_foreground=0.3)
    assert len(sigmoid.decisions(outputs([[0.001, 0.002], [0.8, 0.1]], [SOMEWHERE, ELSEWHERE]))) == 1


def test_candidates_are_limited_to_those_with_the_highest_scores() -> None:
    task = Detection(head="sigmoid", max_candidates=2)
    found = task.decisions(outputs([[0.9], [0.5], [0.7], [0.4]], [SOMEWHERE] * 4))
    torch.testing.assert_close(found.weights, torch.tensor([0.9, 0.7]))


def test_weighted_mean() -> None:
    assert float(weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]))) == pytest.approx(1.5)
    assert float(weighted_mean(torch.tensor([1.0, 3.0]), None)) == 2.0


def test_divergence_matches_queries_by_their_boxes() -> None:
    task = Detection(head="sigmoid")
    teacher = outputs([[0.9, 0.1], [0.1, 0.8], [0.01, 0.01]], [SOMEWHERE, ELSEWHERE, ELSEWHERE])
    shuffled = {key: value[:, [1, 0, 2]] for key, value in teacher.items()}
    same = task.divergence(teacher, teacher)
    assert len(same) == 2
    torch.testing.assert_close(task.divergence(shuffled, teacher), same)
    moved = {**teacher, "pred_boxes": teacher["pred_boxes"] + 0.01}
    torch.testing.assert_close(task.divergence(moved, teacher), same + 5 * 0.04)
    nothing = {**teacher, "logits": torch.full_like(teacher["logits"], -9.0)}
    assert len(task.divergence(teacher, nothing)) == 0
    far = {**teacher, "pred_boxes": torch.full_like(teacher["pred_boxes"], 0.05)}
    assert len(task.divergence(far, teacher)) == 0


def test_merging_a_mirrored_view_gives_the_same_boxes_back() -> None:
    task = Detection(head="sigmoid")
    plain = outputs([[0.9, 0.1], [0.1, 0.8]], [SOMEWHERE, ELSEWHERE])
    seen_mirrored = {"logits": plain["logits"][:, [1, 0]], "pred_boxes": boxes.mirrored(plain["pred_boxes"][:, [1, 0]])}
    view = task.mirror(torch.zeros(1, 3, 4, 4), torch.tensor([True]))
    merged = task.merge([plain, view.undo(seen_mirrored)], plain)
    for key in plain:
        torch.testing.assert_close(merged[key], plain[key])


def test_merging_averages_matched_queries_and_keeps_the_others() -> None:
    task = Detection(head="sigmoid")
    plain = outputs([[0.8], [0.6]], [SOMEWHERE, ELSEWHERE])
    other = outputs([[0.4], [0.9]], [[0.32, 0.3, 0.2, 0.2], [0.1, 0.9, 0.1, 0.1]])
    merged = task.merge([plain, other], plain)
    torch.testing.assert_close(merged["logits"].sigmoid(), torch.tensor([[[0.6], [0.6]]]))
    torch.testing.assert_close(merged["pred_boxes"][0, 0], torch.tensor([0.31, 0.3, 0.2, 0.2]))


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_merging_equal_passes_changes_nothing(head: str) -> None:
    task = Detection(head=head)  # type: ignore[arg-type]
    scores = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]
    plain = outputs(scores, [SOMEWHERE, ELSEWHERE], head=head)
    merged = task.merge([dict(plain), dict(plain)], plain)
    before, after = task.softmax_logits(plain).softmax(-1), task.softmax_logits(merged).softmax(-1)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


def test_masks_are_mirrored_with_their_images() -> None:
    task = Detection(head="softmax")
    batch = {"pixel_values": torch.rand(2, 3, 2, 4), "pixel_mask": torch.tensor([[[1, 1, 1, 0]] * 2] * 2)}
    view = task.mirror(batch, torch.tensor([True, False]))
    assert view.batch["pixel_mask"][0, 0].tolist() == [0, 1, 1, 1]
    assert view.batch["pixel_mask"][1, 0].tolist() == [1, 1, 1, 0]
    assert torch.equal(view.batch["pixel_values"][0], batch["pixel_values"][0].flip(-1))


def test_iou_and_corners() -> None:
    first = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    second = torch.tensor([[0.6, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    torch.testing.assert_close(boxes.pairwise_iou(first, second), torch.tensor([[1 / 3, 1.0, 0.0]]))
    torch.testing.assert_close(boxes.corners(first), torch.tensor([[0.4, 0.4, 0.6, 0.6]]))


def test_unknown_heads_and_missing_outputs_are_refused() -> None:
    with pytest.raises(ConfigError, match="'relu'"):
        Detection(head="relu")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pred_boxes"):
        Detection(head="sigmoid").forward(lambda batch: {"logits": batch}, torch.zeros(1))


@pytest.mark.parametrize(("norm_only", "moves_scores"), [(False, True), (True, False)])
def test_tta_merges_chosen_images_only(norm_only: bool, moves_scores: bool) -> None:
    task = Detection(head="sigmoid")
    plain = {key: value.repeat(6, 1, 1) for key, value in outputs([[0.8]], [SOMEWHERE]).items()}
    other = {
        "logits": torch.full((6, 1, 1), 0.0),
        "pred_boxes": boxes.mirrored(torch.tensor([0.34, 0.3, 0.2, 0.2])).repeat(6, 1, 1),
    }
    answers = iter((plain, other))
    augment = Augmenter(TTAConfig(enabled=True, seed=1, norm_only=norm_only), task)
    chosen = torch.rand(6, generator=torch.Generator().manual_seed(1)) < 0.5
    assert 0 < int(chosen.sum()) < 6

    def predict(inputs: Tensor) -> dict[str, Tensor]:
        answer = next(answers)
        if answer is other:  # images that were not mirrored have the same outputs
            return {key: torch.where(chosen[:, None, None], other[key], plain[key]) for key in other}
        return answer

    merged = augment(torch.rand(6, 3, 4, 4), predict)
    moved = (merged["pred_boxes"] - plain["pred_boxes"]).abs().amax((1, 2)) > 1e-4
    assert torch.equal(moved, chosen)
    assert bool(((merged["logits"] - plain["logits"]).abs().amax((1, 2)) > 1e-4).any()) is moves_scores
    assert augment.summary() == {"images": 6, "mirrored": int(chosen.sum())}
