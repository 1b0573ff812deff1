"""Rectangle geometry against the dependencies that torch's own convolutions and poolings show."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fastviz.graph.sliding_window import EMPTY, Field, Slide, clip, length, place, union

SIZES = (1, 2, 3, 5, 8, 11)
SLIDES = [
    Slide(kernel, stride, before, after, dilation)
    for kernel, stride, dilation in itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2, 3))
    for before, after in ((0, 0), (1, 1), (0, 1), (2, 1))
]


def dependence(slide: Slide, size: int) -> torch.Tensor:
    """[outputs, inputs] of bool: a convolution with weights of one over unit vectors."""
    vectors = F.pad(torch.eye(size)[:, None], (slide.before, slide.after))
    return F.conv1d(vectors, torch.ones(1, 1, slide.kernel), stride=slide.stride, dilation=slide.dilation)[:, 0].T > 0


def hull(flags: torch.Tensor) -> tuple[int, int]:
    places = flags.nonzero().flatten().tolist()
    return (places[0], places[-1] + 1) if places else EMPTY


@pytest.mark.parametrize("size", SIZES)
def test_changes_and_reads_equal_what_a_convolution_depends_on(size: int) -> None:
    checked = 0
    for slide in SLIDES:
        outputs = slide.output_size(size)
        if outputs == 0:
            with pytest.raises(RuntimeError):
                dependence(slide, size)
            continue
        depends = dependence(slide, size)
        assert depends.shape == (outputs, size)
        for start, stop in itertools.combinations(range(size + 1), 2):
            assert slide.changes((start, stop), outputs) == hull(depends[:, start:stop].any(dim=1)), (
                slide,
                start,
                stop,
            )
            checked += 1
        for start, stop in itertools.combinations(range(outputs + 1), 2):
            read = depends[start:stop].any(dim=0)
            reads = slide.reads((start, stop))
            # the ends are read unless they are padding; with a stride above the window, holes lie between
            inside = clip(reads, size)
            assert not read[: inside[0]].any()
            assert not read[inside[1] :].any()
            assert not 0 <= reads[0] < size or read[reads[0]]
            assert not 0 < reads[1] <= size or read[reads[1] - 1]
    assert checked > 0


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_output_size_equals_torch_pooling(size: int, ceil: bool) -> None:
    for kernel, stride, dilation in itertools.product((1, 2, 3, 4), (1, 2, 3, 5), (1, 2)):
        for padding in range(kernel // 2 + 1):
            slide = Slide(kernel, stride, padding, padding, dilation, ceil)
            try:
                pooled = F.max_pool1d(torch.zeros(1, 1, size), kernel, stride, padding, dilation, ceil_mode=ceil)
            except RuntimeError:
                assert slide.output_size(size) == 0
                continue
            assert slide.output_size(size) == pooled.shape[-1], (slide, size)


def test_changes_with_ceil_mode_reach_the_window_that_sticks_out() -> None:
    # windows [0, 3), [2, 5), [4, 7): the last reads position 4 and 5 of 6 and one that does not exist
    slide = Slide(kernel=3, stride=2, ceil=True)
    assert slide.output_size(6) == 3
    assert slide.changes((5, 6), 3) == (2, 3)
    assert slide.changes((4, 5), 3) == (1, 3)
    assert slide.reads((2, 3)) == (4, 7)


def test_a_stride_above_the_kernel_steps_over_a_change() -> None:
    assert Slide(kernel=1, stride=4).changes((1, 4), 5) == EMPTY
    assert Slide(kernel=1, stride=4).changes((1, 5), 5) == (1, 2)


def test_padding_and_slicing_are_kernels_of_one() -> None:
    pad = Slide(before=2, after=3)
    assert pad.output_size(10) == 15
    assert pad.changes((0, 4), 15) == (2, 6)
    assert pad.reads((0, 15)) == (-2, 13)
    every_third_from_one = Slide(stride=3, before=-1)
    assert every_third_from_one.output_size(10) == 3  # positions 1, 4, 7
    assert every_third_from_one.changes((4, 8), 3) == (1, 3)
    assert every_third_from_one.reads((1, 3)) == (4, 8)


def test_pointwise_is_the_slide_without_neighbours() -> None:
    assert Slide().is_pointwise
    assert not Slide(stride=2).is_pointwise
    assert Slide().changes((3, 5), 9) == (3, 5)


def test_changes_of_nothing_are_nothing() -> None:
    assert Slide(kernel=3).changes((4, 4), 9) == EMPTY
    assert Slide(kernel=3).reads((4, 4)) == EMPTY


def test_intervals() -> None:
    assert length((2, 2)) == 0
    assert clip((3, 20), 10) == (3, 10)
    assert clip((-5, 0), 10) == EMPTY
    assert union([]) == EMPTY
    assert union([(4, 6), (1, 1), (0, 2)]) == (0, 6)


@pytest.mark.parametrize("size", [1, 4, 7])
def test_place_contains_the_interval_and_stays_inside(size: int) -> None:
    for start, stop in itertools.combinations(range(size + 1), 2):
        for extent in range(stop - start, size + 1):
            begin = place((start, stop), extent, size)
            assert 0 <= begin <= start
            assert stop <= begin + extent <= size


def test_place_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="extent should be from 3 to 10, got 2"):
        place((0, 3), 2, 10)
    with pytest.raises(ValueError, match="extent should be from 3 to 10, got 11"):
        place((0, 3), 11, 10)


def test_field_of_a_chain_equals_what_the_chain_depends_on() -> None:
    chain = [Slide(3, 2, 1, 1), Slide(2, 2), Slide(3, 1, 2, 2, dilation=2), Slide(5, 1, 1, 0), Slide(before=1, after=1)]
    size, field = 40, Field()
    depends = torch.eye(size, dtype=torch.bool)
    for slide in chain:
        depends = (dependence(slide, depends.shape[0]).float() @ depends.float()) > 0
        field = field.through(slide)
    seen = 0
    for unit, row in enumerate(depends):
        if row.any():  # a unit of the last padding sees nothing, whatever its field
            assert hull(row) == clip(field.interval(unit), size)
            seen += 1
    assert seen > 3


def test_fields_join_to_the_hull() -> None:
    assert Field(3, 2, -1).join(Field(7, 2, -2)) == Field(7, 2, -2)
    assert Field(3, 2, -1).join(Field(3, 2, 1)) == Field(5, 2, -1)
    with pytest.raises(ValueError, match="other should have stride 2, got 4"):
        Field(stride=2).join(Field(stride=4))
