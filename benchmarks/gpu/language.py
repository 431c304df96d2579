"""Cost of adapting a Llama of about 1B parameters with random weights, against loops with peft, and of answering."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import busy_share, seconds, wait
from torch import nn

from acclimate.language import Example, LanguageModel, load
from acclimate.language.models.language_model import fingerprint
from acclimate.language.prompts import Encoder, PromptFormat
from acclimate.language.steps import Generate
from acclimate.language.training.memory import RequestMemory
from acclimate.language.training.recipes import Recipe
from acclimate.language.training.trainer import Training, TrainingJob, cosine
from acclimate.serve.batch import Batch, generation_of
from acclimate.serve.prefixes import PrefixCache
from acclimate.serve.slots import AdapterSlots

RECIPE = Recipe(
    rank=16, steps=8, steps_floor=8, steps_cap=8, learning_rate=1e-4, share_adapted=1.0, context_share=0.5,
    initial_weights="first_gradient", early_stop_loss=1e-9,
)  # fmt: skip


def llama(device: torch.device, *, small: bool) -> LanguageModel:
    """Return a Llama of the sizes of Llama 3.2 1B (1.24e9 parameters) with spark's tokenizer and random weights."""
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "vocab_size": 128256,
    }  # fmt: skip
    if small:
        sizes = {
            "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 128, "vocab_size": 512,
        }  # fmt: skip
    config = transformers.LlamaConfig(**sizes, max_position_embeddings=8192, tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device(device):
        network = transformers.LlamaForCausalLM(config)
    network = network.to(torch.bfloat16).eval().requires_grad_(False)
    shape = PromptFormat(before_input="", before_answer="\t", answer_lead="", after_answer="\n", single_line=True)
    encoder = Encoder(load("spark").tokenizer, shape, 8192)
    return LanguageModel(
        name="llama", network=network, encoder=encoder, recipe=RECIPE, fingerprint=fingerprint(network)
    )


def example_set(model: LanguageModel, seed: int, *, tokens: int, count: int = 10) -> list[Example]:
    """Return ``count`` examples of about ``tokens`` tokens together, half of them answers."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = "".join(rng.choice(letters) for _ in range(4000))
    per_letter = len(model.encoder.row([Example(text[:500], text[500:1000])]).tokens) / 1000
    length = max(1, round(tokens / count / 2 / per_letter))
    parts = [text[n * length : (n + 1) * length] for n in range(2 * count)]
    return [Example(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]


def model_flops_per_token(model: LanguageModel) -> float:
    """Return the operations of the adapted layers in a step: forward, and backward to activations alone."""
    return 4.0 * sum(p.numel() for name, p in model.network.named_parameters() if "layers." in name)


def training(device: torch.device, limits: dict[str, Any], *, small: bool) -> dict[str, Any]:
    """Return step times and adaptations a second for 1, 8 and 32 sets of examples in the same passes."""
    model = llama(device, small=small)
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.network.parameters()), "rows": []}
    began = time.perf_counter()
    model.decoder(1.0)
    wait(device)
    found["first_look_s"] = round(time.perf_counter() - began, 3)
    per_token = model_flops_per_token(model)
    weight_bytes = sum(p.numel() * 2 for name, p in model.network.named_parameters() if "layers." in name)
    for tokens in (64,) if small else (320, 1024):
        for requests in (1, 2) if small else (1, 8, 32):
            sets = [example_set(model, seed, tokens=tokens) for seed in range(requests)]
            row: dict[str, Any] = {"tokens": tokens, "requests": requests}
            try:
                row |= _steps(model, sets, device)
            except Exception as error:  # noqa: BLE001 - one failure must not end the measurement
                row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
            found["rows"].append(row)
            if "step_ms" in row:
                done = per_token * row["row_tokens"] * requests / row["step_ms"] * 1e3
                row["share_of_matmul"] = round(done / 1e12 / limits.get("bfloat16_tflops", math.inf), 3)
                # Each weight is read once forward and once backward.
                floor_ms = 1e3 * 2 * weight_bytes / (limits.get("copy_gb_per_s", math.inf) * 1e9)
                row["times_reading_weights"] = round(row["step_ms"] / floor_ms, 2) if floor_ms else None
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return found


def _steps(model: LanguageModel, sets: list[list[Example]], device: torch.device) -> dict[str, Any]:
    def adaptation() -> tuple[Training, list[float]]:
        jobs = [TrainingJob(sets=[examples]) for examples in sets]
        made = Training(model, jobs, RECIPE)
        times = []
        with made.attached():
            while not made.finished:
                start = time.perf_counter()
                made.step()
                wait(device)
                times.append(time.perf_counter() - start)
        made.ended()
        return made, times

    with model.lock:
        adaptation()
        wait(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        whole, every = [], []
        for _ in range(2):
            start = time.perf_counter()
            last, times = adaptation()
            wait(device)
            whole.append(time.perf_counter() - start)
            every += times[1:]
        best = min(whole)
        row_tokens = last._schedule.at(0)[0].tokens.shape[1]
        row = {
            "row_tokens": row_tokens,
            "step_ms": round(1e3 * sorted(every)[len(every) // 2], 3),
            "first_step_ms": round(1e3 * times[0], 3),
            "adaptation_ms": round(1e3 * best, 2),
            "adaptations_per_s": round(len(sets) / best, 2),
            "last_loss": last._progress[0].losses[-1],
        }
        if device.type == "cuda":
            row["peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
            if len(sets) in (1, 32):
                made = Training(model, [TrainingJob(sets=[examples]) for examples in sets], RECIPE)
                with made.attached():
                    made.step()
                    row |= busy_share(device, made.step, calls=2)
        return row


def peft(device: torch.device, *, small: bool) -> dict[str, Any]:
    """Return the step times of loops with peft, of 8 steps with rank 16 as ours.

    ``one by one``: every leave-one-out prompt by itself, as in ``benchmarks/adaptation``. ``batched``: all of them in
    one padded pass. ``one row``: the same single row and the same answers as ours, which is the same work as one of our
    steps.
    """
    model = llama(device, small=small)
    found: dict[str, Any] = {"rows": []}
    for tokens in (64,) if small else (320, 1024):
        examples = example_set(model, 0, tokens=tokens)
        for kind in ("one row", "batched", "one by one"):
            row: dict[str, Any] = {"tokens": tokens, "kind": kind}
            try:
                row |= _peft_loop(model, examples, kind, device)
            except Exception as error:  # noqa: BLE001 - one failure must not end the measurement
                row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
            found["rows"].append(row)
    return found


def _peft_loop(model: LanguageModel, examples: list[Example], kind: str, device: torch.device) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model

    names = sorted({name.rsplit(".", 1)[-1] for name in model.decoder(1.0).targets})
    settings = LoraConfig(r=16, lora_alpha=16, target_modules=names, lora_dropout=0.0, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    wrapped = get_peft_model(model.network, settings)
    try:
        parameters = [p for p in wrapped.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        count = len(examples)
        if kind == "one row":
            rows = [model.encoder.row(examples, answers=[-1] * (count // 2) + list(range(count // 2, count)))]
        else:
            rows = [
                model.encoder.row([*examples[:i], *examples[i + 1 :], examples[i]], answers=[-1] * (count - 1) + [0])
                for i in range(count)
            ]
        longest = max(len(row.tokens) for row in rows)
        tokens = torch.tensor([[*row.tokens, *[0] * (longest - len(row.tokens))] for row in rows], device=device)
        labels = torch.tensor(
            [
                [t if a >= 0 else -100 for t, a in zip(row.tokens, row.answer, strict=True)]
                + [-100] * (longest - len(row.tokens))
                for row in rows
            ],
            device=device,
        )
        parts = list(zip(tokens.split(1), labels.split(1), strict=True)) if kind == "one by one" else [(tokens, labels)]
        step_number = 0

        def step() -> None:
            nonlocal step_number
            optimizer.param_groups[0]["lr"] = 1e-4 * cosine(step_number % 8, 8)
            step_number += 1
            optimizer.zero_grad()
            for ids, wanted in parts:
                (wrapped(input_ids=ids, labels=wanted, use_cache=False).loss / len(parts)).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            optimizer.step()

        row: dict[str, Any] = {"row_tokens": longest, "rows": len(rows)}
        row["step_ms"] = round(1e3 * seconds(step, device, least_s=0.6, most=24), 3)
        if kind == "one row":
            row |= busy_share(device, step, calls=2)
        return row
    finally:
        wrapped.unload()
        model.network.requires_grad_(False)
        gc.collect()


def answering(device: torch.device, limits: dict[str, Any], *, small: bool) -> dict[str, Any]:
    """Return tokens a second for 1, 8 and 32 rows, each with an adapter of its own."""
    model = llama(device, small=small)
    weight_bytes = sum(p.numel() * 2 for p in model.network.parameters())
    slots = AdapterSlots(model, 33)
    found: dict[str, Any] = {"rows": []}
    new_tokens = 8 if small else 64
    with model.lock:
        for requests in (1, 2) if small else (1, 8, 32):
            row: dict[str, Any] = {"requests": requests, "prompt_tokens": 256 if not small else 32}
            try:
                row |= _answers(model, slots, requests, row["prompt_tokens"], new_tokens, device)
                floor_ms = 1e3 * weight_bytes / (limits.get("copy_gb_per_s", math.inf) * 1e9)
                row["times_reading_weights"] = round(row["token_pass_ms"] / floor_ms, 2) if floor_ms else None
            except Exception as error:  # noqa: BLE001 - one failure must not end the measurement
                row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
            found["rows"].append(row)
    slots.close()
    return found


def _answers(
    model: LanguageModel, slots: AdapterSlots, requests: int, prompt: int, new_tokens: int, device: torch.device
) -> dict[str, Any]:
    rng = random.Random(0)
    adapters = [slots.random_adapter(seed=number) for number in range(requests)]

    def batch_of() -> Batch:
        batch = Batch(model, slots, PrefixCache(2**20), max_rows=64, max_bytes=2**34)
        for number in range(requests):
            step = Generate(
                prompts=[tuple(rng.randrange(5, 150) for _ in range(prompt))],
                max_tokens=new_tokens,
                memory=RequestMemory(),
                adapter=adapters[number],
                open_ended=True,
            )
            assert batch.join(generation_of(model, step, number))
        return batch

    batch = batch_of()
    while batch.reading:
        batch.read()
    while len(batch):
        batch.generate()
    batch = batch_of()
    wait(device)
    start = time.perf_counter()
    while batch.reading:
        batch.read()
    wait(device)
    read = time.perf_counter() - start
    rows = len(batch)
    passes = 0
    measured: Callable[[], Any] = batch.generate
    start = time.perf_counter()
    while len(batch) == rows and passes < new_tokens - 2:
        measured()
        passes += 1
    wait(device)
    taken = (time.perf_counter() - start) / max(1, passes)
    while len(batch):
        batch.generate()
    return {
        "rows": rows,
        "read_ms": round(1e3 * read, 2),
        "prompt_tokens_per_s": round(requests * prompt / read, 1),
        "token_pass_ms": round(1e3 * taken, 3),
        "tokens_per_s": round(rows / taken, 1),
    }
