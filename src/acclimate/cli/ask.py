"""``acclimate ask``: answer a prompt, adapted to the examples in it where that helps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import click
from rich.table import Table
from rich.text import Text

from acclimate.cli import language_options, media_options, store_options
from acclimate.cli.terminal import reports_input_errors, set_up_logging, stdout
from acclimate.errors import ConfigError, DataError

if TYPE_CHECKING:
    from acclimate.language import AskReport, Engine
    from acclimate.monitoring import Arm


#: An adapted answer below this confidence is shown with a warning.
LEAST_CONFIDENCE: Final = 0.5


@click.command("ask", short_help="Answer a prompt, adapted to the examples in it where that helps.")
@click.argument("prompt", required=False)
@click.option("--file", "prompt_file", type=click.Path(path_type=Path), help="Read the prompt from a file.")
@click.option(
    "--examples",
    type=click.Path(path_type=Path),
    help='JSON lines {"input": ..., "output": ...}; an input is text, {"image": FILE} or {"audio": FILE}.',
)
@click.option("--query", help="The input to answer, or its file; with --examples or --adapter, nothing is detected.")
@click.option(
    "--adapter",
    "adapters",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder that acclimate prime saved; needs --query. Several are added up.",
)
@click.option(
    "--adapter-weight", "adapter_weights", type=float, multiple=True, help="One for each --adapter.  [default: 1]"
)
@language_options.model
@click.option("--compare", is_flag=True, help="Show the answers with and without adapting side by side.")
@click.option("--show-prompt", is_flag=True, help="Show on stderr what was sent to the model.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--votes", type=click.IntRange(1, 32), default=1, show_default=True, help="Orders of the examples asked.")
@click.option(
    "--policy",
    type=click.Choice(["gate", "always", "never"]),
    default="gate",
    show_default=True,
    help="Let the gate decide, adapt wherever possible, or never.",
)
@click.option(
    "--environment",
    type=click.Choice(["production", "research", "testing", "demo"]),
    help="Adapt only above this environment's confidence.  [default: whichever answer is likelier right]",
)
@click.option("--calibration", type=click.Path(path_type=Path), help="File that acclimate calibrate wrote.")
@click.option(
    "--domain",
    type=click.Choice(["mathematics", "language", "science", "general"]),
    help="See this domain's kinds of pattern more readily.",
)
@language_options.training
@language_options.library
@click.option("--max-seconds", type=click.FloatRange(0), default=20.0, show_default=True, help="For the whole answer.")
@click.option("--max-mib", type=click.FloatRange(0), help="Memory that adapting may hold, beyond the model.")
@click.option("--max-answer-tokens", type=click.IntRange(1), help="Longest answer.")
@click.option("--experiment", help="Answer with the arm that this request (or --user) has in an experiment.")
@click.option("--expected", help="The known answer: whether it was given is recorded as quality in the experiment.")
@click.option("--store-content", is_flag=True, help="Store prompt, examples and answer with the metrics.")
@media_options.media
@store_options.recording
@click.option(
    "--debug", is_flag=True, help="Append losses, evidence and times to logs/ttt_debug.jsonl, without any text."
)
@click.option("--debug-content", is_flag=True, help="The same with prompt, examples and answers.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.pass_context
@reports_input_errors
def ask_command(context: click.Context, /, prompt: str | None, **given: Any) -> None:
    """Answer PROMPT with a language model, or say what an image or a sound is.

    Where the prompt shows worked examples, the model is fine-tuned on them before it answers, if that is likelier to be
    right. PROMPT comes from the argument, from --file, or from standard input (-).

    Where the inputs of --examples are images or sounds, no language model is used: --query names a file, and a
    classifier is made from the examples.
    """
    set_up_logging(given["verbose"])
    if given["examples"] is not None and media_options.has_media(given["examples"]):
        media_options.answer(context, {"prompt": prompt, **given})
        return
    media_options.refuse_for_text(given)
    from acclimate.language import Engine

    text = _prompt(prompt, given)
    if not text.strip():
        # Before a model is loaded or fetched.
        raise DataError("the prompt is empty; give it as the argument, by --file, or on standard input")
    request_id = uuid4().hex
    arm = _arm(given, request_id) if given["experiment"] else None
    engine = _engine(Engine, given)
    how: dict[str, Any] = {"compare": given["compare"]}
    if given["examples"] or given["adapters"]:
        report = _with_examples(engine, text, given, how)
    else:
        report = engine.ask(text, domain=given["domain"], policy=given["policy"], **how)
    values = report.to_dict()
    values["warnings"] = [*values["warnings"], *(warnings := low_confidence_warnings(report))]
    recorded = given["record"] and _record(given, values, text, request_id, arm)
    if given["as_json"]:
        experiment = {"name": given["experiment"], "arm": arm.name} if arm is not None else None
        also = {"request_id": request_id if recorded else None, "experiment": experiment}
        click.echo(json.dumps({**values, **also}, indent=2))
    else:
        _show(report, compare=given["compare"])
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)
        if given["show_prompt"]:
            click.echo(f"----- the prompt, as it was sent\n{report.prompt_sent}\n-----", err=True)
        if arm is not None:
            click.echo(f"experiment {given['experiment']}: answered by arm {arm.name}", err=True)
        if recorded:
            click.echo(f"request {request_id}", err=True)


def low_confidence_warnings(report: AskReport) -> list[str]:
    """Return a warning where the adapted answer is likelier wrong than right, by the gate's own estimate."""
    sure = report.metadata.confidence_score
    if report.status != "adapted" or sure is None or sure >= LEAST_CONFIDENCE:
        return []
    return [f"the adapted answer is right with a probability of {sure:.0%} only; check it"]


