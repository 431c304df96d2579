"""Generating with vLLM: adapters are trained here, and answers are generated there.

Each adapter is written in peft's format to a folder that both servers see, and loaded by ``POST /v1/load_lora_adapter``
under a name that is never used for another one. Prompts are sent as tokens to ``POST /v1/completions``, with the
adapter's name as the model, and tokens come back with their log-probabilities, so that where an answer ends, and how
likely it is, is found by the same code as for answers that are generated here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import os
import shutil
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from acclimate.errors import AcclimateError, CancelledError, ConfigError, InputError, first_line
from acclimate.json_values import from_json
from acclimate.language import Adapter
from acclimate.language.models.decoding import Answer, Continuation
from acclimate.output_files import make_folder
from acclimate.serve.batch import Generation, Row

_LOG = logging.getLogger(__name__)
#: As vLLM writes tokens where ``return_tokens_as_token_ids`` asks for their numbers.
_NUMBERED: Final = "token_id:"
#: Longest line of a stream, and longest answer that is no stream.
_MOST_BYTES: Final = 2**20
#: Requests for which it is worth to wait that an adapter is no longer in use.
_WAIT_S: Final = 0.5


class GenerationError(AcclimateError):
    """vLLM did not generate an answer.

    Attributes:
        status: of HTTP that a client is told.
        retry_after_s: when it is worth trying again; None where it is not known.
    """

    def __init__(self, message: str, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


class _UnknownModelError(Exception):
    """vLLM does not know the adapter: it was started again, or has dropped it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """How vLLM is reached.

    Attributes:
        url: of the server, without ``/v1``.
        model: that it serves, the same as here.
        folder: that it sees at the same path.
        api_key: that it asks for; None for none.
        max_adapters: that are loaded at a time.
        max_rank: of an adapter; vLLM's ``max_lora_rank``.
        timeout_s: for a connection, and for the time between two tokens.
        max_requests: sent to it at a time.

    Raises:
        ConfigError: the address is none of HTTP.
    """

    url: str
    model: str
    folder: Path
    api_key: str | None = field(default=None, repr=False)
    max_adapters: int = 16
    max_rank: int = 16
    timeout_s: float = 60.0
    max_requests: int = 64

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if not valid or parts.username or parts.query or parts.fragment:
            raise ConfigError(f"vllm_url must be like http://127.0.0.1:8000, got {self.url!r}")


@dataclass(frozen=True, slots=True)
class VllmCounts:
    """What was asked of vLLM since the start.

    Attributes:
        answers: generated.
        failures: requests that were not answered.
        loads, unloads: of adapters.
        loaded: adapters now.
    """

    answers: int = 0
    failures: int = 0
    loads: int = 0
    unloads: int = 0
    loaded: int = 0


@dataclass(slots=True, eq=False)
class _Loaded:
    """An adapter at vLLM; ``ready`` when it is loaded, or with the error."""

    name: str
    ready: Future[None] = field(default_factory=Future)
    uses: int = 0


