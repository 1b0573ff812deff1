"""``fastviz embed`` and ``fastviz neighbours``: photographs arranged by a network's features, and nearest
neighbours."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fastviz.cli.common import Device, ModelName, Stopped, Weights, app, failure_line, load_network
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from torch import Tensor

    from fastviz.methods import Embedding, Neighbours

__all__ = ["embed", "neighbours"]

_VECTORS = "embedding.safetensors"

Photos = Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="Files, folders or globs.")]
Out = Annotated[Path, typer.Option(help="Folder for the results; vectors in it are used again if valid.")]
Layer = Annotated[
    str | None, typer.Option(help="The layer whose output is taken: see `fastviz layers`; else the last one's input.")
]
Pool = Annotated[Literal["mean", "flatten"], typer.Option(help="What to take of maps: their means, or all values.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Pictures the network sees at once; 32, on a CPU as many as fit into its caches.")
]
Limit = Annotated[int | None, typer.Option(help="Only the first N photographs.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace vectors that were made with other settings.")]


@app.command()
@tells_of_the_network
def embed(
    photos: Photos,
    out: Out,
    model: ModelName = "demo",
    weights: Weights = None,
    layer: Layer = None,
    pool: Pool = "mean",
    projection: Annotated[
        Literal["tsne", "pca"], typer.Option(help="How the vectors are projected onto the plane.")
    ] = "tsne",
    perplexity: Annotated[
        float | None, typer.Option(help="t-SNE: about how many neighbours count; 30, or fewer for few photographs.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of t-SNE.")] = 0,
    tile: Annotated[int | None, typer.Option(help="Side of a photograph on the maps, in pixels.")] = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw photographs where a network puts them: a scatter and a grid, coordinates, and a page to zoom into."""
    from fastviz._util import checks, output_folder

    checks.whole_number(seed, "seed", minimum=0)
    if tile is not None:
        checks.whole_number(tile, "tile", minimum=1)
    if perplexity is not None:
        checks.positive(perplexity, "perplexity")
    with output_folder.locked(out):
        found = _vectors(photos, out, model, weights, layer, pool, device, batch_size, limit, overwrite)
        _draw(found, out, model, projection, perplexity, seed, tile)
    _report_failures(found)


def _draw(
    found: Embedding,
    out: Path,
    model: str,
    projection: Literal["tsne", "pca"],
    perplexity: float | None,
    seed: int,
    tile: int | None,
) -> None:
    """Write the coordinates, the maps and the page."""
    import torch

    from fastviz import images, methods
    from fastviz.vectors import projection as plane

    count, numbers = found.vectors.shape
    least = 4 if projection == "tsne" else 2
    if count < least:
        other = "; --projection pca takes 2" if 1 < count < least else ""
        raise ValueError(f"photos should be at least {least} that can be read for {projection}, got {count}{other}")
    axes = plane.pca(found.vectors, min(2, numbers))
    columns = {"pca": _two_columns(axes.coordinates)}
    if projection == "tsne":
        columns["tsne"] = plane.tsne(found.vectors, perplexity=perplexity, seed=seed)
    header = ["name", *(f"{name}_{axis}" for name in columns for axis in "xy")]
    values = torch.cat(list(columns.values()), dim=1).tolist()
    _write_csv(out / "coordinates.csv", header, zip(found.names, *zip(*values, strict=True), strict=True))
    maps = {}
    for layout in ("scatter", "grid"):
        drawn = methods.image_map(found.pictures, columns[projection], layout=layout, tile=tile)
        images.save_image(drawn.picture, out / f"{layout}.png")
        maps[layout] = {"size": list(drawn.picture.shape[:0:-1]), "boxes": drawn.boxes.tolist()}
    _write_page(out / "index.html", found, maps, f"{count} photographs as {model} sees them")
    shares = " and ".join(f"{100 * share:.0f} %" for share in axes.share.tolist())
    print(f"the first principal components hold {shares} of the variance")
    print(f"pictures: {out / 'scatter.png'} and {out / 'grid.png'}, coordinates: {out / 'coordinates.csv'}")
    print(f"open {(out / 'index.html').resolve()}")


