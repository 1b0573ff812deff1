"""Image files in folders, behind patterns and by name: streamed, each once, with a name that stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fastviz.images import paths
from fastviz.jobs.inputs.items import text
from fastviz.jobs.tables.folder import is_own_picture

__all__ = ["Naming", "count_files"]


def count_files(place: str) -> int:
    """How many image files a path, a folder or a pattern means."""
    if os.path.isdir(place):
        return sum(1 for _ in paths.walk(place))
    return len(paths.find_relative(place))


class Naming:
    """Names the files of one place after the other. A name belongs to what was given first: when inputs are added
    behind, those that were there keep theirs. No list of all names is needed for it.

    ``out`` is the job's folder: what fastviz wrote there is no input.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._folders: list[str] = []  # given before, absolute
        self._files: set[str] = set()  # names of what was given otherwise
        self._taken: set[str] = set()  # and its absolute paths
        self._odd: set[str] = set()  # names that are, or may be, those of two files, as bytes that are no UTF-8 do

    def of(self, place: str) -> Iterator[tuple[str, str, str]]:
        """Path, name and relative path of each image file that ``place`` means and that was not given before."""
        prefix = text(PurePosixPath(place).name or os.path.basename(os.path.abspath(place)))
        is_folder = os.path.isdir(place)
        found = paths.walk(place) if is_folder else ((str(path), name) for path, name in paths.find_relative(place))
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
            yield path, name, uri
        if is_folder:
            self._folders.append(home)

    def _free(self, uri: str, prefix: str) -> str:
        name, number = uri, 0
        while self._is_taken(name):
            number += 1
            name = f"{prefix}/{uri}" if number == 1 else f"{prefix}/{uri}~{number}"
        return name

    def _is_taken(self, name: str) -> bool:
        if name in self._files or name in self._odd:
            return True
        return any(os.path.lexists(os.path.join(folder, name)) for folder in self._folders)

    def _is_inside(self, path: str) -> bool:
        """Whether the file was met in a folder that was given before."""
        for folder in self._folders:
            if path.startswith(os.path.join(folder, "")):
                rest = os.path.relpath(path, folder).split(os.sep)
                return paths.looks_like_image(rest[-1]) and not any(part.startswith(".") for part in rest)
        return False
