"""``fastviz filters`` and ``fastviz activations``: a network's weights, and its layers' responses to a photograph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fastviz.cli.common import Device, ModelName, NetworkArgument, Weights, app, layer_names, load_network
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from torch import nn

    from fastviz.jobs.report import Section

__all__ = ["activations", "demo_sections", "filters"]

Scale = Annotated[Literal["each", "together"], typer.Option(help="Scale each picture on its own, or all together.")]


@app.command()
def filters(
    model: NetworkArgument,
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")],
    weights: Weights = None,
    layer: Annotated[
        str | None, typer.Option(help="A convolution: see `fastviz layers`; the first if not given.")
    ] = None,
    scale: Scale = "each",
    unit_norm: Annotated[bool, typer.Option("--unit-norm", help="Divide each filter by its norm first.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first N filters and channels.")] = None,
) -> None:
    """Draw the weights of a convolution: in colour over the picture itself, grey over the channels of deeper layers."""
    from fastviz import images, methods
    from fastviz._util import checks

    images.picture_path(out, "--out")
    if limit is not None:
        checks.whole_number(limit, "limit", minimum=1)
    network, _ = load_network(model, weights, "cpu")
    found = methods.filters(network, layer, scale=scale, unit_norm=unit_norm)
    shown = found[:limit] if found.shape[1] == 3 else found[:limit, :limit]
    images.save_image(methods.filter_grid(shown), out)
    K, C, h, w = found.shape
    print(f"{K} filters of {C}x{h}x{w}; grey is a weight of zero")
    print(f"picture: {out}")


@app.command()
@tells_of_the_network
def activations(
    photo: Annotated[Path, typer.Argument(help="The photograph.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures, one per layer.")],
    model: ModelName = "demo",
    weights: Weights = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Layers separated by commas: see `fastviz layers`. Every convolution if not given."),
    ] = None,
    scale: Scale = "each",
    colours: Annotated[str, typer.Option(help="grey, viridis, inferno, jet or seismic.")] = "grey",
    device: Device = "auto",
) -> None:
    """Draw the maps of a network's layers for a photograph, with the photograph beside them."""
    from fastviz import images, methods, models
    from fastviz._util import checks
    from fastviz.images import colour_tables

    checks.one_of(colours, "--colours", colour_tables.NAMES)
    picture = images.read_image(photo)
    network, place = load_network(model, weights, device)
    seen = models.preprocessing(network)
    x = images.preprocess(picture, seen)[None].to(place)
    names = layer_names(layers)
    found = methods.activations(network, x, layers=names, as_maps=True, device="cpu")
    shown = images.restore(x[0].cpu(), seen)
    out.mkdir(parents=True, exist_ok=True)
    for name, maps in found.items():
        grid = methods.activation_grid(maps[0], image=shown, scale=scale, colours=colours)  # type: ignore[arg-type]
        images.save_image(grid, out / f"{name or 'model'}.png")
        print(f"{name or 'model'}: {maps.shape[1]} maps of {maps.shape[2]}x{maps.shape[3]}")
    print(f"pictures: {out}")


def demo_sections(network: nn.Module, photos: Path) -> list[Section]:
    """The demo's: the first filters, and the maps of an early and a late layer for the first of its photographs."""
    from fastviz import images, methods, models
    from fastviz.jobs.report import Section

    seen = models.preprocessing(network)
    photo = min(images.find_images(photos), key=lambda path: path.name)
    x = images.read_prepared(photo, seen)[None]
    found = methods.activations(network, x, layers=["relu1", "relu4_2"])
    shown = images.restore(x[0], seen)
    grids = [
        (f"{name}: {words}", methods.activation_grid(found[name][0, :64], image=shown, columns=16))
        for name, words in (("relu1", "32 maps of 64x64"), ("relu4_2", "64 of the 144 maps of 8x8"))
    ]
    return [
        Section(
            "Filters of the first layer",
            "The weights that the network lays over the picture, each scaled on its own: edges, stripes and colours.",
            [("", methods.filter_grid(methods.filters(network), magnify=8))],
            pixelated=True,
        ),
        Section(
            "Activations",
            "The output of an early and a late layer for a photograph, one map per channel, each scaled on its own: "
            "edges and colours where they are in the picture, then parts of objects in fewer places.",
            grids,
            pixelated=True,
        ),
    ]
