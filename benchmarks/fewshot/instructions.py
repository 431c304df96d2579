"""What the user's instruction and layout are worth: the English tasks, typed as people type them.

    python benchmarks/fewshot/instructions.py --out benchmarks/fewshot/results/instructions.json

Each task is one prompt with an instruction, ten examples in one of six layouts, and a question. It is asked in three
ways: in the model's own format without the instruction, in the user's layout without it, and in the user's layout with
it; each by the base model, adapted, and as the gate decides. The base model is asked by its chat template too.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from known import known_tasks

from acclimate.language import Engine, Gate, LanguageModel, detect, load, shipped
from acclimate.language.decision.calibration import expected_calibration_error
from acclimate.language.decision.evidence import cross_fit
from acclimate.language.decision.trials import KnownTask, scored
from acclimate.language.layouts import TypedLayout, layout_of_prompt
from acclimate.language.training.parts import adapter_to
from acclimate.language.training.recipes import decided
from acclimate.language.training.trainer import TrainingJob

#: As a user would say it; what the codes mean is not said, as it is for the examples to show.
INSTRUCTIONS: Mapping[str, str] = {
    "json_record": "Turn each line into a JSON record.",
    "date_format": "Write the dates in the German way.",
    "surname_first": "Put the surname first, in capitals.",
    "sentiment_code": "Label each comment with K if it is positive and R if it is negative.",
    "alive_code": "Is it a living being (zu) or a thing (ka)?",
    "pig_latin": "Move the first letter to the end and add ay.",
    "query_language": "Translate the request to SQL.",
    "shout_last": "Write the last word of the sentence in capitals with an exclamation mark.",
    "find_colour": "Which colour is mentioned?",
    "initials_and_city": "Make a short code for each person: initials, and the first three letters of the city.",
    "multiples": "Double the number and add one.",
    "arbitrary_code": "Give each pair of people the name of their team.",
}
#: Before an input, before its answer, after an answer.
LAYOUTS = (
    ("", " -> ", "\n"),
    ("Input: ", "\nOutput: ", "\n\n"),
    ("Q: ", "\nA: ", "\n\n"),
    ("Text: ", "\nResult: ", "\n\n###\n\n"),
    ("- ", " => ", "\n"),
    ("<in>", "</in><out>", "</out>\n"),
)


def typed(task: KnownTask, instruction: str, layout: tuple[str, str, str]) -> str:
    """Return the prompt that asks the first question of ``task``."""
    before, between, after = layout
    shown = "".join(before + e.input + between + e.output + after for e in task.examples)
    lead = f"{instruction}\n\n" if instruction else ""
    return lead + shown + before + task.questions[0].input + between.rstrip()


def asked(model: LanguageModel, gate: Gate, task: KnownTask, layout: TypedLayout | None) -> dict[str, Any]:
    """Return how the questions are answered in one layout."""
    recipe = decided(model.recipe, task.examples)
    evidence, parts = cross_fit(model, task.examples, recipe, even_if_perfect=True, layout=layout)
    decision = gate.decide(evidence)
    job = TrainingJob(sets=[task.examples], layout=layout)
    adapter = adapter_to(model, job, recipe, parts if evidence.likelier else None)
    base = scored(model, task.examples, task.questions, layout=layout)
    adapted = scored(model, task.examples, task.questions, adapter, layout=layout)
    return {
        "icl": statistics.fmean(base),
        "ttt": statistics.fmean(adapted),
        "gated": statistics.fmean(adapted if decision.adapt else base),
        "confidence": decision.confidence,
        "tokens": len(model.encoder.row(task.examples, layout=layout).tokens),
        "train_cpu_s": adapter.cpu_seconds,
    }


def by_chat(engine: Engine, task: KnownTask, prompt: str, count: int) -> tuple[float, float]:
    """Return the shares of questions whose answer by the chat template is exact, and holds the known answer."""
    exact, holds = [], []
    for question in task.questions[:count]:
        text = prompt.replace(task.questions[0].input, question.input) if question is not task.questions[0] else prompt
        answer = engine.ask(text, policy="never").answer
        exact.append(answer.strip() == question.output)
        holds.append(question.output in answer)
    return statistics.fmean(exact), statistics.fmean(holds)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per", type=int, default=2, help="tasks of each family")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--chat-questions", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load("smollm2")
    gate, engine = Gate(calibration=shipped(model.name)), Engine(model, max_answer_tokens=40)
    rows = []
    rng = random.Random(5)
    for task in known_tasks(model.name, "TEST", per=given.per, shots=10, questions=given.questions, seed=78):
        around = rng.choice(LAYOUTS)
        prompt = typed(task, INSTRUCTIONS[task.name], around)
        found = detect(prompt)
        row: dict[str, Any] = {"task": task.name, "layout": LAYOUTS.index(around), "read": False}
        if found is not None and list(found.examples) == list(task.examples) and found.query == task.questions[0].input:
            layout = layout_of_prompt(model.encoder, prompt, found)
            assert isinstance(layout, TypedLayout)
            row["read"] = True
            first = layout.before[0]
            without = replace(layout, before=(first[len(INSTRUCTIONS[task.name]) :].lstrip(), *layout.before[1:]))
            row["format"] = asked(model, gate, task, None)
            row["layout"] = LAYOUTS.index(around)
            row["user_layout"] = asked(model, gate, task, without)
            row["with_instruction"] = asked(model, gate, task, layout)
            row["chat_exact"], row["chat_holds"] = by_chat(engine, task, prompt, given.chat_questions)
        rows.append(row)
        print(json.dumps(row), flush=True)
        write(given.out, rows)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows and means."""
    read = [row for row in rows if row["read"]]
    if len(read) < 3:
        return
    summary: dict[str, Any] = {"tasks": len(read), "not_read": len(rows) - len(read)}
    for way in ("format", "user_layout", "with_instruction"):
        means = {k: 100 * statistics.fmean(row[way][k] for row in read) for k in ("icl", "ttt", "gated")}
        costs = {k: statistics.median(row[way][k] for row in read) for k in ("tokens", "train_cpu_s")}
        error = expected_calibration_error([r[way]["confidence"] for r in read], [r[way]["ttt"] >= 0.5 for r in read])
        summary[way] = (
            means
            | costs
            | {
                "confidence_minus_right": 100
                * statistics.fmean(row[way]["confidence"] - row[way]["ttt"] for row in read),
                "calibration_error": error,
            }
        )
    for mode in ("icl", "ttt", "gated"):
        gains = [row["with_instruction"][mode] - row["user_layout"][mode] for row in read]
        half = 1.96 * statistics.stdev(gains) / len(gains) ** 0.5
        summary[f"instruction_gain_{mode}"] = [100 * statistics.fmean(gains), 100 * half]
    summary["chat_exact"] = 100 * statistics.fmean(row["chat_exact"] for row in read)
    summary["chat_holds"] = 100 * statistics.fmean(row["chat_holds"] for row in read)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
