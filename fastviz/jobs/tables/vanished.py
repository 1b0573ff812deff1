"""Rows of inputs whose files are gone."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

from fastviz.jobs.tables.done import Done, hashes_of
from fastviz.jobs.tables.writer import drop

__all__ = ["drop_vanished"]


def drop_vanished(out: Path, done: Done) -> int:
    """Remove the rows of inputs that this run was not given and whose files are gone; how many inputs that were.

    A file is gone if its folder is still there and holds other things: a disk that is not mounted today takes no
    results with it.
    """
    if done.seen.all():
        return 0
    from pyarrow import parquet

    full: dict[bytes, bool] = {}
    removed = 0
    for path in done.files:
        if not path.exists():
            continue
        gone: set[str] = set()
        with parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["id", "source"])
                ids = list(dict.fromkeys(zip(*(table[name].to_pylist() for name in ("id", "source")), strict=True)))
                numbers = done.names.find(hashes_of([name for name, _ in ids]))
                for (name, source), number in zip(ids, numbers.tolist(), strict=True):
                    if number >= 0 and not done.seen[number] and _is_gone(source, full):
                        gone.add(name)
        if gone:
            drop(path, gone)
            removed += len(gone)
    return removed


def _is_gone(source: str, full: dict[bytes, bool]) -> bool:
    if not source.startswith("file://"):
        return False
    path = unquote_to_bytes(source.removeprefix("file://").partition("#")[0])
    if os.path.lexists(path):
        return False
    parent = os.path.dirname(path)
    if parent not in full:
        try:
            full[parent] = any(True for _ in os.scandir(parent))
        except OSError:
            full[parent] = False
    return full[parent]
