from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from acclimate.cli.main import main
from acclimate.errors import ConfigError
from acclimate.vision.data.records import load_dataset
from acclimate.vision.models.torch_adapter import TorchAdapter
from acclimate.vision.run.settings import resolve_config
from tests.networks import write_images

FACTORIES = "tests.vision.factories"


@pytest.mark.parametrize("factory", ["detector", "softmax_detector", "dense"])
def test_source_images_alone_choose_the_filter_for_a_detector(tmp_path: Path, factory: str) -> None:
    write_images(tmp_path / "source", 2)
    source = load_dataset(tmp_path / "source").records
    adapter = TorchAdapter(f"{FACTORIES}:{factory}")
    assert resolve_config(adapter, {}, None, source_records=source).method == "spectrum"
    assert resolve_config(adapter, {}, "safe", source_records=source).method == "spectrum"
    assert resolve_config(adapter, {}, None).method == "bn"
    with pytest.raises(ConfigError, match="no effect with tent"):
        resolve_config(adapter, {"method": "tent"}, None, source_records=source)


def test_the_command_adapts_a_detector_with_source_images_and_no_method(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    write_images(tmp_path / "source", 3, seed=1)
    images, source, output = (str(tmp_path / name) for name in ("images", "source", "found.json"))
    model = ["--adapter", "torch", "--model", f"{FACTORIES}:detector"]
    result = CliRunner().invoke(
        main, ["export", images, *model, "--ttt", "--ttt-source", source, "--wrap", "--output", output]
    )
    assert result.exit_code == 0, result.output
    assert '"method": "spectrum"' in Path(output).read_text()
