"""Labels and objects of photographs, read from files: classes from folders or a CSV, boxes and masks from a CSV or
COCO."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fastviz import images
from fastviz.jobs.arguments import target_index
from fastviz.models.descriptions import Preprocessing

__all__ = ["Objects", "read_labels", "read_objects"]

_FILES = ("file", "filename", "file_name", "image", "path", "name")
_CLASSES = ("class_index", "index", "target", "label", "class", "class_name")
_CORNERS = (
    ("left", "top", "right", "bottom"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x0", "y0", "x1", "y1"),
    ("x1", "y1", "x2", "y2"),
)
_SIZES = (("x", "y", "width", "height"), ("left", "top", "width", "height"), ("x", "y", "w", "h"))


def read_labels(
    source: str | os.PathLike[str], names: Sequence[str], files: Sequence[Path], classes: Sequence[str]
) -> dict[str, int] | None:
    """The class of each image, keyed by the image's name; None for ``"predicted"``.

    Args:
        source: ``"predicted"``; ``"folders"``, where each photograph is in a folder named after its class or class
            index; or the path of a CSV file with a header: a column ``file`` (or ``filename``, ``image``, ``path``,
            ``name``), and one of ``class_index``, ``index``, ``target``, ``label``, ``class``, ``class_name`` that
            holds an index or a name.
        names: the names of the images.
        files: the paths of the images.
        classes: the names of the model's classes, index = class.

    Raises:
        ValueError: a photograph has no class, a class does not exist, or the file lacks these columns.
        OSError: the file cannot be read.
    """
    if source == "predicted":
        return None
    if source == "folders":
        given = {name: file.absolute().parent.name for name, file in zip(names, files, strict=True)}
    else:
        rows, columns = _rows(source, "labels")
        column = _column(columns, _CLASSES, source, "labels")
        key = _column(columns, _FILES, source, "labels")
        given = _by_name({row[key]: row[column] for row in rows if row[key]}, names)
    found = {}
    for name in names:
        if name not in given:
            raise ValueError(f"labels should have a class for each photograph, got none for {name!r} in {source}")
        try:
            index = target_index(given[name].strip(), classes)
        except ValueError as error:
            raise ValueError(f"labels of {name!r}: {error}".replace("target", "class")) from None
        if index is None:
            raise ValueError(f"labels should have a class for each photograph, got {given[name]!r} for {name!r}")
        found[name] = index
    return found


@dataclass
class Objects:
    """The objects in one photograph, in pixels of the file after it has been rotated upright on reading.

    Attributes:
        boxes: left, top, right, bottom.
        polygons: x, y, x, y, …
        masks: files with masks of the photograph's size; the object is every pixel that is not black.
        runs: masks as COCO run lengths: (height, width) and the runs, column by column.
    """

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    polygons: list[list[float]] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    runs: list[tuple[tuple[int, int], list[int]]] = field(default_factory=list)

    def mask(self, size: tuple[int, int]) -> Tensor:
        """All objects as one mask, bool [H, W], for a photograph of this ``size`` (height, width).

        Raises:
            ValueError: a mask has another size.
        """
        canvas = Image.new("1", (size[1], size[0]))
        pen = ImageDraw.Draw(canvas)
        for left, top, right, bottom in self.boxes:
            # Pillow includes the last pixel.
            first = round(left), round(top)
            pen.rectangle([first, (max(first[0], round(right) - 1), max(first[1], round(bottom) - 1))], fill=1)
        for polygon in self.polygons:
            pen.polygon([round(number) for number in polygon], fill=1)
        found = np.array(canvas)
        for path in self.masks:
            found |= self._checked(images.read_image(path).amax(0).numpy() > 0, size, str(path))
        for shape, runs in self.runs:
            found |= self._checked(_decoded(shape, runs), size, "its run lengths")
        return torch.from_numpy(found)

    @staticmethod
    def _checked(mask: np.ndarray[Any, Any], size: tuple[int, int], what: str) -> np.ndarray[Any, Any]:
        if mask.shape != size:
            raise ValueError(
                f"objects: the mask should have the photograph's size, {size[1]}x{size[0]}, "
                f"got {mask.shape[1]}x{mask.shape[0]} in {what}"
            )
        return mask


def read_objects(
    source: str | os.PathLike[str], names: Sequence[str], files: Sequence[Path], seen: Preprocessing
) -> Callable[[str], Tensor | None]:
    """A function that maps an image's name to its object mask as the network sees it: bool [H, W], or None if the image
    has no objects.

    Args:
        source: a COCO file (.json; boxes, polygons and run lengths), or a CSV file with a header: a column ``file``,
            and either ``left, top, right, bottom`` (or ``x_min, …``, ``xmin, …``, ``x0, y0, x1, y1``), or ``x, y,
            width, height``, or ``mask``, the path of a mask relative to the CSV. Coordinates are in pixels of the
            photograph; several rows with the same file are several objects.
        names: the names of the images.
        files: the paths of the images.
        seen: the network's preprocessing; objects are resized and cropped in the same way as photographs.

    Raises:
        ValueError: the file has another format, or contains none of the photographs in ``names``.
        OSError: the file cannot be read.
    """
    path = Path(os.path.expanduser(source))
    given = _coco(path) if path.suffix.lower() == ".json" else _boxes(path)
    found = _by_name(given, names)
    if not found:
        raise ValueError(
            f"objects: {path} has none of the photographs; it begins with {next(iter(given), 'nothing')!r}"
        )
    where = dict(zip(names, files, strict=True))
    plain = replace(seen, mean=(0.0,) * 3, std=(1.0,) * 3)

    def masks(name: str) -> Tensor | None:
        if name not in found:
            return None
        photo = images.read_image(where[name])
        mask = found[name].mask((photo.shape[1], photo.shape[2])).float()
        shown = images.preprocess(mask.expand(3, -1, -1).contiguous(), plain)[0]
        # An object smaller than half a pixel still marks the pixels that contain most of it.
        return shown > min(0.5, 0.999 * float(shown.max()))

    return masks


def _rows(source: str | os.PathLike[str], argument: str) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a CSV file, and its column names in lower case."""
    path = Path(os.path.expanduser(source))
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = list(csv.reader(file))
    if not lines:
        raise ValueError(f"{argument}: {path} is empty")
    columns = [name.strip().lower() for name in lines[0]]
    rows = [dict(zip(columns, line, strict=False)) for line in lines[1:] if any(cell.strip() for cell in line)]
    for number, row in enumerate(rows, start=2):
        if len(row) < len(columns):
            raise ValueError(f"{argument}: line {number} of {path} has fewer cells than the header")
    return rows, columns


