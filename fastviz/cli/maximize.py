"""``fastviz maximize``: pictures of what a class, a channel or a unit looks like to a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastviz.cli.common import (
    TARGET,
    Device,
    NetworkArgument,
    Stopped,
    Weights,
    app,
    load_network,
    new_console,
    new_table,
    numbers,
    target_of,
)
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastviz.engine.optimize.loop import Preview
    from fastviz.jobs.report import Section
    from fastviz.targets.selection import Target

__all__ = ["demo_section", "maximize", "sheet"]

_DEMO_CLASSES = (
    *("African elephant", "espresso", "king penguin", "ladybug"),
    *("lion", "orange", "school bus", "tabby cat"),
)
_COLUMNS = 5
_HEIGHT = 224
"""Of small pictures on a sheet, in pixels; larger ones keep their size."""
_CHANNELS = 10
"""Number of channels that are drawn if none are named."""


@app.command()
@tells_of_the_network
def maximize(
    model: NetworkArgument,
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")],
    weights: Weights = None,
    classes: Annotated[
        str | None, typer.Option("--class", help="Names or indices separated by commas, or all.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Draw channels of this layer: see `fastviz layers`.")] = None,
    channels: Annotated[
        str | None, typer.Option("--channel", help=f"Such as 3,7,16-31; the first {_CHANNELS} if not given.")
    ] = None,
    unit: Annotated[
        bool,
        typer.Option("--unit", help="Draw the middle unit of each channel, and only what it sees."),
    ] = False,
    code: Annotated[
        str | None,
        typer.Option(help="Find the code of this layer that the classes respond to most, and draw it."),
    ] = None,
    target: Annotated[str | None, typer.Option(help=f"Any other target: {TARGET}")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width in pixels.")] = None,
    start: Annotated[str, typer.Option(help="zeros (the mean colour), grey or noise.")] = "zeros",
    starts: Annotated[int, typer.Option(help="Pictures of each target.")] = 1,
    canvas: Annotated[str, typer.Option(help="fourier or pixels.")] = "fourier",
    steps: Annotated[int | None, typer.Option(help="Maximum number of steps: 128, or 100 with --code.")] = None,
    goal: Annotated[float | None, typer.Option(help="Stop at this probability (for other targets: value).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of noise and random transforms.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures the network sees at once: bounds the memory.")
    ] = None,
    preview_every: Annotated[int | None, typer.Option(help="Write the picture every N steps.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A file from which the same command continues after it was stopped.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Draw what classes, channels or units look like to a network: one sheet, all pictures made at once.

    Example: fastviz maximize demo --class "king penguin,goldfish" --out classes.png

    Channels of a layer: fastviz maximize squeezenet1_0 --weights DEFAULT --layer features.9 --channel 0-9 --out a.png
    """
    # Long because typer reads the options from the signature.
    from fastviz import images
    from fastviz.engine.optimize import Optimization

    images.picture_path(out, "--out")
    if sum(each is not None for each in (classes, layer, target)) != 1:
        raise ValueError("give one of: --class, --layer, --target")
    if layer is None and (channels is not None or unit):
        raise ValueError("--channel and --unit go with --layer only")
    if code is not None and (canvas != "fourier" or start != "zeros" or goal or preview_every or checkpoint):
        raise ValueError("--code goes with --class or --layer, --size, --starts, --steps, --seed and --batch-size only")
    network, _ = load_network(model, weights, device)
    captions, wanted = _wanted(network, classes, target, layer, channels, unit)
    captions = [caption for caption in captions for _ in range(starts)]
    options: dict[str, Any] = {"size": size, "starts": starts, "seed": seed, "batch_size": batch_size, "progress": True}
    options |= {} if steps is None else {"steps": steps}
    if code is not None:
        drawn = _decoded(network, wanted, code, options)
    else:
        optimization = Optimization(
            start=start,
            canvas=canvas,
            preview=None if preview_every is None else _previewing(network, captions, out),
            preview_every=10 if preview_every is None else preview_every,
            checkpoint=checkpoint,
        )
        drawn = _maximized(network, wanted, options | {"goal": goal, "optimization": optimization})
    titles = [_title(*each) for each in zip(captions, drawn.values, drawn.probability, strict=True)]
    images.save_image(sheet(list(zip(titles, drawn.pictures.cpu(), strict=True))), out)
    _print(captions, drawn)
    print(f"picture: {out}")
    if drawn.interrupted:
        kept = "" if checkpoint is None else f", and the same command continues from {checkpoint}"
        raise Stopped(f"{out} has what was made so far{kept}")


@dataclass(frozen=True)
class _Drawn:
    """What is written and printed, a row per picture; ``ends`` say why each is finished."""

    pictures: Tensor
    values: list[float]
    probability: list[float]
    ends: list[str]
    interrupted: bool


