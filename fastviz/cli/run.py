"""``fastviz run``: methods over any number of images, as tables."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastviz.cli.common import NETWORK, TARGET, Stopped, app, check_weights, failure_line, new_console, new_table
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from fastviz.jobs import Job, Summary
    from fastviz.jobs.plan import Plan

__all__ = ["export", "report", "run"]

_SHOWN = 50
"""Number of failures that are printed; the tables hold all of them."""


@app.command()
@tells_of_the_network
def run(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS...",
            help="Files, folders, globs, lists (.txt), tables (.csv, .tsv, .parquet), tar shards; or one JOB.yaml.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the tables; the same command continues where it stopped.")
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"{NETWORK} demo if not given.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="A file of weights or a checkpoint, or DEFAULT for torchvision's or timm's own.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Names separated by commas: see `fastviz methods`.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="METHOD.NAME=VALUE", help="An option of a method; may be repeated.")
    ] = None,
    target: Annotated[str | None, typer.Option(help=f'"label" (the inputs\' own), {TARGET}')] = None,
    top_k: Annotated[int | None, typer.Option(help="Explain the N most probable classes.")] = None,
    maps: Annotated[str | None, typer.Option(help="float32, float16, uint8, uint6 or none.")] = None,
    map_size: Annotated[int | None, typer.Option(help="Resize all maps to N x N pixels.")] = None,
    thumbnails: Annotated[
        bool | None, typer.Option("--thumbnails/--no-thumbnails", help="Keep a small picture of each image.")
    ] = None,
    overlays: Annotated[
        bool | None, typer.Option("--overlays/--no-overlays", help="Keep each map drawn over its image.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of paths or bytes in a table.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of classes.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of names, no two the same.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N inputs.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:INDEX.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at once; bounds the memory.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode; with Ray, actors.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Who runs it: local, or ray (of RAY_ADDRESS)."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed/--no-retry-failed", help="Try again what failed before.")
    ] = True,
    max_failures: Annotated[int | None, typer.Option(help="Stop when more images than this have failed.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be done, how long it takes and how large it gets; write nothing."
        ),
    ] = False,
) -> None:
    """Run methods over any number of images: Parquet tables that any tool reads; an interrupted run resumes."""
    from fastviz import jobs

    given = {
        "out": out, "model": model, "weights": weights, "target": target, "top_k": top_k, "maps": maps,
        "map_size": map_size, "thumbnails": thumbnails, "overlays": overlays, "image_column": image_column,
        "label_column": label_column, "id_column": id_column, "limit": limit, "device": device,
        "batch_size": batch_size, "workers": workers, "engine": engine,
    }  # fmt: skip
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if methods is not None:
        options["methods"] = [name.strip() for name in methods.split(",") if name.strip()]
    job = _job(inputs, options, option or [])
    if isinstance(job.model, str):
        check_weights(job.model, None if job.weights is None else str(job.weights))
    if dry_run:
        from fastviz.jobs.plan import plan

        _print_plan(job, plan(job, retry_failed=retry_failed))
        return
    # a batch system stops its jobs with SIGTERM
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        summary = jobs.run(
            job, retry_failed=retry_failed, max_failures=max_failures, overwrite=overwrite, progress=True
        )
    except jobs.Interrupted as stop:
        done = stop.summary.done + stop.summary.skipped
        raise Stopped(f"{_images(done)} done in {job.out}, and the same command continues from there") from None
    except jobs.TooManyFailures as stop:
        _print_failures(stop.summary)
        print(f"fastviz: {stop}; what is done is kept, and the same command continues", file=sys.stderr)
        raise typer.Exit(1) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    _print_summary(job, summary)
    if summary.failed:
        raise typer.Exit(1)


def _job(inputs: list[str], options: dict[str, Any], method_options: list[str]) -> Job:
    """The job of the command line, or of its file where that is given; options on the command line take precedence."""
    from fastviz.jobs.job import DEFAULT_METHODS, read_yaml
    from fastviz.jobs.run import as_job

    if len(inputs) == 1 and inputs[0].lower().endswith((".yaml", ".yml")):
        options = read_yaml(inputs[0]) | options
        found: Any = options.pop("inputs", None)
        if found is None:
            raise ValueError(f"inputs should be in {inputs[0]}, got none")
    else:
        found = inputs
    if "out" not in options:
        raise ValueError("--out is needed: a folder for the tables")
    if method_options:
        chosen = options.get("methods", DEFAULT_METHODS)
        options["methods"] = _with_options([chosen] if isinstance(chosen, (str, dict)) else chosen, method_options)
    return as_job(found, **options)


def _with_options(methods: Any, words: list[str]) -> list[Any]:
    """``methods`` with the options that ``METHOD.NAME=VALUE`` give; values are read as YAML reads them."""
    import yaml

    from fastviz._util import checks

    found: dict[str, dict[str, Any]] = {}
    for one in methods:
        for name, options in ({one: {}} if isinstance(one, str) else one).items():
            found[name] = dict(options or {})
    for word in words:
        place, equals, value = word.partition("=")
        method, dot, name = place.partition(".")
        if not (equals and dot and name):
            raise ValueError(f"--option should be METHOD.NAME=VALUE, such as occlusion.window=32, got {word!r}")
        found[checks.nearest(method, "--option: method", found)][name] = yaml.safe_load(value)
    return [found]


def _print_summary(job: Job, summary: Summary) -> None:
    if summary.done:
        table = new_table("method", "seconds", "an image", numbers=("seconds", "an image"))
        for name, seconds in summary.seconds.items():
            table.add_row(name, f"{seconds:.1f}", f"{1000 * seconds / summary.done:.1f} ms")
        new_console().print(table)
    words = [f"{_images(summary.done)} explained in {summary.total_seconds:.1f} s"]
    if summary.done:
        words.append(f"the device was busy {100 * summary.utilisation:.0f} % of the time")
    if summary.skipped:
        words.append(f"{summary.skipped} done before")
    if summary.removed:
        words.append(f"{summary.removed} removed, whose files are gone")
    if summary.failed:
        words.append(f"{summary.failed} failed")
    print(", ".join(words))
    print(f"tables: {job.out}; pages: fastviz report {job.out}")
    if summary.doubled:
        print(
            f"fastviz: warning: {len(summary.doubled)} ids were given twice, such as {summary.doubled[0]}",
            file=sys.stderr,
        )
    _print_failures(summary)


def _print_failures(summary: Summary) -> None:
    for name, reason in summary.failures[:_SHOWN]:
        print(failure_line(name, reason), file=sys.stderr)
    left = summary.failed - min(len(summary.failures), _SHOWN)
    if left > 0:
        print(f"fastviz: failed: {left} more, see the rows whose status is not ok", file=sys.stderr)


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"


def _print_plan(job: Job, found: Plan) -> None:
    table = new_table("", "")
    for name, value in found.words().items():
        table.add_row(name, value)
    new_console().print(table)


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="The folder of a job.")],
) -> None:
    """Write the results of a job as a page to look at: no server needed."""
    from fastviz.jobs.report import write

    print(f"open {write(out).resolve()}")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The folder of a job.")],
    to: Annotated[str, typer.Option("--to", help="npy, png, fiftyone or coco-masks.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the files go.")],
    threshold: Annotated[
        float, typer.Option(help="For coco-masks: the fraction of a map's largest value from which a pixel counts.")
    ] = 0.5,
) -> None:
    """Write the maps of a job as files for other tools; relative paths are kept."""
    from fastviz.jobs.export import export as write

    made = write(out, folder, to, threshold=threshold)
    print(f"{made} written to {folder}")
