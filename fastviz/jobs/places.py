"""File operations of jobs that work the same on disk and in S3."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from fastviz._util import files, output_folder
from fastviz.jobs.s3 import S3Path, is_s3, whole_object

__all__ = ["Place", "beside", "locked", "open_file", "open_parquet", "place_of", "remove", "whole_file"]

Place = Path | S3Path


def place_of(place: str | os.PathLike[str]) -> Place:
    """A path, in which ``~`` is expanded, or an S3 address.

    >>> place_of("s3://bucket/results")
    S3Path('s3://bucket/results')
    """
    if isinstance(place, S3Path):
        return place
    return S3Path(place) if is_s3(place) else Path(os.path.expanduser(place))


def beside(table: str, path: str) -> str:
    """Resolve a ``path`` that is written in the file ``table``, relative to its folder."""
    if is_s3(path):
        return path
    if is_s3(table):
        return os.fspath(S3Path(table).parent / path.removeprefix("./"))
    return os.path.join(os.path.dirname(table), os.path.expanduser(path))


def open_file(place: str | Place) -> Any:
    """Open a file for reading bytes, with random access.

    Raises:
        OSError: it cannot be read.
    """
    if is_s3(place):
        return place_of(place).open()
    return open(place, "rb")


@contextmanager
def open_parquet(place: str | Place) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``."""
    from pyarrow import parquet

    found = place_of(place)
    if isinstance(found, S3Path):
        with found.open() as stream, parquet.ParquetFile(stream) as file:
            yield file
    else:
        with parquet.ParquetFile(found) as file:
            yield file


def whole_file(place: Place) -> AbstractContextManager[IO[bytes]]:
    """A file to write bytes to, which appears only if the ``with`` block ends without an error."""
    return whole_object(place) if isinstance(place, S3Path) else files.whole_file(place)


def remove(place: Place) -> None:
    """Remove a file, or a folder with its contents, if it exists."""
    if isinstance(place, S3Path):
        place.unlink(missing_ok=True)
    else:
        output_folder.remove(place)


@contextmanager
def locked(out: Place) -> Iterator[Callable[[], None]]:
    """Lock the place of the results for this run; yields a function that must be called before each write.

    Raises:
        ValueError: another run is writing into it.
        OSError: it cannot be created or written.
    """
    if isinstance(out, S3Path):
        from fastviz.jobs.tables.lease import leased

        with leased(out) as check:
            yield check
    else:
        with output_folder.locked(out):
            yield lambda: None
