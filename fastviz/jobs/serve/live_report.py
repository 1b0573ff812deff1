"""The lines of a job's report while the job runs: each part is read once, when it appears."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from secrets import token_hex
from typing import Any

from fastviz.jobs.export import path_of
from fastviz.jobs.inputs.items import FilePlace
from fastviz.jobs.report.distributions import Distributions
from fastviz.jobs.report.lines import Line, block, lines_of
from fastviz.jobs.report.pictures import PER_SHEET
from fastviz.jobs.report.write import PER_BLOCK, facts_of, settings_of, sheets_for
from fastviz.jobs.tables.results import open as open_results

__all__ = ["LiveReport"]

_SHEETS = 256

Part = tuple[Path, int, int]
"""A file with its modification time and size, which show whether it has changed."""


class LiveReport:
    """The data for a page that follows a job. Thread-safe.

    Args:
        out: the folder of the job.

    Raises:
        ValueError: the folder holds no job.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self._out = out
        self._lock = threading.Lock()
        # Pages cache sheets by version, so the version must differ between servers.
        self._server, self._count = token_hex(4), 0
        self._begin()

    def _begin(self) -> None:
        self.results = open_results(self._out)
        self.job = self.results.job
        self._sheets = sheets_for(self.job)
        self._drawn: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._parts: list[Part] = []
        self._lines: list[Line] = []
        self._counted = Distributions(self._sheets.methods)
        self._count += 1

    @property
    def version(self) -> str:
        """Changes when lines that were sent before are no longer valid."""
        return f"{self._server}-{self._count}"

    def page(self) -> dict[str, Any]:
        """The values for the page's template."""
        with self._lock:
            self._read()
            settings = settings_of(self.job, self._sheets) | {"live": True, "version": self.version, "blocks": 0}
            settings |= {"lines": len(self._lines), "distributions": self._counted.values()}
            return {"page": settings, "facts": facts_of(self.job), "model": self.job["settings"]["model"]}

    def lines(self, version: str, start: int) -> dict[str, Any]:
        """Up to :data:`fastviz.jobs.report.write.PER_BLOCK` lines, from ``start``, or from 0 if ``version`` is old."""
        with self._lock:
            self._read()
            start = min(start, len(self._lines)) if version == self.version else 0
            some = self._lines[start : start + PER_BLOCK]
            return {
                "version": self.version,
                "block": block(some, start, self._sheets.methods),
                "more": start + len(some) < len(self._lines),
                "distributions": self._counted.values(),
                "methods": self._sheets.methods,
            }

    def sheet(self, kind: str, number: int) -> bytes:
        """A sheet of ``"photos"`` or ``"maps"``, as JPEG.

        Raises:
            LookupError: there is none with this number.
        """
        with self._lock:
            size = PER_SHEET if kind == "photos" else self._sheets.lines_per_sheet
            some = self._lines[number * size : (number + 1) * size]
            if not some:
                raise LookupError("There is no such sheet.")
            key = kind, number, len(some)
            if key not in self._drawn:
                try:
                    drawn = self._sheets.photos(some) if kind == "photos" else self._sheets.maps(some)
                except (OSError, ValueError) as error:  # the part is gone; the page gets a new version next time
                    raise LookupError("The rows of this sheet have changed.") from error
                self._drawn[key] = drawn
                while len(self._drawn) > _SHEETS:
                    self._drawn.popitem(last=False)
            self._drawn.move_to_end(key)
            return self._drawn[key]

    def photograph(self, number: int) -> tuple[str, bytes]:
        """Name and bytes of a line's photograph: its file if it still exists, else the thumbnail.

        Raises:
            LookupError: there is no such line, or neither the file nor a thumbnail.
        """
        with self._lock:
            if not 0 <= number < len(self._lines):
                raise LookupError("There is no such image.")
            line = self._lines[number]
            path = path_of(line.source)
            if path is not None and os.path.isfile(path):
                return line.id, FilePlace(path).read()
            try:
                content = self._sheets.thumbnail(line)
            except (OSError, ValueError):
                content = None
        if content is None:
            raise LookupError(f"The photograph {line.id} is gone, and the job kept no thumbnail of it.")
        return line.id, content

    def some(self, most: int) -> dict[str, int]:
        """Up to ``most`` images that did not fail: name → the number of a line."""
        found: dict[str, int] = {}
        with self._lock:
            self._read()
            for number, line in enumerate(self._lines):
                if len(found) == most:
                    break
                if line.error is None:
                    found.setdefault(line.id, number)
        return found

    def _read(self) -> None:
        """Read new parts; start over if a part that was read before has changed."""
        there = []
        for path in self.results.parts:
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            there.append((path, status.st_mtime_ns, status.st_size))
        if set(self._parts) - set(there) or open_results(self._out).job != self.job:
            self._begin()
        for part in there:
            if part not in self._parts:
                lines = _lines(part[0])
                if lines is not None:
                    self._parts.append(part)
                    self._counted.add(lines)
                    self._lines += lines


def _lines(part: Path) -> list[Line] | None:
    """The lines of a part; None if it is damaged or gone."""
    try:
        return list(lines_of(part))
    except (OSError, ValueError):  # includes pyarrow's errors
        return None
