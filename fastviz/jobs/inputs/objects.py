"""Inputs in S3: the images of a folder, a pattern or an object, and the tables that match a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from itertools import groupby

from fastviz.images import paths
from fastviz.images.paths import ImageError
from fastviz.jobs.s3 import S3Path, is_s3, matching, stamps_of

__all__ = ["images_in", "objects_of", "read_object", "stamps_in"]

Stamp = tuple[int, int, int]


def images_in(place: str) -> Iterator[tuple[str, str, Stamp]]:
    """Address, name and stamp of each image at ``place``. The name is relative to the folder, or the object's own.

    Folders are listed one subfolder at a time, so that a folder may hold a billion images.

    Raises:
        ValueError: there is nothing at ``place``.
        OSError: the server cannot be reached or refuses.
    """
    given = S3Path(place)
    if glob.has_magic(given.path):
        for found, stamp in matching(given):
            if paths.looks_like_image(found.name):
                yield os.fspath(found), found.name, stamp
    elif given.is_file():
        yield os.fspath(given), given.name, stamps_of([given])[0]
    elif given.exists():
        for found, name, stamp in given.walk():
            if paths.looks_like_image(found.name):
                yield os.fspath(found), name, stamp
    else:
        raise ValueError(f"inputs: paths should exist, got {place!r}")


def objects_of(place: str) -> list[str]:
    """The addresses that match a pattern, in order; an address without wildcards matches itself.

    Raises:
        ValueError: nothing matches.
    """
    given = S3Path(place)
    if glob.has_magic(given.path):
        found = [os.fspath(each) for each, _ in matching(given)]
    else:
        found = [place] if given.is_file() else []
    if not found:
        raise ValueError(f"inputs: paths should exist, got {place!r}")
    return found


def read_object(place: str, limit: int) -> bytes:
    """The bytes of an image.

    Raises:
        ImageError: the object does not exist, or has more than ``limit`` bytes.
        OSError: the server cannot be reached or refuses.
    """
    try:
        with S3Path(place).open() as file:
            if file.size() > limit:
                raise ImageError(f"image {place!r}: {file.size()} bytes are more than the {limit} allowed")
            return bytes(file.read())
    except FileNotFoundError:
        raise ImageError(f"image {place!r}: there is no such object") from None


def stamps_in(places: Sequence[str]) -> dict[str, Stamp]:
    """The stamps of those ``places`` that are in S3; zeros on errors, which come up again on reading."""
    far = sorted({place for place in places if is_s3(place)})
    found: dict[str, Stamp] = {}
    for _, group in groupby(far, key=lambda place: (S3Path(place).bucket, S3Path(place).options)):
        same = list(group)
        try:
            found.update(zip(same, stamps_of([S3Path(place) for place in same]), strict=True))
        except OSError:
            found.update(dict.fromkeys(same, (0, 0, 0)))
    return found