class VllmGenerator:
    """Generates answers with vLLM; several threads may use it.

    Args:
        settings: how it is reached.

    Raises:
        DataError: the folder cannot be written to.
    """

    def __init__(self, settings: VllmSettings) -> None:
        self.settings = settings
        make_folder(settings.folder)
        parts = urlsplit(settings.url)
        self._secure, self._host = parts.scheme == "https", str(parts.hostname)
        self._port, self._path = parts.port, parts.path.rstrip("/").removesuffix("/v1")
        self._pool = ThreadPoolExecutor(settings.max_requests, thread_name_prefix="acclimate-vllm")
        self._condition = threading.Condition()
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._sockets: set[socket.socket] = set()
        self._counts = {"answers": 0, "failures": 0, "loads": 0, "unloads": 0}

    @property
    def counts(self) -> VllmCounts:
        """What was done so far."""
        with self._condition:
            return VllmCounts(**self._counts, loaded=len(self._loaded))

    def submit(self, generation: Generation, done: Callable[[Generation, Callable[[], list[Answer]]], None]) -> None:
        """Generate the answers of a step.

        Args:
            generation: whose rows are generated; one that is given up marks its continuations as done.
            done: called in a thread of the generator when all rows have ended; the function that it is given returns
                the answers, or raises the error of the first row that failed.
        """
        left = len(generation.rows)

        def ended(row: Row, future: Future[None]) -> None:
            nonlocal left
            error = future.exception()
            if error is not None:
                row.error = error if isinstance(error, Exception) else GenerationError(str(error), 502)
            with self._condition:
                left -= 1
                is_last = left == 0
            if is_last:
                done(generation, generation.answers)

        for row in generation.rows:
            future = self._pool.submit(self._generate, generation, row)
            future.add_done_callback(lambda future, row=row: ended(row, future))  # type: ignore[misc]

    def close(self) -> None:
        """End what is generated, let vLLM drop the adapters, and remove their files."""
        with self._condition:
            open_now = list(self._sockets)
        for opened in open_now:
            # Wakes the thread that reads from it.
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        self._pool.shutdown(cancel_futures=True)
        with self._condition:
            entries = list(self._loaded.values())
            self._loaded.clear()
        for entry in entries:
            self._unload(entry)

    def _generate(self, generation: Generation, row: Row) -> None:
        """Generate one answer; it grows in the continuation of the row.

        Raises:
            GenerationError: vLLM did not answer.
            CancelledError: nobody waits for the answer.
        """
        try:
            if row.adapter is None or not row.adapter.weights:
                self._complete(generation, row, self.settings.model)
            else:
                self._with_adapter(generation, row, row.adapter)
        except _UnknownModelError as error:
            self._count("failures")
            raise GenerationError("the server that generates does not know the model", 502) from error
        except GenerationError:
            self._count("failures")
            raise
        self._count("answers")

    def _with_adapter(self, generation: Generation, row: Row, adapter: Adapter) -> None:
        for is_last in (False, True):
            try:
                with self._used(adapter) as entry:
                    try:
                        self._complete(generation, row, entry.name)
                        return
                    except _UnknownModelError:
                        # It was started again, or has dropped the adapter.
                        self._forget(adapter, entry)
                        raise
            except _UnknownModelError:
                if is_last:
                    shutil.rmtree(self.settings.folder / entry.name, ignore_errors=True)
                    raise

    @contextlib.contextmanager
    def _used(self, adapter: Adapter) -> Iterator[_Loaded]:
        """Have vLLM load an adapter, and keep it loaded inside the block.

        Raises:
            GenerationError: it cannot be loaded.
        """
        entry, is_new, unused = self._entered(adapter)
        try:
            for old in unused:
                self._unload(old)
            if is_new:
                self._load(entry, adapter)
            entry.ready.result()
            yield entry
        finally:
            with self._condition:
                entry.uses -= 1
                self._condition.notify_all()

    def _entered(self, adapter: Adapter) -> tuple[_Loaded, bool, list[_Loaded]]:
        """Return the entry of an adapter, whether it is to be loaded, and those that make room for it."""
        ends = time.monotonic() + self.settings.timeout_s
        with self._condition:
            while True:
                entry = self._loaded.get(adapter.identity)
                if entry is not None:
                    entry.uses += 1
                    self._loaded.move_to_end(adapter.identity)
                    return entry, False, []
                idle = [identity for identity, known in self._loaded.items() if not known.uses]
                surplus = len(self._loaded) + 1 - self.settings.max_adapters
                if len(idle) >= surplus:
                    unused = [self._loaded.pop(identity) for identity in idle[: max(0, surplus)]]
                    entry = self._loaded[adapter.identity] = _Loaded(f"acclimate-{adapter.identity}", uses=1)
                    return entry, True, unused
                if time.monotonic() > ends:
                    raise GenerationError("as many adapters are in use as vLLM may hold (vllm_adapters)", 503, 5.0)
                self._condition.wait(_WAIT_S)

    def _load(self, entry: _Loaded, adapter: Adapter) -> None:
        """Write an adapter and let vLLM load it; whoever waits for it is told the error, too."""
        folder = self.settings.folder / entry.name
        try:
            self._write(folder, adapter)
            status, text = self._post(
                "/v1/load_lora_adapter", {"lora_name": entry.name, "lora_path": str(folder.resolve())}
            )
            # Where an answer was lost the adapter may be there already: no other one ever had the name.
            if status != 200 and not (status == 400 and "already been loaded" in text):
                raise self._refused(status, text, "refused the adapter")
        except Exception as error:  # noqa: BLE001 - handed on to everybody who waits for the adapter
            with self._condition:
                if self._loaded.get(adapter.identity) is entry:
                    del self._loaded[adapter.identity]
            shutil.rmtree(folder, ignore_errors=True)
            entry.ready.set_exception(error)
        else:
            self._count("loads")
            entry.ready.set_result(None)

    def _write(self, folder: Path, adapter: Adapter) -> None:
        most = self.settings.max_rank
        fitting = adapter if adapter.rank <= most else adapter.of_lower_rank(most)
        if fitting is None:
            _LOG.warning("an adapter has rank %d, and vLLM takes %d (vllm_max_lora_rank)", adapter.rank, most)
            raise GenerationError("the adapter has a higher rank than the server that generates takes", 502)
        try:
            fitting.save(folder, base_model=self.settings.model)
        except (OSError, InputError) as error:
            _LOG.warning("an adapter was not written for vLLM: %s", first_line(error))
            raise GenerationError("the adapter could not be handed to the server that generates", 502) from error

    def _forget(self, adapter: Adapter, entry: _Loaded) -> None:
        """Take note that vLLM has an adapter no longer."""
        with self._condition:
            if self._loaded.get(adapter.identity) is entry:
                del self._loaded[adapter.identity]

    def _unload(self, entry: _Loaded) -> None:
        try:
            status, text = self._post("/v1/unload_lora_adapter", {"lora_name": entry.name})
            if status not in (200, 404):
                _LOG.warning("vLLM did not unload an adapter: %d %s", status, text[:200])
            self._count("unloads")
        except GenerationError as error:
            _LOG.warning("vLLM did not unload an adapter: %s", first_line(error))
        shutil.rmtree(self.settings.folder / entry.name, ignore_errors=True)

    def _complete(self, generation: Generation, row: Row, model: str) -> None:
        """Let vLLM continue the prompt of a row until its continuation has ended.

        Raises:
            GenerationError: it did not answer, or not as it is documented.
            CancelledError: nobody waits for the answer.
        """
        step, continuation = generation.step, row.continuation
        sampling = step.sampling
        body = {
            "model": model,
            "prompt": list(row.tokens),
            "max_tokens": continuation.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed % 2**63,
            # Given one by one, because vLLM takes what is left out from the model's own settings.
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": max(1, sampling.alternatives or 0),
            "return_tokens_as_token_ids": True,
            "stream": True,
        }
        with self._answered("/v1/completions", body) as response:
            if response.status == 404:
                raise _UnknownModelError
            if response.status != 200:
                text = response.read(_MOST_BYTES).decode("utf-8", "replace")
                raise self._refused(response.status, text, "did not generate an answer")
            for event in _events(response):
                if continuation.done or (step.cancelled is not None and step.cancelled()):
                    break
                if step.deadline is not None and step.deadline.is_over:
                    # The answer ends here, incomplete, as one that is generated here would.
                    continuation.done = True
                    break
                if event is not None and _take(continuation, event, alternatives=sampling.alternatives):
                    break
            else:
                raise GenerationError("the server that generates ended its answer in the middle", 502)
        if not continuation.done:
            raise CancelledError("the request was cancelled while its answer was generated")

    def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, str]:
        with self._answered(path, body) as response:
            return response.status, response.read(_MOST_BYTES).decode("utf-8", "replace")

    @contextlib.contextmanager
    def _answered(self, path: str, body: Mapping[str, Any]) -> Iterator[http.client.HTTPResponse]:
        """Yield the answer to a request; leaving the block closes the connection, which ends what is generated.

        Raises:
            GenerationError: there is none, or it ends in the middle.
        """
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self.settings.timeout_s)
        headers = {"content-type": "application/json"}
        if self.settings.api_key is not None:
            headers["authorization"] = f"Bearer {self.settings.api_key}"
        opened: socket.socket | None = None
        response: http.client.HTTPResponse | None = None
        try:
            connection.connect()
            opened = connection.sock
            with self._condition:
                self._sockets.add(opened)
            connection.request("POST", f"{self._path}{path}", json.dumps(body).encode(), headers)
            response = connection.getresponse()
            yield response
        except TimeoutError as error:
            raise GenerationError("the server that generates did not answer in time", 504) from error
        except (OSError, http.client.HTTPException) as error:
            _LOG.warning("vLLM at %s: %s", self.settings.url, first_line(error))
            raise GenerationError("the server that generates cannot be reached", 503, 5.0) from error
        finally:
            if opened is not None:
                with self._condition:
                    self._sockets.discard(opened)
            if response is not None:
                # The answer has the socket, and keeps it open when the connection is closed.
                response.close()
            connection.close()

    def _refused(self, status: int, text: str, what: str) -> GenerationError:
        # What vLLM says may hold paths and prompts; it is for the log.
        _LOG.warning("vLLM %s: %d %s", what, status, text[:500])
        if status in (401, 403):
            return GenerationError("the server that generates does not accept the API key", 502)
        if status in (429, 503):
            return GenerationError("the server that generates is busy", 503, 5.0)
        return GenerationError(f"the server that generates {what} (status {status})", 502)

    def _count(self, what: str) -> None:
        with self._condition:
            self._counts[what] += 1


