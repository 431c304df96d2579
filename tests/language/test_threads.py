"""Several threads on several models: every answer is the single-threaded one, and every network is left as it was."""

from __future__ import annotations

import copy
import dataclasses
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface

from acclimate.errors import CancelledError
from acclimate.language import (
    Adapter,
    AdapterManager,
    Engine,
    LanguageModel,
    PromptFormat,
    StopReason,
    as_examples,
    cross_fit,
    held_out,
    load,
    train,
)
from acclimate.language.decision.trials import KnownTask, answers, scored
from acclimate.language.examples import folds
from acclimate.language.models import attention
from acclimate.language.models.decoder import Decoder
from acclimate.language.prompts import Encoder
from acclimate.language.training.recipes import decided
from tests.language.models import SPARK_FOLDER, digest, small

WORDS = ("stone", "lamp", "river", "cabin", "piano", "tiger")
TASKS = {
    "tag": as_examples([(w, f"<q>{w}</q>") for w in WORDS]),
    "upper": as_examples([(w, w.upper()) for w in WORDS[:4]]),
    "end": as_examples([(w, f"{w}!?") for w in WORDS[:5]]),
}
Cancelled = Callable[[], bool]
Action = Callable[[LanguageModel, Cancelled | None], Any]
THREADS = 8


class InjectedError(Exception):
    """Raised inside a forward hook."""


class Faults(threading.local):
    """What goes wrong in this thread: the number of calls of a layer until an exception, or none."""

    calls_left: int | None = None

    def __call__(self, *_: object) -> None:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left <= 0:
                self.calls_left = None
                raise InjectedError


def prompt(task: str) -> str:
    return "\n".join(f"{e.input} -> {e.output}" for e in TASKS[task]) + "\nmelon ->"


def weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    if adapter.stop is StopReason.CANCELLED:
        raise CancelledError("training was cancelled")
    return {f"{name} {i}": part for name, pair in adapter.weights.items() for i, part in enumerate(pair)}


def logits(model: LanguageModel, adapter: Adapter) -> dict[str, torch.Tensor]:
    with torch.no_grad(), adapter.installed(model.network):
        return {"logits": model.network(input_ids=torch.arange(3, 40)[None]).logits}


def actions(folders: dict[str, Path]) -> dict[str, Action]:
    """Return everything that the threads do, by name; ``folders`` hold an adapter for each model."""
    found: dict[str, Action] = {}
    for name, examples in TASKS.items():

        def recipe(model: LanguageModel, examples: Any = examples) -> Any:
            return decided(model.recipe, examples)

        def engine(model: LanguageModel, **settings: Any) -> Engine:
            return Engine(model, max_seconds=None, max_answer_tokens=8, **settings)

        def asked(model: LanguageModel, cancelled: Cancelled | None, name: str = name) -> Any:
            report = engine(model).ask(prompt(name), cancelled=cancelled)
            return report.answer, report.status, report.reason, report.icl_answer

        def answered(model: LanguageModel, cancelled: Cancelled | None, examples: Any = examples) -> Any:
            shared = engine(model, votes=2, cache=AdapterManager())
            report = shared.answer(examples, "melon", policy="always", cancelled=cancelled)
            return report.answer, report.status, report.agreement, report.peak_bytes

        def primed(model: LanguageModel, cancelled: Cancelled | None, examples: Any = examples) -> Any:
            return weights(engine(model).prime(examples, cancelled=cancelled))

        def crossed(model: LanguageModel, cancelled: Cancelled | None, examples: Any = examples) -> Any:
            evidence, adapter = cross_fit(model, examples, recipe(model, examples), cancelled=cancelled)
            weights(adapter)
            return evidence

        def held(model: LanguageModel, _: Cancelled | None, examples: Any = examples) -> Any:
            return held_out(model, examples, folds(examples, 2))

        def half(model: LanguageModel, cancelled: Cancelled | None, examples: Any = examples) -> Any:
            changed = dataclasses.replace(recipe(model, examples), share_adapted=0.4, steps=4)
            return weights(train(model, [examples], changed, cancelled=cancelled))

        def known(model: LanguageModel, _: Cancelled | None, examples: Any = examples) -> Any:
            task = KnownTask("", examples[:-1], examples[-1:])
            right = scored(model, task.examples, task.questions)
            return right, [a.text for a in answers(model, task.examples, task.questions)]

        found |= {
            f"ask {name}": asked, f"answer {name}": answered, f"prime {name}": primed, f"cross_fit {name}": crossed,
            f"held_out {name}": held, f"train half {name}": half, f"known {name}": known,
        }  # fmt: skip

    def loaded(model: LanguageModel, _: Cancelled | None) -> Any:
        return logits(model, Adapter.load(folders[model.name], model))

    def plain(model: LanguageModel, cancelled: Cancelled | None) -> Any:
        return Engine(model, max_answer_tokens=6).ask("Good morning to <s> you!", cancelled=cancelled).answer

    return found | {"load": loaded, "plain": plain}


