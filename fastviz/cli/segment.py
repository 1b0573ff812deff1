"""``fastviz segment``: the object that a network sees, cut out of each photograph."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
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
    class_names,
    failure_line,
    load_network,
    target_of,
)
from fastviz.cli.told import tells_of_the_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastviz.images.streams import Batch, Stream
    from fastviz.targets import Objective

__all__ = ["segment"]

_BOXES, _MASKS, _OVERLAYS, _SHEET = "boxes.jsonl", "masks", "overlays", "contact_sheet"
_SHOWN = 384
"""Shorter side of the overlays, in pixels."""
_CELL, _COLUMNS, _ROWS = 192, 8, 8
"""Of a contact sheet."""


@app.command()
@tells_of_the_network
def segment(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="Files, folders or globs.")],
    out: Annotated[Path, typer.Option(help="Folder for masks, overlays, boxes and contact sheets.")],
    model: ModelName = "demo",
    weights: Weights = None,
    target: Annotated[str, typer.Option(help=TARGET)] = "predicted",
    saliency: Annotated[str, typer.Option(help="guided_backprop or saliency.")] = "guided_backprop",
    foreground: Annotated[float, typer.Option(help="Quantile of saliency above which a pixel is object.")] = 0.95,
    background: Annotated[float, typer.Option(help="Quantile below which it is background.")] = 0.30,
    probable: Annotated[float, typer.Option(help="Quantile above which it is probably object.")] = 0.80,
    smoothing: Annotated[float, typer.Option(help="Smoothing of the saliency, as a fraction of the side.")] = 1 / 32,
    iterations: Annotated[int, typer.Option(help="Iterations of GrabCut; 0 is one cut, as in the paper.")] = 5,
    largest: Annotated[bool, typer.Option(help="Keep only the largest part of the object, or every part.")] = True,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Pictures the network sees at once: bounds the memory.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Read only the first N photographs.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")] = False,
) -> None:
    """Cut out the object that the network sees in each photograph: masks, overlays, boxes and contact sheets."""
    from fastviz._util import output_folder
    from fastviz.images import streams

    with output_folder.locked(out, (_MASKS, _OVERLAYS)):
        if not overwrite:
            _check_empty(out)
        network, _ = load_network(model, weights, device)
        stream = streams.batches(photos, model=network, batch_size=batch_size, limit=limit, progress=True)
        stems = output_folder.unique_names(stream.names or [])
        names, wanted = class_names(network), target_of(target, network)
        options = {
            "saliency": saliency,
            "foreground": foreground,
            "background": background,
            "probable": probable,
            "smoothing": smoothing,
            "iterations": iterations,
            "largest": largest,
        }
        done: list[dict[str, Any]] = []
        try:
            for batch in stream:
                found = list(_segmented(network, batch, stream, stems, (target, wanted), names, options))
                if not done:
                    _clear(out)
                for line, mask, photo in found:
                    _write(out, line, mask, photo)
                    done.append(line)
        except KeyboardInterrupt:
            _sheets(out, done)
            raise Stopped(f"{_photographs(len(done))} done in {out}") from None
        sheets = _sheets(out, done)
    if done:
        print(f"{_photographs(len(done))} cut in {out}: masks, overlays, {_BOXES}")
        print(f"pictures: {' and '.join(map(str, sheets))}")
    for name, reason in stream.failures:
        print(failure_line(name, reason), file=sys.stderr)
    if stream.failures:
        raise typer.Exit(1)


def _check_empty(out: Path) -> None:
    """Refuse a folder that holds the results of an earlier run."""
    held = [name for name in (_BOXES, _MASKS, _OVERLAYS) if (out / name).exists()]
    if held:
        what = "boxes" if held[0] == _BOXES else held[0]
        raise ValueError(f"--out holds {what} already: {out / held[0]}; --overwrite replaces them")


def _photographs(number: int) -> str:
    return f"{number} photograph{'' if number == 1 else 's'}"


def _segmented(
    network: nn.Module,
    batch: Batch,
    stream: Stream,
    stems: list[str],
    target: tuple[str, int | Objective | None],
    names: list[str],
    options: dict[str, Any],
) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
    """For each photograph of a batch: its line of results, its mask [h, w], and the picture that the network saw [3, h,
    w]."""
    import torch

    from fastviz import methods
    from fastviz.targets import Objective, class_scores

    words, wanted = target
    targets: Any = wanted
    probabilities = None
    if not isinstance(wanted, Objective):
        with torch.no_grad():
            probabilities = class_scores(network(batch.images)).softmax(1)
        targets = probabilities.argmax(1) if wanted is None else torch.full((len(batch),), wanted)
    pictures = stream.pictures(batch)
    found = methods.segment(network, batch.images, targets, images=pictures, **options)
    for at, name in enumerate(batch.names):
        mask, index = found.mask[at], None if probabilities is None else int(targets[at])
        line = {
            "file": name,
            "class": words if index is None else names[index] if names else f"class {index}",
            "target": index,
            "probability": None if probabilities is None else round(float(probabilities[at, index]), 6),
            "found": bool(mask.any()),
            "box": dict(zip(("top", "left", "bottom", "right"), found.boxes[at].tolist(), strict=True)),
            "area": round(float(mask.float().mean()), 6),
            "size": list(mask.shape),
            "mask": f"{_MASKS}/{stems[batch.indices[at]]}.png",
            "overlay": f"{_OVERLAYS}/{stems[batch.indices[at]]}.png",
        }
        yield line, mask.cpu(), pictures[at].cpu()


def _clear(out: Path) -> None:
    """Remove an earlier run's results from the folder."""
    from fastviz._util.output_folder import remove

    for part in (_BOXES, _MASKS, _OVERLAYS):
        remove(out / part)


