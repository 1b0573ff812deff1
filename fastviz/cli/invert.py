"""``fastviz invert``: what a network's layers keep of a photograph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastviz.cli.common import (
    Device,
    ModelName,
    Stopped,
    Weights,
    app,
    layer_names,
    load_network,
    new_console,
    new_table,
)
from fastviz.cli.maximize import sheet
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fastviz.jobs.report import Section
    from fastviz.methods.synthesis.inversion import Inverted

__all__ = ["demo_section", "invert"]

_DEMO_LAYERS = ("relu1", "relu2_2", "relu3_2", "relu4_2", "relu5_1", "fc8")


@app.command()
@tells_of_the_network
def invert(
    photo: Annotated[Path, typer.Argument(help="The photograph.")],
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")],
    layers: Annotated[str | None, typer.Option(help="Layers separated by commas: see `fastviz layers`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every layer of the network, in order.")] = False,
    model: ModelName = "demo",
    weights: Weights = None,
    starts: Annotated[int, typer.Option(help="Pictures of each layer, each from its own noise.")] = 1,
    steps: Annotated[int, typer.Option(help="Maximum number of steps per layer.")] = 100,
    canvas: Annotated[str, typer.Option(help="fourier or pixels.")] = "fourier",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    device: Device = "auto",
) -> None:
    """Draw pictures that a layer cannot tell from a photograph; what they lack, the layer has lost.

    Example: fastviz invert cat.jpg --all --model squeezenet1_0 --weights DEFAULT --out strip.png
    """
    from fastviz import images, methods, models
    from fastviz.engine.optimize import Optimization

    images.picture_path(out, "--out")
    if (layers is None) != every:
        raise ValueError("give one of: --layers, --all")
    picture = images.read_image(photo)
    network, place = load_network(model, weights, device)
    seen = models.preprocessing(network)
    x = images.preprocess(picture, seen)[None].to(place)
    names = layer_names(layers)
    options = {"starts": starts, "steps": steps, "seed": seed, "optimization": Optimization(canvas=canvas)}
    found = list(methods.invert_all(network, x, names, progress=True, **options).values())
    pictures = [("photograph", images.restore(x[0].cpu(), seen))]
    pictures += [
        (f"{made.layer}: {_percent(made, k)}", made.pictures[k].cpu()) for made in found for k in range(starts)
    ]
    images.save_image(sheet(pictures), out)
    _print(found)
    print(f"picture: {out}")
    if found[-1].interrupted:
        raise Stopped(f"{out} has the layers up to {found[-1].layer}")


def _percent(made: Inverted, number: int) -> str:
    return f"error {100 * float(made.error[number]):.1f} %"


def _print(found: Sequence[Inverted]) -> None:
    table = new_table("layer", "error", "PSNR", "steps", numbers=("error", "PSNR", "steps"))
    for made in found:
        for error, psnr, steps in zip(made.error.tolist(), made.psnr.tolist(), made.steps.tolist(), strict=True):
            table.add_row(made.layer, f"{100 * error:.2f} %", f"{psnr:.1f} dB", str(steps))
    new_console().print(table)


def demo_section(network: nn.Module, photos: Path) -> Section:
    """The demo's: its photographs as some layers keep them."""
    import torch
    from torch.nn import functional

    from fastviz import images, methods, models
    from fastviz.jobs.report import Section

    seen = models.preprocessing(network)
    paths = sorted(images.find_images([photos]), key=lambda path: path.name)
    x = torch.stack([images.read_prepared(path, seen) for path in paths])
    found = methods.invert_all(network, x, _DEMO_LAYERS, steps=25).values()
    columns = [("photograph", images.restore(x, seen)), *((made.layer, made.pictures) for made in found)]
    # One column per layer: the photographs one below the other.
    stacked = [
        (name, functional.interpolate(each, scale_factor=2, mode="bicubic").clamp(0, 1)) for name, each in columns
    ]
    return Section(
        "What the layers keep of a photograph",
        "Pictures made from noise so that a layer gives what it gives for the photograph: early layers keep nearly "
        "everything, later ones what is there and roughly where, the last one little but the class.",
        [(name, torch.cat(list(each), dim=1)) for name, each in stacked],
        paper="Mahendran, Vedaldi 2015, https://arxiv.org/abs/1412.0035",
    )
