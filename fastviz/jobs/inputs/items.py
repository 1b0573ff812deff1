"""One input of a job: its name, its place, and how its bytes are read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from fastviz.images.paths import ImageError
from fastviz.jobs.inputs.objects import read_object, stamps_in
from fastviz.jobs.places import open_file, open_parquet
from fastviz.jobs.s3 import S3Path, is_s3

__all__ = [
    "UNKNOWN",
    "DatasetPlace",
    "FilePlace",
    "Item",
    "Place",
    "RowPlace",
    "Shard",
    "TarPlace",
    "digest",
    "file_url",
    "stamp_of",
    "stamp_of_file",
    "text",
]

Stamp = tuple[int, int, int]

UNKNOWN: Stamp = (0, 0, 0)
"""The stamp of an input without a file, for which changes cannot be detected."""

LIMIT_BYTES = 1 << 30
"""The largest allowed image file in bytes; larger files are not photographs and could exhaust the memory."""


class Place(Protocol):
    """Where an input is stored. Small and picklable."""

    @property
    def source(self) -> str:
        """The place as text: a ``file:`` URL, with the position inside a container file after ``#``."""

    def read(self) -> Any:
        """The bytes of the image file, or the item itself for a dataset."""


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        id: its name, unique in a job.
        uri: its path relative to the given path.
        position: its position in the order of the inputs.
        place: where it is stored.
        label: its label in a table or shard; None if there is none.
        stamp: size in bytes, modification time and change time (ns since 1970) of its file.
    """

    id: str
    uri: str
    position: int
    place: Place
    label: str | None = None
    stamp: Stamp = UNKNOWN


@dataclass(frozen=True)
class Shard:
    """Consecutive inputs, of which only the requested ones are made.

    Attributes:
        ids: the ids of the inputs.
        stamps: int64 [n, 3], see :attr:`Item.stamp`.
        make: a function from an index, 0 to n - 1, to the input.
    """

    ids: Sequence[str]
    stamps: np.ndarray[Any, np.dtype[np.int64]]
    make: Callable[[int], Item]


@dataclass(frozen=True, slots=True)
class FilePlace:
    """An image file."""

    path: str

    @property
    def source(self) -> str:
        """As :class:`Place` says."""
        return file_url(self.path)

    def read(self) -> bytes:
        """As :class:`Place` says."""
        if is_s3(self.path):
            return read_object(self.path, LIMIT_BYTES)
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            raise ImageError(f"image {self.path!r}: there is no such file") from None
        if not stat.S_ISREG(status.st_mode):  # reading a pipe could block
            raise ImageError(f"image {self.path!r}: not a regular file")
        if status.st_size > LIMIT_BYTES:
            raise ImageError(f"image {self.path!r}: {status.st_size} bytes are more than the {LIMIT_BYTES} allowed")
        with open(self.path, "rb") as file:
            return file.read()


@dataclass(frozen=True, slots=True)
class TarPlace:
    """A file in an uncompressed tar archive."""

    path: str
    member: str
    offset: int
    size: int

    @property
    def source(self) -> str:
        """As :class:`Place` says."""
        return f"{file_url(self.path)}#{quote(os.fsencode(self.member))}"

    def read(self) -> bytes:
        """As :class:`Place` says."""
        if self.size > LIMIT_BYTES:
            raise ImageError(f"image {self.member!r}: {self.size} bytes are more than the {LIMIT_BYTES} allowed")
        with open_file(self.path) as file:
            file.seek(self.offset)
            found: bytes = file.read(self.size)
        if len(found) < self.size:
            raise ImageError(f"image {self.member!r}: truncated, {self.path} ends before it does")
        return found


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Image bytes in a row of a Parquet file."""

    path: str
    column: str
    group: int
    row: int

    @property
    def source(self) -> str:
        """As :class:`Place` says."""
        return f"{file_url(self.path)}#{self.group}.{self.row}"

    def read(self) -> bytes:
        """As :class:`Place` says."""
        modified = 0 if is_s3(self.path) else os.stat(self.path).st_mtime_ns
        value = _column(self.path, modified, self.column, self.group)[self.row].as_py()
        if isinstance(value, dict):  # Hugging Face's image format
            value = value.get("bytes") or (FilePlace(value["path"]).read() if value.get("path") else None)
        if not isinstance(value, bytes):
            raise ImageError(f"image {self.group}.{self.row} of {self.path!r}: no bytes in column {self.column!r}")
        return value


@lru_cache(maxsize=2)
def _column(path: str, modified: int, column: str, group: int) -> Any:
    """One column of a row group, cached because its other rows are read next."""
    with open_parquet(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)


@dataclass(frozen=True, slots=True)
class DatasetPlace:
    """An item of a Python dataset: its index, or the item itself if the dataset is only iterable."""

    dataset: Any
    index: int
    item: Any = None

    @property
    def source(self) -> str:
        """As :class:`Place` says."""
        return f"{type(self.dataset).__name__}#{self.index}"

    def read(self) -> Any:
        """As :class:`Place` says."""
        return self.dataset[self.index] if self.item is None else self.item


def stamp_of(path: str) -> Stamp:
    """The current stamp of a file; :data:`UNKNOWN` if there is no file, which fails later on reading."""
    return stamps_in([path])[path] if is_s3(path) else stamp_of_file(path)


def stamp_of_file(path: str) -> Stamp:
    """The same for a path that is not in S3."""
    try:
        status = os.stat(path)
    except OSError:
        return UNKNOWN
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def text(name: str) -> str:
    """A file name as valid text: bytes that are not UTF-8 are escaped, the rest is unchanged.

    >>> print(text("caf\\udce9"))
    caf\\xe9
    """
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def file_url(path: str) -> str:
    """A path as a URL of its bytes; a URL is returned unchanged."""
    if is_s3(path):
        return f"s3://{quote(S3Path(path).path)}"
    return text(path) if "://" in path else "file://" + quote(os.fsencode(os.path.abspath(path)))


def digest(data: bytes) -> str:
    """SHA-256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