def same(one: Any, other: Any) -> bool:
    """Say whether two results agree; tensors up to rounding, which depends on where in memory they lie."""
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return same(dataclasses.asdict(one), dataclasses.asdict(other))
    if isinstance(one, float):
        return one == pytest.approx(other, rel=1e-3, abs=1e-4)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def state(model: LanguageModel) -> Any:
    """Return all attributes of every module, hooks and flags included, and a digest of all tensors."""
    modules = []
    for name, module in model.network.named_modules():
        kept = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        copied = {k: dict(v) if isinstance(v, dict) else v for k, v in kept.items()}
        flags = [p.requires_grad for p in module._parameters.values() if p is not None]
        modules.append((name, copied, list(module._modules), flags))
    config = model.network.config
    return modules, config.to_dict(), config._attn_implementation, digest(model)


def fresh() -> dict[str, LanguageModel]:
    """Return both models, newly loaded, so that the threads build everything themselves."""
    return {"spark": load("spark", dtype=torch.float32), "gpt2": small("gpt2")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, model in fresh().items():
        found[name] = tmp_path_factory.mktemp(name)
        Engine(model, max_seconds=None).prime(TASKS["tag"]).save(found[name])
    return found


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[tuple[str, str], Any]:
    """Return the result of every action on every model in one thread."""
    torch.set_num_threads(1)
    return {
        (model.name, name): action(model, None)
        for model in fresh().values()
        for name, action in actions(folders).items()
    }


class Worker(threading.Thread):
    """Does actions in random order, some of which are cancelled or broken, until time is up and each has happened."""

    def __init__(
        self,
        seed: int,
        models: dict[str, LanguageModel],
        todo: dict[str, Action],
        alone: dict[tuple[str, str], Any],
        faults: Faults,
        until: float,
        happened: Counter[str],
    ) -> None:
        super().__init__()
        self._rng, self._models, self._todo, self._alone = random.Random(seed), models, todo, alone
        self._faults, self._until, self._happened = faults, until, happened
        self.wrong: list[str] = []

    def run(self) -> None:
        torch.set_num_threads(1)
        while time.perf_counter() < self._until or not self._all_happened():
            model, name = self._rng.choice(list(self._models.values())), self._rng.choice(list(self._todo))
            way = self._rng.choice(["as it is", "as it is", "cancelled", "broken"])
            share = self._rng.choice([0.02, 0.3])
            self._faults.calls_left = self._rng.randint(1, 40) if way == "broken" else None
            cancelled = (lambda share=share: self._rng.random() < share) if way == "cancelled" else None
            try:
                result = self._todo[name](model, cancelled)
            except (CancelledError, InjectedError) as error:
                self._happened[type(error).__name__] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, the test reports it
                self.wrong.append(f"{model.name}, {name}: {type(error).__name__}: {error}")
            else:
                self._happened["done"] += 1
                if not same(result, self._alone[model.name, name]):
                    self.wrong.append(f"{model.name}, {name}: {result} instead of {self._alone[model.name, name]}")
            finally:
                self._faults.calls_left = None

    def _all_happened(self) -> bool:
        # On a busy machine the time may be too short for it; the test's own limit ends what never happens.
        enough = all(self._happened[name] > 0 for name in ("CancelledError", "InjectedError"))
        return bool(self.wrong) or (enough and self._happened["done"] >= THREADS)


@pytest.mark.parametrize("duration_s", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_threads_on_two_models_answer_as_one_thread_and_leave_the_networks_as_they_were(
    duration_s: int, folders: dict[str, Path], alone: dict[tuple[str, str], Any]
) -> None:
    models, faults = fresh(), Faults()
    for model in models.values():
        model.network.get_submodule(
            "model.layers.3" if model.name == "spark" else "transformer.h.2"
        ).register_forward_hook(faults)
    before = {name: state(model) for name, model in models.items()}
    masks, kernels = dict(AttentionMaskInterface._global_mapping), dict(AttentionInterface._global_mapping)
    numbers = torch.get_rng_state()
    until = time.perf_counter() + duration_s
    happened: Counter[str] = Counter()
    workers = [Worker(seed, models, actions(folders), alone, faults, until, happened) for seed in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not [line for worker in workers for line in worker.wrong]
    for name, model in models.items():
        assert state(model) == before[name]
        for decoder in model._decoders.values():
            assert decoder.can_replay == (decoder.first_adapted > 0)
    kernels.pop(attention.NAME, None)
    assert {k: v for k, v in AttentionInterface._global_mapping.items() if k != attention.NAME} == kernels
    assert masks == AttentionMaskInterface._global_mapping
    assert torch.equal(torch.get_rng_state(), numbers)


def together(work: Callable[[int], None]) -> None:
    """Run ``work`` in eight threads that begin at once; raise what one of them raised."""
    barrier, errors = threading.Barrier(THREADS), []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_a_decoder_is_built_once() -> None:
    model, built = small("llama"), []
    together(lambda _: built.append(model.decoder(0.5)))
    assert len({id(decoder) for decoder in built}) == 1
    assert built[0].can_replay
    assert model.network.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.network.modules())


def test_models_that_share_a_network_share_its_lock() -> None:
    model = small("llama")
    other = dataclasses.replace(model, name="other")
    again = LanguageModel(
        name="again", network=model.network, encoder=model.encoder, recipe=model.recipe, fingerprint=model.fingerprint
    )
    assert model.lock is other.lock is again.lock
    examples = TASKS["upper"]
    expected = weights(train(small("llama"), [examples], model.recipe))
    found: list[Any] = []
    together(lambda number: found.append(weights(train((model, other, again)[number % 3], [examples], model.recipe))))
    assert len(found) == THREADS
    assert all(same(one, expected) for one in found)


def test_a_copy_of_a_network_has_a_lock_of_its_own() -> None:
    model = small("llama")
    copied = dataclasses.replace(model, network=copy.deepcopy(model.network))
    assert copied.lock is not model.lock


def test_the_check_of_one_model_is_right_while_others_train(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = [small("llama").network for _ in range(THREADS // 2)]
    trained = [small("gpt2") for _ in range(THREADS // 2)]
    tokens = torch.arange(1, 9)[None]
    kernel = attention.attend

    def wrong(module: Any, *given: Any, **others: Any) -> Any:
        output, none = kernel(module, *given, **others)
        return (output + 0.2 if any(module is m for network in checked for m in network.modules()) else output), none

    monkeypatch.setattr(attention, "attend", wrong)
    differences: list[float] = []

    def work(number: int) -> None:
        if number % 2:
            train(trained[number // 2], [TASKS["upper"]], trained[number // 2].recipe)
            return
        network = checked[number // 2]
        for _ in range(5):
            with torch.no_grad():
                differences.append(attention.disagreement(network, lambda: network.base_model(input_ids=tokens)))
            assert not Decoder(network)._replaces_attention

    together(work)
    assert len(differences) == 5 * len(checked)
    assert min(differences) > 0.1


@pytest.fixture(scope="module")
def shared_tokenizer() -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(SPARK_FOLDER)
    # Its special tokens are tokens, those of the prompt are text: the tokenizer changes its settings between them.
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ eos_token }}"
    return tokenizer


def test_encoders_made_from_one_tokenizer_encode_side_by_side(shared_tokenizer: Any) -> None:
    encoders = [Encoder(shared_tokenizer, PromptFormat(), 512) for _ in range(2)]
    text = [f"<s>{i}</s> word {i}" for i in range(200)]
    expected = [Encoder(shared_tokenizer, PromptFormat(), 512).prompt_tokens(t) for t in text]

    def work(number: int) -> None:
        encoder = encoders[number % 2]
        order = random.Random(number).sample(range(len(text)), len(text))
        for i in order:
            assert encoder.prompt_tokens(text[i]) == expected[i]
            assert encoder.answer_text(expected[i], open_ended=True)

    together(work)


def test_models_can_be_loaded_side_by_side() -> None:
    alone = load("spark", dtype=torch.float32)
    initialised = dict(vars(torch.nn.init))
    found: list[LanguageModel] = []
    together(lambda _: found.extend(load("spark", dtype=torch.float32) for _ in range(4)))
    assert {model.fingerprint for model in found} == {alone.fingerprint}
    assert {digest(model) for model in found} == {digest(alone)}
    assert vars(torch.nn.init) == initialised
    assert torch.get_default_dtype() == torch.float32
