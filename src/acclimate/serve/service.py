"""Models in service: which of them a request means, how it is answered, and what is kept of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from acclimate.errors import AcclimateError, CheckpointError, DataError, first_line
from acclimate.extras import require
from acclimate.language import (
    Adapter,
    AdapterManager,
    AskReport,
    Engine,
    Example,
    Gate,
    LanguageModel,
    as_examples,
    shipped,
)
from acclimate.language.models.decoding import OnText, Sampling
from acclimate.language.training.trainer import OnStep
from acclimate.language.work import Policy, Request
from acclimate.serve.adapter_store import AdapterStore, StoredAdapterManager
from acclimate.serve.library import AdapterLibrary, NamedAdapter
from acclimate.serve.schemas import ChatRequest, CompletionRequest, GenerationRequest, TTTOptions
from acclimate.serve.settings import ServerSettings
from acclimate.serve.vllm import VllmGenerator, VllmSettings, api_key_from
from acclimate.serve.worker import Ticket, Worker

if TYPE_CHECKING:
    from acclimate.serve.media_answers import MediaAnswers

_LOG = logging.getLogger(__name__)
_POLICIES: Final[Mapping[str, Policy]] = {"auto": "gate", "off": "never", "force": "always"}
#: More than tokens have on average in any text that is meant to be read.
_CHARACTERS_PER_TOKEN: Final = 32
#: Who asks where no API keys are used.
EVERYBODY: Final = ""
#: What a user is told; the log has the rest.
_TRAINED_AGAIN: Final = "the adapter that is kept for these examples could not be read; it is trained again"
Model = TypeVar("Model")


class NoSuchModelError(AcclimateError):
    """The model or adapter that was asked for is not served, or not to this key."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model, its worker, and the adapters that were trained for requests.

    Attributes:
        name: that it is asked by.
        model: itself.
        worker: that runs it.
        cache: of adapters, by the digest of their examples: who gives the same examples gets the same adapter.
        gate: that decides with the model's own recipe.
    """

    name: str
    model: LanguageModel
    worker: Worker
    cache: AdapterManager
    gate: Gate


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that has been read, ready to be answered.

    Attributes:
        served: the model that answers.
        engine: with the settings of the request.
        request: as the engine read it.
        choices: answers that were asked for.
        trains: the key of the adapter that the request needs; None where nothing is trained for it.
    """

    served: ServedModel
    engine: Engine
    request: Request
    choices: int
    trains: str | None


class Catalogue(Generic[Model]):
    """What can be asked: base models, and the adapters that have a name.

    Args:
        settings: of the server.
        models: by the name that they are asked by.

    Attributes:
        library: of the named adapters.
    """

    def __init__(self, settings: ServerSettings, models: Mapping[str, Model]) -> None:
        self.settings = settings
        self.models = dict(models)
        self.library = AdapterLibrary(settings.max_adapters_per_key)

    def find(self, name: str, owner: str, *, sees_all: bool = False) -> tuple[Model, NamedAdapter | None]:
        """Return the model, and the adapter, that ``name`` means: a model's name, or ``model:adapter``.

        Raises:
            NoSuchModelError: there is none that this owner may see.
        """
        served = self.models.get(name)
        if served is not None:
            return served, None
        base, _, adapter = name.rpartition(":")
        served = self.models.get(base)
        named = self.library.find(base, adapter, owner, sees_all=sees_all) if served is not None else None
        if served is None or named is None:
            known = ", ".join(self.models)
            raise NoSuchModelError(f"the model {name[:100]!r} does not exist; give one of GET /v1/models: {known}")
        return served, named


