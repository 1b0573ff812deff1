"""Removes the rows of inputs whose files are gone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from fastviz.jobs.places import open_parquet
from fastviz.jobs.s3 import S3Path, is_s3
from fastviz.jobs.tables.done import Done, hashes_of
from fastviz.jobs.tables.writer import drop

__all__ = ["drop_vanished"]


def drop_vanished(done: Done, given: Sequence[str] = ()) -> int:
    """Remove the rows of inputs that are not among this run's inputs and whose files are gone; returns their number.

    A file counts as gone only if its folder still exists and is not empty, so that an unmounted disk does not delete
    results. In S3 only the buckets of ``given``, the inputs of this run, are checked.
    """
    if done.seen.all():
        return 0
    buckets = {S3Path(place).bucket: S3Path(place).root for place in given if is_s3(place)}
    full: dict[Any, bool] = {}
    removed = 0
    for path in done.files:
        if not path.exists():
            continue
        gone: set[str] = set()
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["id", "source"])
                ids = list(dict.fromkeys(zip(*(table[name].to_pylist() for name in ("id", "source")), strict=True)))
                numbers = done.names.find(hashes_of([name for name, _ in ids]))
                for (name, source), number in zip(ids, numbers.tolist(), strict=True):
                    if number >= 0 and not done.seen[number] and _is_gone(source, full, buckets):
                        gone.add(name)
        if gone:
            drop(path, gone)
            removed += len(gone)
    return removed


def _is_gone(source: str, full: dict[Any, bool], buckets: Mapping[str, S3Path]) -> bool:
    if is_s3(source):
        return _is_gone_from_s3(unquote(source.partition("#")[0].removeprefix("s3://")), full, buckets)
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


def _is_gone_from_s3(path: str, full: dict[Any, bool], buckets: Mapping[str, S3Path]) -> bool:
    bucket, _, key = path.partition("/")
    if bucket not in buckets or not key:
        return False
    place = buckets[bucket] / key
    try:
        if place.exists():
            return False
        if place.parent.path not in full:
            full[place.parent.path] = any(each.is_file for each in place.parent.entries())
    except OSError:
        return False
    return full[place.parent.path]