def _arm(given: dict[str, Any], request_id: str) -> Arm:
    """Return the arm of the request; needs the metrics store, which an answer without experiment does not."""
    from acclimate.cli import asked_experiments

    return asked_experiments.assigned(given, request_id)


def _record(given: dict[str, Any], values: dict[str, Any], text: str, request_id: str, arm: Arm | None) -> bool:
    """Write the request to the store; its answer is given whatever comes of that."""
    from acclimate.cli import asked_experiments
    from acclimate.monitoring import language_request

    try:
        record = language_request(
            values,
            session_id=store_options.session(given),
            request_id=request_id,
            actor=store_options.actor(given),
            environment=given["environment"],
            settings={"policy": given["policy"], "votes": given["votes"], "experiment": given["experiment"]},
            content={"prompt": text} if given["store_content"] else None,
        )
        outcomes = asked_experiments.outcomes(given, arm, record, values) if arm is not None else ()
    except DataError as error:
        click.echo(f"Warning: not recorded: {error}", err=True)
        return False
    return store_options.record(given, record, *outcomes, keep_content=given["store_content"])


def _prompt(prompt: str | None, given: dict[str, Any]) -> str:
    sources = [name for name, value in (("PROMPT", prompt), ("--file", given["prompt_file"])) if value is not None]
    direct = given["examples"] or given["adapters"]
    if given["query"] is not None:
        if not direct:
            raise ConfigError("--query needs --examples or --adapter; or write the whole prompt as the argument")
        if sources:
            raise ConfigError(f"give the question by --query or by {sources[0]}, not both")
        return str(given["query"])
    if direct:
        raise ConfigError(f"{'--examples' if given['examples'] else '--adapter'} needs --query: the input to answer")
    if len(sources) > 1:
        raise ConfigError("give the prompt as the argument or by --file, not both")
    if given["prompt_file"] is not None:
        try:
            return _without_last_break(given["prompt_file"].read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {given['prompt_file']} as text: {error}") from error
    if prompt is not None and prompt != "-":
        return prompt
    # Python has no standard input object where the stream was closed before it started.
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        raise ConfigError("give a prompt as the argument, by --file, or on standard input")
    try:
        return _without_last_break(sys.stdin.read())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read standard input as text: {error}") from error


def _without_last_break(text: str) -> str:
    """Return a text without the line break that ends it in a file or a pipe."""
    return text.removesuffix("\n").removesuffix("\r")


def _engine(engine: type[Engine], given: dict[str, Any]) -> Engine:
    from acclimate.language import Calibration, DebugLog, Gate

    library = language_options.open_library(given)
    model = language_options.load_model(given)
    recipe = language_options.recipe_from(model.recipe, given)
    gate = None
    if given["calibration"] is not None:
        gate = Gate(calibration=Calibration.load(given["calibration"]), environment=given["environment"])
    debug = None
    if given["debug"] or given["debug_content"]:
        debug = DebugLog(content=given["debug_content"])
    mib = given["max_mib"]
    return engine(
        model,
        recipe=recipe,
        gate=gate,
        environment=given["environment"],
        votes=given["votes"],
        max_seconds=given["max_seconds"],
        max_bytes=None if mib is None else int(mib * 2**20),
        max_answer_tokens=given["max_answer_tokens"],
        library=library,
        debug=debug,
    )


def _with_examples(engine: Engine, query: str, given: dict[str, Any], how: dict[str, Any]) -> AskReport:
    from acclimate.language import Adapter

    folders, weights = given["adapters"], given["adapter_weights"]
    if weights and len(weights) != len(folders):
        raise ConfigError(f"--adapter-weight is given {len(weights)} times; give it once for each --adapter, or never")
    paths = [given["examples"]] if given["examples"] else [f / language_options.PRIMED_EXAMPLES for f in folders]
    examples = dict.fromkeys(example for path in paths for example in language_options.read_examples(path))
    adapter = None
    if folders:
        loaded = [Adapter.load(folder, engine.model) for folder in folders]
        adapter = loaded[0] if len(loaded) == 1 and not weights else Adapter.combined(loaded, weights or None)
    return engine.answer(examples, query, policy=given["policy"], adapter=adapter, **how)


def _show(report: AskReport, *, compare: bool) -> None:
    console = stdout()
    if compare:
        table = Table("", "answer", "confidence")
        sure = report.metadata.confidence_score
        table.add_row(
            "without adapting",
            Text(report.icl_answer or "-"),
            "" if report.icl_confidence is None else f"{report.icl_confidence:.0%}",
        )
        table.add_row("adapted", Text(report.ttt_answer or "-"), "" if sure is None else f"{sure:.0%}")
        table.add_row("chosen", Text(report.answer), "adapted" if report.method == "ttt" else "without adapting")
        console.print(table)
    else:
        click.echo(report.answer)
    for warning in report.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if not report.complete and not report.out_of_time:
        click.echo("Warning: the answer was cut off; raise --max-answer-tokens", err=True)
    click.echo(report.status_line, err=True)
    click.echo(report.explanation, err=True)