class Service(Catalogue[ServedModel]):
    """The models in service.

    Args:
        settings: of the server.
        models: to serve, by the name that they are asked by.

    Attributes:
        media: answers about images and sounds; None where it does not.
        store: of adapters, shared with other servers; None where it is not used.
        generator: generates answers elsewhere; None generates them here.
    """

    def __init__(self, settings: ServerSettings, models: Mapping[str, LanguageModel]) -> None:
        super().__init__(settings, {})
        self.media = _media(settings)
        self.store: AdapterStore | None = None
        if settings.adapter_store is not None:
            self.store = AdapterStore(settings.adapter_store, max_bytes=int(settings.adapter_store_mib * 2**20))
        self.generator = _generator(settings, models)
        for name, model in models.items():
            self.models[name] = ServedModel(
                name,
                model,
                Worker(model, settings.limits, generator=self.generator),
                self._cache(model.fingerprint),
                Gate(calibration=shipped(model.name), environment=settings.environment),
            )

    def start(self) -> None:
        """Fetch the adapters that were used last from the store, and start the workers."""
        for served in self.models.values():
            count = self._warm(served)
            if count:
                _LOG.info("%d adapters of %s were fetched from the store", count, served.name)
            served.worker.start()

    def close(self) -> bool:
        """Finish the requests that are there and end the workers; return whether all were finished in time."""
        workers = [served.worker for served in self.models.values()]
        with ThreadPoolExecutor(len(workers)) as pool:
            ended = all(list(pool.map(lambda worker: worker.close(timeout_s=self.settings.drain_timeout_s), workers)))
        if self.generator is not None:
            self.generator.close()
        return (self.store is None or self.store.close()) and ended

    @property
    def is_alive(self) -> bool:
        """Whether every model can answer."""
        return all(served.worker.is_alive for served in self.models.values())

    def prepare(
        self,
        body: ChatRequest | CompletionRequest,
        owner: str,
        *,
        sees_all: bool = False,
        may_train: bool = True,
        assigned: TTTOptions | None = None,
    ) -> Prepared:
        """Read a request; the model is not asked.

        Args:
            body: of the request.
            owner: who asks.
            sees_all: whether adapters of others may be asked.
            may_train: whether the request may be adapted.
            assigned: options of the arm of an experiment.

        Raises:
            NoSuchModelError: the model does not exist.
            DataError: the request is empty, too long, or asks for too much.
            PermissionError: it asks for adaptation and may not.
        """
        served, named = self.find(body.model, owner, sees_all=sees_all)
        # Before anything is made of it: the worker would encode all of a text that is far too long.
        length = len(body.text) if isinstance(body, CompletionRequest) else sum(len(m.text) for m in body.messages)
        if length > (most := served.model.encoder.max_tokens * _CHARACTERS_PER_TOKEN):
            raise DataError(f"the prompt has {length} characters; this model reads at most {most}")
        options = body.ttt or assigned or TTTOptions()
        if not may_train and body.ttt is not None and body.ttt.mode != "off":
            raise PermissionError("this API key may not adapt (scope train); send ttt: {mode: 'off'}")
        policy = _POLICIES[options.mode] if may_train else "never"
        engine = self._engine(served, options)
        wanted = body.max_tokens if body.max_tokens is not None else getattr(body, "max_completion_tokens", None)
        if wanted is not None and wanted > self.settings.max_answer_tokens:
            raise DataError(f"max_tokens is {wanted}; at most {self.settings.max_answer_tokens} may be asked for")
        choices = body.n or 1
        if choices > self.settings.max_choices:
            raise DataError(f"n is {choices}; at most {self.settings.max_choices} may be asked for")
        request = self._read(engine, body, options, policy, named)
        if wanted is None and request.open_ended:
            wanted = self.settings.default_answer_tokens
        request = replace(request, max_tokens=wanted, sampling=_sampling(body))
        key = engine.adapter_key(request)
        if key is not None and not self.fetch(served, key, request.examples):
            request = replace(request, warnings=(*request.warnings, _TRAINED_AGAIN))
        return Prepared(served, engine, request, choices, key)

    def fetch(self, served: ServedModel, key: str, examples: Sequence[Example] = ()) -> bool:
        """Have an adapter in memory if it is in the store; return False where its entry cannot be used.

        Args:
            served: the model.
            key: of the adapter.
            examples: that it was trained on.
        """
        store, cache = self.store, served.cache
        if store is None or not isinstance(cache, StoredAdapterManager):
            return True
        if key in cache:
            store.note_use(cache.fingerprint, key)
            return True
        try:
            found = store.fetch(cache.fingerprint, key)
        except CheckpointError as error:
            _LOG.warning("%s; it is trained again", first_line(error))
            return False
        if found is None:
            return True
        try:
            served.worker.slots.check(found[0])
        except CheckpointError as error:
            _LOG.warning("%s", first_line(error))
            store.discard(cache.fingerprint, key)
            return False
        cache.remember(key, *found, examples)
        return True

    def key_of(self, served: ServedModel, examples: Sequence[Example], options: TTTOptions) -> str:
        """Return the key of the adapter that :meth:`prime` trains."""
        key = self._engine(served, options).adapter_key(Request(query="", examples=tuple(examples), policy="always"))
        assert key is not None  # noqa: S101 - for the type checker: adapting is asked for
        return key

    def submit(
        self,
        prepared: Prepared,
        owner: str,
        *,
        choice: int = 0,
        on_text: OnText | None = None,
        on_step: OnStep | None = None,
    ) -> Ticket[AskReport]:
        """Hand a request to its worker; the report comes by the ticket's result.

        Raises:
            BusyError: too many requests wait.
        """
        engine, key = prepared.engine, prepared.trains
        ticket: Ticket[AskReport] = Ticket(
            owner=owner,
            is_quick=key is None or key in prepared.served.cache,
            trains=key,
            has_trained=lambda: key is not None and prepared.served.cache.is_trained(key),
            deadline_s=self.settings.request_timeout_s,
        )

        def tell(text: str) -> None:
            ticket.note_text()
            if on_text is not None:
                on_text(text)

        sampling = replace(prepared.request.sampling, seed=prepared.request.sampling.seed + choice)
        request = replace(
            prepared.request,
            sampling=sampling,
            cancelled=ticket.is_over,
            clock=ticket.clock,
            on_text=tell,
            on_step=on_step,
        )
        return prepared.served.worker.submit(ticket, lambda: engine.steps(request))

    def prime(
        self, served: ServedModel, examples: Sequence[Example], owner: str, options: TTTOptions
    ) -> Ticket[Adapter]:
        """Train an adapter on examples; it comes by the ticket's result.

        Raises:
            BusyError: too many requests wait.
        """
        engine = self._engine(served, options)
        ticket: Ticket[Adapter] = Ticket(owner=owner, deadline_s=self.settings.request_timeout_s)
        request = Request(query="", examples=tuple(examples), cancelled=ticket.is_over, clock=ticket.clock)
        return served.worker.submit(ticket, lambda: engine.priming(request))

    def load(self, served: ServedModel, path: str) -> Adapter:
        """Read an adapter from below the configured folder.

        Raises:
            CheckpointError: it is not there, cannot be read, or does not fit the model.
        """
        folder = self.settings.lora_folder
        if folder is None:
            raise CheckpointError("no folder is configured that adapters may be loaded from")
        root = folder.resolve()
        # Resolved, so that neither dots nor symbolic links lead out of the folder.
        try:
            wanted = Path(root / path).resolve()
            found = wanted.is_relative_to(root) and wanted != root and wanted.is_dir()
        except (OSError, ValueError):
            # A name that the system refuses: too long, or with a null byte.
            found = False
        if not found:
            raise CheckpointError(f"there is no adapter {path[:200]!r} in the folder that adapters may be loaded from")
        adapter = Adapter.load(wanted, served.model)
        served.worker.slots.check(adapter)
        return adapter

    def _cache(self, fingerprint: str) -> AdapterManager:
        count, most = self.settings.cached_adapters, int(self.settings.cached_adapters_mib * 2**20)
        if self.store is None:
            return AdapterManager(count, max_bytes=most)
        return StoredAdapterManager(self.store, fingerprint, count, max_bytes=most)

    def _warm(self, served: ServedModel) -> int:
        """Fetch as many adapters as there are slots, those that were used last; return how many there were.

        The worker does not run yet, so that its slots are free to be written.
        """
        if self.store is None:
            return 0
        try:
            keys = self.store.recent(served.model.fingerprint, served.worker.slots.count)
        except DataError as error:
            _LOG.warning("%s; the server starts without kept adapters", first_line(error))
            return 0
        # The one that was used last comes last, so that it is dropped last.
        for key in reversed(keys):
            self.fetch(served, key)
            known = served.cache.get(key)
            if known is not None and known[0].weights and served.worker.runs_alone is None:
                served.worker.slots.acquire(known[0].identity, known[0])
                served.worker.slots.release(known[0].identity)
        return len(served.cache)

    def _engine(self, served: ServedModel, options: TTTOptions) -> Engine:
        recipe, gate = None, served.gate
        if self.generator is not None and (options.rank or 0) > (most := self.generator.settings.max_rank):
            raise DataError(f"rank is {options.rank}; at most {most} may be asked for (vllm_max_lora_rank)")
        if options.rank is not None or options.steps is not None:
            changed = {name: value for name in ("rank", "steps") if (value := getattr(options, name)) is not None}
            recipe = replace(served.model.recipe, **changed)
            # The calibration was fitted to answers with the model's own recipe.
            gate = replace(gate, calibration=None)
        if options.confidence_threshold is not None:
            gate = replace(gate, threshold=options.confidence_threshold)
        limit = self.settings.adaptation_budget_s
        return Engine(
            served.model,
            recipe=recipe,
            gate=gate,
            cache=served.cache,
            votes=options.votes,
            max_examples=self.settings.max_examples,
            max_seconds=None,
            max_adapting_seconds=limit if options.budget_s is None else min(limit, options.budget_s),
        )

    def _read(
        self,
        engine: Engine,
        body: ChatRequest | CompletionRequest,
        options: TTTOptions,
        policy: Policy,
        named: NamedAdapter | None,
    ) -> Request:
        adapter = named.adapter if named is not None else None
        examples = as_examples([(e.input, e.output) for e in options.examples]) if options.examples else ()
        if isinstance(body, ChatRequest):
            messages = [{"role": turn.role, "content": turn.text} for turn in body.messages]
            read = engine.read_messages(messages, policy="never" if examples or named else policy)
        elif examples or named or policy == "never":
            read = Request(query=body.text, open_ended=True, pattern=None, as_text=True)
            if not body.text:
                raise DataError("the prompt is empty")
        else:
            read = engine.read_prompt(body.text)
            read = replace(read, as_text=True)
        if named is not None and named.examples:
            examples = named.examples
        if examples:
            read = engine.read_examples(examples, read.query, adapter=adapter)
        elif adapter is not None:
            read = replace(read, adapter=adapter)
        return replace(read, policy=policy)


