"""Answers prompts by transformers' own generation, one after the other; prints requests a second and CPU seconds."""

from __future__ import annotations

import json
import sys
import time

import torch

from acclimate.language import as_examples, load


def main() -> None:
    name, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    requests = json.load(sys.stdin)
    model = load(name)
    encoder = model.encoder
    prompts = []
    for request in requests:
        examples = as_examples([(e["input"], e["output"]) for e in request["ttt"]["examples"]])
        row = encoder.row(examples, query=request["messages"][0]["content"])
        prompts.append((torch.tensor([row.tokens]), request["max_tokens"]))
    stops = encoder.stop_ids

    def ends(ids: torch.Tensor, _scores: object, **_others: object) -> torch.Tensor:
        return torch.tensor([tuple(ids[0, -len(stops) :].tolist()) == stops])

    def generate(ids: torch.Tensor, most: int) -> int:
        with torch.no_grad():
            out = model.network.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False,
                stopping_criteria=[ends], pad_token_id=model.pad,
            )  # fmt: skip
        return int(out.shape[1] - ids.shape[1])

    generate(*prompts[0])
    began, cpu = time.perf_counter(), time.process_time()
    tokens = sum(generate(ids, most) for ids, most in prompts)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({
        "requests": len(prompts), "requests_per_second": round(len(prompts) / wall_s, 3),
        "cpu_seconds_per_request": round(cpu_s / len(prompts), 4), "tokens_per_second": round(tokens / wall_s, 1),
        "tokens_per_request": round(tokens / len(prompts), 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
