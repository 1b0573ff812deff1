"""The maps of a job as files for other tools, under the relative paths of the inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastviz._util import checks, output_folder
from fastviz._util.files import whole_file
from fastviz.jobs.report import drawn
from fastviz.jobs.tables.folder import write_json
from fastviz.jobs.tables.results import Results
from fastviz.jobs.tables.results import open as open_results
from fastviz.jobs.tables.schema import decode_map

__all__ = ["KINDS", "export", "path_of"]

KINDS = ("npy", "png", "fiftyone", "coco-masks")
"""The formats that can be written."""


def export(out: str | os.PathLike[str], to_folder: str | os.PathLike[str], kind: str, *, threshold: float = 0.5) -> str:
    """Write the maps of a finished or unfinished job as files.

    ``"npy"``: ``METHOD/ID.npy``, float32, as the method gave it. ``"png"``: ``METHOD/ID.png``, the map over the
    thumbnail if the job kept one. ``"fiftyone"``: ``labels.json``, which ``fiftyone.Dataset.from_json`` reads, with
    the heat maps as PNG files beside it. ``"coco-masks"``: ``annotations.json``, with run-length masks of the pixels
    whose value is at least ``threshold`` times the map's maximum. Masks and image sizes are in pixels of the network's
    input, for which photographs are resized and cropped. Ids keep their folders; if an image has several targets, the
    class is appended to the name.

    Args:
        out: the folder of a job.
        to_folder: where the files go, created if needed.
        kind: one of :data:`KINDS`.
        threshold: for ``"coco-masks"``, above 0, at most 1.

    Returns:
        A sentence about what was written.

    Raises:
        ValueError: there is no job, ``kind`` is unknown, or the job kept no maps.
        OSError: a file cannot be written.
    """
    checks.one_of(kind, "to", KINDS)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold should be above 0 and at most 1, got {threshold}")
    results = open_results(out)
    if results.job["settings"]["maps"] == "none":
        raise ValueError(f"out: {results.out} holds no maps: the job did not keep them (maps: none)")
    home = Path(os.path.expanduser(to_folder))
    home.mkdir(parents=True, exist_ok=True)
    write = {"npy": _npy, "png": _png, "fiftyone": _fiftyone, "coco-masks": _coco}[kind]
    return write(results, home, threshold)


def _maps(results: Results) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """The file name without its extension, the row and the map, for each map of a job."""
    columns = ["id", "uri", "source", "label", "target", "target_name", "probability", "method", "status"]
    columns += ["map", "map_shape", "map_scale", "map_zero", "thumbnail", "overlay"]
    taken: dict[str, str] = {}  # ids whose names had to be changed
    used: set[str] = set()
    for rows in results.images(columns):
        (name,) = output_folder.unique_names([rows[0]["id"]])
        if name != rows[0]["id"]:
            (name,) = output_folder.unique_names([rows[0]["id"]], used)
            used.add(name)
            taken[rows[0]["id"]] = name
        several = len({row["target"] for row in rows}) > 1
        for row in rows:
            if row["status"] == "ok" and row["map"] is not None:
                row["thumbnail"] = rows[0]["thumbnail"]
                end = f".{row['target']}" if several else ""
                found = decode_map(row["map"], row["map_shape"], row["map_scale"], row["map_zero"])
                yield f"{row['method']}/{name}{end}", row, found


@contextmanager
def _file(home: Path, name: str) -> Iterator[IO[bytes]]:
    """A file below ``home`` to write bytes to."""
    output_folder.clear_way(home, name)
    with whole_file(home / name) as file:
        yield file


def _npy(results: Results, home: Path, threshold: float) -> str:
    count = 0
    for name, _, found in _maps(results):
        with _file(home, f"{name}.npy") as file:
            np.save(file, found)
        count += 1
    return f"{count} maps"


def _png(results: Results, home: Path, threshold: float) -> str:
    count = 0
    for name, row, _ in _maps(results):
        with _file(home, f"{name}.png") as file:
            file.write(drawn(row, row["thumbnail"], "PNG") or b"")
        count += 1
    return f"{count} pictures"


def _fiftyone(results: Results, home: Path, threshold: float) -> str:
    """A dataset for ``fiftyone.Dataset.from_json``: 8-bit heat maps, and a classification for each target.

    The first target has the fields ``prediction`` and ``METHOD``, the second ``prediction_2`` and ``METHOD_2``, ...
    """
    from PIL import Image

    samples: dict[str, dict[str, Any]] = {}
    targets: dict[str, list[int | None]] = {}
    fields = {"filepath": "fiftyone.core.fields.StringField", "id_in_job": "fiftyone.core.fields.StringField"}
    label = "fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.{})"
    for name, row, found in _maps(results):
        flat = np.abs(found).max(0) if found.ndim == 3 else found.clip(0)
        eight = np.rint(255 * flat / max(float(flat.max()), 1e-30)).astype(np.uint8)
        with _file(home, f"{name}.png") as file:
            Image.fromarray(eight).save(file, "PNG")
        sample = samples.setdefault(
            row["id"],
            {"filepath": path_of(row["source"]) or row["uri"], "tags": [], "id_in_job": row["id"]},
        )
        of_image = targets.setdefault(row["id"], [])
        if row["target"] not in of_image:
            of_image.append(row["target"])
        rank = of_image.index(row["target"])
        end = f"_{rank + 1}" if rank else ""
        made = {
            f"prediction{end}": {
                "_cls": "Classification",
                "label": row["target_name"],
                "confidence": row["probability"],
            },
            f"{row['method']}{end}": {"_cls": "Heatmap", "map_path": str((home / f"{name}.png").resolve())},
        }
        sample |= made
        fields |= {field: label.format(value["_cls"]) for field, value in made.items()}
    content = {"name": results.out.name, "media_type": "image", "sample_fields": fields}
    write_json(home / "labels.json", content | {"samples": list(samples.values())})
    return f"{len(samples)} samples (labels.json)"


def path_of(source: str) -> str | None:
    """The path in a row's ``source``, if it is a separate file on this machine."""
    from urllib.parse import unquote

    return unquote(source.removeprefix("file://")) if source.startswith("file://") and "#" not in source else None


