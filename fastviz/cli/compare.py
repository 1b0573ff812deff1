"""``fastviz compare``: which methods give good maps for a network, measured on photographs."""

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
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from fastviz.jobs.comparison import Compared

__all__ = ["compare", "measures"]


@app.command()
@tells_of_the_network
def compare(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="Files, folders or globs.")],
    out: Annotated[Path, typer.Option(help="Folder for the table, the curves and the page.")],
    model: ModelName = "demo",
    weights: Weights = None,
    methods: Annotated[
        str, typer.Option(help="Names separated by commas: see `fastviz methods`.")
    ] = "saliency,smooth_grad,guided_backprop,grad_cam,guided_grad_cam,occlusion",
    measures: Annotated[
        str, typer.Option(help="Names separated by commas: see `fastviz measures`.")
    ] = "deletion,insertion,road,average_drop,max_sensitivity,parameter_randomisation",
    labels: Annotated[
        str,
        typer.Option(
            help='"predicted"; "folders", each called like its class; or a CSV file with columns file and class.'
        ),
    ] = "predicted",
    objects: Annotated[
        Path | None,
        typer.Option(help="Boxes or masks: a CSV file (file, left, top, right, bottom or mask) or a COCO .json."),
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Use the papers' numbers of steps and samples: takes much longer.")
    ] = False,
    control: Annotated[bool, typer.Option(help="Measure a random map too, to show what chance scores.")] = True,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Pictures the network sees at once: bounds the memory.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Only the first N photographs.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the comparison in the folder.")] = False,
) -> None:
    """Measure methods on photographs: a table, curves with bands, and a page that ranks the methods."""
    from fastviz.jobs.comparison import compare as run

    check_weights(model, weights)
    try:
        found = run(
            photos,
            out,
            model=model,
            weights=weights,
            methods=_names(methods),
            measures=_names(measures),
            labels=labels,
            objects=objects,
            thorough=thorough,
            control=control,
            device=device,
            batch_size=batch_size,
            limit=limit,
            seed=seed,
            overwrite=overwrite,
            progress=True,
        )
    except KeyboardInterrupt:
        raise Stopped("what is measured is kept, and the same command continues") from None
    _print(found)
    for name, reason in found.failures:
        print(failure_line(name, reason), file=sys.stderr)
    if found.failures:
        raise typer.Exit(1)


@app.command()
def measures() -> None:
    """List the measures of maps that `fastviz compare` takes."""
    from fastviz.evaluation import MEASURES

    table = new_table("measure", "better", "what it tells", "paper")
    for name, measure in MEASURES.items():
        needs = " (needs --objects)" if measure.needs_objects else ""
        table.add_row(name, measure.better or "neither", measure.summary + needs, measure.paper)
    new_console().print(table)


def _names(words: str) -> list[str]:
    return [name.strip() for name in words.split(",") if name.strip()]


def _print(found: Compared) -> None:
    """The ranking, and where everything is."""
    from fastviz.jobs.comparison import number

    wanted = list(dict.fromkeys(one.measure for one in found.standings.each if one.place))
    table = new_table("method", "mean rank", *(name.replace("_", " ") for name in wanted))
    each = {(one.method, one.measure): one for one in found.standings.each}
    for method, (place, low, high) in found.standings.overall.items():
        cells = []
        for name in wanted:
            one = each[method, name]
            cells.append(f"{number(one.mean)}{' *' if one.place == 1 else ' ~' if one.tied else ''}")
        table.add_row(method, f"{place:.1f} ({low:.1f} to {high:.1f})", *cells)
    new_console().print(table)
    print("* best, ~ not significantly worse; mean rank with its 95 % band over the photographs")
    for note in found.notes:
        print(note)
    print(f"page: {found.page.resolve()}")
