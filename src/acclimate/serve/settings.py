"""Settings of the server: one TOML file, environment variables and flags, each overriding the one before.

The three are read one by one, so that it can be shown where each value came from and an unknown name can be refused.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from acclimate.errors import ConfigError, first_line
from acclimate.serve.worker import Limits

PREFIX: Final = "ACCLIMATE_SERVE_"
#: Names the TOML file; it is no setting itself.
CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
Source = Literal["default", "file", "environment", "flag"]
_OF_RAY: Final = ("replicas", "ray_address")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class ServerSettings(BaseModel):
    """Settings of ``acclimate serve``.

    Sizes are in MiB (2 ** 20 bytes), times in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    host: str = Field("127.0.0.1", description="Address to listen on; others than loopback need keys or insecure.")
    port: int = Field(8420, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    models: tuple[str, ...] = Field(
        ("smollm2",), min_length=1, description="Models to serve, separated by commas: names, folders, or hub names."
    )
    engine: Literal["here", "ray"] = Field("here", description="Serve from this process, or from replicas on Ray.")
    replicas: int = Field(2, ge=1, le=1024, description="Replicas of engine ray, each with its own copy of the models.")
    ray_address: str | None = Field(None, description="Cluster of engine ray; unset: one on this machine alone.")
    device: str = Field("cpu", description="torch's name of the device.")
    threads: int | None = Field(None, ge=1, description="Threads of torch; unset leaves it to torch.")
    keys_file: Path | None = Field(None, description="API keys, as acclimate keys writes them; unset asks for none.")
    insecure: bool = Field(False, description="Listen on any address without API keys.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Names that requests may be addressed to besides loopback, separated by commas."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins of web pages that may ask, separated by commas; none by default."
    )
    max_body_mib: float = Field(2.0, gt=0, description="Largest request.")
    page: bool = Field(True, description="Serve the web page at /, where acclimate[ui] is installed.")
    image_folder: Path | None = Field(None, description="Folder whose images the page may show and adapt to.")
    image_models: tuple[str, ...] = Field(
        (), description="Further models of the page: transformers:FOLDER or torch:PACKAGE.MODULE:FACTORY."
    )
    max_upload_mib: float = Field(16.0, gt=0, description="Largest upload of images to the page.")
    max_json_depth: int = Field(32, ge=4, description="Deepest nesting of a request.")
    max_examples: int = Field(64, ge=2, description="Most examples of a request that are adapted to.")
    media: bool = Field(False, description="Serve the model media, which answers about images and sounds.")
    max_image_pixels: int = Field(16_000_000, ge=1, description="Largest image.")
    max_sound_s: float = Field(30.0, gt=0, description="Longest sound.")
    max_answer_tokens: int = Field(1024, ge=1, description="Longest answer that a request may ask for.")
    default_answer_tokens: int = Field(256, ge=1, description="Longest answer to a prompt without examples.")
    max_choices: int = Field(8, ge=1, description="Most answers of one request (n).")
    request_timeout_s: float = Field(120.0, gt=0, description="Longest time for a request, its answer included.")
    adaptation_budget_s: float = Field(20.0, ge=0, description="Most seconds of computing for gate and training.")
    requests_per_minute: int = Field(0, ge=0, description="Of one API key; 0 sets no limit.")
    max_adapters_per_key: int = Field(16, ge=0, description="Named adapters that one API key may hold.")
    allow_lora_loading: bool = Field(False, description="Serve /v1/load_lora_adapter and /v1/unload_lora_adapter.")
    lora_folder: Path | None = Field(None, description="Adapters may be loaded from below this folder alone.")
    cached_adapters: int = Field(64, ge=0, description="Most trained adapters that are kept.")
    cached_adapters_mib: float = Field(1024.0, ge=0, description="Most memory of trained adapters that are kept.")
    adapter_store: str | None = Field(
        None, description="Folder, or fsspec path, where trained adapters are kept and shared with other servers."
    )
    adapter_store_mib: float = Field(4096.0, gt=0, description="Most of it; what was used longest ago is removed.")
    generate_with: Literal["here", "vllm"] = Field(
        "here", description="Generate answers in this server, or in one of vLLM that serves the same model."
    )
    vllm_url: str | None = Field(None, description="Address of vLLM's server, without /v1.")
    vllm_model: str | None = Field(None, description="The model's name there; unset: as here.")
    vllm_api_key_env: str | None = Field(None, description="Environment variable that holds vLLM's API key.")
    vllm_adapter_folder: Path | None = Field(
        None, description="Folder that both servers see at this path; adapters are written to it."
    )
    vllm_adapters: int = Field(16, ge=1, description="Most adapters that vLLM is asked to hold at a time.")
    vllm_max_lora_rank: int = Field(16, ge=1, description="Highest rank that vLLM takes (its max_lora_rank).")
    vllm_timeout_s: float = Field(60.0, gt=0, description="For a connection to vLLM, and between two tokens.")
    prefix_cache_mib: float = Field(512.0, ge=0, description="Most memory of prompts' beginnings that are kept.")
    key_value_mib: float = Field(2048.0, ge=0, description="Most memory of the answers that are generated.")
    max_rows: int = Field(64, ge=1, description="Answers that are generated side by side.")
    max_running: int = Field(64, ge=1, description="Requests that are worked on at a time.")
    max_waiting: int = Field(32, ge=0, description="Requests that wait; further ones get status 429.")
    adapter_slots: int = Field(32, ge=1, description="Different adapters in one pass.")
    training_sets: int = Field(6, ge=1, description="Sets of examples that are trained on in one pass.")
    adapting_share: float = Field(0.5, gt=0, lt=1, description="Share of the time for adapting while answers wait.")
    environment: Literal["production", "research", "testing", "demo"] | None = Field(
        None, description="Adapt only above this environment's confidence; unset: whichever answer is likelier right."
    )
    record: bool = Field(True, description="Write a row to the metrics store for every request.")
    db: str | None = Field(None, description="The metrics store: a SQLite file or a postgresql:// URL.")
    experiment: str | None = Field(None, description="Experiment whose arms requests are assigned to.")
    store_content: bool = Field(False, description="Store prompts and answers with the metrics.")
    telemetry: bool = Field(False, description="Send OpenTelemetry spans and metrics, as OTEL_* variables say.")
    drain_timeout_s: float = Field(30.0, ge=0, description="Time for requests to finish when the server ends.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")

    @field_validator("models", "allowed_hosts", "cors_origins", "image_models", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in _LOOPBACK

    @property
    def limits(self) -> Limits:
        """The limits of each model's worker."""
        return Limits(
            max_rows=self.max_rows,
            max_running=self.max_running,
            max_waiting=self.max_waiting,
            adapter_slots=self.adapter_slots,
            key_value_bytes=int(self.key_value_mib * 2**20),
            prefix_bytes=int(self.prefix_cache_mib * 2**20),
            training_sets=self.training_sets,
            adapting_share=self.adapting_share,
        )

    def without_effect(self) -> dict[str, str]:
        """Return what the settings need that nothing reads as the others are: by name, the setting and its value."""
        needs: dict[str, str] = {}
        if self.engine != "ray":
            needs |= dict.fromkeys(_OF_RAY, "engine ray")
        if self.generate_with != "vllm":
            names = (name for name in type(self).model_fields if name.startswith("vllm_"))
            needs |= dict.fromkeys(names, "generate_with vllm")
        return needs

    def check(self, origins: Mapping[str, str] | None = None) -> None:
        """Refuse settings that contradict each other, and those that were given and have no effect.

        Args:
            origins: where settings come from, by name, as messages put it behind the name.

        Raises:
            ConfigError: the server would be open to everybody, adapters could be loaded from anywhere, or a setting
                would be ignored.
        """
        if not self.is_loopback and self.keys_file is None and not self.insecure:
            raise ConfigError(
                f"host {self.host!r} can be reached from other machines: give --keys-file (acclimate keys create makes "
                f"one), or --insecure if everybody may use this server"
            )
        for name, need in self.without_effect().items():
            # Also a value that is the default: who gives it believes that it is used.
            if name in self.model_fields_set and getattr(self, name) is not None:
                origin = (origins or {}).get(name, "")
                option = f"--{need.replace('_', '-')}"
                raise ConfigError(f"{name}{origin} needs {need}; add {option}, or leave {name} out")
        self._check_vllm()
        if self.allow_lora_loading and self.lora_folder is None:
            raise ConfigError("allow_lora_loading needs lora_folder: the folder that adapters may be loaded from")
        if self.adapter_store is not None and not (self.cached_adapters and self.cached_adapters_mib):
            raise ConfigError("adapter_store needs cached_adapters and cached_adapters_mib above 0")
        if self.experiment is not None and not self.record:
            raise ConfigError("an experiment without records shows nothing; leave out record = false")
        if self.default_answer_tokens > self.max_answer_tokens:
            raise ConfigError(
                f"default_answer_tokens ({self.default_answer_tokens}) must not be above max_answer_tokens "
                f"({self.max_answer_tokens})"
            )

    def _check_vllm(self) -> None:
        if self.generate_with != "vllm":
            return
        for name in ("vllm_url", "vllm_adapter_folder"):
            if getattr(self, name) is None:
                raise ConfigError(f"generate_with vllm needs {name}")
        if len(self.models) != 1:
            raise ConfigError(f"generate_with vllm serves one model, got {len(self.models)}")
        if self.engine != "here":
            raise ConfigError("generate_with vllm and engine ray were not tried together; give one of them")


def read_settings(
    flags: Mapping[str, Any], *, config: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[ServerSettings, dict[str, Source]]:
    """Return the settings, and where each comes from.

    Args:
        flags: by field; None counts as not given.
        config: the TOML file; None takes the one that ``ACCLIMATE_SERVE_CONFIG`` names, if any.
        environment: None takes the process's.

    Raises:
        ConfigError: the file cannot be read, a name is unknown, or a value is out of range.
    """
    environment = os.environ if environment is None else environment
    named = config if config is not None else environment.get(CONFIG_VARIABLE)
    from_file = _toml(Path(named)) if named else {}
    _known(from_file, f"{named}: ")
    given = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX) and name != CONFIG_VARIABLE
    }
    _known(given, f"environment variable {PREFIX}", upper=True)
    typed = {name: value for name, value in flags.items() if value is not None}
    _known(typed, "")
    layers: tuple[tuple[Source, Mapping[str, Any]], ...] = (
        ("file", from_file),
        ("environment", given),
        ("flag", typed),
    )
    values: dict[str, Any] = {}
    sources: dict[str, Source] = dict.fromkeys(ServerSettings.model_fields, "default")
    for source, layer in layers:
        if values.get("engine") == "ray" and layer.get("engine", "ray") != "ray":
            # What was set for the other engine goes with it, as where the page is opened with a server's settings.
            for name in _OF_RAY:
                values.pop(name, None)
                sources[name] = "default"
        values |= layer
        sources |= dict.fromkeys(layer, source)
    origins = {name: f" in {named}" for name, source in sources.items() if source == "file"}
    origins |= {name: f" (from {PREFIX}{name.upper()})" for name, source in sources.items() if source == "environment"}
    try:
        settings = ServerSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise ConfigError(f"{name}{origins.get(name, '')}: {first['msg']}, got {first.get('input')!r}") from error
    settings.check(origins)
    return settings, sources


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings in {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {first_line(error)}") from error


def _known(names: Mapping[str, Any], where: str, *, upper: bool = False) -> None:
    for name in names:
        if name not in ServerSettings.model_fields:
            near = difflib.get_close_matches(name, ServerSettings.model_fields, n=1, cutoff=0.0)[0]
            shown, near = (name.upper(), near.upper()) if upper else (name, near)
            raise ConfigError(f"{where}{shown} is no setting of the server; the nearest one is {near}")
