"""``fastviz texture``: a texture grown or made from a sample, or a hole in a picture filled."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastviz.cli.common import Device, Stopped, Weights, app, layer_names, load_network
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fastviz.engine.optimize.canvas import Frame
    from fastviz.jobs.report import Section
    from fastviz.methods.synthesis.style_transfer import Styled

__all__ = ["demo_section", "losses", "neural_section", "previewing", "sample_path", "shrunk", "texture"]

_BUILT_IN = Path(__file__).parents[1] / "models" / "data" / "textures"


@app.command(
    epilog="Example: fastviz texture brick --size 160 --window 15 --out wall.png, and as a network sees it: "
    "fastviz texture brick --model vgg19 --weights DEFAULT --out wall.png"
)
@tells_of_the_network
def texture(
    sample: Annotated[str, typer.Argument(help="A picture, or brick, grass or gravel (inside the package).")],
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")],
    size: Annotated[
        str | None, typer.Option(help="Of the new picture, in pixels: 128 (with --model 256), or HEIGHTxWIDTH.")
    ] = None,
    sample_size: Annotated[
        int | None, typer.Option(help="A sample with a longer side than this, in pixels, is shrunk to it; as --size.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another number gives another picture.")] = 0,
    window: Annotated[
        int | None,
        typer.Option(help="Side of the windows that are compared, odd; about the size of the largest detail: 11."),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="How much worse than the best match is good enough: 0.1.")
    ] = None,
    hole: Annotated[
        Path | None,
        typer.Option(help="A picture of the size of SAMPLE, white where SAMPLE shall be filled; it is not shrunk."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Match what this network sees in the sample: see `fastviz models`.")
    ] = None,
    weights: Weights = None,
    layers: Annotated[
        str | None, typer.Option(help="With --model: its layers separated by commas: see `fastviz layers`.")
    ] = None,
    levels: Annotated[
        int | None, typer.Option(help="With --model: sizes, each half of the next, the smallest first: 2.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="With --model: maximum number of steps at each size: 100.")] = None,
    preview_every: Annotated[int | None, typer.Option(help="With --model: write the picture every N steps.")] = None,
    device: Device = "auto",
) -> None:
    """Grow a texture pixel by pixel from a sample (Efros, Leung), fill a hole, or match a network's view (Gatys)."""
    from fastviz import images
    from fastviz._util import checks

    images.picture_path(out, "--out")
    growing = _given(window=window, epsilon=epsilon, hole=hole)
    matching = _given(weights=weights, layers=layers, levels=levels, steps=steps, preview_every=preview_every)
    if growing if model else matching:
        what, others = ("without", growing) if model else ("with", matching)
        raise ValueError(f"--{next(iter(others)).replace('_', '-')} goes {what} --model only")
    longest = (256 if model else 128) if sample_size is None else sample_size
    checks.whole_number(longest, "--sample-size", minimum=3)
    picture = images.read_image(sample_path(sample))
    if model is not None:
        network, place = load_network(model, weights, device)
        _match(network, place, shrunk(picture, longest), _size(size or "256"), seed, matching, out)
    else:
        _grow(picture, checks.device(device), _size(size or "128"), longest, seed, growing, out)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _grow(
    picture: Tensor,
    place: torch.device,
    size: tuple[int, int],
    longest: int,
    seed: int,
    options: dict[str, Any],
    out: Path,
) -> None:
    from fastviz import images, methods

    hole = options.pop("hole", None)
    options |= {"seed": seed, "progress": True}
    start = time.perf_counter()
    try:
        if hole is not None:
            mask = images.read_image(hole).mean(0) > 0.5
            grown = methods.fill_hole(_channels(picture).to(place), mask, **options)
            words = f"{int(mask.sum())} pixels filled"
        else:
            picture = shrunk(picture, longest)
            grown = methods.synthesize_texture(_channels(picture).to(place), size, **options)
            words = f"{'x'.join(map(str, grown.shape[1:]))} pixels from {'x'.join(map(str, picture.shape[1:]))}"
    except KeyboardInterrupt:
        raise Stopped(f"nothing written to {out}") from None
    images.save_image(grown.expand(3, -1, -1), out)
    print(f"{words} in {time.perf_counter() - start:.1f} s")
    print(f"picture: {out}")


def _match(
    network: nn.Module,
    place: torch.device,
    picture: Tensor,
    size: tuple[int, int],
    seed: int,
    options: dict[str, Any],
    out: Path,
) -> None:
    from fastviz import images, methods
    from fastviz.engine.optimize import Optimization
    from fastviz.engine.optimize.canvas import frame_of

    options.pop("weights", None)
    preview = previewing(frame_of(network, size), out, options.pop("preview_every", None))
    options |= {"layers": layer_names(options.pop("layers", None)), "seed": seed, "progress": True}
    options |= {"optimization": Optimization(**preview)}
    x = frame_of(network, (picture.shape[1], picture.shape[2])).image(picture[None]).to(place)
    made = methods.neural_texture(network, x, size, **options)
    images.save_image(made.pictures[0].cpu(), out)
    print(losses(made))
    print(f"picture: {out}")
    if made.interrupted:
        raise Stopped(f"{out} has what was made so far")


def previewing(frame: Frame, out: Path, every: int | None) -> dict[str, Any]:
    """Options of an optimisation that writes its first picture to ``out`` every ``every`` steps."""
    from fastviz import images

    def preview(step: int, batch: Tensor) -> None:
        images.save_image(frame.picture(batch)[0].clamp(0, 1).cpu(), out)

    return {} if every is None else {"preview": preview, "preview_every": every}


def losses(made: Styled) -> str:
    """The final losses of a picture, in one line."""
    before, after = float(made.history[0, 0]), float(made.history[-1, 0])
    return f"loss {before:.4g} before, {after:.4g} after {int(made.steps[0])} steps"


def sample_path(sample: str) -> Path:
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


def shrunk(picture: Tensor, longest: int) -> Tensor:
    """``picture`` [3, H, W], its longer side at most that long."""
    from fastviz.images import tensors

    height, width = picture.shape[1:]
    factor = longest / max(height, width)
    if factor >= 1:
        return picture
    return tensors.resize(picture[None], max(1, round(factor * height)), max(1, round(factor * width)), "bilinear")[0]


def demo_section() -> Section:
    """The demo page's textures: each sample beside the texture grown from it."""
    from fastviz import images, methods
    from fastviz.jobs import report

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


def neural_section(network: nn.Module) -> Section:
    """The demo page's neural textures: each sample beside the texture made from it."""
    from fastviz import images, methods
    from fastviz.engine.optimize.canvas import frame_of
    from fastviz.jobs import report

    shown = []
    for name in ("brick", "gravel"):
        sample = images.read_image(_BUILT_IN / f"{name}.png")
        x = frame_of(network, (sample.shape[1], sample.shape[2])).image(sample[None])
        made = methods.neural_texture(network, x, 128, steps=30)
        shown += [(f"{name}: the sample", sample), ("what the network takes for it", made.pictures[0])]
    return report.Section(
        "Textures as the network sees them",
        "Made from noise until the features of each layer of the network were as large, and as often together, as in "
        "the sample; where they are does not count.",
        shown,
        methods.METHODS["neural_texture"].paper,
    )
