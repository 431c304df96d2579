"""Adapters that servers share by a folder."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from acclimate.errors import CheckpointError, ConfigError
from acclimate.language import Adapter, AskReport, LanguageModel
from acclimate.language.decision.evidence import Evidence, HeldOut
from acclimate.language.training.adapter import StopReason
from acclimate.serve.adapter_store import AdapterStore, StoreCounts, packed, unpacked
from acclimate.serve.schemas import ChatRequest
from acclimate.serve.service import Service
from acclimate.serve.settings import ServerSettings, read_settings
from tests.language.models import small

KEY, OTHER = "a" * 64, "b" * 64
EXAMPLES = [{"input": text, "output": text[::-1]} for text in ("ab", "cd", "ef", "gh")]
EVIDENCE = Evidence(
    4,
    HeldOut(0.5, -1.25, -3.0, (True, False)),
    HeldOut(0.0, -float("inf"), -float("inf"), (False, False)),
    float("nan"),
    answers_agree=True,
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return small()


def adapter(seed: int = 0, *, fingerprint: str = "model", dtype: torch.dtype = torch.float32) -> Adapter:
    rng = torch.Generator().manual_seed(seed)
    weights = {
        f"layers.{n}.up": (torch.randn(2, 8, generator=rng).to(dtype), torch.randn(8, 2, generator=rng).to(dtype))
        for n in range(2)
    }
    found = Adapter.of_weights(weights, rank=2, fingerprint=fingerprint, alpha=3.0)
    return dataclasses.replace(found, losses=(1.5, 0.1), stop=StopReason.EARLY_STOP, trained_tokens=7, seconds=0.1)


@contextmanager
def opened(url: str | Path, **more: Any) -> Iterator[AdapterStore]:
    found = AdapterStore(str(url), **{"max_bytes": 2**20} | more)
    try:
        yield found
    finally:
        assert found.close(timeout_s=240)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_entry_holds_all_of_an_adapter_to_the_bit(dtype: torch.dtype) -> None:
    kept = adapter(dtype=dtype)
    found, evidence = unpacked(packed(kept, EVIDENCE, KEY), "model", KEY)
    for name, pair in kept.weights.items():
        for one, other in zip(pair, found.weights[name], strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
    assert dataclasses.replace(found, weights={}) == dataclasses.replace(kept, weights={})
    assert repr(evidence) == repr(EVIDENCE)
    nothing = Adapter.of_weights({}, rank=1, fingerprint="model")
    assert unpacked(packed(nothing, None, KEY), "model", KEY) == (nothing, None)


@pytest.mark.parametrize("url", ["{folder}/store", "memory://adapters-{name}"])
def test_what_one_server_keeps_another_finds(url: str, tmp_path: Path) -> None:
    where = url.format(folder=tmp_path, name=tmp_path.name)
    with opened(where) as one, opened(where) as other:
        assert other.fetch("model", KEY) is None
        one.put("model", KEY, adapter(), EVIDENCE)
        assert one.flush(timeout_s=240)
        found = other.fetch("model", KEY)
        assert found is not None
        assert torch.equal(found[0].weights["layers.1.up"][0], adapter().weights["layers.1.up"][0])
        assert other.fetch("another model", KEY) is None
        assert other.recent("model", 3) == [KEY]
        assert other.recent("another model", 3) == []
        assert (one.counts.written, other.counts) == (1, StoreCounts(hits=1, misses=2))


def test_files_are_complete_private_and_hold_no_text(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        store.put("model", KEY, adapter(), EVIDENCE)
        assert store.flush(timeout_s=240)
        (file,) = (tmp_path / "store").rglob("*.adapter")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        # A writer that ends in the middle leaves a file of another name, which nobody reads.
        (file.parent / f".{KEY}.adapter.x.part").write_bytes(b"half")
        assert store.recent("model", 10) == [KEY]


def damaged(content: bytes) -> dict[str, bytes]:
    head, _, rest = content.partition(b"\n")
    return {
        "cut": content[:-3],
        "empty": b"",
        "one bit": content[:-1] + bytes([content[-1] ^ 1]),
        "no header": rest,
        "other format": head.replace(b'"format": 1', b'"format": 2') + b"\n" + rest,
        "other key": packed(adapter(), None, OTHER),
        "other model": packed(adapter(fingerprint="other"), None, KEY),
        "no json": b"\xff\xfe\n" + rest,
        "a list": b"[]\n" + rest,
    }


@pytest.mark.parametrize("kind", list(damaged(packed(adapter(), None, KEY))))
def test_an_entry_that_cannot_be_trusted_is_an_error_and_never_a_wrong_adapter(kind: str, tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        store.put("model", KEY, adapter(), None)
        assert store.flush(timeout_s=240)
        (file,) = (tmp_path / "store").rglob("*.adapter")
        file.write_bytes(damaged(file.read_bytes())[kind])
        with pytest.raises(CheckpointError, match=r"aaaaaaaaaaaa in .* cannot be read"):
            store.fetch("model", KEY)
        assert store.counts.unreadable == 1
        # It is replaced by the next one that is trained.
        store.put("model", KEY, adapter(), None)
        assert store.flush(timeout_s=240)
        assert store.fetch("model", KEY) is not None


def test_the_entries_that_were_used_last_come_first_and_stay_longest(tmp_path: Path) -> None:
    keys = [f"{n:064x}" for n in range(4)]
    now = 1000.0
    with opened(tmp_path / "store", clock=lambda: now) as store:
        for age, key in enumerate(keys):
            store.put("model", key, adapter(age), None)
        assert store.flush(timeout_s=240)
        folder = next((tmp_path / "store").iterdir())
        size = max(file.stat().st_size for file in folder.iterdir())
        for age, key in enumerate(keys):
            os.utime(folder / f"{key}.adapter", (age + 1, age + 1))
        assert store.recent("model", 3) == [keys[3], keys[2], keys[1]]
        assert store.fetch("model", keys[0]) is not None
        assert store.flush(timeout_s=240)
        assert store.recent("model", 2) == [keys[0], keys[3]]
        # A use within the same minute is not written again.
        (folder / f"{keys[0]}.used").unlink()
        store.note_use("model", keys[0])
        assert store.flush(timeout_s=240)
        assert not (folder / f"{keys[0]}.used").exists()
        now += 61
        store.note_use("model", keys[0])
        assert store.flush(timeout_s=240)
    with opened(tmp_path / "store", max_bytes=2 * size) as smaller:
        smaller.put("model", OTHER, adapter(), None)
        assert smaller.flush(timeout_s=240)
        assert set(smaller.recent("model", 10)) == {keys[0], keys[3], OTHER}
    assert {file.name[:64] for file in folder.iterdir()} == {keys[0], keys[3], OTHER}


def test_a_folder_that_cannot_be_written_stops_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "store").write_text("a file")
    with opened(tmp_path / "store") as store:
        store.put("model", KEY, adapter(), None)
        assert store.flush(timeout_s=240)
        assert store.counts.failed == 1
    assert "was not kept in" in caplog.text


def test_a_store_needs_a_cache_in_memory() -> None:
    with pytest.raises(ConfigError, match="cached_adapters"):
        read_settings({"adapter_store": "x", "cached_adapters": 0}, environment={})


@contextmanager
def serving(model: LanguageModel, store: Path, **settings: Any) -> Iterator[Service]:
    found = Service(ServerSettings(models=("llama",), adapter_store=str(store), **settings), {"llama": model})
    found.start()
    try:
        yield found
    finally:
        assert found.close()


def asked(service: Service, **more: Any) -> AskReport:
    ttt = {"mode": "force", "examples": EXAMPLES, "steps": 2}
    body = ChatRequest(model="llama", messages=[{"role": "user", "content": "kl"}], ttt=ttt | more)  # type: ignore[list-item, arg-type]
    prepared = service.prepare(body, "")
    return service.submit(prepared, "").result.result(timeout=300)


def test_a_second_server_answers_from_the_store_to_the_bit_and_starts_warm(
    model: LanguageModel, tmp_path: Path
) -> None:
    with serving(model, tmp_path / "store") as service:
        trained = asked(service)
        assert (trained.cached, trained.metadata.training_steps) == (False, 2)
    with serving(model, tmp_path / "store", adapter_slots=1) as service:
        served = service.models["llama"]
        # Before anything was asked.
        assert len(served.cache) == 1
        assert served.worker.load().adapter_loads == 1
        found = asked(service)
        assert (found.cached, found.metadata.training_steps, found.answer) == (True, 0, trained.answer)
        assert found.warnings == trained.warnings
        assert served.worker.load().adapter_loads == 1
        kept, _ = served.cache.get(str(found.adapter_key)) or (None, None)
    with serving(model, tmp_path / "fresh") as service:
        asked(service)
        again, _ = service.models["llama"].cache.get(str(found.adapter_key)) or (None, None)
    assert kept is not None
    assert again is not None
    assert all(torch.equal(a, b) for n in kept.weights for a, b in zip(kept.weights[n], again.weights[n], strict=True))


def test_a_damaged_entry_is_a_warning_and_trained_again(
    model: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(model, tmp_path / "store") as service:
        first = asked(service)
    (file,) = (tmp_path / "store").rglob("*.adapter")
    file.write_bytes(file.read_bytes()[:-1])
    with serving(model, tmp_path / "store") as service:
        assert len(service.models["llama"].cache) == 0
        found = asked(service)
        assert not found.cached
        assert found.answer == first.answer
        assert any("could not be read; it is trained again" in warning for warning in found.warnings)
        assert not any(str(tmp_path) in warning for warning in found.warnings)
    assert "SHA-256 differs" in caplog.text
    with serving(model, tmp_path / "store") as service:
        assert asked(service).cached


def test_another_recipe_is_another_entry(model: LanguageModel, tmp_path: Path) -> None:
    with serving(model, tmp_path / "store") as service:
        keys = {asked(service).adapter_key, asked(service, steps=3).adapter_key, asked(service, rank=2).adapter_key}
    assert len(keys) == 3
    assert {file.name[:64] for file in (tmp_path / "store").rglob("*.adapter")} == keys


def test_a_request_that_was_declined_is_not_evaluated_again(model: LanguageModel, tmp_path: Path) -> None:
    gate = {"mode": "auto", "confidence_threshold": 1.0}
    with serving(model, tmp_path / "store") as service:
        first = asked(service, **gate)
        assert first.status == "declined"
    with serving(model, tmp_path / "store") as service:
        found = asked(service, **gate)
        assert (found.status, found.trained_tokens, found.answer) == ("declined", 0, first.answer)
