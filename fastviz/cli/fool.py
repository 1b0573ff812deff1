"""``fastviz fool``: a photograph changed by a little, or noise, that a network takes for something else."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastviz.cli.common import Device, ModelName, Stopped, Weights, app, load_network
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastviz.jobs.report import Section
    from fastviz.methods.adversarial.fooling import FoolingImages
    from fastviz.methods.adversarial.targeted import Fooled
    from fastviz.models.descriptions import Preprocessing

__all__ = ["demo_section", "fool"]

_SHOWN = 320
"""Height of the pictures that are compared, in pixels."""
_DEMO_TARGETS = ("koala", "king penguin")
"""The demo's targets for a photograph and for noise."""
_MAGNIFIED = 10
"""Factor by which the shown difference is enlarged."""


@app.command()
@tells_of_the_network
def fool(
    out: Annotated[Path, typer.Option(help="The picture to write: .png, which loses nothing.")],
    photo: Annotated[Path | None, typer.Argument(help="The photograph; none with --noise or --evolve.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Index or name of the class to be seen; --evolve without it takes any.")
    ] = None,
    model: ModelName = "demo",
    weights: Weights = None,
    method: Annotated[str, typer.Option(help="lbfgs (smallest change), sign or gradient.")] = "lbfgs",
    radius: Annotated[float | None, typer.Option(help="Largest change, in 8-bit levels (sign, gradient).")] = None,
    norm: Annotated[str, typer.Option(help="What the radius bounds: inf (each value) or 2 (the length).")] = "inf",
    goal: Annotated[float | None, typer.Option(help="Probability to reach: 0.99, without a photograph 0.996.")] = None,
    steps: Annotated[int | None, typer.Option(help="Maximum number of steps or generations.")] = None,
    noise: Annotated[bool, typer.Option("--noise", help="Start from noise, by gradient.")] = False,
    evolve: Annotated[bool, typer.Option("--evolve", help="Evolve a picture, without gradients.")] = False,
    encoding: Annotated[str, typer.Option(help="What evolves: cppn (patterns) or direct (pixels).")] = "cppn",
    seed: Annotated[int, typer.Option(help="Seed of the noise or the evolution.")] = 0,
    device: Device = "auto",
) -> None:
    """Change a photograph until the network sees another class in it; the picture, a comparison and the numbers.

    Example: fastviz fool cat.jpg --target koala --model squeezenet1_0 --weights DEFAULT --out fooled.png

    From nothing: fastviz fool --noise --target jellyfish --out noise.png
    """
    from fastviz import images, methods, models
    from fastviz._util import checks

    if (photo is not None) + noise + evolve != 1:
        raise ValueError("give one of: a photograph, --noise, --evolve")
    checks.one_of(encoding, "--encoding", ("cppn", "direct"))
    checks.whole_number(seed, "--seed", minimum=0)
    if target is None and not evolve:
        raise ValueError("--target is needed: the index or name of the class to be seen")
    if images.picture_path(out, "--out").suffix.lower() != ".png":
        raise ValueError(f"--out should end in .png, which keeps every pixel, got {str(out)!r}")
    network, place = load_network(model, weights, device)
    names = models.class_names(network)
    aim: Any = None if target is None else _class(target, names)
    limits = {} if steps is None else {"generations" if evolve else "steps": steps}
    options: dict[str, Any] = limits | {"progress": True} | ({} if goal is None else {"goal": goal})
    if photo is not None:
        seen = models.preprocessing(network)
        whole = images.restore(images.preprocess(images.read_image(photo), replace(seen, size=_uncropped(seen))), seen)
        x = images.preprocess(whole, seen)[None].to(place)
        options |= {"method": method, "norm": norm, "radius": None if radius is None else radius / 255}
        found = methods.fool(network, x, aim, quantize=True, **options)
        _write_fooled(network, found, x, whole, names, out)
        interrupted = found.interrupted
    else:
        if noise:
            made = methods.fool_from_noise(network, aim, seed=seed, quantize=True, **options)
        else:
            made = methods.evolve(network, aim, seed=seed, encoding=encoding, **options)  # type: ignore[arg-type]
        _write_invented(network, made, names, out, "generations" if evolve else "steps")
        interrupted = made.interrupted
    if interrupted:
        raise Stopped(f"{out} has what was made so far")


def _class(target: str, names: list[str]) -> int:
    from fastviz import jobs

    index = jobs.target_index(target, names)
    if index is None:
        raise ValueError('target should be the class to be seen instead, got "predicted"')
    return index


def _uncropped(seen: Preprocessing) -> tuple[int, int] | None:
    """The size for :func:`fastviz.images.preprocess` that leaves the crop out."""
    return seen.size if seen.resize is None else None


def _placed(fooled: Tensor, whole: Tensor) -> Tensor:
    """``whole``, a photograph resized for the network, with the part that the network crops replaced."""
    height, width = fooled.shape[-2:]
    top, left = round((whole.shape[-2] - height) / 2), round((whole.shape[-1] - width) / 2)
    result = whole.clone()
    result[:, top : top + height, left : left + width] = fooled
    return result