def _column(columns: Iterable[str], choices: Sequence[str], source: object, argument: str) -> str:
    listed = list(columns)
    for choice in choices:
        if choice in listed:
            return choice
    raise ValueError(f"{argument}: {source} should have a column {' or '.join(choices)}, got {', '.join(listed)}")


def _boxes(path: Path) -> dict[str, Objects]:
    rows, columns = _rows(path, "objects")
    key = _column(columns, _FILES, path, "objects")
    found: dict[str, Objects] = defaultdict(Objects)
    sides = next((four for four in _CORNERS if set(four) <= set(columns)), None)
    sizes = next((four for four in _SIZES if set(four) <= set(columns)), None)
    if sides is None and sizes is None and "mask" not in columns:
        raise ValueError(
            f"objects: {path} should have columns left, top, right, bottom, or x, y, width, height, or mask, "
            f"got {', '.join(columns)}"
        )
    for number, row in enumerate(rows, start=2):
        one = found[row[key]]
        if "mask" in columns and row["mask"].strip():
            one.masks.append(path.parent / row["mask"].strip())
            continue
        try:
            numbers = [float(row[name]) for name in sides or sizes or ()]
        except ValueError:
            raise ValueError(f"objects: line {number} of {path} should have numbers for its box") from None
        if numbers:
            one.boxes.append(_box(numbers, corners=sides is not None, what=f"line {number} of {path}"))
    return dict(found)


def _box(numbers: Sequence[float], *, corners: bool, what: str) -> tuple[float, float, float, float]:
    left, top, right, bottom = numbers
    if not corners:
        right, bottom = left + right, top + bottom
    if not (left < right and top < bottom):
        raise ValueError(f"objects: the box in {what} should have a width and a height above 0, got {list(numbers)}")
    return left, top, right, bottom


def _coco(path: Path) -> dict[str, Objects]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        photos = {image["id"]: image["file_name"] for image in content["images"]}
        annotations = content["annotations"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"objects: {path} should be a COCO file with images and annotations: {error}") from None
    found: dict[str, Objects] = defaultdict(Objects)
    for number, one in enumerate(annotations):
        if one.get("image_id") not in photos:
            raise ValueError(f"objects: annotation {number} of {path} is about an image that it does not list")
        objects = found[photos[one["image_id"]]]
        outline = one.get("segmentation")
        if isinstance(outline, Mapping):
            runs = outline["counts"]
            size = (int(outline["size"][0]), int(outline["size"][1]))
            objects.runs.append((size, _unpacked(runs) if isinstance(runs, str) else [int(run) for run in runs]))
        elif outline:
            objects.polygons += [list(polygon) for polygon in outline if len(polygon) >= 6]
        elif one.get("bbox"):
            objects.boxes.append(_box(one["bbox"], corners=False, what=f"annotation {number} of {path}"))
    return dict(found)


def _unpacked(text: str) -> list[int]:
    """Decode COCO's compressed run lengths: 5 bits per character, and differences from the third run on."""
    runs: list[int] = []
    at = 0
    while at < len(text):
        number = shift = 0
        more = True
        while more:
            piece = ord(text[at]) - 48
            number |= (piece & 0x1F) << shift
            more = bool(piece & 0x20)
            at, shift = at + 1, shift + 5
            if not more and piece & 0x10:
                number |= -1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _decoded(shape: tuple[int, int], runs: Sequence[int]) -> np.ndarray[Any, Any]:
    """The mask, bool [H, W], from run lengths that alternate between background and object, column by column."""
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    if len(flat) != shape[0] * shape[1]:
        raise ValueError(f"objects: run lengths should sum to {shape[0] * shape[1]} pixels, got {len(flat)}")
    return flat.reshape(shape[1], shape[0]).T


def _by_name(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Match the entries of ``given``, keyed by paths or file names, to the images with these ``names``.

    An equal path matches first; otherwise the file name alone, if exactly one image and one entry have it.
    """
    found = {}
    last: dict[str, list[str]] = defaultdict(list)
    for name in names:
        last[Path(name).name].append(name)
    exact = {Path(key).as_posix(): value for key, value in given.items()}
    short: dict[str, list[Any]] = defaultdict(list)
    for key, value in exact.items():
        short[Path(key).name].append(value)
    for name in names:
        if name in exact:
            found[name] = exact[name]
            continue
        file = Path(name).name
        if len(last[file]) == 1 and len(short[file]) == 1:
            found[name] = short[file][0]
    return found