def _sampling(body: GenerationRequest) -> Sampling:
    if isinstance(body, ChatRequest):
        alternatives = (body.top_logprobs or 0) if body.logprobs else None
    else:
        alternatives = body.logprobs if isinstance(body, CompletionRequest) else None
    return Sampling(
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        # A Generator takes 64 bits; a seed that was not given is drawn by nobody: the same request, the same answer.
        seed=abs(body.seed or 0),
        stop=body.stop_texts,
        alternatives=alternatives,
    )


def _generator(settings: ServerSettings, models: Mapping[str, LanguageModel]) -> VllmGenerator | None:
    """Return what generates answers elsewhere; None where they are generated here."""
    if settings.generate_with == "here":
        return None
    assert settings.vllm_url is not None  # noqa: S101 - for the type checker: the settings were checked
    assert settings.vllm_adapter_folder is not None  # noqa: S101 - as above
    return VllmGenerator(
        VllmSettings(
            url=settings.vllm_url,
            model=settings.vllm_model or next(iter(models)),
            folder=settings.vllm_adapter_folder,
            api_key=api_key_from(settings.vllm_api_key_env),
            max_adapters=settings.vllm_adapters,
            max_rank=settings.vllm_max_lora_rank,
            timeout_s=settings.vllm_timeout_s,
            max_requests=settings.max_rows,
        )
    )


def _media(settings: ServerSettings) -> MediaAnswers | None:
    """Return what answers about images and sounds; None where the settings do not ask for it."""
    if not settings.media:
        return None
    require("media", "media = true")
    from acclimate.serve.media_answers import MediaAnswers

    return MediaAnswers(settings)


def load_models(settings: ServerSettings, progress: Callable[[str], None] | None = None) -> dict[str, LanguageModel]:
    """Load the models that the settings name.

    Raises:
        CheckpointError: one cannot be loaded.
        ConfigError: the device cannot be used.
    """
    from acclimate.language import load

    found: dict[str, LanguageModel] = {}
    for name in settings.models:
        # A folder is asked by its last part: no path of this machine is shown to users.
        shown = Path(name).name if Path(name).is_dir() else name
        if shown in found:
            raise DataError(f"two models would be asked by the name {shown!r}; rename one of the folders")
        found[shown] = load(name, device=settings.device, progress=progress)
    return found
