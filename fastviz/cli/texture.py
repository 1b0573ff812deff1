"""``fastviz texture``: a texture grown from a sample, or a hole in a picture filled."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastviz.cli.common import Device, Stopped, app

if TYPE_CHECKING:
    from torch import Tensor

    from fastviz.report import Section

__all__ = ["demo_section", "texture"]

_BUILT_IN = Path(__file__).parents[1] / "data" / "textures"


@app.command()
def texture(
    sample: Annotated[str, typer.Argument(help="A picture, or brick, grass or gravel (inside the package).")],
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")],
    size: Annotated[str, typer.Option(help="Of the new picture, in pixels: 128, or HEIGHTxWIDTH.")] = "128",
    window: Annotated[
        int, typer.Option(help="Side of the windows that are compared, odd; about the size of the largest detail.")
    ] = 11,
    epsilon: Annotated[float, typer.Option(help="How much worse than the best match is good enough.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Another number, another picture.")] = 0,
    sample_size: Annotated[
        int, typer.Option(help="A sample with a longer side than this, in pixels, is shrunk to it.")
    ] = 128,
    hole: Annotated[
        Path | None,
        typer.Option(help="A picture of the size of SAMPLE, white where SAMPLE shall be filled; it is not shrunk."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Grow a texture pixel by pixel from a sample, or fill a hole in a picture from the rest of it (Efros, Leung)."""
    from fastviz import checks, images, jobs, methods

    images.picture_path(out, "--out")
    place = jobs.choose_device(device)
    picture = images.read_image(_path(sample))
    options = {"window": window, "epsilon": epsilon, "seed": seed, "progress": True}
    start = time.perf_counter()
    try:
        if hole is not None:
            mask = images.read_image(hole).mean(0) > 0.5
            grown = methods.fill_hole(_channels(picture).to(place), mask, **options)  # type: ignore[arg-type]
            words = f"{int(mask.sum())} pixels filled"
        else:
            picture = _shrunk(picture, checks.whole_number(sample_size, "--sample-size", minimum=3))
            grown = methods.synthesize_texture(_channels(picture).to(place), _size(size), **options)  # type: ignore[arg-type]
            words = f"{'x'.join(map(str, grown.shape[1:]))} pixels from {'x'.join(map(str, picture.shape[1:]))}"
    except KeyboardInterrupt:
        raise Stopped(f"nothing written to {out}") from None
    images.save_image(grown.expand(3, -1, -1), out)
    print(f"{words} in {time.perf_counter() - start:.1f} s")
    print(f"picture: {out}")


def _path(sample: str) -> Path:
    """The file that ``sample`` names: one that exists, else one inside the package."""
    built_in = _BUILT_IN / f"{sample}.png"
    return built_in if not Path(sample).exists() and built_in.exists() else Path(sample)


def _size(words: str) -> tuple[int, int]:
    sides = words.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"--size should be a number of pixels or HEIGHTxWIDTH, got {words!r}")
    return int(sides[0]), int(sides[-1])


def _channels(picture: Tensor) -> Tensor:
    """One channel of a grey picture, whose three are equal, else all."""
    return picture[:1] if bool((picture == picture[:1]).all()) else picture


def _shrunk(picture: Tensor, longest: int) -> Tensor:
    from fastviz import pictures

    height, width = picture.shape[1:]
    factor = longest / max(height, width)
    if factor >= 1:
        return picture
    return pictures.resize(picture[None], max(1, round(factor * height)), max(1, round(factor * width)), "bilinear")[0]


def demo_section() -> Section:
    """What the demo page shows of textures: each sample beside what grew from it."""
    from fastviz import images, methods, report

    shown = []
    for name, window in (("brick", 15), ("grass", 11), ("gravel", 11)):
        sample = images.read_image(_BUILT_IN / f"{name}.png")[:1, :64, :64]
        grown = methods.synthesize_texture(sample, 96, window=window)
        for caption, picture in ((f"{name}: the sample", sample), ("grown from it", grown)):
            shown.append((caption, picture.expand(3, -1, -1).repeat_interleave(2, 1).repeat_interleave(2, 2)))
    return report.Section(
        "Textures",
        "Grown from a small sample pixel by pixel; each is a pixel of the sample whose surroundings look alike. "
        "No network has a part in it.",
        shown,
        methods.METHODS["synthesize_texture"].paper,
        pixelated=True,
    )
