"""``fastviz explain``: what a network looks at, in many photographs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastviz.cli.common import (
    Device,
    ModelName,
    Stopped,
    Weights,
    app,
    check_weights,
    failure_line,
    new_console,
    new_table,
)

if TYPE_CHECKING:
    from fastviz.jobs.results import Settings
    from fastviz.jobs.runner import Summary

__all__ = ["explain"]


@app.command()
def explain(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="Files, folders or globs.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; a second run goes on where the first stopped.")],
    model: ModelName = "demo",
    weights: Weights = None,
    methods: Annotated[
        str, typer.Option(help="Names with commas between: see `fastviz methods`.")
    ] = "saliency,guided_backprop,grad_cam,occlusion",
    target: Annotated[str, typer.Option(help='"predicted", a class index or a class name.')] = "predicted",
    layer: Annotated[str | None, typer.Option(help="Layer for Grad-CAM: see `fastviz layers`.")] = None,
    window: Annotated[int | None, typer.Option(help="Occlusion's window, in pixels of the network's input.")] = None,
    stride: Annotated[int | None, typer.Option(help="Step between occlusion's windows, in pixels.")] = None,
    device: Device = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures the network sees at once: bounds the memory.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Explain only the first so many photographs.")] = None,
    sheets: Annotated[bool, typer.Option(help="Draw contact sheets, anew where their results changed.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")] = False,
) -> None:
    """Explain what a network sees in each photograph: overlays, raw arrays, contact sheets and an HTML report."""
    from fastviz import jobs

    check_weights(model, weights)
    names = tuple(name.strip() for name in methods.split(",") if name.strip())
    settings = jobs.Settings(model, weights, names, target, layer, window, stride)
    try:
        summary = jobs.explain(
            photos,
            out,
            settings,
            device=device,
            batch_size=batch_size,
            limit=limit,
            overwrite=overwrite,
            progress=True,
        )
        written = _report(out, settings, summary, sheets=sheets)
    except KeyboardInterrupt as stop:
        groups = sum(1 for _ in jobs.read_results(out))
        # Sheets take their time, and come with the next run; whoever stops a run wants it to stop.
        pages = _report(out, settings, stop.summary, sheets=False) if isinstance(stop, jobs.Interrupted) else []
        pictures = f"; pictures: {pages[0]}" if pages else ""
        raise Stopped(f"{_photographs(groups)} done in {out}, the same command goes on from there{pictures}") from None
    _print_summary(summary)
    if written:
        print(f"pictures: {' and '.join(map(str, written))}")
    for name, reason in summary.failures:
        print(failure_line(name, reason), file=sys.stderr)
    if summary.failures:
        raise typer.Exit(1)


def _report(out: Path, settings: Settings, summary: Summary, *, sheets: bool) -> list[Path]:
    """Write the pages of a job, and with ``sheets`` its contact sheets; the first of each, none without results."""
    from fastviz import jobs
    from fastviz.jobs import contact_sheets, report

    if next(jobs.read_results(out), None) is None:
        return []

    facts = {
        "Network": settings.model,
        "Weights": settings.weights or "built-in",
        "Target": settings.target,
        "Layer": settings.layer,
        "Window": settings.window,
        "Stride": settings.stride,
    }
    pages = report.pages(
        out,
        title=f"What {settings.model} looks at",
        facts={name: str(value) for name, value in facts.items() if value is not None},
        failures=summary.failures,
    )
    return [pages[0], *(contact_sheets.contact_sheets(out)[:1] if sheets else ())]


def _photographs(number: int) -> str:
    return f"{number} photograph{'' if number == 1 else 's'}"


def _print_summary(summary: Summary) -> None:
    if summary.done:
        table = new_table("method", "seconds", "a photograph", numbers=("seconds", "a photograph"))
        for name, seconds in summary.seconds.items():
            table.add_row(name, f"{seconds:.1f}", f"{1000 * seconds / summary.done:.0f} ms")
        new_console().print(table)
    words = [f"{_photographs(summary.done)} explained in {summary.total_seconds:.1f} s"]
    if summary.skipped:
        words.append(f"{summary.skipped} done before")
    if summary.failures:
        words.append(f"{len(summary.failures)} failed")
    print(", ".join(words))
