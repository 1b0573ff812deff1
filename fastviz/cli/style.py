"""``fastviz style``: a photograph in the style of other pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastviz.cli.common import Device, ModelName, Stopped, Weights, app, layer_names, load_network
from fastviz.cli.texture import losses, previewing, sample_path, shrunk
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastviz.jobs.report import Section

__all__ = ["demo_section", "style"]


@app.command(
    epilog="Example: fastviz style photo.jpg painting.jpg --model vgg19 --weights DEFAULT --out painted.png, and each "
    "style where its mask is white: fastviz style photo.jpg grass brick --mask ground.png --mask sky.png --out a.png"
)
@tells_of_the_network
def style(
    photo: Annotated[Path, typer.Argument(help="The photograph.")],
    styles: Annotated[
        list[str], typer.Argument(help="Pictures to take the style from; also brick, grass, gravel (in the package).")
    ],
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")],
    model: ModelName = "demo",
    weights: Weights = None,
    size: Annotated[
        int, typer.Option(help="A photograph with a longer side than this, in pixels, is shrunk to it.")
    ] = 448,
    style_size: Annotated[
        int | None, typer.Option(help="The same for the styles; smaller means finer strokes. Default: as --size.")
    ] = None,
    style_weights: Annotated[
        str | None, typer.Option(help="How much of each style: 2,1 for twice as much of the first.")
    ] = None,
    mask: Annotated[
        list[Path] | None, typer.Option(help="One per style, in their order, each a picture: white where it goes.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Style layers separated by commas: see `fastviz layers`.")] = None,
    content_layers: Annotated[str | None, typer.Option(help="Content layers.")] = None,
    style_weight: Annotated[float, typer.Option(help="Weight of the style; that of the content is 1.")] = 300.0,
    variation_weight: Annotated[float, typer.Option(help="Weight of the total variation: smoothness.")] = 0.01,
    preserve_colours: Annotated[
        bool, typer.Option("--preserve-colours", help="Keep the colours of the photograph.")
    ] = False,
    start: Annotated[str, typer.Option(help="content, style or noise.")] = "content",
    levels: Annotated[int, typer.Option(help="Sizes, each half of the next, the smallest first.")] = 2,
    steps: Annotated[int, typer.Option(help="Maximum number of steps at each size.")] = 100,
    optimizer: Annotated[str, typer.Option(help="lbfgs or adam.")] = "lbfgs",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    preview_every: Annotated[int | None, typer.Option(help="Write the picture every N steps.")] = None,
    device: Device = "auto",
) -> None:
    """Paint a photograph in the style of other pictures, as a network sees style (Gatys, Ecker, Bethge)."""
    # Long because typer reads the options from the signature.
    from fastviz import images, methods
    from fastviz._util import checks
    from fastviz.engine.optimize import Optimization
    from fastviz.engine.optimize.canvas import frame_of

    images.picture_path(out, "--out")
    longest = checks.whole_number(size, "--size", minimum=1)
    of_styles = longest if style_size is None else checks.whole_number(style_size, "--style-size", minimum=1)
    shown = shrunk(images.read_image(photo), longest)
    drawn = [shrunk(images.read_image(sample_path(name)), of_styles) for name in styles]
    shares = [1.0] * len(drawn) if style_weights is None else _numbers(style_weights, len(drawn))
    where = _masks(mask, shown, len(drawn)) if mask else [None] * len(drawn)
    network, place = load_network(model, weights, device)
    frame = frame_of(network, (shown.shape[1], shown.shape[2]))
    made = methods.style_transfer(
        network,
        frame.image(shown[None]).to(place),
        [
            methods.Style(frame.image(each[None]).to(place), share, region)
            for each, share, region in zip(drawn, shares, where, strict=True)
        ],
        layers=layer_names(layers),
        content_layers=layer_names(content_layers),
        style_weight=style_weight,
        variation_weight=variation_weight,
        preserve_colours=preserve_colours,
        levels=levels,
        steps=steps,
        seed=seed,
        progress=True,
        optimization=Optimization(start=start, optimizer=optimizer, **previewing(frame, out, preview_every)),
    )
    images.save_image(made.pictures[0].cpu(), out)
    print(losses(made))
    print(f"picture: {out}")
    if made.interrupted:
        raise Stopped(f"{out} has what was made so far")


def _numbers(words: str, count: int) -> list[float]:
    try:
        found = [float(word) for word in words.split(",")]
    except ValueError:
        raise ValueError(f"--style-weights should be numbers separated by commas, got {words!r}") from None
    if len(found) != count:
        raise ValueError(f"--style-weights should have one number per style, {count}, got {len(found)}")
    return found


def _masks(paths: list[Path], photo: Tensor, count: int) -> list[Tensor | None]:
    """The brightness of the pictures at ``paths`` at the size of ``photo``: [H, W] each."""
    from fastviz import images
    from fastviz.images import tensors

    if len(paths) != count:
        raise ValueError(f"--mask should be given once per style, {count} times, got {len(paths)}")
    height, width = photo.shape[1:]
    read = [images.read_image(path).mean(0, keepdim=True) for path in paths]
    return [tensors.resize(each[None], height, width, "bilinear")[0, 0] for each in read]


def demo_section(network: nn.Module, photo: Path) -> Section:
    """The demo's: a photograph, and what the built-in network makes of it with the style of two built-in textures."""
    from fastviz import images, methods
    from fastviz.engine.optimize.canvas import frame_of
    from fastviz.jobs.report import Section

    shown = shrunk(images.read_image(photo), 160)
    frame = frame_of(network, (shown.shape[1], shown.shape[2]))
    pictures: list[tuple[str, Any]] = [("photograph", shown)]
    for name in ("brick", "gravel"):
        drawn = images.read_image(sample_path(name))
        x, y = frame.image(shown[None]), frame.image(drawn[None])
        made = methods.style_transfer(network, x, y, steps=20, style_weight=30.0, preserve_colours=True)
        pictures += [(f"in the style of {name}", made.pictures[0])]
    return Section(
        "Style of one picture, content of another",
        "The photograph was changed until the features of the network stood in the same relation to each other as in "
        "the other picture, wherever they are, while the deep ones stayed what and where they were.",
        pictures,
        methods.METHODS["style_transfer"].paper,
    )