def _coco(results: Results, home: Path, threshold: float) -> str:
    images: dict[str, dict[str, Any]] = {}
    categories: dict[int, str] = {}
    annotations: list[dict[str, Any]] = []
    for _, row, found in _maps(results):
        flat = np.abs(found).max(0) if found.ndim == 3 else found
        height, width = flat.shape
        image = images.setdefault(
            row["id"], {"id": len(images) + 1, "file_name": row["id"], "height": height, "width": width}
        )
        if (image["height"], image["width"]) != (height, width):
            raise ValueError(
                f"coco-masks need maps of the same size for each image, got {image['height']}x{image['width']} and "
                f"{height}x{width} for {row['id']!r}: run the job with --map-size"
            )
        mask = (flat >= threshold * flat.max()) & (flat > 0)
        if not mask.any():
            continue
        category = -1 if row["target"] is None else row["target"]
        categories[category] = row["target_name"]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": category,
                "segmentation": {"size": [height, width], "counts": _runs(mask)},
                "area": int(mask.sum()),
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "iscrowd": 0,
                "score": row["probability"],
                "method": row["method"],
            }
        )
    write_json(
        home / "annotations.json",
        {
            "info": {"description": f"pixels of at least {threshold} of each map's maximum, in the network's input"},
            "images": list(images.values()),
            "categories": [{"id": index, "name": name} for index, name in sorted(categories.items())],
            "annotations": annotations,
        },
    )
    return f"{len(annotations)} masks (annotations.json)"


def _runs(mask: Any) -> list[int]:
    """COCO run lengths of a mask: alternating background and object, column by column.

    >>> _runs(np.array([[False, True], [True, True]]))
    [1, 3]
    """
    flat = np.concatenate([[False], mask.T.reshape(-1), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    edges = [0, *changes.tolist(), mask.size]
    if edges[-2] == mask.size:  # the last pixel is inside
        edges.pop()
    return [end - start for start, end in pairwise(edges)]
