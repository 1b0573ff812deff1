"""Which inputs are done: sorted hashes of their names in a temporary file, so that memory does not limit their number.

The file is memory-mapped, so the operating system caches as much of it as fits.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastviz.jobs.places import Place, open_parquet, remove
from fastviz.jobs.s3 import S3Path
from fastviz.jobs.tables.folder import parts

__all__ = ["Done", "Names", "hashes_of"]

Array = np.ndarray[Any, Any]

_RUN_LENGTH = 1 << 18
"""Number of names collected in memory before they are made a sorted run."""

_SMALL = 1 << 16
"""Length below which a sorted run stays in memory: it is soon merged with the next ones."""

_MERGED = 4
"""Length up to which runs are merged, in runs; merging longer ones would need too much memory."""

_FIELDS = np.dtype([("stamp", "<u8"), ("digest", "<u8"), ("part", "<i4"), ("failed", "?")])


def hashes_of(ids: Sequence[str]) -> Array:
    """128-bit BLAKE2 hashes of the names, as uint64 [n, 2]; long enough that a billion names do not collide."""
    joined = b"".join([hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest() for name in ids])
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)


class Names:
    """A set of names with a record for each, stored in sorted runs, long ones on disk.

    The temporary file is created in ``folder`` if that is a folder on this machine.
    """

    def __init__(self, folder: Place | None = None, fields: Any = None) -> None:
        here = folder if isinstance(folder, Path) and folder.is_dir() else None
        self._file = tempfile.TemporaryFile(dir=here)  # noqa: SIM115 - closed with the object
        weakref.finalize(self, self._file.close)
        self._fields = np.dtype(fields or [("none", "V0")])
        # first and second half of the hashes, and records, [n] each; number of the first name
        self._runs: list[tuple[Array, Array, Array, int]] = []
        self._waiting: list[tuple[Array, Array]] = []
        self._count = 0
        self.total = 0

    def add(self, hashes: Array, records: Array | None = None) -> None:
        """Add names that are not in the set yet."""
        if records is None:
            records = np.zeros(len(hashes), self._fields)
        self._waiting.append((hashes, records))
        self._count += len(hashes)
        self.total += len(hashes)
        if self._count >= _RUN_LENGTH:
            self.sort()

    def sort(self) -> None:
        """Make a sorted run of the names that wait, and merge short runs."""
        if not self._count:
            return
        hashes = np.concatenate([each for each, _ in self._waiting])
        records = np.concatenate([each for _, each in self._waiting])
        self._waiting, self._count = [], 0
        while self._runs and len(self._runs[-1][0]) <= len(hashes) <= _MERGED * _RUN_LENGTH // 2:
            high, low, more, _ = self._runs.pop()
            hashes = np.concatenate([np.stack([high, low], axis=1), hashes])
            records = np.concatenate([more, records])
        order = np.argsort(hashes[:, 0], kind="stable")
        first = sum(len(run[0]) for run in self._runs)
        kept = [self._on_disk(each) for each in (hashes[order, 0], hashes[order, 1], records[order])]
        self._runs.append((kept[0], kept[1], kept[2], first))

    def _on_disk(self, values: Array) -> Array:
        """Move ``values`` from memory into the file, unless they are few."""
        if not values.nbytes or len(values) < _SMALL:
            return values
        at = self._file.seek(0, 2)
        at = self._file.seek(-(-at // 4096) * 4096)
        values.tofile(self._file)
        self._file.flush()
        return np.memmap(self._file, dtype=values.dtype, mode="r+", offset=at, shape=values.shape)

    def find(self, hashes: Array) -> Array:
        """The number of each name, below :attr:`total`; -1 for names that are not in the set."""
        self.sort()
        found = np.full(len(hashes), -1, dtype=np.int64)
        for high, low, _, first in self._runs:
            places = _search(high, low, hashes)
            found = np.where(places >= 0, places + first, found)
        return found

    def records(self, numbers: Array) -> Array:
        """The records of the names with these numbers."""
        found = np.zeros(len(numbers), self._fields)
        for _, _, records, first in self._runs:
            inside = (numbers >= first) & (numbers < first + len(records))
            found[inside] = records[numbers[inside] - first]
        return found


def _search(high: Array, low: Array, hashes: Array) -> Array:
    """The position of each of the ``hashes`` [n, 2] in a sorted run; -1 for those that are not in it."""
    at = np.searchsorted(high, hashes[:, 0])
    found = np.full(len(hashes), -1, dtype=np.int64)
    # Among ten million names the chance that two share a first half is 10^-5; three never do.
    for step in range(2):
        place = np.minimum(at + step, len(high) - 1)
        found = np.where((high[place] == hashes[:, 0]) & (low[place] == hashes[:, 1]), place, found)
    return found


@dataclass
class Done:
    """The finished inputs of a job.

    Attributes:
        names: hashes of their names, with stamp, content hash, part and whether they failed.
        files: the parts, in the order of their numbers in the records.
        seen: bool, for each name: whether it is among the inputs of the current run.
        damaged: parts that could not be read and were removed.
    """

    names: Names
    files: list[Place]
    seen: Array
    damaged: list[str]

    @staticmethod
    def read(out: Place, *, repair: bool = True) -> Done:
        """Read the parts in ``out``. With ``repair``, unreadable parts are removed, and their inputs done again."""
        import pyarrow as pa

        names = Names(out, _FIELDS)
        files: list[Place] = []
        damaged: list[str] = []
        for path in parts(out):
            try:
                with open_parquet(path) as file:
                    found = [_of_group(file, group) for group in range(file.num_row_groups)]
            except (OSError, pa.ArrowInvalid, KeyError) as error:
                if isinstance(path, S3Path) and isinstance(error, OSError):
                    raise  # an error of the server or the network, not of the part
                warnings.warn(f"{path} is damaged and is done again: {' '.join(str(error).split())}", stacklevel=2)
                if repair:
                    remove(path)
                damaged.append(path.name)
                continue
            for ids, records in found:
                records["part"] = len(files)
                names.add(hashes_of(ids), records)
            files.append(path)
        names.sort()
        return Done(names, files, np.zeros(names.total, dtype=bool), damaged)

    def look_up(self, ids: Sequence[str], hashes: Array, stamps: Array) -> tuple[Array, Array]:
        """For each input its number (-1: not done) and its record (see :data:`_FIELDS`).

        The ``stamp`` of a record is set to 0 if it equals the given one, so that the file cannot have changed.
        """
        numbers = self.names.find(hashes)
        there = numbers >= 0
        self.seen[numbers[there]] = True
        records = self.names.records(numbers)
        records["stamp"][records["stamp"] == stamp_hashes(stamps)] = 0
        return numbers, records


def _of_group(file: Any, group: int) -> tuple[list[str], Array]:
    """The inputs in a row group, each once, with their records."""
    import pyarrow.compute as pc

    columns = ["id", "hash", "bytes", "modified", "changed", "status"]
    table = file.read_row_group(group, columns=columns)
    ids = table["id"].combine_chunks()
    # The rows of one input are adjacent.
    differs = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False) if len(ids) else np.zeros(0, bool)
    first = np.concatenate([np.zeros(min(1, len(ids)), np.int64), differs.nonzero()[0] + 1])
    failed = pc.not_equal(table["status"], "ok").to_numpy()
    records = np.zeros(len(first), _FIELDS)
    if len(first):
        records["failed"] = np.logical_or.reduceat(failed, first)
    stamps = np.stack([table[name].to_numpy() for name in ("bytes", "modified", "changed")], axis=1)
    records["stamp"] = stamp_hashes(stamps[first])
    digests = pc.utf8_slice_codeunits(table["hash"].take(first), 0, 16).to_pylist()
    records["digest"] = [0 if each is None else int(each, 16) for each in digests]
    return ids.take(first).to_pylist(), records


def stamp_hashes(stamps: Array) -> Array:
    """A 64-bit hash of each stamp [n, 3]; 0 for an unknown stamp."""
    parts_ = stamps.astype(np.uint64)
    with np.errstate(over="ignore"):
        found = np.zeros(len(stamps), dtype=np.uint64)
        for column in range(3):
            found = (found ^ parts_[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            found ^= found >> np.uint64(29)
    found[(stamps == 0).all(1)] = 0
    return found
