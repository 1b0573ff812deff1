"""The folder of a job on disk: what a later run keeps of it, and how results are added.

It holds ``settings.json``, ``results.jsonl`` (one line for a photograph and method), ``inputs/NAME.png`` (what the
network saw), ``overlays/NAME.METHOD.png`` and ``arrays/NAME.npz`` (the maps of all methods).
"""

from __future__ import annotations

import errno
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from fastviz._util import output_folder
from fastviz._util.files import whole_file
from fastviz.images.paths import Identity
from fastviz.jobs.results import (
    PARTS,
    RESULTS_FILE,
    SETTINGS_FILE,
    SHEETS,
    Photo,
    Result,
    Settings,
    is_whole,
    lines_of,
    read_results,
    result_lines,
)

__all__ = ["JobFolder"]

_FORMAT = 1


class JobFolder:
    """The folder of a job: what is done in it, and how results are added.

    Raises:
        OSError: it cannot be written.
        ValueError: it has files of the same names that fastviz did not make, or results of other settings (unless
            ``overwrite``, which removes them when the first new ones are there).
    """

    def __init__(self, out: Path, settings: Settings, *, overwrite: bool) -> None:
        self.out = out
        self._methods = list(settings.methods)
        self._settings = settings.fingerprint()
        self._overwrite = overwrite
        there = out
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(f"out: {there} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"out: {there} cannot be written: permission denied")
        self._check()

    def _check(self) -> None:
        """Refuse what the folder holds, or know whether to go on with it."""
        found = self._found_settings()
        self._fresh = found is None or self._overwrite
        if found is None or self._overwrite or found == self._settings:
            return
        if not found:
            raise ValueError(
                f"out: {self.out} holds results, and their {SETTINGS_FILE} is missing, damaged or of another version; "
                "give another folder, or --overwrite to replace them"
            )
        others = [key for key, value in self._settings.items() if found.get(key) != value]
        raise ValueError(
            f"out: {self.out} holds results made with other settings ({', '.join(others) or 'of another version'}); "
            "give another folder, or --overwrite to replace them"
        )

    def _found_settings(self) -> dict[str, object] | None:
        """The settings of the job in the folder, empty where they are damaged; None if there is no job."""
        occupied = [name for name in (SETTINGS_FILE, RESULTS_FILE, *PARTS) if os.path.lexists(self.out / name)]
        if not occupied:
            return None
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            found = json.loads((self.out / SETTINGS_FILE).read_bytes())
            if found["fastviz"] == _FORMAT and isinstance(found["settings"], dict):
                return dict(found["settings"])
        if self._has_results():
            return {}
        raise ValueError(f"out: {self.out} has {' and '.join(occupied)} that fastviz did not make; give another folder")

    def _has_results(self) -> bool:
        """Whether a line or a file of arrays is there that can only come from a job: what it stands in may be replaced.

        Folders called "inputs", or a settings.json, may be anybody's.
        """
        if next(result_lines(self.out), None) is not None:
            return True
        arrays = self.out / "arrays"
        for path in islice(arrays.rglob("*.npz") if arrays.is_dir() else (), 100):
            with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as file:
                if {"photograph.npy", "target.npy", "class_name.npy"} <= set(file.namelist()):
                    return True
        return False

    def locked(self) -> AbstractContextManager[None]:
        """The folder for this run alone, see :func:`fastviz._util.output_folder.locked`."""
        return output_folder.locked(self.out, PARTS)

    def start(self, photos: Sequence[Photo]) -> tuple[list[Photo], int]:
        """The photographs still to do, with their stems, and the number that are done.

        Lines that no longer hold are dropped with their files: the photograph changed or is gone, its files are gone or
        broken, or another line says the same.
        """
        self._check()  # another run may have ended since
        if self._fresh:
            return _named(photos, {}), 0
        if (self.out / RESULTS_FILE).is_dir():
            output_folder.remove(self.out / RESULTS_FILE)
        asked = {photo.source: photo for photo in photos}
        kept: dict[str, str] = {}
        verdicts: list[Identity | None] = []
        dropped: set[str] = set()
        length, touched = 0, False
        for group in read_results(self.out):
            first = group[0]
            now = None if first.source in kept else self._still(group, asked.get(first.source))
            verdicts.append(now)
            if now is None:
                dropped.update(path for result in group for path in result.files)
                continue
            length += len(lines_of(group))
            touched |= now != first.identity
            kept[first.source] = PurePosixPath(first.photo).relative_to("inputs").with_suffix("").as_posix()
        results = self.out / RESULTS_FILE
        if results.exists() and (touched or results.stat().st_size != length):
            self._rewrite(verdicts, dropped)
        todo = [photo for photo in photos if photo.source not in kept]
        return _named(todo, kept), len(photos) - len(todo)

    def _rewrite(self, verdicts: Sequence[Identity | None], dropped: set[str]) -> None:
        """Write the lines that hold anew, and remove the files of those that do not."""
        with whole_file(self.out / RESULTS_FILE) as file:
            for group, now in zip(read_results(self.out), verdicts, strict=True):
                if now is not None:
                    file.write(lines_of(replace(result, **asdict(now)) for result in group))
                    dropped.difference_update(path for result in group for path in result.files)
        for path in dropped:
            with suppress(OSError):
                (self.out / path).unlink()

    def _still(self, group: list[Result], photo: Photo | None) -> Identity | None:
        """What identifies the photograph of lines that hold: all methods and files are there, it has not changed."""
        if [result.method for result in group] != self._methods or len({result.identity for result in group}) > 1:
            return None
        if not all(is_whole(self.out / path) for path in {path for result in group for path in result.files}):
            return None
        return group[0].identity.still(Path(group[0].source) if photo is None else photo.path)

    def prepare(self) -> None:
        """Make the folder and empty it of an earlier job: when the first results come, so a failed start leaves it."""
        if not self._fresh:
            return
        for name in (*PARTS, RESULTS_FILE, SETTINGS_FILE):
            output_folder.remove(self.out / name)
        for sheet in self.out.glob(SHEETS):
            output_folder.remove(sheet)
        self.out.mkdir(parents=True, exist_ok=True)
        with whole_file(self.out / SETTINGS_FILE) as file:
            file.write(json.dumps({"fastviz": _FORMAT, "settings": self._settings}, indent=2).encode() + b"\n")
        self._fresh = False

    def append(self, results: Sequence[Result]) -> None:
        """Add the lines of one photograph, all or none."""
        data = lines_of(results)
        path = self.out / RESULTS_FILE
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            except BaseException:
                file.truncate(end)
                raise


def _named(photos: Sequence[Photo], kept: Mapping[str, str]) -> list[Photo]:
    """``photos`` with stems that differ from each other and from those in ``kept``."""
    stems = output_folder.unique_names(
        [PurePosixPath(photo.name).with_suffix("").as_posix() for photo in photos], kept.values()
    )
    return [replace(photo, stem=stem) for photo, stem in zip(photos, stems, strict=True)]
