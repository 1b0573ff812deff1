"""Image files in folders, behind patterns and by name: streamed, each once, with a name that stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePosixPath

from fastviz.images import paths
from fastviz.jobs.inputs.items import Stamp, text
from fastviz.jobs.inputs.objects import images_in
from fastviz.jobs.places import Place
from fastviz.jobs.s3 import S3Path, is_s3
from fastviz.jobs.tables.folder import is_own_picture

__all__ = ["Naming", "count_files"]


def count_files(place: str) -> int | None:
    """How many image files a path, a folder or a pattern means; None in S3, where to count costs as much as to list."""
    if is_s3(place):
        return None
    if os.path.isfile(place):  # thousands may be named one by one
        return 1
    if os.path.isdir(place):
        return sum(1 for _ in paths.walk(place, ordered=False))
    return len(paths.find_relative(place))


def _files(place: str) -> Iterator[tuple[str, str]]:
    """Path and name of a file, or of those that a pattern means."""
    if os.path.isfile(place):
        yield place, os.path.basename(place)
    else:
        yield from ((str(path), name) for path, name in paths.find_relative(place))


class Naming:
    """Names the files of one place after the other. A name belongs to what was given first: when inputs are added
    behind, those that were there keep theirs. No list of all names is needed for it.

    ``out`` is the job's folder: what fastviz wrote there is no input.
    """

    def __init__(self, out: Place) -> None:
        self._out = out
        self._folders: list[str] = []  # given before, absolute
        self._far: list[S3Path] = []  # the same in S3
        self._files: set[str] = set()  # names of what was given otherwise
        self._taken: set[str] = set()  # and its absolute paths
        self._odd: set[str] = set()  # names that are, or may be, those of two files, as bytes that are no UTF-8 do

    def of(self, place: str) -> Iterator[tuple[str, str, str, Stamp | None]]:
        """Of each image file that ``place`` means and that was not given before: path, name, relative path, and stamp.

        The stamp is None where it has to be asked for.
        """
        if is_s3(place):
            yield from self._of_s3(place)
            return
        prefix = text(PurePosixPath(place).name or os.path.basename(os.path.abspath(place)))
        is_folder = os.path.isdir(place)
        found = paths.walk(place) if is_folder else _files(place)
        home = os.path.abspath(place)
        for path, relative in found:
            whole = os.path.join(home, relative) if is_folder else os.path.abspath(path)
            if whole in self._taken or self._is_inside(whole) or is_own_picture(whole, self._out):
                continue
            uri = text(relative)
            name = self._free(uri, prefix)
            if not is_folder:
                self._files.add(name)
                self._taken.add(whole)
            elif name != relative or "\\x" in name:
                self._odd.add(name)
            yield path, name, uri, None
        if is_folder:
            self._folders.append(home)

    def _of_s3(self, place: str) -> Iterator[tuple[str, str, str, Stamp | None]]:
        given = S3Path(place)
        is_folder = False
        for path, relative, stamp in images_in(place):
            whole = S3Path(path).url
            is_folder = whole == f"{given.url}/{relative}"
            if whole in self._taken or self._is_inside(whole) or is_own_picture(whole, self._out):
                continue
            name = self._free(relative, given.name)
            if not is_folder:
                self._files.add(name)
                self._taken.add(whole)
            elif name != relative:
                self._odd.add(name)
            yield path, name, relative, stamp
        if is_folder:
            self._far.append(given)

    def _free(self, uri: str, prefix: str) -> str:
        name, number = uri, 0
        while self._is_taken(name):
            number += 1
            name = f"{prefix}/{uri}" if number == 1 else f"{prefix}/{uri}~{number}"
        return name

    def _is_taken(self, name: str) -> bool:
        if name in self._files or name in self._odd:
            return True
        if any(os.path.lexists(os.path.join(folder, name)) for folder in self._folders):
            return True
        return any((folder / name).is_file() for folder in self._far)

    def _is_inside(self, path: str) -> bool:
        """Whether the file was met in a folder that was given before."""
        for folder in [*self._folders, *(each.url for each in self._far)]:
            if path.startswith(os.path.join(folder, "")):
                rest = os.path.relpath(path, folder).split(os.sep)
                return paths.looks_like_image(rest[-1]) and not any(part.startswith(".") for part in rest)
        return False