@app.command()
@tells_of_the_network
def neighbours(
    photos: Photos,
    out: Out,
    model: ModelName = "demo",
    weights: Weights = None,
    layer: Layer = None,
    pool: Pool = "mean",
    k: Annotated[
        int | None, typer.Option("--k", help="Neighbours of each photograph; 8, or fewer for few photographs.")
    ] = None,
    queries: Annotated[
        list[str] | None, typer.Option(help="Name of a photograph whose neighbours to show; may be repeated.")
    ] = None,
    show: Annotated[int, typer.Option(help="Photographs on the sheet, spread over all, if none is named.")] = 20,
    device: Device = "auto",
    batch_size: BatchSize = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
) -> None:
    """List the photographs nearest to each by features and by pixels, and draw a sheet of some."""
    from fastviz import images, methods
    from fastviz._util import checks, output_folder

    if k is not None:
        checks.whole_number(k, "k", minimum=1)
    checks.whole_number(show, "show", minimum=1)
    with output_folder.locked(out):
        found = _vectors(photos, out, model, weights, layer, pool, device, batch_size, limit, overwrite)
        count = len(found.names)
        if count < 2:
            raise ValueError(f"photos should be at least 2 that can be read for neighbours, got {count}")
        near = methods.neighbours(found, k or min(8, count - 1), queries=queries or None)
        _write_csv(out / "neighbours.csv", ["name", "by", "rank", "neighbour", "distance"], _lines(found, near))
        some = slice(None) if queries else slice(None, None, max(1, -(-len(near.queries) // show)))
        images.save_image(methods.neighbour_sheet(found, near.part(some)), out / "neighbours.png")
    print(f"sheet: {out / 'neighbours.png'}, all neighbours: {out / 'neighbours.csv'}")
    _report_failures(found)


def _vectors(
    photos: list[str],
    out: Path,
    model: str,
    weights: str | None,
    layer: str | None,
    pool: Literal["mean", "flatten"],
    device: str,
    batch_size: int | None,
    limit: int | None,
    overwrite: bool,
) -> Embedding:
    """The vectors of the photographs, kept in the folder ``out``."""
    from fastviz import methods

    network, _ = load_network(model, weights, device)
    file = out / _VECTORS
    try:
        found = methods.embedding(
            network,
            photos,
            layer,
            pool=pool,
            batch_size=batch_size,
            limit=limit,
            file=file,
            overwrite=overwrite,
            progress=True,
        )
    except KeyboardInterrupt:
        kept = (
            f"{file} keeps what was done, and the same command continues from there"
            if file.exists()
            else "nothing kept"
        )
        raise Stopped(kept) from None
    again = f", {found.reused} of them from before" if found.reused else ""
    count, numbers = found.vectors.shape
    print(f"{count} vectors of {numbers} numbers, {found.layer}{again}: {file}")
    return found


def _two_columns(coordinates: Tensor) -> Tensor:
    """Coordinates [N, 2], even if the vectors have only one number."""
    from torch.nn import functional

    return functional.pad(coordinates, (0, 2 - coordinates.shape[1]))


def _lines(found: Embedding, near: Neighbours) -> Iterable[Sequence[object]]:
    """A line for each neighbour."""
    kinds = {"features": (near.features, near.feature_distances), "pixels": (near.pixels, near.pixel_distances)}
    for at, query in enumerate(near.queries.tolist()):
        for kind, (rows, distances) in kinds.items():
            for rank, (row, distance) in enumerate(zip(rows[at].tolist(), distances[at].tolist(), strict=True), 1):
                yield found.names[query], kind, rank, found.names[row], f"{distance:.6g}"


def _write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    from fastviz._util.files import whole_file

    with whole_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(lines)
        text.detach()


def _write_page(path: Path, found: Embedding, maps: Mapping[str, object], title: str) -> None:
    """A page that shows both maps, to zoom and to ask for names."""
    from fastviz._util import output_folder
    from fastviz.jobs import report

    names = [output_folder.printable(name) for name in found.names]
    report.render(path, "map.html", title=title, layer=found.layer, names=names, maps=maps)


def _report_failures(found: Embedding) -> None:
    for name, reason in found.failures:
        print(failure_line(name, reason), file=sys.stderr)
    if found.failures:
        raise typer.Exit(1)
