"""Train spark, the character-level model that ships with the package.

    python benchmarks/spark/train.py --out src/acclimate/language/models/spark --work spark-training

Resumable: run the same command again and it goes on from the last checkpoint in ``--work``. One seed gives one
sequence of batches; a resumed run draws the batches that an uninterrupted one would have drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tasks import ACCENTED, pairs
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from train_families import training_task
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from acclimate.language.prompts import PromptFormat

# Rows by tokens: mostly short prompts, some long ones, so that positions up to 512 are trained.
SHAPES = ((64, 128), (32, 256), (16, 512))
SHAPE_WEIGHTS = (0.72, 0.22, 0.06)
INPUT_WEIGHT = 0.05
SEPARATOR, END = "\t", "\n"


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: one token a character."""
    accented = ACCENTED + "".join(c.upper() for c in ACCENTED if c != "ß")
    characters = [SEPARATOR, END, *(chr(code) for code in range(32, 127)), *accented, *"→°€£§\u2013…"]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<unk>", "<s>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int, heads: int, seed: int) -> LlamaForCausalLM:
    """Return an untrained decoder; projections into the residual stream start small."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width * 8 // 3 // 64 * 64,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 1 / math.sqrt(parameter.shape[1]))
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter.mul_(0.3)
            if "embed_tokens" in name:
                parameter.normal_(0, 0.05)
    return model


def draw(seed: int, step: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the token ids and loss weights of one step's batch, both ``(rows, length)``."""
    rng = random.Random(f"{seed}/{step}")
    rows, length = rng.choices(SHAPES, SHAPE_WEIGHTS)[0]
    tokenizer = draw.__dict__.setdefault("tokenizer", character_tokenizer())
    vocabulary = draw.__dict__.setdefault("vocabulary", tokenizer.get_vocab())
    tokens = np.zeros((rows, length), np.int64)
    weights = np.zeros((rows, length), np.float32)
    for row in range(rows):
        at = 0
        for given, answer in pairs(training_task(rng), length // 6, rng, distinct=rng.random() < 0.5):
            for text, weight in ((given + SEPARATOR, INPUT_WEIGHT), (answer + END, 1.0)):
                ids = [vocabulary[c] for c in text][: length - at]
                tokens[row, at : at + len(ids)] = ids
                weights[row, at : at + len(ids)] = weight
                at += len(ids)
            if at >= length:
                break
    return tokens, weights


def batches(seed: int, start: int, ahead: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches from step ``start`` on, drawn in another process."""
    with ProcessPoolExecutor(1) as pool:
        waiting = [pool.submit(draw, seed, start + i) for i in range(ahead)]
        step = start + ahead
        while True:
            tokens, weights = waiting.pop(0).result()
            waiting.append(pool.submit(draw, seed, step))
            step += 1
            yield torch.from_numpy(tokens), torch.from_numpy(weights)


def answer_loss(model: nn.Module, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted cross-entropy in nats, and the share of answer characters predicted right."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    target, weight = tokens[:, 1:], weights[:, 1:]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    late = (weight == 1) & (torch.arange(target.shape[1]) > 70)
    right = (logits.argmax(-1) == target) & late
    return (loss * weight.flatten()).sum() / weight.sum(), right.sum() / late.sum()


def main() -> None:
    """Train, save, and write the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the log")
    parser.add_argument("--steps", type=int, default=4600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=4e-3)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model: needs a C++ compiler")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)

    tokenizer = character_tokenizer()
    model = new_model(tokenizer, given.width, given.layers, given.heads, given.seed)
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    # Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for embeddings, head and norms.
    optimizers = (
        torch.optim.Muon(matrices, lr=given.muon_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=given.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]

    checkpoint = given.work / "checkpoint.pt"
    start, cpu_before_s, wall_before_s = 0, 0.0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start, cpu_before_s, wall_before_s = saved["step"], saved["cpu_s"], saved["wall_s"]
    forward: Any = torch.compile(model) if given.compile else model
    model.train()
    cpu, wall = time.process_time(), time.time()
    log = (given.work / "log.jsonl").open("a")
    for step, (tokens, weights) in zip(range(start, given.steps), batches(given.seed, start), strict=False):
        done = step / given.steps
        factor = min(1.0, (step + 1) / 30) * (1.0 if done < 0.5 else max(0.02, 2 - 2 * done))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        loss, right = answer_loss(forward, tokens, weights)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 25 == 0 or step == given.steps - 1:
            spent = {"cpu_s": cpu_before_s + time.process_time() - cpu, "wall_s": wall_before_s + time.time() - wall}
            row = {"step": step, "loss_nats": loss.item(), "late_answer_accuracy": right.item(), **spent}
            print(json.dumps({key: round(value, 4) for key, value in row.items()}), file=log, flush=True)
        if step % 200 == 199 or step == given.steps - 1:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step + 1,
                **spent,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    given.out.mkdir(parents=True, exist_ok=True)
    PromptFormat(
        before_input="", before_answer=SEPARATOR, answer_lead="", after_answer=END, single_line=True, is_only=True
    ).save(given.out)
    model.half().save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {given.steps} steps -> {given.out}")


if __name__ == "__main__":
    main()
