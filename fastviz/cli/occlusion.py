"""``fastviz occlusion`` and ``fastviz plan``: an occlusion sweep over one photograph, and what a sweep computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastviz.cli.common import (
    TARGET,
    Device,
    ModelName,
    NetworkArgument,
    Weights,
    app,
    class_names,
    load_network,
    target_of,
)
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastviz.methods import OcclusionMap

__all__ = ["occlusion", "plan"]

_SHOWN = 320
"""Height of each of the pictures, in pixels."""
_COLOURS = ("4c72b0", "dd8452", "55a868", "c44e52", "8172b3", "937860", "da8bc3", "ccb974")
"""Colours of the classes that win most often; the others are grey."""

Window = Annotated[int | None, typer.Option(help="Height and width of the window, in pixels; a seventh if not given.")]
Stride = Annotated[int | None, typer.Option(help="Step between windows, in pixels; half of the window if not given.")]


@app.command()
def plan(
    model: NetworkArgument,
    size: Annotated[
        str | None,
        typer.Option(help="Size of the input: 224 for all sides, 224x320, 5000 for a signal, 16x112x112 for a volume."),
    ] = None,
    window: Annotated[str | None, typer.Option(help="Size of the window; a seventh of the input if not given.")] = None,
    stride: Annotated[str | None, typer.Option(help="Step between windows; half of the window if not given.")] = None,
) -> None:
    """Print what an occlusion sweep computes, layer by layer: rectangles, operations, bytes, and the gain."""
    from fastviz.engine import incremental
    from fastviz.execution.inputs import convolution_axes
    from fastviz.models.loading import load_model

    sides, windows, steps = _sides(size, "size"), _sides(window, "window"), _sides(stride, "stride")
    network = load_model(model)
    if isinstance(sides, int):
        sides = (sides,) * max(convolution_axes(network) or {2})
    print(incremental.plan(network, sides, windows, steps))


def _sides(words: str | None, option: str) -> int | tuple[int, ...] | None:
    """``"224"`` as a number, ``"16x112x112"`` as a number for each side."""
    if words is None:
        return None
    parts = words.lower().split("x")
    if len(parts) > 3 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"{option} should be a number, or two or three with x between them, got {words!r}")
    from fastviz._util import checks

    numbers = tuple(checks.whole_number(int(part), option, minimum=1) for part in parts)
    return numbers if len(numbers) > 1 else numbers[0]


@app.command()
@tells_of_the_network
def occlusion(
    photo: Annotated[Path, typer.Argument(help="The photograph.")],
    out: Annotated[Path, typer.Option(help="The picture to write: .png or .jpg.")],
    model: ModelName = "demo",
    weights: Weights = None,
    target: Annotated[str, typer.Option(help=TARGET)] = "predicted",
    window: Window = None,
    stride: Stride = None,
    centred: Annotated[
        bool, typer.Option("--centred", help="Windows centred on pixels, from border to border.")
    ] = False,
    fill: Annotated[str, typer.Option(help="What the window shows: a number, mean or blur.")] = "0",
    precision: Annotated[str, typer.Option(help="model, or bfloat16 (approximate).")] = "model",
    growth_cap: Annotated[float | None, typer.Option(help="Longest changed side, as a fraction (approximate).")] = None,
    drill_down: Annotated[float | None, typer.Option(help="Fraction that is computed finely (approximate).")] = None,
    device: Device = "auto",
    show_plan: Annotated[bool, typer.Option("--plan", help="Print what is computed, layer by layer.")] = False,
) -> None:
    """Cover a photograph window by window, and draw the map, the scores and the winning classes in one picture."""
    import torch

    from fastviz import images, methods, models
    from fastviz.engine import incremental
    from fastviz.execution.model_outputs import scores_in
    from fastviz.targets import class_scores

    images.picture_path(out, "--out")
    network, place = load_network(model, weights, device)
    seen = models.preprocessing(network)
    x = images.read_prepared(photo, seen)[None].to(place)
    names, wanted = class_names(network), target_of(target, network)
    with torch.no_grad():
        scores = scores_in(network(x))
    found = methods.occlusion(
        *(network, x, wanted),
        window=window,
        stride=stride,
        centred=centred,
        fill=_filling(fill),
        classes=drill_down is None and scores is not None,
        precision=precision,  # type: ignore[arg-type]  # checked there
        growth_cap=growth_cap,
        drill_down=drill_down,
        progress=True,
    )
    if wanted is None:
        wanted = int(class_scores(scores)[0].argmax())
    names = names or [f"class {index}" for index in range(0 if scores is None else scores.shape[1])]
    shown = images.restore(x[0].cpu(), seen)
    images.save_image(_picture(shown, found, names, names[wanted] if isinstance(wanted, int) else target), out)
    if show_plan:
        print(incremental.plan(network, (x.shape[2], x.shape[3]), window, stride, centred=centred))
    print("\n".join(_words(found, network)))
    print(f"picture: {out}")


def _filling(words: str) -> Any:
    try:
        return float(words)
    except ValueError:
        return words


def _words(found: OcclusionMap, network: nn.Module) -> list[str]:
    """How the map was computed, for people."""
    stats = found.stats
    lines = [f"{stats['windows']} windows in {stats['seconds']:.2f} s, {stats['path']}"]
    if stats["reason"]:
        lines.append(f"whole forward passes: {stats['reason']}")
    gain = stats.get("measured_gain")
    if gain is not None and stats["path"] == "incremental":
        lines.append(
            f"gain over whole forward passes: {gain:.1f}x measured, {stats['predicted_gain']:.1f}x counted "
            f"({stats['dense_flops'] / 1e9:.2f} → {stats['flops'] / 1e9:.2f} GFLOP per window)"
        )
    if "error" in stats:
        error = stats["error"]
        lines.append(
            f"approximate: score off by {error['mean']:.2g} on average, {error['largest']:.2g} at most, "
            f"in {error['windows']} windows recomputed"
        )
    return lines


def _picture(photo: Tensor, found: OcclusionMap, names: list[str], target: str) -> Tensor:
    """The photograph, the map over it, the score under each window and the class that wins there, with captions."""
    import torch

    from fastviz.images import captions, drawing, overlays, tensors

    scores = found.scores[0].float().cpu()
    baseline = float(found.baseline[0])
    panels = [
        (f"{target}: {baseline:.1f}", photo),
        ("what speaks for it (red)", drawing.draw("signed", found.attribution[0].cpu(), photo)),
        (
            f"score under each window, {float(scores.min()):.1f} to {float(scores.max()):.1f}",
            overlays.colour_map(tensors.normalize(scores[None]), "viridis")[0],
        ),
    ]
    legend: list[tuple[str, str]] = []
    if found.classes is not None:
        winners = found.classes[0].cpu()
        ranked = Counter(winners.flatten().tolist()).most_common()
        colours = dict(zip((index for index, _ in ranked), _COLOURS, strict=False))
        legend = [(colour, f"{names[index]} ({dict(ranked)[index]})") for index, colour in colours.items()]
        if len(ranked) > len(_COLOURS):
            legend.append(("aaaaaa", f"{len(ranked) - len(_COLOURS)} others"))
        palette = {index: _rgb(colours.get(index, "aaaaaa")) for index, _ in ranked}
        drawn = torch.stack([torch.stack([palette[index] for index in row], 1) for row in winners.tolist()], 1)
        panels.append(("class that wins under each window", drawn))
    return captions.panels(panels, height=_SHOWN, legend=legend)


def _rgb(colour: str) -> Tensor:
    """[3] in 0 to 1 from six hexadecimal digits."""
    import torch

    return torch.tensor([int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)])
