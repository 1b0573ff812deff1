"""Image files from folders, patterns and paths: streamed, each once, with stable names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePosixPath

from fastviz.images import paths
from fastviz.jobs.inputs.items import Stamp, text
from fastviz.jobs.inputs.objects import images_in
from fastviz.jobs.places import Place
from fastviz.jobs.s3 import S3Path, is_s3
from fastviz.jobs.tables.folder import own_pictures

__all__ = ["Naming", "count_files"]


def count_files(place: str) -> int | None:
    """The number of image files of a path, a folder or a pattern; None in S3, where counting means listing them all."""
    if is_s3(place):
        return None
    if os.path.isfile(place):  # the fast case: thousands of paths may be given
        return 1
    if os.path.isdir(place):
        return sum(1 for _ in paths.walk(place, ordered=False))
    return len(paths.find_relative(place))


def _files(place: str) -> Iterator[tuple[str, str]]:
    """Path and name of a file, or of all files that match a pattern."""
    if os.path.isfile(place):
        yield place, os.path.basename(place)
    else:
        yield from ((str(path), name) for path, name in paths.find_relative(place))


class Naming:
    """Gives each file a unique name, one place after the other. The first file with a name keeps it, so appending
    inputs does not rename the earlier ones. No list of all names is needed.

    ``out`` is the job's folder; pictures that fastviz wrote there are not inputs.
    """

    def __init__(self, out: Place) -> None:
        self._own = own_pictures(out)
        self._folders: list[str] = []  # absolute paths of earlier folders
        self._s3_folders: list[S3Path] = []  # the same in S3
        self._files: set[str] = set()  # names of files that were not given as part of a folder
        self._given_paths: set[str] = set()  # absolute paths of these files
        self._ambiguous: set[str] = set()  # names that two files have or may have, such as escaped non-UTF-8 names

    def of(self, place: str) -> Iterator[tuple[str, str, str, Stamp | None]]:
        """Path, name, relative path and stamp of each image file at ``place`` that was not given before.

        The stamp is None if it still has to be read.
        """
        if is_s3(place):
            yield from self._of_s3(place)
            return
        prefix = text(PurePosixPath(place).name or os.path.basename(os.path.abspath(place)))
        is_folder = os.path.isdir(place)
        found = paths.walk(place) if is_folder else _files(place)
        home = os.path.abspath(place)
        inside = os.path.join(home, "")
        for path, relative in found:
            whole = inside + relative if is_folder else os.path.abspath(path)
            if whole in self._given_paths or self._is_inside(whole) or whole.startswith(self._own):
                continue
            uri = text(relative)
            name = self._unused_name(uri, prefix)
            if not is_folder:
                self._files.add(name)
                self._given_paths.add(whole)
            elif name != relative or "\\x" in name:
                self._ambiguous.add(name)
            yield path, name, uri, None
        if is_folder:
            self._folders.append(home)

    def _of_s3(self, place: str) -> Iterator[tuple[str, str, str, Stamp | None]]:
        given = S3Path(place)
        is_folder = False
        for path, relative, stamp in images_in(place):
            whole = S3Path(path).url
            is_folder = whole == f"{given.url}/{relative}"
            if whole in self._given_paths or self._is_inside(whole) or whole.startswith(self._own):
                continue
            name = self._unused_name(relative, given.name)
            if not is_folder:
                self._files.add(name)
                self._given_paths.add(whole)
            elif name != relative:
                self._ambiguous.add(name)
            yield path, name, relative, stamp
        if is_folder:
            self._s3_folders.append(given)

    def _unused_name(self, uri: str, prefix: str) -> str:
        name, number = uri, 0
        while self._is_taken(name):
            number += 1
            name = f"{prefix}/{uri}" if number == 1 else f"{prefix}/{uri}~{number}"
        return name

    def _is_taken(self, name: str) -> bool:
        if name in self._files or name in self._ambiguous:
            return True
        if not self._folders and not self._s3_folders:  # the fast case
            return False
        if any(os.path.lexists(os.path.join(folder, name)) for folder in self._folders):
            return True
        return any((folder / name).is_file() for folder in self._s3_folders)

    def _is_inside(self, path: str) -> bool:
        """Whether the file is in a folder that was given before."""
        if not self._folders and not self._s3_folders:  # the fast case
            return False
        for folder in [*self._folders, *(each.url for each in self._s3_folders)]:
            if path.startswith(os.path.join(folder, "")):
                rest = os.path.relpath(path, folder).split(os.sep)
                return paths.looks_like_image(rest[-1]) and not any(part.startswith(".") for part in rest)
        return False
