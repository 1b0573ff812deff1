"""`occlude` against its definition, on every device, dtype and memory order."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastviz import ops, reference
from tests.ops.common import BOXES, compare, devices, dtypes, make, of_volumes, order_of, orders, shapes


def test_occlude_by_hand():
    images = torch.arange(1.0, 10).view(1, 1, 3, 3)
    output = ops.occlude(images, torch.tensor([[0, 1, 2, 3], [2, 0, 3, 1]]), fill=-1.0)
    assert output[0, 0].tolist() == [[1, -1, -1], [4, -1, -1], [7, 8, 9]]
    assert output[1, 0].tolist() == [[1, 2, 3], [4, 5, 6], [-1, 8, 9]]


@devices
@dtypes
@orders
@shapes
def test_occlude(shape, order, dtype, device):
    images = make(shape, dtype, device, order)
    boxes = BOXES.to(device) if shape[0] else BOXES[:0].to(device)
    index = torch.arange(len(boxes), device=device) % max(shape[0], 1)
    output = ops.occlude(images, boxes, index, 0.5)
    torch.testing.assert_close(output, reference.occlude(images, boxes, index, 0.5), rtol=0, atol=0)
    if output.numel() > 0:
        assert order_of(output) == order_of(images)
    compare(lambda x: ops.occlude(x, boxes, index), lambda x: reference.occlude(x, boxes, index), images, dtype=dtype)


def test_occlude_of_signals_and_volumes_by_hand():
    signal = torch.arange(1.0, 5).view(1, 1, 4)
    assert ops.occlude(signal, torch.tensor([[1, 3], [3, 9]])).tolist() == [[[1, 0, 0, 4]], [[1, 2, 3, 0]]]
    volume = torch.arange(1.0, 9).view(1, 1, 2, 2, 2)
    output = ops.occlude(volume, torch.tensor([[1, 0, 1, 2, 2, 2], [0, 1, 0, 2, 2, 1]]), fill=-1.0)
    assert output[0, 0].tolist() == [[[1, 2], [3, 4]], [[5, -1], [7, -1]]]
    assert output[1, 0].tolist() == [[[1, 2], [-1, 4]], [[5, 6], [-1, 8]]]


@devices
@dtypes
@orders
@pytest.mark.parametrize("size", [(19,), (1,), (5, 6, 7), (1, 3, 1), (0, 4, 4)], ids=str)
def test_occlude_signals_and_volumes(size, order, dtype, device):
    """Each box along all axes, filled with a number, with values of channels and with pictures; gradients, too."""
    images = make((2, 3, *size), dtype, device, order)
    boxes = BOXES[:, 1::2] if len(size) == 1 else of_volumes(torch.device("cpu"))[0]
    boxes, index = boxes.to(device), torch.tensor([1, 0, 1, 1, 0, 0, 1], device=device)
    for fill in (
        0.5,
        make((3,), dtype, device),
        make((1, 3, *size), dtype, device),
        make((2, 3, *size), dtype, device),
    ):
        output = ops.occlude(images, boxes, index, fill)
        torch.testing.assert_close(output, reference.occlude(images, boxes, index, fill), rtol=0, atol=0)
        if output.numel() > 0 and order != "strided":
            assert order_of(output) == order_of(images)
    compare(
        lambda x, f: ops.occlude(x, boxes, index, f), lambda x, f: reference.occlude(x, boxes, index, f),
        *(images, make((2, 3, *size), dtype, device)), dtype=dtype,
    )  # fmt: skip


@devices
@orders
@pytest.mark.parametrize("fills", [None, 1, 2])
def test_occlude_fill_tensor(fills, order, device):
    images = make((2, 3, 6, 7), torch.float64, device, order)
    fill = make((3,), device=device) if fills is None else make((fills, 3, 6, 7), torch.float64, device, order)
    index = torch.tensor([1, 0, 1, 1, 0, 0, 1], device=device)
    compare(
        lambda x, f: ops.occlude(x, BOXES.to(device), index, f),
        lambda x, f: reference.occlude(x, BOXES.to(device), index, f),
        images,
        fill,
        dtype=torch.float64,
    )


def test_occlude_backward_of_one_fill_for_several_images():
    """One fill picture gets the gradient of the windows of all images."""
    images, fill = make((2, 1, 2, 2)), make((1, 1, 2, 2)).requires_grad_()
    boxes, index = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 2]]), torch.tensor([0, 1])
    ops.occlude(images, boxes, index, fill).sum().backward()
    assert fill.grad.tolist() == [[[[2.0, 1.0], [0.0, 0.0]]]]


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("indexed", [True, False])
def test_occlude_backward_without_boxes_is_zero(images, indexed):
    """The gradient of no window had the shape of one image, however many there were."""
    x, fill = make((images, 2, 3, 4)).requires_grad_(), make((max(1, images), 2, 3, 4)).requires_grad_()
    index = torch.zeros(0, dtype=torch.long) if indexed else None
    ops.occlude(x, torch.zeros(0, 4, dtype=torch.long), index, fill).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert torch.equal(fill.grad, torch.zeros_like(fill))


def test_occlude_backward_copies_nothing_from_the_host():
    """A copy from pageable memory cannot be recorded in a CUDA graph."""
    made = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x = make((1, 2, 3, 4)).requires_grad_()
    output = ops.occlude(x, BOXES)
    with Noting():
        output.backward(torch.ones_like(output))
    assert "arange.default" in made
    assert not [name for name in made if name.startswith(("_to_copy", "lift", "copy", "scalar_tensor"))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": torch.tensor([0])}, "order should have 2 elements in dimension 0, got 1"),
        ({"order": torch.tensor([0, 2])}, "order should be at least 0 and below 2, got 2"),
        ({"order": torch.tensor([-1, 0])}, "order should be at least 0 and below 2, got -1"),
        ({"offsets": torch.tensor([0, 3])}, "offsets should rise from 0 to at most 2, got 3"),
        ({"offsets": torch.tensor([1, 0])}, "offsets should rise from 0 to at most 2, got 0"),
        ({"offsets": torch.tensor([-1, 2])}, "offsets should rise from 0 to at most 2, got -1"),
        ({"offsets": torch.zeros(0, dtype=torch.long)}, "offsets should have one element more than there are images"),
    ],
)
def test_occlude_backward_refuses_what_would_leave_its_memory(change, message):
    arguments = {"order": torch.tensor([0, 1]), "offsets": torch.tensor([0, 2])} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastviz._occlude_backward(torch.zeros(2, 1, 3, 3), BOXES[:2], *arguments.values(), False)


def test_the_operators_themselves_refuse_other_numbers_of_axes():
    """Whoever calls them directly gets no reading beyond a list of boxes or origins."""
    images, line = torch.zeros(1, 2, 3, 4), torch.zeros(1, 1, dtype=torch.long)
    for sides in (1, 3, 5, 6):
        with pytest.raises(
            RuntimeError, match=f"boxes should have 2 elements for each of at most 2 axes .*, got {sides}"
        ):
            torch.ops.fastviz.occlude(images, torch.zeros(1, sides, dtype=torch.long), None, None, 0.0)
    with pytest.raises(RuntimeError, match="window_origin should have 1 elements in dimension 1, got 2"):
        torch.ops.fastviz.splice(images, images, line, torch.zeros(1, 2, dtype=torch.long), [2, 2], None, 0.0)
    at = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(RuntimeError, match="dirty_origin should have at most 2 elements in dimension 1, got 3"):
        torch.ops.fastviz.splice(images, images, at, at, [2, 2], None, 0.0)
    with pytest.raises(RuntimeError, match="window_size should be 2 numbers of at least 0"):
        torch.ops.fastviz.splice(images, images, line, line, [2], None, 0.0)
    with pytest.raises(RuntimeError, match="images should have 4 or 5 dimensions, got 3"):
        torch.ops.fastviz.occlude(images[0], torch.zeros(1, 2, dtype=torch.long), None, None, 0.0)


def test_occlude_without_index_is_for_one_image():
    image = make((1, 2, 5, 5))
    torch.testing.assert_close(ops.occlude(image, BOXES), reference.occlude(image, BOXES), rtol=0, atol=0)
    with pytest.raises(ValueError, match="image_index is needed where images has 2 pictures, got None"):
        ops.occlude(make((2, 2, 5, 5)), BOXES)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": [[0.0]]}, TypeError, "images should be a tensor, got list"),
        (
            {"images": torch.zeros(5, 5)},
            ValueError,
            r"images should have shape \[N, C, L\], \[N, C, H, W\] or \[N, C, D, H, W\], got \[5, 5\]",
        ),
        ({"images": torch.zeros(1, 3, 5, 5, dtype=torch.long)}, TypeError, "images should be a floating-point tensor"),
        ({"boxes": torch.zeros(2, 5, dtype=torch.long)}, ValueError, r"boxes should have shape \[P, 4\], got \[2, 5\]"),
        (
            {"images": torch.zeros(1, 3, 9)},
            ValueError,
            r"boxes should have shape \[P, 2\], got \[2, 4\]",
        ),
        (
            {"images": torch.zeros(1, 3, 4, 4, 4)},
            ValueError,
            r"boxes should have shape \[P, 6\], got \[2, 4\]",
        ),
        ({"boxes": torch.zeros(2, 4)}, TypeError, "boxes should be a tensor of integers, got torch.float32"),
        (
            {"image_index": torch.zeros(3, dtype=torch.long)},
            ValueError,
            r"image_index should have shape \[2\], got \[3\]",
        ),
        ({"image_index": torch.tensor([0, 1])}, ValueError, "^image_index should be at least 0 and below 1, got 1$"),
        ({"image_index": torch.tensor([-1, 0])}, ValueError, "^image_index should be at least 0 and below 1, got -1$"),
        (
            {"boxes": torch.zeros(2, 4).to(torch.uint64)},
            TypeError,
            "boxes should be a tensor of int64 or narrower",
        ),
        (
            {"images": torch.zeros(1, 3, 5, 5).to_sparse()},
            TypeError,
            "images should be a dense tensor, got one of",
        ),
        (
            {"images": torch.zeros(1, 3, 5, 5).to(torch.float8_e4m3fn)},
            TypeError,
            "images should be float32, float64,",
        ),
        ({"fill": "white"}, TypeError, "fill should be a number or a tensor, got 'white'"),
        ({"fill": torch.zeros(4)}, ValueError, r"fill should have shape \[3\] or \[1 or 1, 3, 5, 5\], got \[4\]"),
        ({"fill": torch.zeros(3).double()}, TypeError, "fill should have the dtype of images, torch.float32, got"),
        ({"fill": torch.zeros(3).to("meta")}, ValueError, "fill should be on the device of images, cpu, got meta"),
    ],
)
def test_occlude_bad_input(change, error, message):
    arguments = {"images": torch.zeros(1, 3, 5, 5), "boxes": torch.tensor([[0, 0, 1, 1], [0, 0, 2, 2]]), **change}
    with pytest.raises(error, match=message):
        ops.occlude(**arguments)


@pytest.mark.cuda
def test_image_index_out_of_range_on_cuda_gives_nan():
    output = ops.occlude(
        torch.zeros(1, 1, 2, 2, device="cuda"),
        torch.zeros(2, 4, dtype=torch.long, device="cuda"),
        torch.tensor([0, 7], device="cuda"),
    )
    assert output.isnan().any((1, 2, 3)).tolist() == [False, True]
