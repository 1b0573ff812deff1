"""``fastviz patches``: what excites each channel of a network most, in many photographs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastviz.cli.common import (
    Device,
    ModelName,
    Stopped,
    Weights,
    app,
    failure_line,
    layer_names,
    load_network,
    new_console,
    new_table,
    numbers,
)
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from torch import nn

    from fastviz.images.streams import Stream
    from fastviz.jobs.report import Section
    from fastviz.methods import Patches

__all__ = ["demo_section", "patches"]

_HITS, _SHEETS = "hits.jsonl", "sheets"
_SHOWN = 12
"""Number of channels of a layer that are drawn if none are named."""
_DEMO_LAYER, _DEMO_CHANNELS = "conv3_1", (2, 3, 4, 15, 16, 17, 20, 23)


@app.command()
@tells_of_the_network
def patches(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="Files, folders or globs.")],
    out: Annotated[Path, typer.Option(help="Folder for the sheets and the list of places.")],
    model: ModelName = "demo",
    weights: Weights = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Layers separated by commas: see `fastviz layers`. Every convolution if not given."),
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help=f"Channels to draw, as 3,7,16-31 or all; the first {_SHOWN} if not given.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Patches per channel.")] = 9,
    one_per_image: Annotated[
        bool,
        typer.Option(help="Only the strongest place of each photograph, or several."),
    ] = True,
    position: Annotated[str | None, typer.Option(help="Only the unit at this row,column of the map.")] = None,
    guided: Annotated[bool, typer.Option(help="Draw guided backprop beside the patches.")] = True,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Pictures the network sees at once: bounds the memory.")] = 16,
    limit: Annotated[int | None, typer.Option(help="Read only the first N photographs.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")] = False,
) -> None:
    """Find the patches of photographs that excite each channel most: one sheet per layer, and their places as JSON."""
    from fastviz import methods
    from fastviz._util import output_folder
    from fastviz.images import streams

    with output_folder.locked(out, (_SHEETS,)):
        if (out / _HITS).exists() and not overwrite:
            raise ValueError(f"--out holds patches already: {out / _HITS}; --overwrite replaces them")
        wanted = None if channels in (None, "all") else numbers(channels or "", "--channels")
        spot = None if position is None else _position(position)
        network, _ = load_network(model, weights, device)
        stream = streams.batches(photos, model=network, batch_size=batch_size, limit=limit, progress=True)
        names = layer_names(layers)
        try:
            found = methods.patches(network, stream, layers=names, k=k, one_per_image=one_per_image, position=spot)
        except KeyboardInterrupt:
            raise Stopped("nothing was written: patches are known when all photographs have been seen") from None
        shown = {name: _shown(name, len(each.values), channels, wanted) for name, each in found.items()}
        _clear(out)
        _write_hits(out / _HITS, found)
        drawn = 0
        try:
            for name, each in found.items():
                _draw(network, each, stream, shown[name], out / _SHEETS, guided=guided, alone=wanted is not None)
                drawn += 1
        except KeyboardInterrupt:
            raise Stopped(
                f"{out / _HITS} is complete, the sheets of {drawn} of {len(found)} layers are drawn"
            ) from None
    _print_summary(found)
    print(f"sheets: {out / _SHEETS}, places: {out / _HITS}")
    for file, reason in stream.failures:
        print(failure_line(file, reason), file=sys.stderr)
    if stream.failures:
        raise typer.Exit(1)


def _position(words: str) -> tuple[int, int]:
    parts = [part.strip() for part in words.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--position should be a row and a column such as 3,7, got {words!r}")
    return int(parts[0]), int(parts[1])


def _shown(layer: str, count: int, channels: str | None, wanted: list[int] | None) -> list[int]:
    """The channels of a layer to draw, of ``count`` that there are."""
    if wanted is None:
        return list(range(count if channels == "all" else min(count, _SHOWN)))
    if max(wanted) >= count:
        raise ValueError(f"--channels should be below {count}, the number in layer {layer}, got {max(wanted)}")
    return wanted


def _clear(out: Path) -> None:
    """Make the folder, and remove the sheets that an earlier run left there."""
    from fastviz._util.output_folder import clear_way

    clear_way(out, f"{_SHEETS}/any.png")
    for old in (out / _SHEETS).glob("*.png"):
        old.unlink()


def _write_hits(path: Path, found: Mapping[str, Patches]) -> None:
    """A JSON line for each place."""
    from fastviz._util.files import whole_file

    with whole_file(path) as file:
        for each in found.values():
            for hit in _hits(each):
                file.write((json.dumps(hit) + "\n").encode())


def _hits(found: Patches) -> Iterator[dict[str, Any]]:
    columns = (found.values, found.images, found.positions, found.boxes, found.fields)
    for channel, ranks in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        for rank, (value, image, position, box, field) in enumerate(zip(*ranks, strict=True)):
            if image >= 0:
                yield {
                    "layer": found.layer,
                    "channel": channel,
                    "rank": rank,
                    "value": value,
                    "image": image,
                    "file": found.names[image],
                    "position": position,
                    "box": box,
                    "field": field,
                }


def _draw(
    network: nn.Module,
    found: Patches,
    stream: Stream,
    channels: list[int],
    folder: Path,
    *,
    guided: bool,
    alone: bool,
) -> None:
    """The sheet of a layer, and with ``alone`` one of each channel."""
    from fastviz import images, methods

    shown = methods.patch_pictures(network, found, stream, channels, guided=guided, progress=True)
    images.save_image(methods.patch_sheet(shown), folder / f"{found.layer or 'model'}.png")
    for channel in channels if alone else ():
        path = folder / f"{found.layer or 'model'}.channel{channel}.png"
        images.save_image(methods.patch_sheet(shown, channel), path)


def _print_summary(found: Mapping[str, Patches]) -> None:
    table = new_table("layer", "channels", "sees", "strongest", numbers=("channels", "strongest"))
    for name, each in found.items():
        field = each.receptive_field
        sees = "the whole image" if field is None else f"{field.size[0]}x{field.size[1]} pixels"
        table.add_row(name, str(len(each.values)), sees, f"{float(each.values.max()):.4g}")
    new_console().print(table)


def demo_section(network: nn.Module, photos: Sequence[Path]) -> Section:
    """What excites some channels of the built-in network in the photographs of its demo."""
    from fastviz import methods
    from fastviz.jobs import report

    # With only three photographs, one place in each would be too few to compare.
    found = methods.patches(network, photos, _DEMO_LAYER, one_per_image=False)
    shown = methods.patch_pictures(network, found, photos, _DEMO_CHANNELS)
    return report.Section(
        "Patches that excite a unit",
        "The nine places in the three photographs where each of eight channels in the middle of the network is "
        "strongest, and what guided backprop sees in them: rims, eyes, stripes. Grey lies beyond the border.",
        [("", methods.patch_sheet(shown, columns=2))],
        paper=methods.METHODS["patches"].paper,
    )
