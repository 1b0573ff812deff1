"""Whether tracing pays: decided by counting, the same at every call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastviz import ops
from fastviz.engine.incremental import job, sweep, worth
from fastviz.engine.incremental.window_grid import grid
from fastviz.engine.incremental.work import Work, counted, known


def convolutions(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.LazyLinear(4))


@pytest.fixture
def model() -> nn.Sequential:
    model = convolutions()
    model(torch.zeros(1, 3, 32, 32))
    return model


def work_of(model: nn.Module, images: torch.Tensor) -> Work:
    with torch.no_grad(), counted(model, images):
        model(images)
    found = known(model, images)
    assert found is not None
    return found


def test_operations_are_counted_for_one_image(model: nn.Module) -> None:
    work = work_of(model, torch.zeros(2, 3, 32, 32))
    assert work.operations == 2 * 32 * 32 * 8 * 9 * (3 + 8) + 2 * 8 * 32 * 32 * 4


def test_gain_of_one_convolution() -> None:
    """3x3 over 32x32, a window of 6: 9 of 32 rows and columns, at four fifths of the speed of whole maps."""
    images = torch.zeros(1, 3, 32, 32)
    work = work_of(nn.Conv2d(3, 4, 3, padding=1), images)
    assert work.gain((6, 6), (32, 32)) == pytest.approx(0.8 * (32 / 9) ** 2)


def test_what_is_behind_a_mean_of_the_map_is_not_saved() -> None:
    class Excited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 64, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return self.second(y * y.mean((2, 3), keepdim=True)).mean((2, 3))

    assert work_of(Excited(), torch.zeros(1, 3, 32, 32)).gain((4, 4), (32, 32)) < 1.1


def test_little_work_is_not_worth_a_trace(model: nn.Module) -> None:
    images, boxes = torch.randn(1, 3, 32, 32), grid((32, 32), 8, 8).boxes
    first = sweep(model, images, boxes)
    assert first.stats["path"] == "dense"
    assert first.stats["reason"].startswith("tracing would cost more than it saves")
    again = sweep(model, images, boxes)
    torch.testing.assert_close(again.values, first.values, rtol=0, atol=0)
    forced = sweep(model, images, boxes, trace="always")
    assert forced.stats["path"] == "incremental"
    torch.testing.assert_close(forced.values, first.values, rtol=1e-5, atol=1e-5)
    assert sweep(model, images, boxes).stats["path"] == "incremental"  # the trace is there


def test_small_sweeps_add_up(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    images, boxes = torch.randn(1, 3, 32, 32), grid((32, 32), 8, 8).boxes
    operations = work_of(model, images).operations * len(boxes)
    # three sweeps of whole passes are worth 3 % of what tracing takes then
    rate = worth._RATE["cpu"] * torch.get_num_threads()
    monkeypatch.setattr(worth, "_TRACE", (3.5 * 0.03 * operations / rate, 0.0))
    monkeypatch.setattr(Work, "gain", lambda *given: 1.06)
    paths = [sweep(model, images, boxes).stats["path"] for _ in range(5)]
    assert paths == ["dense", "dense", "dense", "incremental", "incremental"]


def test_rectangles_that_were_slower_are_given_up(model: nn.Module) -> None:
    images, boxes = torch.randn(1, 3, 32, 32), grid((32, 32), 8, 8).boxes
    sweep(model, images, boxes, trace="always")
    work = work_of(model, images)
    work.rectangles.clear()
    work.whole = 0.8
    for seconds in (1.5, 1.0):
        assert worth.slower(work, boxes) == ""
        worth.timed(work, boxes, seconds, 9.0)
    result = sweep(model, images, boxes)
    assert (result.stats["path"], result.stats["reason"]) == (
        "dense",
        "earlier sweeps on rectangles ran at 0.80 times the speed of whole passes",
    )
    assert sweep(model, images, boxes[:5], trace="auto").stats["path"] == "incremental"  # another kind of sweep
    assert sweep(model, images, boxes, trace="always").stats["path"] == "incremental"


def test_few_windows_say_nothing_of_speed(model: nn.Module) -> None:
    images, boxes = torch.randn(1, 3, 32, 32), grid((32, 32), 8, 8).boxes
    work = work_of(model, images)
    worth.timed(work, boxes[:4], 1e-9, None)
    assert work.whole == float("inf")


@pytest.mark.parametrize(("side", "expected"), [(32, 32), (96, 24), (128, 14), (224, 8), (1000, 8)])
def test_small_images_come_more_at_once(side: int, expected: int) -> None:
    assert job.whole_passes(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, side, side)) == expected


def test_networks_of_little_work_get_more_images_at_once() -> None:
    light = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6))
    assert job.whole_passes(light, torch.zeros(1, 3, 224, 224)) == 14
    assert job.whole_passes(nn.Sequential(light, nn.Conv2d(6, 300_000, 1)), torch.zeros(1, 3, 224, 224)) == 8


def test_batches_stay_below_the_size_of_mapped_memory() -> None:
    images = torch.zeros(1, 3, 128, 128)
    wide, wider = nn.Conv2d(3, 48, 1), nn.Conv2d(3, 128, 1)  # maps of 3 and 8 MiB
    assert job.whole_passes(wide, images) == 14  # nothing is known of it yet
    assert work_of(wide, images).largest == 48 * 128 * 128 * 4
    assert job.whole_passes(wide, images) == 10
    work_of(wider, images)
    assert job.whole_passes(wider, images) == 14  # eight images are beyond it already


def test_whole_passes_run_in_the_fast_order_where_it_pays() -> None:
    seen = []

    class Noting(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)
            self.unused = nn.Conv2d(width, width, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.convolution(x).mean((2, 3))

    boxes = grid((32, 32), 8, 8).boxes
    for width, expected in ((4, True), (3500, False)):
        seen.clear()
        sweep(Noting(width), torch.randn(1, 3, 32, 32), boxes, trace="never")
        assert seen == [expected]


def test_a_model_that_views_its_maps_runs_as_the_images_came() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.convolution(x).view(len(x), -1).sum(1, keepdim=True)

    model, images, boxes = Viewing(), torch.randn(1, 3, 32, 32), grid((32, 32), 8, 8).boxes
    found = sweep(model, images, boxes, trace="never")
    with torch.no_grad():
        expected = model(ops.occlude(images, boxes, torch.zeros(len(boxes), dtype=torch.int64), 0.0))
    torch.testing.assert_close(found.values, expected)
    assert found.stats["alone"] == ""
