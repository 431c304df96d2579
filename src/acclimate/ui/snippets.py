"""The request that the page makes, as a program or a command would make it."""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acclimate.serve.schemas import ChatRequest

_POLICIES: Mapping[str, str] = {"auto": "gate", "off": "never", "force": "always"}


@dataclass(frozen=True, slots=True)
class Snippets:
    """One request in three forms."""

    curl: str
    python: str
    command: str


def snippets(body: ChatRequest, *, server: str, with_key: bool) -> Snippets:
    """Return how else this request can be made.

    Args:
        body: of the request.
        server: its address, without a path.
        with_key: whether it asks for API keys; they are taken from the variable ``ACCLIMATE_API_KEY``.
    """
    sent = body.model_dump(exclude_none=True, exclude_defaults=True)
    sent["messages"] = [{"role": message.role, "content": message.text} for message in body.messages]
    sent.pop("stream", None)
    return Snippets(_curl(sent, server, with_key), _python(sent, server, with_key), _command(body))


def _curl(sent: Mapping[str, Any], server: str, with_key: bool) -> str:
    lines = [f"curl -s {shlex.quote(f'{server}/v1/chat/completions')} -H 'content-type: application/json'"]
    if with_key:
        lines.append('-H "authorization: Bearer $ACCLIMATE_API_KEY"')
    lines.append(f"-d {shlex.quote(json.dumps(sent, ensure_ascii=False))}")
    return " \\\n  ".join(lines)


def _python(sent: Mapping[str, Any], server: str, with_key: bool) -> str:
    key = 'os.environ["ACCLIMATE_API_KEY"]' if with_key else '"none"'
    lines = ["import os", ""] if with_key else []
    lines += ["import openai", "", f'client = openai.OpenAI(base_url="{server}/v1", api_key={key})']
    lines.append("answer = client.chat.completions.create(")
    for name, value in sent.items():
        if name != "ttt":
            lines.append(f"    {name}={_literal(value)},")
    if sent.get("ttt"):
        lines.append(f"    extra_body={_literal({'ttt': sent['ttt']})},")
    lines += [")", 'print(answer.choices[0].message.content, answer.model_extra["ttt"]["status"])']
    return "\n".join(lines)


def _literal(value: Any) -> str:
    text = pprint.pformat(value, width=100, sort_dicts=False)
    return text.replace("\n", "\n    ")


def _command(body: ChatRequest) -> str:
    options = body.ttt
    parts = ["acclimate", "ask", "--model", body.model.partition(":")[0]]
    if options is not None:
        if options.mode != "auto":
            parts += ["--policy", _POLICIES[options.mode]]
        for flag, value in (
            ("--rank", options.rank),
            ("--steps", options.steps),
            ("--votes", options.votes if options.votes > 1 else None),
            ("--max-seconds", options.budget_s),
        ):
            if value is not None:
                parts += [flag, f"{value:g}"]
    if body.max_tokens is not None:
        parts += ["--max-answer-tokens", str(body.max_tokens)]
    query = body.messages[-1].text
    if options is not None and options.examples:
        pairs = [(example.input, example.output) for example in options.examples]
        return f"{_examples_file(pairs)}\n{shlex.join([*parts, '--examples', 'examples.jsonl', '--query', query])}"
    return shlex.join([*parts, query])


def _examples_file(pairs: Sequence[tuple[str, str]]) -> str:
    lines = [json.dumps({"input": given, "output": wanted}, ensure_ascii=False) for given, wanted in pairs]
    return "cat > examples.jsonl <<'EOF'\n" + "\n".join(lines) + "\nEOF"
