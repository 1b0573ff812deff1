"""A comparison's values so far, saved on disk, so that an interrupted run can resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastviz._util.files import whole_file
from fastviz.evaluation import Row
from fastviz.ops._library import version

__all__ = ["UNFINISHED", "Journal"]

UNFINISHED = "unfinished.jsonl"
"""The file in a comparison's folder: the settings, then a line for each batch of photographs, flushed to disk."""

_Photo = tuple[int, str, int, int]


class Journal:
    """The rows of a comparison, saved one batch of photographs at a time.

    Args:
        folder: the comparison's folder.
        settings: JSON values that must be equal for saved rows to be reused.
        files: the photographs, by position. If one has changed, its whole batch is measured again.
        overwrite: start over if the folder holds rows with other settings.

    Raises:
        ValueError: the folder holds rows with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], files: Sequence[Path], *, overwrite: bool) -> None:
        self.path = folder / UNFINISHED
        self._files = files
        self._settings = json.dumps({"fastviz": version(), **settings}, sort_keys=True, default=repr)
        self.rows: list[Row] = []
        """The rows of an earlier run."""
        self._kept: list[dict[str, Any]] = []
        self.done: set[int] = set()
        """The positions of the photographs in these rows."""
        lines = self._lines()
        if lines and lines[0] != json.loads(self._settings):
            if not overwrite:
                different = [key for key, value in json.loads(self._settings).items() if lines[0].get(key) != value]
                raise ValueError(
                    f"out: {folder} holds an unfinished comparison with other {', '.join(different)}; give another "
                    "folder, the same settings to resume it, or --overwrite to start over"
                )
            lines = []
        for line in lines[1:]:
            photos = [tuple(each) for each in line["photos"]]
            if all(self._photo(photo[0]) == photo for photo in photos):
                self._kept.append(line)
                self.rows += line["rows"]
                self.done |= {photo[0] for photo in photos}

    def keep(self, batches: Iterator[list[Row]]) -> list[Row]:
        """The rows of an earlier run and of these ``batches``. Each batch is on disk before the next one starts."""
        found = list(self.rows)
        with whole_file(self.path) as file:
            file.write(f"{self._settings}\n".encode())
            file.writelines(_encoded(line) for line in self._kept)
        with self.path.open("ab") as file:
            for whole in batches:
                # Batches shift if a photograph that could not be read before can be read now.
                batch = [row for row in whole if row["index"] not in self.done]
                numbers = sorted({row["index"] for row in batch})
                file.write(_encoded({"photos": [self._photo(number) for number in numbers], "rows": batch}))
                file.flush()
                os.fsync(file.fileno())
                found += batch
        return found

    def remove(self) -> None:
        """Remove the file: the comparison is finished."""
        self.path.unlink(missing_ok=True)

    def _photo(self, number: int) -> _Photo | None:
        """The position, path, size and time of a photograph, which change if the file does."""
        if not 0 <= number < len(self._files):
            return None
        path = self._files[number]
        with suppress(OSError):
            facts = path.stat()
            return number, str(path), facts.st_size, facts.st_mtime_ns
        return None

    def _lines(self) -> list[dict[str, Any]]:
        """The complete lines of an earlier run; its last line may be cut off."""
        found = []
        with suppress(FileNotFoundError), self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    found.append(json.loads(line))
                except ValueError:
                    break
        return found


def _encoded(line: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(line)}\n".encode()