def _write(out: Path, line: dict[str, Any], mask: Tensor, photo: Tensor) -> None:
    """Write the mask and the overlay of one photograph, then the line that says so."""
    from fastviz import images
    from fastviz._util import output_folder
    from fastviz.images import drawing, tensors

    for part in (line["mask"], line["overlay"]):
        output_folder.clear_way(out, part)
    images.save_image(mask.float().expand(3, -1, -1), out / line["mask"])
    scale = max(1.0, _SHOWN / min(mask.shape))
    height, width = (round(side * scale) for side in mask.shape)
    shown = tensors.resize(photo[None], height, width, "bicubic")[0]
    images.save_image(drawing.draw("mask", mask.float(), shown), out / line["overlay"])
    with (out / _BOXES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _sheets(out: Path, lines: list[dict[str, Any]]) -> list[Path]:
    """The overlays as contact sheets with captions; the paths written."""
    from fastviz import images

    for old in out.glob(f"{_SHEET}*.png"):
        old.unlink()
    written = []
    for number, start in enumerate(range(0, len(lines), _COLUMNS * _ROWS), start=1):
        path = out / (f"{_SHEET}.png" if number == 1 else f"{_SHEET}_{number}.png")
        images.save_image(_sheet(out, lines[start : start + _COLUMNS * _ROWS]), path)
        written.append(path)
    return written


def _sheet(out: Path, lines: list[dict[str, Any]]) -> Tensor:
    """One contact sheet, [3, H, W]: the overlays row by row, each with its file and class above it."""
    import torch
    from torch.nn import functional

    from fastviz import images
    from fastviz.images import captions

    rows = []
    for first in range(0, len(lines), _COLUMNS):
        row = lines[first : first + _COLUMNS]
        overlays = [(f"{line['file']}: {line['class']}", images.read_image(out / line["overlay"])) for line in row]
        rows.append(captions.panels(overlays, height=_CELL))
    width = max(row.shape[2] for row in rows)
    return torch.cat([functional.pad(row, (0, width - row.shape[2]), value=1.0) for row in rows], dim=1)
