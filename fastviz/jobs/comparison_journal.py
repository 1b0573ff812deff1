"""What a comparison has measured so far, on disk: a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastviz._util.files import whole_file
from fastviz.evaluation import Row
from fastviz.ops._library import version

__all__ = ["UNFINISHED", "Journal", "digest"]

UNFINISHED = "unfinished.jsonl"
"""The file in the folder of a comparison: its settings, then a line a batch of photographs, flushed to the disk."""

_Photo = tuple[int, str, int, int]


class Journal:
    """The rows of a comparison, a batch of photographs at a time.

    Args:
        folder: that of the comparison.
        settings: what has to be the same for rows to be used again, as JSON takes it.
        files: the photographs, by position: one that has changed since is measured anew, with those of its batch.
        overwrite: begin anew where the folder holds rows of other settings.

    Raises:
        ValueError: the folder holds rows of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], files: Sequence[Path], *, overwrite: bool) -> None:
        self.path = folder / UNFINISHED
        self._files = files
        self._settings = json.dumps({"fastviz": version(), **settings}, sort_keys=True, default=repr)
        self.rows: list[Row] = []
        """Those of an earlier run."""
        self._kept: list[dict[str, Any]] = []
        self.done: set[int] = set()
        """The positions of the photographs that they are about."""
        lines = self._lines()
        if lines and lines[0] != json.loads(self._settings):
            if not overwrite:
                different = [key for key, value in json.loads(self._settings).items() if lines[0].get(key) != value]
                raise ValueError(
                    f"out: {folder} holds a comparison that was stopped, with other {', '.join(different)}; give "
                    "another folder, the same settings to go on, or --overwrite to begin anew"
                )
            lines = []
        for line in lines[1:]:
            photos = [tuple(each) for each in line["photos"]]
            if all(self._photo(photo[0]) == photo for photo in photos):
                self._kept.append(line)
                self.rows += line["rows"]
                self.done |= {photo[0] for photo in photos}

    def keep(self, batches: Iterator[list[Row]]) -> list[Row]:
        """The rows of an earlier run and of the further ``batches``, each of which is on the disk before the next."""
        found = list(self.rows)
        with whole_file(self.path) as file:
            file.write(f"{self._settings}\n".encode())
            file.writelines(_encoded(line) for line in self._kept)
        with self.path.open("ab") as file:
            for whole in batches:
                # a photograph that could not be read before moves the batches
                batch = [row for row in whole if row["index"] not in self.done]
                numbers = sorted({row["index"] for row in batch})
                file.write(_encoded({"photos": [self._photo(number) for number in numbers], "rows": batch}))
                file.flush()
                os.fsync(file.fileno())
                found += batch
        return found

    def remove(self) -> None:
        """The comparison is finished."""
        self.path.unlink(missing_ok=True)

    def _photo(self, number: int) -> _Photo | None:
        """What tells whether the photograph at this position is the same as before."""
        if not 0 <= number < len(self._files):
            return None
        path = self._files[number]
        with suppress(OSError):
            facts = path.stat()
            return number, str(path), facts.st_size, facts.st_mtime_ns
        return None

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines of an earlier run: its last may be torn."""
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


def digest(network: nn.Module) -> str:
    """A word for the values of a network: other weights, another word."""
    found = hashlib.blake2b(digest_size=12)
    for name, value in network.state_dict().items():
        if isinstance(value, torch.Tensor):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{type(network).__name__} {found.hexdigest()}"
