"""How a job resumes: which inputs are still to do, that is new ones, changed ones, and those that failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastviz.jobs.inputs import Inputs, Item, Shard
from fastviz.jobs.inputs.items import digest
from fastviz.jobs.places import Place
from fastviz.jobs.tables.done import Done, Names, hashes_of

__all__ = ["Pending"]


@dataclass
class Pending:
    """The inputs of a job that are still to do, as an engine takes them.

    Attributes:
        source: all inputs.
        done: the inputs that have rows in the folder.
        retry: whether inputs that failed are tried again.
        replaces: id → part with older rows of an input that is done again.
        skipped: number of inputs that are done.
        failed: number of these that failed and are not tried again.
        doubled: ids that were given more than once; only the first input with an id is done.
    """

    source: Inputs
    done: Done
    retry: bool
    replaces: dict[str, Place] = field(default_factory=dict)
    skipped: int = 0
    failed: int = 0
    doubled: list[str] = field(default_factory=list)

    def shards(self, batch_size: int) -> Iterator[list[Item]]:
        """The remaining inputs of each shard, in order."""
        given = Names(self.source.out)
        for shard in self.source.shards(batch_size):
            hashes = hashes_of(shard.ids)
            new = self._first_time(given, shard.ids, hashes)
            left = self._left(shard, hashes, new)
            if left:
                yield left

    def _first_time(self, given: Names, ids: Sequence[str], hashes: Any) -> Any:
        """bool [n]: whether each input is given for the first time."""
        new = given.find(hashes) < 0
        if len(np.unique(hashes[:, 0])) < len(ids):  # otherwise all are different
            _, first = np.unique(hashes, axis=0, return_index=True)
            once = np.zeros(len(ids), dtype=bool)
            once[first] = True
            new &= once
        if not new.all():
            self.doubled += [ids[at] for at in (~new).nonzero()[0][: max(0, 1000 - len(self.doubled))]]
        given.add(hashes[new])
        return new

    def _left(self, shard: Shard, hashes: Any, new: Any) -> list[Item]:
        numbers, records = self.done.look_up(shard.ids, hashes, shard.stamps)
        there = numbers >= 0
        asks = new & (~there | records["failed"] | (records["stamp"] != 0))
        self.skipped += int((new & ~asks).sum())
        left = []
        for at in asks.nonzero()[0].tolist():
            item = shard.make(at)
            record = records[at]
            if there[at] and not self._again(item, record):
                self.skipped += 1
                self.failed += bool(record["failed"])
                continue
            if there[at]:
                self.replaces[item.id] = self.done.files[int(record["part"])]
            left.append(item)
        return left

    def _again(self, item: Item, record: Any) -> bool:
        """Whether an input that has rows is done again: it failed, or its content has changed."""
        if record["failed"]:
            return self.retry
        try:
            content = item.place.read()
        except (OSError, ValueError):
            return False  # results are kept if the file cannot be read now
        return isinstance(content, bytes) and int(digest(content)[:16], 16) != int(record["digest"])
