"""The lines of a report, read from a part of the tables: an image and a target, with the maps of all methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastviz._util.output_folder import printable

__all__ = ["Line", "block", "lines_of"]

_COLUMNS = (
    "id", "source", "label", "target", "target_name", "probability", "predicted_name", "predicted_probability",
    "method", "seconds", "status", "error",
)  # fmt: skip

_FOLLOWS = "another method failed"
"""The error in a row whose own method worked or was not tried, but another method failed."""


@dataclass(slots=True)
class Line:
    """An image and a target.

    Attributes:
        part: the file that holds its rows.
        first: index in the part of the image's first row, which has the thumbnail.
        id: id of the image.
        source: URL of its file.
        label: label of the image, as it was given.
        target: name of the explained class.
        probability: probability of the explained class.
        predicted: name of the predicted class.
        confidence: probability of the predicted class.
        error: why it failed; None if it did not.
        rows: method → index of its row in the part, if the method did not fail.
        seconds: method → time per image in its batch.
    """

    part: Path
    first: int
    id: str
    source: str
    label: str | None
    target: str | None
    probability: float | None
    predicted: str | None
    confidence: float | None
    error: str | None = None
    rows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, row: dict[str, Any], number: int) -> None:
        """Add the row with index ``number`` in the part."""
        method = row["method"]
        if row["status"] == "ok":
            self.rows[method] = number
        elif self.error is None or self.error.endswith(_FOLLOWS):
            words = row["error"] or "unknown"
            self.error = words if method is None else f"{method}: {words}"
        if row["seconds"] is not None:
            self.seconds[method] = row["seconds"]


def lines_of(part: Path) -> Iterator[Line]:
    """The lines of a part, in the order of its rows."""
    from pyarrow import parquet

    line: Line | None = None
    key: tuple[Any, Any] | None = None
    first = number = 0
    with parquet.ParquetFile(part) as file:
        for batch in file.iter_batches(columns=list(_COLUMNS)):
            for row in batch.to_pylist():
                if (row["id"], row["target"]) != key:
                    if line is not None:
                        yield line
                    if key is None or row["id"] != key[0]:
                        first = number
                    key = row["id"], row["target"]
                    line = Line(
                        part, first, row["id"], row["source"], row["label"], row["target_name"], row["probability"],
                        row["predicted_name"], row["predicted_probability"],
                    )  # fmt: skip
                line.add(row, number)  # type: ignore[union-attr]
                number += 1
    if line is not None:
        yield line


def block(lines: Sequence[Line], start: int, methods: Sequence[str]) -> dict[str, Any]:
    """Lines in the format that the page reads: a list for each column, with classes and labels as indices into
    ``names``.

    Args:
        lines: the lines of the block.
        start: index of the first one among all lines.
        methods: the job's methods, in order.

    Returns:
        JSON values. ``missing`` is index in the block → indices of the methods without a map.
    """
    places: dict[str, int] = {}

    def place(name: str | None) -> int:
        return -1 if name is None else places.setdefault(name, len(places))

    def rounded(values: Sequence[float | None], digits: int) -> list[float | None]:
        return [None if value is None else round(value, digits) for value in values]

    columns: dict[str, Any] = {
        "start": start,
        "id": [printable(line.id) for line in lines],
        "label": [place(line.label) for line in lines],
        "target": [place(line.target) for line in lines],
        "predicted": [place(line.predicted) for line in lines],
        "probability": rounded([line.probability for line in lines], 5),
        "confidence": rounded([line.confidence for line in lines], 5),
        "seconds": rounded([sum(line.seconds.values()) for line in lines], 5),
        "error": {at: printable(line.error) for at, line in enumerate(lines) if line.error is not None},
        "missing": {},
    }
    for at, line in enumerate(lines):
        missing = [number for number, method in enumerate(methods) if method not in line.rows]
        if missing:
            columns["missing"][at] = missing
    columns["names"] = [printable(name) for name in places]
    return columns
