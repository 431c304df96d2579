"""``acclimate export``: predicts images, with or without adaptation."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from acclimate.cli import options, sharded_export, store_options
from acclimate.cli.grouped_help import GroupedCommand, grouped
from acclimate.cli.terminal import counts_in_words, progress_bar, reports_input_errors, set_up_logging
from acclimate.errors import ConfigError

if TYPE_CHECKING:
    from acclimate.vision.run.export import ExportJob, ExportResult

_NEED_TTT: Final = (
    "ttt_log_out", "ttt_dry_run", "ttt_preset", "ttt_source", "ttt_load_state", "ttt_save_state", "ttt_probe_images",
)  # fmt: skip


_data, _tta = grouped("Images"), grouped("Test-time augmentation")
_method, _guards = grouped("Method"), grouped("Guards")


@click.command(
    "export",
    cls=GroupedCommand,
    short_help="Predict images, with or without adaptation, and write the predictions.",
    epilog=options.presets_epilog(),
)
@click.argument("images", type=options.existing_path())
@click.option(
    "-o",
    "--output",
    type=options.existing_path(),
    default=Path("predictions.json"),
    show_default=True,
    help="The predictions file; predictions.tar for --format webdataset.",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["acclimate", "coco", "webdataset"]),
    default="acclimate",
    show_default=True,
    help="Format of the predictions file: acclimate's own, COCO results, or a WebDataset archive (a tar file with a "
    "json member for each image; one for each shard with --engine ray).",
)
@click.option(
    "--masks",
    type=options.existing_path(),
    metavar="FOLDER",
    help="Also write a label image (PNG) of each image, whose pixels are class ids; for segmenters.",
)
@click.option("--wrap", is_flag=True, help="Write {schema_version, predictions, meta}.")
@click.option("--tag", metavar="TEXT", help="Any text, repeated in meta.config.")
@options.model_options
@options.data_options
@_data("--batch-size", type=click.IntRange(min=1), help="Images in a batch, without --ttt.")
@_data(
    "--read-ahead",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    metavar="BATCHES",
    help="Batches that are decoded while the model computes; 0 does one after the other.",
)
@_data(
    "--decode-threads",
    type=click.IntRange(min=1),
    help="Images that are decoded at a time.  [default: half as many as there are processors, at most 8]",
)
@_data(
    "--draft-decoding",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Decode JPEG files at a half, a quarter or an eighth of their size, as long as the shorter side keeps this "
    "many pixels. Faster; scores change a little.",
)
@_data("--strict", is_flag=True, help="Fail if an image cannot be used.")
@_data("--resume", is_flag=True, help="Continue an interrupted run of the same command.")
@_tta("--tta", is_flag=True, help="Predict some images also mirrored, and merge the predictions.")
@_tta("--tta-seed", type=int, help="Seed of the random choice of images to mirror.")
@_tta("--tta-flip-prob", type=float, default=0.5, show_default=True, help="Probability that an image is mirrored.")
@_tta("--tta-norm-only", is_flag=True, help="Merge only the (normalised) boxes, not the scores.")
@_method("--ttt", is_flag=True, help="Adapt the model to these images.")
@options.method_option
@options.preset_option
@options.ttt_options
@_method("--ttt-log-out", type=options.existing_path(), help="Write the TTT log (JSON).")
@_guards("--ttt-probe-images", type=options.existing_path(), help="Images of the probe, instead of the first batch.")
@_method("--ttt-load-state", type=options.existing_path(), help="Continue from a file that --ttt-save-state wrote.")
@_method(
    "--ttt-save-state",
    type=options.existing_path(),
    help="Write the adapted state, to continue from later (safetensors).",
)
@_method("--ttt-dry-run", is_flag=True, help="List the trainable parameters and exit.")
@sharded_export.shard_options
@store_options.recording
@click.option("-v", "--verbose", is_flag=True, help="Log everything to stderr.")
@click.pass_context
@reports_input_errors
def export_command(context: click.Context, /, **values: Any) -> None:
    """Predict IMAGES (a folder, a list file, a COCO json or tar files) and write the predictions.

    With --ttt the model is adapted to the images before or while predicting them (--ttt-reset). Settings of TTT that
    are not given come from a preset; the output lists them.
    """  # fmt: skip
    from acclimate.vision.run.export import ExportJob, export
    from acclimate.vision.run.tta import TTAConfig

    set_up_logging(values["verbose"])
    given = options.given_ttt_settings(context)
    if values["ttt_probe_images"] is not None:
        if not values["ttt_guards"]:
            raise ConfigError(
                "--ttt-probe-images has no effect without guards; leave out --no-ttt-guards or this option"
            )
        given["probe"] = True
    if not values["ttt"]:
        typed = [name for name in (*given, *_NEED_TTT) if values.get(name) or name in given]
        if typed:
            raise ConfigError(
                f"settings of TTT were given ({', '.join(typed)}) without --ttt, where they have no effect; add "
                "--ttt, or leave them out (the integration plan ignores them in this case; here they are an error, so "
                "that a forgotten --ttt is noticed)"
            )
    options.refuse_what_has_no_effect(context)
    is_given = context.get_parameter_source("output") is ParameterSource.COMMANDLINE
    is_archive = values["output_format"] == "webdataset" and not is_given
    job = ExportJob(
        source=values["images"],
        output=values["output"].with_suffix(".tar") if is_archive else values["output"],
        adapter=options.adapter_options(values),
        ttt=given if values["ttt"] else None,
        preset=values["ttt_preset"],
        ttt_source=values["ttt_source"],
        probe_images=values["ttt_probe_images"],
        load_state=values["ttt_load_state"],
        save_state=values["ttt_save_state"],
        tta=TTAConfig(
            enabled=values["tta"],
            seed=values["tta_seed"],
            flip_prob=values["tta_flip_prob"],
            norm_only=values["tta_norm_only"],
        ),
        wrap=values["wrap"],
        format=values["output_format"],
        masks=values["masks"],
        log_output=values["ttt_log_out"],
        images_root=values["images_root"],
        max_images=values["max_images"],
        corruption=options.corruption(values),
        exif_orientation=values["exif_orientation"],
        batch_size=values["batch_size"],
        strict=values["strict"],
        draft_side=values["draft_decoding"],
        decode_threads=values["decode_threads"],
        read_ahead=values["read_ahead"],
        resume=values["resume"],
        config=values["tag"],
    )
    sharded_export.run_sharded(context, job)
    if values["ttt_dry_run"]:
        _print_dry_run(job)
        return
    began = time.perf_counter()
    try:
        with progress_bar() as progress:
            result = export(job, progress=progress)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command with --resume continues from here", err=True)
        raise SystemExit(130) from None
    _record(values, result, time.perf_counter() - began)
    _print_summary(job, result)


def _record(values: dict[str, Any], result: ExportResult, seconds: float) -> None:
    if not values["record"]:
        return
    from acclimate.monitoring import vision_request

    record = vision_request(
        images=len(result.entries),
        model=values["model"] or values["adapter"],
        session_id=store_options.session(values),
        ttt=result.meta["ttt"],
        seconds=seconds,
        actor=store_options.actor(values),
    )
    store_options.record(values, record)


def _print_dry_run(job: ExportJob) -> None:
    from acclimate.vision.data.images import ImageReader
    from acclimate.vision.data.records import load_dataset
    from acclimate.vision.models.loading import make_adapter
    from acclimate.vision.run.runners import dry_run
    from acclimate.vision.run.settings import settings_for

    dataset = load_dataset(job.source, images_root=job.images_root, max_images=job.max_images)
    reader = ImageReader(job.corruption, exif_orientation=job.exif_orientation)
    reader.check_sizes(dataset.records)
    adapter = make_adapter(job.adapter, reader=reader, categories=dataset.categories)
    source_records = () if job.ttt_source is None else load_dataset(job.ttt_source).records
    config, choice = settings_for(
        adapter, job.ttt or {}, job.preset, dataset.records, source_records=source_records, goes_on=False
    )
    for reason in () if choice is None else choice.reasons:
        click.echo(f"auto: {reason}", err=True)
    if config is None:
        click.echo("none: no parameter would be updated")
        return
    trainable = dry_run(adapter, config, source_records=source_records)
    for name, shape in trainable:
        click.echo(f"{name}  {'x'.join(map(str, shape)) or 'scalar'}")
    elements = sum(math.prod(shape) for _, shape in trainable)
    click.echo(f"{config.method}: {len(trainable)} tensors with {elements} elements are trainable; nothing was changed")


def _print_summary(job: ExportJob, result: ExportResult) -> None:
    masks = "" if job.masks is None else f", label images to {job.masks}"
    lines = [f"{len(result.entries)} images predicted, written to {job.output}{masks}"]
    if result.skipped:
        lines.append(
            f"{len(result.skipped)} images skipped (--wrap lists them with the reasons, --strict fails instead)"
        )
    for warning in result.meta["warnings"]:
        lines.append(f"note: {warning}")
    for reason in () if result.choice is None else result.choice.reasons:
        lines.append(f"auto: {reason}")
    if result.report is not None:
        counts = counts_in_words(result.report.session.counts)
        lines.append(
            f"ttt {result.report.session.method}: {result.report.batches} batches ({counts or 'no step'}), "
            f"{result.report.changed_param_count} of {result.report.updated_param_count} trainable elements changed"
        )
        if result.report.stopped_early:
            lines.append(f"ttt stopped early: {result.report.stop_reason}")
        lines += [f"note: {warning}" for warning in result.report.warnings]
    for line in lines:
        click.echo(line, err=True)