def _maximized(network: nn.Module, target: Target, options: dict[str, Any]) -> _Drawn:
    from fastviz import methods

    made = methods.maximize(network, target, **options)
    ends = [_end(reason, int(each)) for reason, each in zip(made.reasons, made.steps, strict=True)]
    return _Drawn(made.pictures, made.values.tolist(), made.probability.tolist(), ends, made.interrupted)


def _decoded(network: nn.Module, target: Target, layer: str, options: dict[str, Any]) -> _Drawn:
    """The same, through the code of a layer."""
    from fastviz import methods

    made = methods.maximize_code(network, target, layer, **options)
    if made.decoded is None:  # Ctrl-C came before there was a picture
        raise KeyboardInterrupt
    values, probability = made.values.tolist(), made.probability.tolist()
    return _Drawn(made.decoded.pictures, values, probability, [""] * len(values), made.interrupted)


def _previewing(network: nn.Module, captions: Sequence[str], out: Path) -> Preview:
    """What writes the pictures so far to ``out``."""
    from fastviz import images, models

    seen = models.preprocessing(network)

    def preview(step: int, batch: Tensor) -> None:
        images.save_image(sheet(list(zip(captions, images.restore(batch.cpu(), seen), strict=True))), out)

    return preview


def _wanted(
    network: nn.Module, classes: str | None, target: str | None, layer: str | None, channels: str | None, unit: bool
) -> tuple[list[str], Target]:
    """A caption a picture, and what is drawn."""
    if target is not None:
        wanted = target_of(target, network)
        if wanted is None:
            raise ValueError('--target should be a class or an objective, got "predicted"')
        return [target], wanted
    return _classes(network, classes) if classes else _channels(network, layer or "", channels, unit)


def _classes(network: nn.Module, words: str) -> tuple[list[str], Target]:
    """Names of the classes in ``words``, and the classes."""
    import torch

    from fastviz import jobs, models

    names = models.class_names(network)
    if words == "all":
        return names, torch.arange(len(names))
    found = []
    for word in words.split(","):
        index = jobs.target_index(word.strip(), names)
        if index is None:
            raise ValueError('--class should be names or indices of classes, got "predicted"')
        found.append(index)
    return [names[index] for index in found], torch.tensor(found)


def _channels(network: nn.Module, layer: str, words: str | None, unit: bool) -> tuple[list[str], Target]:
    """Names of the channels in ``words``, and the targets."""
    import torch

    from fastviz import targets

    found = list(range(_CHANNELS)) if words is None else numbers(words, "--channel")
    index = torch.tensor(found)
    target = targets.neuron(layer, index) if unit else targets.channel(layer, index)
    return [f"{layer} {number}" for number in found], target


def _title(caption: str, value: float, probability: float) -> str:
    return f"{caption}: {value:.3g}" if probability != probability else f"{caption}: {100 * probability:.1f} %"


def _end(reason: str, steps: int) -> str:
    words = {"goal": f"goal after {steps} steps", "steps": f"{steps} steps", "interrupted": f"stopped at {steps}"}
    return words.get(reason, reason)


def _print(captions: Sequence[str], drawn: _Drawn) -> None:
    table = new_table("target", "value", "probability", "", numbers=("value", "probability"))
    for caption, value, probability, end in zip(captions, drawn.values, drawn.probability, drawn.ends, strict=True):
        shown = "" if probability != probability else f"{100 * probability:.2f} %"
        table.add_row(caption, f"{value:.4g}", shown, end)
    new_console().print(table)


def sheet(pictures: Sequence[tuple[str, Tensor]], *, columns: int = _COLUMNS) -> Tensor:
    """Captions and pictures [3, h, w] of one size in rows: [3, H, W]."""
    import torch
    from torch.nn import functional

    from fastviz.images import captions

    height = max(_HEIGHT, pictures[0][1].shape[1])
    rows = [
        captions.panels(pictures[first : first + columns], height=height) for first in range(0, len(pictures), columns)
    ]
    width = max(row.shape[2] for row in rows)
    return torch.cat([functional.pad(row, (0, width - row.shape[2]), value=1.0) for row in rows], dim=1)


def demo_section(network: nn.Module) -> Section:
    """The demo's: what some classes look like to the built-in network."""
    import torch
    from torch.nn import functional

    from fastviz import methods, models
    from fastviz.jobs.report import Section

    names = models.class_names(network)
    classes = torch.tensor([names.index(name) for name in _DEMO_CLASSES])
    made = methods.maximize(network, classes, steps=64)
    larger = functional.interpolate(made.pictures, scale_factor=2, mode="bicubic").clamp(0, 1)
    return Section(
        "What the classes look like to the network",
        "From a grey picture, uphill: each picture was changed until the network saw as much of one class in it as it "
        "could. No photograph is involved; all classes at once.",
        list(zip(_DEMO_CLASSES, larger, strict=True)),
        paper="Simonyan, Vedaldi, Zisserman 2014, https://arxiv.org/abs/1312.6034",
    )
