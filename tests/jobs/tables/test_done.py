"""Which inputs are done, however many there are."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

from fastviz.jobs.tables import done
from fastviz.jobs.tables.done import Names, _search, hashes_of, stamp_hashes


def memory() -> int:
    """Bytes of this process that are not pages of files."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def test_names_are_found_with_their_records(tmp_path):
    names = Names(tmp_path, [("value", "<i4")])
    ids = [f"folder/{number}.jpg" for number in range(3000)]
    for start in range(0, 3000, 700):
        part = ids[start : start + 700]
        records = np.zeros(len(part), dtype=[("value", "<i4")])
        records["value"] = range(start, start + len(part))
        names.add(hashes_of(part), records)
        if start != 1400:
            names.sort()
    asked = [*ids[::7], "folder/3000.jpg", "", "folder/1.jp"]
    numbers = names.find(hashes_of(asked))
    assert (numbers[-3:] == -1).all()
    assert len(set(numbers[:-3].tolist())) == len(asked) - 3
    assert names.records(numbers[:-3])["value"].tolist() == list(range(0, 3000, 7))
    assert not list(tmp_path.iterdir())  # the file has no name


def test_two_names_of_one_first_half_are_told_apart():
    high, low = np.array([3, 5, 5, 9], dtype="<u8"), np.array([1, 8, 2, 4], dtype="<u8")
    asked = np.array([[5, 2], [5, 8], [5, 3], [9, 4], [10, 0]], dtype="<u8")
    assert _search(high, low, asked).tolist() == [2, 1, -1, 3, -1]


def test_stamps_differ():
    stamps = np.array([[0, 0, 0], [1, 2, 3], [1, 3, 2], [2, 1, 3], [1, 2, 4]])
    found = stamp_hashes(stamps)
    assert found[0] == 0
    assert len(set(found.tolist())) == 5


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_two_million_names_need_little_memory(tmp_path, monkeypatch):
    """As many as a test has time for, in shorter runs; benchmarks/jobs/resume.py looks up ten million."""
    monkeypatch.setattr(done, "_RUN_LENGTH", 1 << 14)
    names = Names(tmp_path)
    generator = np.random.default_rng(0)
    gc.collect()
    before = memory()
    for _ in range(20):
        hashes = generator.integers(0, 1 << 63, (100_000, 2), dtype=np.uint64)
        names.add(hashes)
    assert names.total == 2_000_000
    assert (names.find(hashes[:1000]) >= 0).all()
    assert (names.find(hashes[:1000] + np.uint64(1)) < 0).all()
    gc.collect()
    assert memory() - before < 16_000_000  # of 32 MB of hashes
