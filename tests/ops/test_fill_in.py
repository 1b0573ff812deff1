"""`fill_in`: torch is told the truth about it, and bad input is refused. What it gives is tested with ROAD."""

from __future__ import annotations

import pytest
import torch

from fastviz import ops


def arguments(size: tuple[int, int] = (9, 12)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
    return values, torch.rand(2, *size, generator=generator) < 0.6


def test_opcheck_of_fill_in():
    torch.library.opcheck(torch.ops.fastviz._fill_in.default, (*arguments(), 1e-6, 100))


def test_by_hand_and_known_pixels_stay():
    values = torch.tensor([0.0, 9.0, 9.0, 3.0], dtype=torch.float64).reshape(1, 1, 1, 4)
    steps = ops.fill_in(values, torch.tensor([[[False, True, True, False]]]), 1e-9, 100)
    torch.testing.assert_close(values.flatten().tolist(), [0.0, 1.0, 2.0, 3.0])
    assert values[0, 0, 0, 0] == 0
    assert values[0, 0, 0, 3] == 3
    assert int(steps) > 0


def test_the_values_of_removed_pixels_do_not_count():
    values, removed = arguments()
    other = torch.where(removed[:, None], 1e6, values)
    ops.fill_in(values, removed, 1e-6, 100)
    ops.fill_in(other, removed, 1e-6, 100)
    assert torch.equal(values, other)


def test_too_few_steps_are_reported():
    values, removed = arguments((64, 64))
    assert ops.fill_in(values, removed, 1e-12, 1).tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, r: (v.float(), r, 1e-6, 9), "values should be float64"),
        (lambda v, r: (v.mT, r, 1e-6, 9), "values should be contiguous"),
        (lambda v, r: (v, r[:1], 1e-6, 9), "removed should have 2"),
        (lambda v, r: (v, r.float(), 1e-6, 9), "removed should be bool"),
        (lambda v, r: (v, r & False, 1e-6, 9), "some pixels of each picture and not all, got 0 of 108"),
        (lambda v, r: (v, r | True, 1e-6, 9), "some pixels of each picture and not all, got 108 of 108"),
        (lambda v, r: (v, r, 0.0, 9), "accuracy should be finite and above 0"),
        (lambda v, r: (v, r, 1e-6, 0), "most_steps should be at least 1"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(RuntimeError, match=message):
        ops.fill_in(*change(*arguments()))


def test_the_same_bits_at_any_number_of_threads():
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            values, removed = arguments((80, 70))
            ops.fill_in(values, removed, 1e-6, 200)
            found.append(values)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
