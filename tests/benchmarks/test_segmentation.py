"""The street-scene network of the benchmark on real frames, through the adapter and the scorer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from acclimate.vision.data.records import load_dataset
from acclimate.vision.evaluation.segmentation import SegmentationScorer
from acclimate.vision.models.torch_adapter import TorchAdapter

DATA = Path(os.environ.get("ACCLIMATE_DATA", "/nowhere")) / "camvid"
BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "segmentation"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="set ACCLIMATE_DATA to a folder with camvid/ (see benchmarks/segmentation/README.md)"
)


def test_the_published_weights_segment_streets_by_day_and_at_dusk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK))
    for name in ("Seq05VD_f02520.png", "0001TP_009000.png"):
        shutil.copy(DATA / "images" / name, tmp_path / name)
    adapter = TorchAdapter("espnet:camvid", checkpoint=str(DATA / "espnet_p2_q8.safetensors"))
    entries = adapter.predict(load_dataset(tmp_path).records)
    scorer = SegmentationScorer(DATA / "labels", [entry["image"] for entry in entries], ignore_value=11)
    score = scorer.score(entries)
    assert score.metrics["mIoU"] > 0.45
    assert score.metrics["accuracy"] > 0.8