def _write_fooled(network: nn.Module, found: Fooled, x: Tensor, whole: Tensor, names: list[str], out: Path) -> None:
    """The fooled photograph, the comparison beside it, and the numbers."""
    from fastviz import images
    from fastviz.images import captions

    panels = _compared(network, found, x, names)
    images.save_image(_placed(panels[-1][1], whole), out)
    original, aim = names[int(found.original[0])], names[int(found.target[0])]
    beside = out.with_name(f"{out.stem}-comparison.png")
    images.save_image(captions.panels(panels, height=_SHOWN), beside)
    before, after = _percent(found.original_probability_before), _percent(found.original_probability)
    print(f"{original}: {before} before, {after} after")
    print(f"{aim}: {_percent(found.probability_before)} before, {_percent(found.probability)} after")
    print(
        f"change: L2 {float(found.l2[0]):.3f} and L-infinity {float(found.linf[0]):.4f} of values 0 to 1, "
        f"PSNR {float(found.psnr[0]):.1f} dB; {int(found.steps[0])} steps"
    )
    _say_how_it_reads(network, out, names)
    print(f"picture: {out}")
    print(f"comparison: {beside}")
    if not found.success[0] and not found.interrupted:
        _give_up("the goal was not reached; more --steps or a larger --radius may help")


def _compared(network: nn.Module, found: Fooled, x: Tensor, names: list[str]) -> list[tuple[str, Tensor]]:
    """The first image before, the difference, and after, each with what the network sees in it."""
    from fastviz import images, models

    before, after = (images.restore(batch[0].cpu(), models.preprocessing(network)) for batch in (x, found.images))
    magnified = (0.5 + _MAGNIFIED * (after - before)).clamp(0, 1)
    return [
        (f"{names[int(found.original[0])]}: {_percent(found.original_probability_before)}", before),
        (f"difference x{_MAGNIFIED}, largest {float(found.linf[0]) * 255:.0f} of 255", magnified),
        (f"{names[int(found.target[0])]}: {_percent(found.probability)}", after),
    ]


def _write_invented(network: nn.Module, made: FoolingImages, names: list[str], out: Path, unit: str) -> None:
    """Write the picture made from nothing, and print the numbers."""
    from fastviz import images, models

    images.save_image(images.restore(made.images[0].cpu(), models.preprocessing(network)), out)
    steps = int(made.steps[0])
    print(f"{names[int(made.target[0])]}: {_percent(made.probability)} after {steps} {unit}")
    print(f"picture: {out}")
    if not made.success[0] and not made.interrupted:
        _give_up("the goal was not reached; more --steps or another --seed may help")


def _give_up(why: str) -> None:
    """End with status 1: the pictures were written, but the goal was not reached."""
    print(f"fastviz: {why}", file=sys.stderr)
    raise typer.Exit(1)


def _say_how_it_reads(network: nn.Module, out: Path, names: list[str]) -> None:
    """What the network sees in the file, prepared as any photograph is."""
    import torch

    from fastviz import images, models
    from fastviz.execution.evaluation_mode import frozen_model

    place = next(network.parameters()).device
    x = images.preprocess(images.read_image(out), models.preprocessing(network))[None].to(place)
    with frozen_model(network), torch.no_grad():
        probability, index = network(x).softmax(1).max(1)
    print(f"the saved file, read as any photograph: {names[int(index[0])]}, {_percent(probability)}")


def _percent(probability: Tensor) -> str:
    return f"{100 * float(probability[0]):.2f} %"


def demo_section(network: nn.Module, photo: Path) -> Section:
    """For the demo's page: a photograph that is taken for something else, noise, and a pattern that evolved."""
    from fastviz import images, methods, models
    from fastviz.jobs import report

    names, seen = models.class_names(network), models.preprocessing(network)
    koala, penguin = (names.index(name) for name in _DEMO_TARGETS)
    x = images.preprocess(images.read_image(photo), seen)[None]
    shown = _compared(network, methods.fool(network, x, koala, quantize=True), x, names)
    noise = methods.fool_from_noise(network, penguin, quantize=True)
    # For any class, which takes seconds; a chosen class takes minutes.
    pattern = methods.evolve(network, population=16, generations=40, goal=0.9)
    for words, made in (("noise", noise), ("evolved", pattern)):
        picture = images.restore(made.images[0], seen)
        shown.append((f"{words}, {names[int(made.target[0])]}: {_percent(made.probability)}", picture))
    return report.Section(
        "Fooling images",
        "A change that hardly shows makes the network sure of something else; so do noise, and a pattern that evolved "
        "without gradients.",
        shown,
        paper="Szegedy et al. 2013, https://arxiv.org/abs/1312.6199; Nguyen, Yosinski, Clune 2015, "
        "https://arxiv.org/abs/1412.1897",
        pixelated=True,
    )
