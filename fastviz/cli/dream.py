"""``fastviz dream``: DeepDream pictures, and zooms into them."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastviz.cli.common import (
    TARGET,
    Device,
    ModelName,
    Stopped,
    Weights,
    app,
    failure_line,
    load_network,
    target_of,
)
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fastviz.jobs.report import Section
    from fastviz.targets.selection import Target

__all__ = ["demo_section", "dream"]

_FRAME, _FRAMES, _FILM = "frame_{:04d}.png", "frame_[0-9][0-9][0-9][0-9]*.png", "zoom.gif"
_DEMO_LAYERS, _DEMO_SIZE = ("relu4_1", "relu5_1"), 192


@app.command(
    epilog="Example: fastviz dream photo.jpg --model squeezenet1_0 --weights DEFAULT --out dream.png, and with "
    "--frames 60 --out flight as a film that flies into the dream."
)
@tells_of_the_network
def dream(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="Files, folders or globs.")],
    out: Annotated[
        Path,
        typer.Option(help="The picture to write (.png, .jpg, .webp), or a folder for several photographs or --frames."),
    ],
    model: ModelName = "demo",
    weights: Weights = None,
    layer: Annotated[
        str | None, typer.Option(help="Dream of what this layer sees: see `fastviz layers`. Default: a late layer.")
    ] = None,
    channel: Annotated[int | None, typer.Option(help="Only this channel of --layer.")] = None,
    class_: Annotated[str | None, typer.Option("--class", help="Dream of a class instead: its name or index.")] = None,
    target: Annotated[str | None, typer.Option(help=f"Dream of any other target: {TARGET}")] = None,
    guide: Annotated[
        Path | None, typer.Option(help="A picture whose features are to appear, as --layer sees them.")
    ] = None,
    size: Annotated[
        int, typer.Option(help="Longer side of the dream in pixels; the photograph is resized to it.")
    ] = 640,
    octaves: Annotated[
        int | None, typer.Option(help="Number of sizes, the smallest first: 4, with --frames 2.")
    ] = None,
    octave_scale: Annotated[float, typer.Option(help="Factor from one size to the next.")] = 1.4,
    steps: Annotated[int | None, typer.Option(help="Steps at each size: 10, with --frames 4.")] = None,
    strength: Annotated[float | None, typer.Option(help="Length of a step: 0.02, with --frames 0.01.")] = None,
    frames: Annotated[
        int | None,
        typer.Option(help="Fly into the dream: N pictures, each a dream of the one before, and a GIF."),
    ] = None,
    zoom: Annotated[float, typer.Option(help="Factor from one frame to the next.")] = 1.05,
    tile: Annotated[
        int | None, typer.Option(help="Look at tiles with sides of about N pixels: bounds the memory.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another number gives a slightly different dream.")] = 0,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the frames that the folder holds.")] = False,
) -> None:
    """Change photographs so that a network sees more of what it already sees in them: DeepDream."""
    # Long because typer reads the options from the signature.
    from fastviz import images
    from fastviz._util import checks

    if sum(each is not None for each in (layer, class_, target)) > 1 or (channel is not None and layer is None):
        raise ValueError("give one of: --layer, --layer with --channel, --class, --target")
    checks.whole_number(size, "--size", minimum=1)
    files, names = images.find_named(photos)
    single = out.suffix != "" and not out.is_dir()
    _check(out, single, len(files), frames, overwrite)
    network, place = load_network(model, weights, device)
    wanted = _target(network, layer, channel, class_, target)
    options: dict[str, Any] = {
        "layer": layer if wanted is None else None,
        "octave_scale": octave_scale,
        "tile": tile,
        "seed": seed,
        "guide": None if guide is None else _prepared(network, guide, None, place),
        "progress": True,
    }
    given = {"octaves": octaves, "steps": steps, "strength": strength}
    options |= {name: value for name, value in given.items() if value is not None}
    if frames is not None:
        x = _prepared(network, files[0], size, place)
        _fly(network, x, wanted, out, {"frames": frames, "zoom": zoom, **options})
    elif single:
        _dream(network, _prepared(network, files[0], size, place), wanted, out, options)
    else:
        _dream_all(network, list(zip(files, names, strict=True)), wanted, out, size, place, options)


def _check(out: Path, single: bool, photographs: int, frames: int | None, overwrite: bool) -> None:
    """Refuse what cannot be written, before any work."""
    from fastviz import images

    if single:
        images.picture_path(out, "--out")
    if single and (frames is not None or photographs > 1):
        what = f"{photographs} photographs" if frames is None else "--frames"
        raise ValueError(f"--out should be a folder for {what}, got {str(out)!r}")
    if frames is not None:
        if photographs > 1:
            raise ValueError(f"--frames needs one photograph, got {photographs}")
        if not overwrite and any(out.glob(_FRAMES)):
            raise ValueError(f"--out holds frames already: {out}; --overwrite replaces them")


def _target(
    network: nn.Module, layer: str | None, channel: int | None, class_: str | None, words: str | None = None
) -> Target:
    """What is dreamt of where it is not the whole of a layer."""
    from fastviz import jobs, models, targets
    from fastviz.execution.hooks import layer_module

    if layer is not None:
        layer_module(network, layer)
    if words is not None:
        wanted = target_of(words, network)
        if wanted is None:
            raise ValueError('--target should be a class or an objective, got "predicted"')
        return wanted
    if class_ is not None:
        index = jobs.target_index(class_, models.class_names(network))
        if index is None:
            raise ValueError('--class should be the name or index of a class, got "predicted"')
        return targets.class_score(index)
    return None if layer is None or channel is None else targets.channel(layer, channel)


def _prepared(network: nn.Module, path: Path, size: int | None, place: torch.device) -> Tensor:
    """A picture as the network takes it, [1, C, H, W]: with a longer side of ``size`` pixels, or, for None, as the
    network usually gets it."""
    from fastviz import images, models

    picture, seen = images.read_image(path), models.preprocessing(network)
    if size is not None:
        height, width = (max(1, round(side * size / max(picture.shape[1:]))) for side in picture.shape[1:])
        seen = replace(seen, size=(height, width), resize=None)
    return images.preprocess(picture, seen)[None].to(place)


# ------------------------------------------------------------------------------------------------------- pictures


def _dream(network: nn.Module, x: Tensor, target: Target, out: Path, options: dict[str, Any]) -> None:
    """One photograph, one picture."""
    from fastviz import images, methods

    start = time.perf_counter()
    made = methods.deep_dream(network, x, target, **options)
    images.save_image(_shown(made.pictures), out)
    sizes = ", ".join(f"{height}x{width}" for height, width in made.sizes)
    print(f"dreamt at {sizes} pixels in {time.perf_counter() - start:.1f} s")
    print(f"picture: {out}")
    if made.interrupted:
        raise Stopped(f"{out} has what was made so far")


def _dream_all(
    network: nn.Module,
    photos: list[tuple[Path, str]],
    target: Target,
    out: Path,
    size: int,
    place: torch.device,
    options: dict[str, Any],
) -> None:
    """A picture of the same name for each photograph."""
    from fastviz import images, methods

    failures: list[tuple[str, str]] = []
    done = 0
    try:
        for path, name in photos:
            try:
                made = methods.deep_dream(network, _prepared(network, path, size, place), target, **options)
            except ValueError as error:  # broken, or too small for the network
                failures.append((name, str(error)))
                continue
            if made.interrupted:
                raise KeyboardInterrupt
            written = out / f"{name}.png"
            written.parent.mkdir(parents=True, exist_ok=True)
            images.save_image(_shown(made.pictures), written)
            done += 1
            print(f"picture: {written}", flush=True)
    except KeyboardInterrupt:
        raise Stopped(f"{done} of {len(photos)} dreams are in {out}") from None
    for name, reason in failures:
        print(failure_line(name, reason), file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def _shown(pictures: Tensor) -> Tensor:
    """The first of ``pictures`` in three colours, on the CPU."""
    return pictures[0].expand(3, -1, -1).float().cpu()


# --------------------------------------------------------------------------------------------------------- flights


def _fly(network: nn.Module, x: Tensor, target: Target, out: Path, options: dict[str, Any]) -> None:
    """Numbered frames, each written when it is made, and the film of them."""
    from fastviz import images, methods
    from fastviz.images import animation

    start = time.perf_counter()
    made = 0
    try:
        for picture in methods.dream_zoom(network, x, target, **options):
            if not made:
                _clear(out)
            images.save_image(_shown(picture), out / _FRAME.format(made + 1))
            made += 1
    except KeyboardInterrupt:
        pass  # between two frames; within a frame, there is just one fewer
    if made:
        written = (out / _FRAME.format(number + 1) for number in range(made))
        animation.save_gif((images.read_image(path) for path in written), out / _FILM)
        print(f"{made} frames in {time.perf_counter() - start:.1f} s")
        print(f"film: {out / _FILM}")
    if made < options["frames"]:
        raise Stopped(f"{out} has the first {made} of {options['frames']} frames" if made else "no frame was made")


def _clear(out: Path) -> None:
    """Make the folder, without the frames of an earlier run."""
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob(_FRAMES), out / _FILM]:
        old.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------- the demo


def demo_section(network: nn.Module, photo: Path) -> Section:
    """The demo's: a photograph, and what two layers of the built-in network dream of it."""
    import torch

    from fastviz import images, methods, models
    from fastviz.jobs.report import Section

    x = _prepared(network, photo, _DEMO_SIZE, torch.device("cpu"))
    shown = [("photograph", images.restore(x[0], models.preprocessing(network)))]
    for layer in _DEMO_LAYERS:
        made = methods.deep_dream(network, x, layer=layer, octaves=2, octave_scale=1.5)
        shown.append((f"dreamt by {layer}", made.pictures[0]))
    return Section(
        "DeepDream",
        "A photograph, changed until a layer of the network sees more of what it sees in it.",
        shown,
        methods.METHODS["deep_dream"].paper,
    )
