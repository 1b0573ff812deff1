"""Decoding ahead: in order, with workers or without, whatever a picture does to its worker."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import pytest
import torch

from fastviz import images, models
from fastviz.jobs.engines.decoding import Decoder
from fastviz.jobs.engines.local import batches_of
from fastviz.jobs.inputs.items import FilePlace, Item
from tests.jobs.common import photograph

SEEN = models.Preprocessing((16, 16), 20, (0.5,) * 3, (0.25,) * 3)
SHOWN = models.Preprocessing((32, 32), 40, (0.0,) * 3, (1.0,) * 3)


@dataclass(frozen=True)
class Deadly:
    """A picture that the system kills the process for: one of another process than the test's."""

    home: int
    source: str = "deadly"

    def read(self) -> bytes:
        assert os.getpid() != self.home
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def items(folder, count):
    return [Item(f"{n}.png", f"{n}.png", n, FilePlace(str(photograph(folder / f"{n}.png", n)))) for n in range(count)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_same_with_any_number_of_workers(tmp_path, workers):
    given = items(tmp_path, 7)
    batches = [given[:3], given[3:5], given[5:]]
    found = list(Decoder(SEEN, SHOWN, workers)(iter(batches)))
    assert [[each.item.id for each in batch] for batch in found] == [[item.id for item in batch] for batch in batches]
    for each in (each for batch in found for each in batch):
        seen, shown = images.read_views(tmp_path / each.item.id, [SEEN, SHOWN])
        assert torch.equal(each.x, seen)
        torch.testing.assert_close(each.shown.float() / 255, shown, atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_picture_that_kills_its_worker_fails_alone(tmp_path):
    given = items(tmp_path, 6)
    for at in (2, 3, 7):
        given.insert(at, Item(f"deadly {at}", "deadly", at, Deadly(os.getpid())))
    batches = [given[:2], given[2:5], given[5:]]
    found = list(Decoder(SEEN, None, 1)(iter(batches)))
    assert [[each.item.id for each in batch] for batch in found] == [[item.id for item in batch] for batch in batches]
    errors = {each.item.id: each.error for batch in found for each in batch}
    for at in (2, 3, 7):
        assert errors.pop(f"deadly {at}") == "the process that decoded it was killed"
    assert set(errors.values()) == {""}


def test_batches_begin_at_multiples_whatever_is_done():
    given = [Item(str(n), str(n), n, FilePlace("")) for n in (0, 1, 3, 4, 5, 9)]
    found = [[item.position for item in batch] for batch in batches_of(iter([given[:5], given[5:]]), 3)]
    assert found == [[0, 1], [3, 4, 5], [9]]