def api_key_from(variable: str | None) -> str | None:
    """Return the API key in an environment variable; None where none is named.

    Raises:
        ConfigError: the variable is not set.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {variable} (vllm_api_key_env) is not set")
    return key


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any] | None]:
    """Yield the events of a stream, until it says that it is done, and None for every other line.

    Raises:
        GenerationError: one is an error, or is not as it is documented.
    """
    while line := response.readline(_MOST_BYTES):
        if not line.startswith(b"data:"):
            yield None
            continue
        data = line.removeprefix(b"data:").strip().decode("utf-8", "replace")
        if data == "[DONE]":
            return
        try:
            event = from_json(data)
        except ValueError as error:
            raise _unlike("is not JSON") from error
        if not isinstance(event, dict):
            raise _unlike("is no object")
        if "error" in event:
            _LOG.warning("vLLM: %s", str(event["error"])[:500])
            raise GenerationError("the server that generates failed in the middle of an answer", 502)
        yield event


def _take(continuation: Continuation, event: Mapping[str, Any], *, alternatives: int | None) -> bool:
    """Go on with the tokens of an event; return whether the answer has ended.

    Raises:
        GenerationError: the event is not as it is documented.
    """
    try:
        for choice in event["choices"]:
            tokens = choice["logprobs"] or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
            for number, token in enumerate(tokens["tokens"]):
                value = float(tokens["token_logprobs"][number])
                if not math.isfinite(value):
                    raise _unlike("has a log-probability that is not finite")
                pairs = None
                if alternatives is not None:
                    ranked = sorted(tokens["top_logprobs"][number].items(), key=lambda pair: -pair[1])
                    pairs = tuple((_number(name), float(likely)) for name, likely in ranked[:alternatives])
                continuation.take(_number(token), value, pairs)
                if continuation.done:
                    return True
            if choice.get("finish_reason") is not None:
                continuation.end(complete=choice["finish_reason"] == "stop")
                return True
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _unlike(f"has not what is documented: {first_line(error)}") from error
    return False


def _number(token: str) -> int:
    if not token.startswith(_NUMBERED):
        raise ValueError(f"a token is {token[:40]!r}")
    return int(token.removeprefix(_NUMBERED))


def _unlike(what: str) -> GenerationError:
    _LOG.warning("an event of vLLM %s", what)
    return GenerationError("the server that generates did not answer as vLLM does", 502)
