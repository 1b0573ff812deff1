"""The native operators against their definitions, on every device, dtype and memory order.

Tolerances (one table, `TOLERANCE`): copies are exact; sums run in float32 or wider in another order than torch's, so
they differ by rounding; float16 and bfloat16 results are rounded once at the end, the reference is computed in float64.
"""

from __future__ import annotations

import functools
import re
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastviz import ops, reference
from fastviz.ops import _library

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
ORDERS = ["contiguous", "channels_last", "strided"]
RULES = ["plain", "guided", "deconvnet"]
# Odd sizes, sizes of 0 and 1, more than one block of rows, rows longer than a vector.
SHAPES = [
    (2, 3, 17, 19),
    (1, 1, 1, 1),
    (3, 2, 1, 7),
    (2, 2, 7, 1),
    (0, 3, 5, 5),
    (2, 0, 5, 5),
    (1, 3, 0, 4),
    (1, 5, 40, 33),
]

devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
orders = pytest.mark.parametrize("order", ORDERS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def make(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, device: str = "cpu", order: str = "contiguous"
) -> Tensor:
    """Random values; "strided" is neither contiguous nor channels_last."""
    if order == "strided":
        return torch.randn(*shape[:-1], 2 * shape[-1], dtype=torch.float64).to(device, dtype)[..., ::2]
    x = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    return x.to(memory_format=torch.channels_last) if order == "channels_last" and len(shape) == 4 else x


def gradients(function, *inputs: Tensor, grad: Tensor | None = None) -> tuple[Tensor, ...]:
    """The output and the gradients of the inputs, for one fixed gradient from above."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    if grad is None:
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    return (output.detach(), *torch.autograd.grad(output, leaves, grad.to(output)))


def compare(function, definition, *inputs: Tensor, dtype: torch.dtype, exact: bool = False) -> None:
    """Output and gradients equal those of the definition in float64, to the tolerance of the dtype."""
    mine = gradients(function, *inputs)
    wanted = gradients(definition, *(x.detach().double() for x in inputs))
    tolerance = {"rtol": 0, "atol": 0} if exact else TOLERANCE[dtype]
    for got, expected in zip(mine, wanted, strict=True):
        torch.testing.assert_close(got.double(), expected, **tolerance)
        assert got.dtype in (dtype, torch.float32)


def order_of(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


# occlude --------------------------------------------------------------------------------------------------------------

BOXES = torch.tensor(
    [[0, 0, 2, 3], [-2, -1, 1, 2], [3, 4, 90, 90], [2, 2, 2, 5], [5, 5, 3, 3], [0, 0, 90, 90], [-9, 0, -5, 2]]
)


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


def test_every_tensor_of_an_operator_must_be_on_one_device():
    """A pointer of the host, handed to a kernel of the device, ends the process. Read in the source, without a GPU."""
    folder = _library._FOLDER.parents[1] / "csrc" / "ops"
    if not folder.is_dir():
        pytest.skip("an installed package has no sources beside it")
    named = {
        "occlude.cpp": ["boxes", "fill", "order", "offsets"],
        "splice.cpp": ["dirty", "origin"],
        "guided_relu.cpp": ["mask"],
        "total_variation.cpp": ["grad"],
        "gram.cpp": ["target"],
        "patch_search.cpp": ["neighbourhood", "mask", "weights"],
        "tensors.h": ["image_index"],
    }
    for file, arguments in named.items():
        for argument in arguments:
            assert re.search(rf"check_same_device\(\*?{argument}, ", (folder / file).read_text()), (file, argument)


def test_occlude_without_index_is_for_one_image():
    image = make((1, 2, 5, 5))
    torch.testing.assert_close(ops.occlude(image, BOXES), reference.occlude(image, BOXES), rtol=0, atol=0)
    with pytest.raises(ValueError, match="image_index is needed where images has 2 pictures, got None"):
        ops.occlude(make((2, 2, 5, 5)), BOXES)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": [[0.0]]}, TypeError, "images should be a tensor, got list"),
        ({"images": torch.zeros(3, 5, 5)}, ValueError, r"images should have shape \[N, C, H, W\], got \[3, 5, 5\]"),
        ({"images": torch.zeros(1, 3, 5, 5, dtype=torch.long)}, TypeError, "images should be a floating-point tensor"),
        ({"boxes": torch.zeros(2, 5, dtype=torch.long)}, ValueError, r"boxes should have shape \[P, 4\], got \[2, 5\]"),
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


# splice ---------------------------------------------------------------------------------------------------------------


@devices
@dtypes
@orders
def test_splice(order, dtype, device):
    """Windows inside, at each border, sticking out, and crops that cover all, part or nothing of them."""
    origins = torch.tensor([[0, 0], [-2, -3], [5, 4], [3, -1], [1, 1], [20, 20], [-9, 0]], device=device)
    crops = torch.tensor([[0, 0], [-1, -1], [4, 4], [3, 0], [-3, -3], [2, 2], [0, 0]], device=device)
    clean = make((3, 4, 8, 9), dtype, device, order)
    dirty = make((7, 4, 5, 6), dtype, device, order)
    index = torch.tensor([2, 0, 1, 1, 0, 2, 0], device=device)
    for size in ((4, 6), (12, 13), (1, 1)):
        output = ops.splice(clean, dirty, crops, origins, size, index, 0.25)
        expected = reference.splice(clean, dirty, crops, origins, size, index, 0.25)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [(0, 4, 2, 2), (2, 0, 2, 2), (2, 4, 0, 3)])
def test_splice_of_nothing(sizes):
    windows, channels, h, w = sizes
    at = torch.zeros(windows, 2, dtype=torch.long)
    clean, dirty = make((1, channels, 5, 5)), make((windows, channels, h, w))
    output = ops.splice(clean, dirty, at, at, (3, 3))
    torch.testing.assert_close(output, reference.splice(clean, dirty, at, at, (3, 3)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dirty": torch.zeros(2, 4, 2, 2)}, ValueError, "dirty should have the 3 channels of clean, got 4"),
        ({"dirty": torch.zeros(2, 3, 2, 2).half()}, TypeError, "dirty should have the dtype of clean"),
        ({"dirty_origin": torch.zeros(1, 2, dtype=torch.long)}, ValueError, r"dirty_origin should have shape \[2, 2\]"),
        ({"window_origin": torch.zeros(2, 2)}, TypeError, "window_origin should be a tensor of integers"),
        ({"window_size": (3, -1)}, ValueError, "window_size should be a height and a width of at least 0"),
        ({"window_size": 3}, ValueError, "window_size should be a height and a width of at least 0, got 3"),
        ({"window_size": (1.5, 3)}, ValueError, r"window_size should be a height .*, got \(1.5, 3\)"),
        (
            {"window_size": (2**40, 2**40)},
            ValueError,
            "window_size should be so small that memory holds 2",
        ),
        ({"image_index": torch.tensor([0, 1])}, ValueError, "^image_index should be at least 0 and below 1, got 1$"),
        ({"pad_value": "edge"}, TypeError, "pad_value should be a number, got 'edge'"),
    ],
)
def test_splice_bad_input(change, error, message):
    at = torch.zeros(2, 2, dtype=torch.long)
    arguments = {
        "clean": torch.zeros(1, 3, 5, 5),
        "dirty": torch.zeros(2, 3, 2, 2),
        "dirty_origin": at,
        "window_origin": at,
        "window_size": (3, 3),
        **change,
    }
    with pytest.raises(error, match=message):
        ops.splice(**arguments)


def test_splice_has_no_derivative():
    at = torch.zeros(1, 2, dtype=torch.long)
    output = ops.splice(make((1, 1, 3, 3)).requires_grad_(), make((1, 1, 1, 1)), at, at, (2, 2))
    with pytest.raises(RuntimeError, match="splice has no derivative"):
        output.sum().backward()


# guided_relu ----------------------------------------------------------------------------------------------------------


def test_guided_relu_by_hand():
    x = torch.tensor([-1.0, 0.0, 2.0, 3.0], requires_grad=True)
    grad = torch.tensor([5.0, 6.0, -7.0, 8.0])
    wanted = {"plain": [0, 0, -7, 8], "guided": [0, 0, 0, 8], "deconvnet": [5, 6, 0, 8]}
    for rule, expected in wanted.items():
        output = ops.guided_relu(x, rule)
        assert output.tolist() == [0, 0, 2, 3]
        assert torch.autograd.grad(output, x, grad)[0].tolist() == expected


def test_bounded_guided_relu_by_hand():
    x = torch.tensor([-1.0, 0.0, 2.0, 2.5, 3.0, 9.0, torch.inf], requires_grad=True)
    grad = torch.tensor([5.0, 6.0, -7.0, 8.0, 9.0, 9.0, 9.0])
    wanted = {"plain": [0, 0, -7, 8, 0, 0, 0], "guided": [0, 0, 0, 8, 0, 0, 0], "deconvnet": [5, 6, 0, 8, 0, 0, 0]}
    for rule, expected in wanted.items():
        output = ops.guided_relu(x, rule, 3)
        assert output.tolist() == [0, 0, 2, 2.5, 3, 3, 3]
        assert torch.autograd.grad(output, x, grad)[0].tolist() == expected


@devices
@dtypes
@orders
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [*SHAPES, (), (131,), (3, 5)], ids=str)
def test_guided_relu(shape, rule, order, dtype, device):
    x = make(shape, dtype, device, order if len(shape) == 4 else "contiguous")
    # the bound is a number that every dtype has
    for upper in (None, 0.5):
        definition = partial(reference.guided_relu, rule=rule, upper=upper)
        compare(partial(ops.guided_relu, rule=rule, upper=upper), definition, x, dtype=dtype)
        compare(lambda v, upper=upper: ops.guided_relu_(v.clone(), rule, upper), definition, x, dtype=dtype)
    torch.testing.assert_close(ops.guided_relu(x, rule), x.relu(), rtol=0, atol=0)


def test_guided_relu_written_over_its_input():
    x = make((2, 3, 4, 5), order="channels_last")
    given = x.clone()
    assert ops.guided_relu_(given) is given
    torch.testing.assert_close(given, x.relu(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="x should be in contiguous or channels_last memory"):
        ops.guided_relu_(x[:, :, ::2])
    kept = x.requires_grad_().sigmoid()  # its backward pass needs what it gave
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ops.guided_relu_(kept).sum().backward()


def test_guided_relu_gradient_in_another_memory_order():
    """The mask is in the order of x; a gradient from above may come in any order."""
    x = make((2, 3, 4, 5), order="channels_last").requires_grad_()
    grad = make((2, 3, 4, 5))
    (mine,) = torch.autograd.grad(ops.guided_relu(x), x, grad)
    (wanted,) = torch.autograd.grad(reference.guided_relu(x), x, grad)
    torch.testing.assert_close(mine, wanted, rtol=0, atol=0)


def test_guided_relu_keeps_nan_and_one_bit_a_value():
    x = torch.tensor([float("nan"), 1.0, -1.0])
    assert ops.guided_relu(x).isnan().tolist() == [True, False, False]
    assert torch.ops.fastviz.guided_relu(torch.ones(17), "guided", None, True)[1].tolist() == [255, 255, 1]
    assert torch.ops.fastviz.guided_relu(torch.ones(17), "guided", None, False)[1].numel() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_guided_relu_keeps_a_gradient_of_nan(rule, dtype, device):
    """Rules that let only positive gradients pass made zero of NaN: a diverged network looked like an idle one.

    200 values are whole blocks of the kernel and a rest.
    """
    nan = float("nan")
    x = torch.tensor([1.0, -1.0, nan, 2.0] * 50, dtype=dtype, device=device).requires_grad_()
    grad = torch.tensor([nan, nan, nan, -1.0] * 50, dtype=dtype, device=device)
    for upper in (None, 8.0):
        (found,) = torch.autograd.grad(ops.guided_relu(x, rule, upper), x, grad)
        (wanted,) = torch.autograd.grad(reference.guided_relu(x, rule, upper), x, grad)
        assert found.isnan().tolist() == [True, rule == "deconvnet", True, False] * 50
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_guided_relu_bad_input():
    with pytest.raises(ValueError, match="rule should be one of 'plain', 'guided', 'deconvnet', got 'zeiler'"):
        ops.guided_relu(torch.ones(3), "zeiler")
    with pytest.raises(TypeError, match=r"x should be a floating-point tensor, got torch.int64"):
        ops.guided_relu(torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"upper should be finite and above 0, got -1\.0"):
        ops.guided_relu(torch.ones(3), "guided", -1.0)


# total_variation ------------------------------------------------------------------------------------------------------

VARIATIONS = [{"norm": "isotropic", "beta": b} for b in (1.0, 2.0, 2.5, 3.0, 1.7)] + [{"norm": "l1"}, {"norm": "l2"}]


def test_total_variation_by_hand():
    x = torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]])
    assert ops.total_variation(x).tolist() == [25.0]
    assert ops.total_variation(x, beta=1.0).tolist() == [5.0]
    assert ops.total_variation(x, norm="l1").tolist() == [7.0]
    # All four pixels: (3, 4), then only down 3 from the upper right, then only right 4 from the lower left.
    assert ops.total_variation(x, beta=1.0, border="zero").tolist() == [12.0]
    assert ops.total_variation(x, norm="l1", border="zero").tolist() == [14.0]
    assert ops.total_variation(x, norm="l2", border="zero").tolist() == [50.0]
    board = (torch.arange(16).view(4, 4) + torch.arange(4).view(4, 1)) % 2
    assert ops.total_variation(board[None, None].double(), beta=2.0, reduction="pixel_mean").tolist() == [2.0]


@devices
@dtypes
@orders
@shapes
@pytest.mark.parametrize("border", ["crop", "zero"])
def test_total_variation(border, shape, order, dtype, device):
    x = make(shape, dtype, device, order)
    for options in VARIATIONS:
        if dtype in (torch.float16, torch.bfloat16) and options.get("beta") in (1.0, 1.7):
            continue  # slopes near 0 are steep: inputs rounded to few bits are compared with themselves in float64
        for reduction in ("none", "pixel_mean"):
            options = {**options, "border": border, "reduction": reduction}
            compare(
                lambda v: ops.total_variation(v, **options),  # noqa: B023
                lambda v: reference.total_variation(v, **options),  # noqa: B023
                x,
                dtype=dtype,
            )


def test_total_variation_reductions():
    x = make((3, 2, 5, 6))
    each = ops.total_variation(x)
    torch.testing.assert_close(ops.total_variation(x, reduction="sum"), each.sum())
    torch.testing.assert_close(ops.total_variation(x, reduction="mean"), each.mean())


def test_total_variation_gradient_at_flat_places_is_zero():
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    for options in VARIATIONS:
        (grad,) = torch.autograd.grad(ops.total_variation(x, **options).sum(), x)
        assert not grad.any()


def test_total_variation_bad_input():
    x = torch.zeros(1, 1, 3, 3)
    with pytest.raises(ValueError, match="norm should be one of 'isotropic', 'l1', 'l2', got 'tv'"):
        ops.total_variation(x, norm="tv")
    with pytest.raises(ValueError, match="border should be one of 'crop', 'zero', got 'reflect'"):
        ops.total_variation(x, border="reflect")
    with pytest.raises(ValueError, match="beta should be finite and above 0, got 0"):
        ops.total_variation(x, beta=0)
    with pytest.raises(ValueError, match=r"x should have shape \[N, C, H, W\], got \[3, 3\]"):
        ops.total_variation(x[0, 0])


# gram -----------------------------------------------------------------------------------------------------------------


def test_gram_by_hand():
    features = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    assert ops.gram(features).tolist() == [[[5, 2], [2, 1]]]
    assert ops.gram(features, "hw").tolist() == [[[2.5, 1], [1, 0.5]]]
    assert ops.gram(features, "chw").tolist() == [[[1.25, 0.5], [0.5, 0.25]]]
    assert ops.gram_loss(features, torch.ones(1, 2, 2)).tolist() == [16 + 1 + 1 + 0]


GRAM_SHAPES = [*SHAPES, (2, 33, 9, 31), (1, 70, 20, 20), (1, 130, 5, 3), (2, 8, 300)]


@devices
@dtypes
@orders
@pytest.mark.parametrize("shape", GRAM_SHAPES, ids=str)
def test_gram(shape, order, dtype, device):
    features = make(shape, dtype, device, order)
    for normalize in ("none", "hw", "chw"):
        scale = 1.0 if normalize != "none" else 1 / max(features[0].numel(), 1) ** 0.5 if len(features) else 1.0
        compare(
            lambda f: ops.gram(f, normalize) * scale,  # noqa: B023
            lambda f: reference.gram(f, normalize) * scale,  # noqa: B023
            features,
            dtype=dtype,
        )


@devices
@dtypes
@orders
@pytest.mark.parametrize("shape", GRAM_SHAPES, ids=str)
@pytest.mark.parametrize("targets", ["one", "each"])
def test_gram_loss(targets, shape, order, dtype, device):
    features = make(shape, dtype, device, order)
    target = make((1 if targets == "one" else shape[0], shape[1], shape[1]), dtype, device)  # not symmetric
    scale = 1 / max(shape[1], 1) ** 2
    compare(
        lambda f: ops.gram_loss(f, target, "hw") * scale,
        lambda f: reference.gram_loss(f, target.double(), "hw") * scale,
        features,
        dtype=dtype,
    )


def test_gram_bad_input():
    with pytest.raises(ValueError, match=r"features should have shape \[N, C, H, W\] or \[N, C, L\], got \[2, 2\]"):
        ops.gram(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="normalize should be one of 'none', 'hw', 'chw', got 'c'"):
        ops.gram(torch.zeros(1, 2, 2), "c")
    with pytest.raises(ValueError, match=r"target should have shape \[3 or 1, 2, 2\], got \[2, 2, 2\]"):
        ops.gram_loss(torch.zeros(3, 2, 4), torch.zeros(2, 2, 2))
    with pytest.raises(TypeError, match="target should have the dtype of features"):
        ops.gram_loss(torch.zeros(3, 2, 4), torch.zeros(1, 2, 2).double())
    with pytest.raises(ValueError, match="target should not require a gradient"):
        ops.gram_loss(torch.zeros(3, 2, 4), torch.zeros(1, 2, 2, requires_grad=True))


# patch_search ---------------------------------------------------------------------------------------------------------


def test_patch_search_by_hand():
    sample = torch.tensor([[[0.0, 1.0, 3.0], [2.0, 5.0, 4.0]]])
    neighbourhood = torch.tensor([[[1.0, 9.0], [2.0, 3.0]]])
    mask, weights = torch.tensor([[True, False], [True, True]]), torch.tensor([[2.0, 7.0], [1.0, 1.0]])
    # Left: (2·1² + 1·0² + 1·2²) / 4; right: (2·0² + 1·3² + 1·1²) / 4.
    assert ops.patch_search(sample, neighbourhood, mask, weights).tolist() == [[1.5, 2.5]]
    assert ops.patch_search(sample, neighbourhood, torch.zeros_like(mask), weights).tolist() == [[0.0, 0.0]]
    # Channels add up; they are not averaged.
    assert ops.patch_search(sample.repeat(2, 1, 1), neighbourhood.repeat(2, 1, 1), mask, weights).tolist() == [[3, 5]]


SEARCHES = [  # sample, then neighbourhoods: rows of many, few and no windows beside the first
    ((3, 20, 45), (4, 5, 5)),
    ((1, 7, 9), (2, 7, 9)),
    ((2, 30, 12), (3, 3, 4)),
    ((4, 36, 40), (1, 33, 35)),
    ((0, 5, 5), (2, 3, 3)),
    ((3, 5, 5), (0, 3, 3)),
]


@devices
@dtypes
@orders
@pytest.mark.parametrize(("shape", "windows"), SEARCHES, ids=str)
def test_patch_search(shape, windows, order, dtype, device):
    number, *size = windows
    sample, weights = make(shape, dtype, device, order), make(tuple(size), dtype, device).abs()
    neighbourhood = make((number, shape[0], *size), dtype, device, order)
    mask = torch.rand(number, *size).to(device) < 0.6
    distances = ops.patch_search(sample, neighbourhood, mask, weights)
    wanted = reference.patch_search(sample.double(), neighbourhood.double(), mask, weights.double())
    tolerance = {"rtol": 1e-12, "atol": 0} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 0}
    torch.testing.assert_close(distances.double(), wanted, **tolerance)
    assert distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for one, known, distance in zip(neighbourhood, mask, distances, strict=True):
        torch.testing.assert_close(ops.patch_search(sample, one, known, weights), distance, rtol=0, atol=0)


@devices
def test_patch_search_of_a_part_of_the_sample_is_exactly_zero(device):
    sample = make((3, 30, 40), torch.float32, device) + 100
    part = sample[:, 8:19, 20:31].clone()
    mask = torch.ones(11, 11, dtype=torch.bool, device=device)
    mask[:3] = False
    part[:, :3] = float("nan")
    distances = ops.patch_search(sample, part, mask, torch.rand(11, 11).to(device))
    assert distances[8, 20] == 0
    assert (distances > 0).sum() == distances.numel() - 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sample": torch.zeros(1, 3, 5, 5)}, ValueError, r"sample should have shape \[C, H, W\], got \[1, 3, 5, 5\]"),
        (
            {"neighbourhood": torch.zeros(2, 3, 3)},
            ValueError,
            "neighbourhood should have the 3 channels of sample, got 2",
        ),
        (
            {"neighbourhood": torch.zeros(3, 6, 3)},
            ValueError,
            r"at least one pixel and at most the \[5, 5\] of sample, got \[6, 3\]",
        ),
        ({"neighbourhood": torch.zeros(3, 3, 0)}, ValueError, r"at least one pixel .* got \[3, 0\]"),
        ({"neighbourhood": torch.zeros(3, 3, 3).half()}, TypeError, "neighbourhood should have the dtype of sample"),
        ({"mask": torch.ones(3, 3)}, TypeError, "mask should be a tensor of bool, got torch.float32"),
        ({"mask": torch.ones(2, 3) > 0}, ValueError, r"mask should have shape \[3, 3\], got \[2, 3\]"),
        (
            {"neighbourhood": torch.zeros(2, 3, 3, 3)},
            ValueError,
            r"mask should have shape \[2, 3, 3\], got \[3, 3\]",
        ),
        ({"weights": torch.ones(3, 2)}, ValueError, r"weights should have shape \[3, 3\], got \[3, 2\]"),
        ({"weights": torch.ones(3, 3).double()}, TypeError, "weights should have the dtype of sample"),
        ({"weights": -torch.ones(3, 3)}, ValueError, "^weights should be finite and at least 0, got -1$"),
        ({"weights": torch.full((3, 3), torch.nan)}, ValueError, "^weights should be finite and at least 0, got nan$"),
        ({"weights": torch.full((3, 3), torch.inf)}, ValueError, "^weights should be finite and at least 0, got inf$"),
    ],
)
def test_patch_search_bad_input(change, error, message):
    arguments = {
        "sample": torch.zeros(3, 5, 5),
        "neighbourhood": torch.zeros(3, 3, 3),
        "mask": torch.ones(3, 3) > 0,
        "weights": torch.ones(3, 3),
        **change,
    }
    with pytest.raises(error, match=message):
        ops.patch_search(**arguments)


def test_patch_search_has_no_derivative():
    distances = patch_search_call(make((2, 3, 7, 6)).requires_grad_())
    with pytest.raises(RuntimeError, match="patch_search has no derivative"):
        distances.sum().backward()


# all of them ----------------------------------------------------------------------------------------------------------


@functools.cache
def fixed(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Boxes, their images, origins, theirs, a mask: made beforehand, as a CUDA graph copies nothing from the host."""
    index, origins = torch.tensor([0, 1, 0, 1, 0, 1, 1]), torch.tensor([[0, 1], [-1, 2]])
    mask = torch.tensor([[[True, True], [True, False], [False, True]]])
    return (*(part.to(device) for part in (BOXES, index, origins, torch.tensor([1, 0]), mask)),)


def splice_call(x: Tensor) -> Tensor:
    origins, index = fixed(x.device)[2:4]
    return ops.splice(x, x[:, :, :3, :2].contiguous(), origins, origins, (4, 5), index)


def patch_search_call(x: Tensor) -> Tensor:
    known = fixed(x.device)[4]
    return ops.patch_search(x[0], x[1:, :, 1:4, 2:4], known, x[0, 0, :3, :2].abs())


CALLS = {
    "occlude": lambda x: ops.occlude(x, *fixed(x.device)[:2], 0.5),
    "occlude_fill": lambda x: ops.occlude(x[:1], fixed(x.device)[0], None, x[1:]),
    "guided_relu": lambda x: ops.guided_relu(x),
    "deconvnet": lambda x: ops.guided_relu(x, "deconvnet"),
    "guided_relu6": lambda x: ops.guided_relu(x, "guided", 6),
    "total_variation": lambda x: ops.total_variation(x, beta=2.5),
    "gram": lambda x: ops.gram(x, "hw"),
    "gram_loss": lambda x: ops.gram_loss(x, torch.ones(1, 3, 3, dtype=x.dtype, device=x.device)),
}
EVERY_CALL = {**CALLS, "splice": splice_call, "patch_search": patch_search_call}
calls = pytest.mark.parametrize("name", CALLS)


@calls
def test_gradcheck(name):
    if name in ("guided_relu", "deconvnet", "guided_relu6"):
        return  # their backward rules are no derivatives: test_guided_relu compares them with the definition
    x = make((2, 3, 5, 4)).requires_grad_()
    assert torch.autograd.gradcheck(CALLS[name], (x,))


@devices
@orders
@pytest.mark.parametrize("name", EVERY_CALL)
def test_compile(name, order, device):
    """Compiled without a break in the graph, the values and gradients are those of the eager call."""
    call = EVERY_CALL[name]
    x = make((2, 3, 7, 6), torch.float32, device, order)
    real = call(x)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), real, rtol=0, atol=0)
    if name in CALLS:
        torch.testing.assert_close(gradients(compiled, x), gradients(call, x), rtol=0, atol=0)


@pytest.mark.parametrize("name", EVERY_CALL)
def test_export(name):
    class Module(torch.nn.Module):
        def forward(self, x):
            return EVERY_CALL[name](x)

    x = make((2, 3, 7, 6), torch.float32)
    exported = torch.export.export(Module(), (x,))
    assert any("fastviz" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), EVERY_CALL[name](x), rtol=0, atol=0)


def opcheck_arguments(device: str, order: str) -> dict[str, tuple]:
    x = make((2, 3, 7, 6), torch.float32, device, order)
    boxes, index, at, crop_index, known = fixed(torch.device(device))
    offsets = torch.tensor([0, 3, 7], device=device)
    ordered = index.argsort(stable=True)
    mask = torch.full(((x.numel() + 7) // 8,), 0b10110100, dtype=torch.uint8, device=device)
    leaf = x.detach().clone().requires_grad_()
    target = torch.ones(1, 3, 3, device=device)
    return {
        "occlude": (leaf, boxes, index, None, 0.5),
        "_occlude_backward": (x.repeat(4, 1, 1, 1)[:7], boxes, ordered, offsets, False),
        "splice": (x, x[:, :, :3, :2].contiguous(), at, at, [4, 5], crop_index, 0.0),
        "guided_relu": (leaf, "guided", 0.5, True),
        "_guided_relu_in_place": (x.clone(), "deconvnet", 0.5, True),
        "_guided_relu_backward": (x, mask, "guided", order == "channels_last"),
        "total_variation": (leaf, "isotropic", 2.5, True, False),
        "_total_variation_backward": (torch.ones(2, device=device), x, "isotropic", 2.5, True, False),
        "gram": (leaf, "hw"),
        "gram_loss": (leaf, target, "hw"),
        "patch_search": (x[0], x[1:, :, 1:4, 2:4], known, x[0, 0, :3, :2].abs()),
    }


@devices
@orders
@pytest.mark.parametrize("name", opcheck_arguments("cpu", "contiguous"))
def test_opcheck(name, order, device):
    torch.library.opcheck(getattr(torch.ops.fastviz, name).default, opcheck_arguments(device, order)[name])


def test_opcheck_of_what_the_cpu_alone_has():
    canvas = (torch.zeros(2, 8, 9), torch.eye(8, 9) > 0, torch.full((8, 9), -1))
    places, chances = torch.tensor([11, 12, 47]), torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    arguments = (*canvas, places, chances, torch.rand(2, 6, 7), torch.ones(4, 5) > 0, torch.ones(3, 3), 0.1, 1.0)
    torch.library.opcheck(torch.ops.fastviz._grow_texture.default, arguments)
    maps = torch.rand(2, 3, 7, 6).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.fastviz._winograd_tiles.default, (maps, 1, 1, 2, 2, 1, 4))
    arguments = (maps, torch.rand(36, 3, 3), torch.rand(3), maps.clone(), True, 1)
    torch.library.opcheck(torch.ops.fastviz._winograd_maps.default, arguments)


def test_every_operator_is_checked():
    """A new operator in library.cpp appears in test_opcheck too, or in the test above."""
    listed = {
        schema.name.partition("::")[2]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fastviz::")
    }
    parts = {"_grow_texture", "_winograd_tiles", "_winograd_maps"}
    assert listed == {*opcheck_arguments("cpu", "contiguous"), *parts, "_instructions"}


@calls
def test_second_order_is_refused_in_words(name):
    if name == "gram":
        return  # gram's backward is differentiable
    x = make((2, 3, 5, 4)).requires_grad_()

    def second_derivative():
        (first,) = torch.autograd.grad(CALLS[name](x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)

    with pytest.raises(RuntimeError, match="has no derivative of second order"):
        second_derivative()


def test_gram_has_a_second_derivative():
    assert torch.autograd.gradgradcheck(lambda x: ops.gram(x, "hw"), (make((1, 2, 3, 2)).requires_grad_(),))


@pytest.mark.parametrize("name", EVERY_CALL)
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_same_bits_at_any_number_of_threads(name, order):
    x = make((2, 3, 61, 47), torch.float32, order=order) if "gram" not in name else make((2, 3, 70, 70), torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(gradients(CALLS[name], x) if name in CALLS else EVERY_CALL[name](x))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


@pytest.mark.cuda
@calls
def test_same_bits_between_runs_on_cuda(name):
    x = make((2, 3, 61, 47), torch.float32, "cuda")
    torch.testing.assert_close(gradients(CALLS[name], x), gradients(CALLS[name], x), rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("name", EVERY_CALL)
def test_cuda_graph(name):
    """Captured once, replayed on new values."""
    call = EVERY_CALL[name]
    x = make((2, 3, 32, 30), torch.float32, "cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(output, call(x), rtol=0, atol=0)


@pytest.mark.cuda
def test_image_index_out_of_range_on_cuda_gives_nan():
    output = ops.occlude(
        torch.zeros(1, 1, 2, 2, device="cuda"),
        torch.zeros(2, 4, dtype=torch.long, device="cuda"),
        torch.tensor([0, 7], device="cuda"),
    )
    assert output.isnan().any((1, 2, 3)).tolist() == [False, True]


@pytest.mark.cuda
def test_more_than_two_to_the_31_elements_on_cuda():
    x = torch.ones(1, 3, 27000, 27000, dtype=torch.float16, device="cuda")
    x[..., -1, -1] = 3
    assert ops.guided_relu(x)[0, :, -1, -1].tolist() == [3, 3, 3]
    assert ops.total_variation(x, norm="l1", border="zero").tolist() == [12.0]


def test_meta_tensors():
    x = torch.empty(2, 3, 7, 6, device="meta")
    assert ops.gram(x).shape == (2, 3, 3)
    assert ops.total_variation(x).shape == (2,)


def test_import_stops_where_the_library_is_stale(monkeypatch):
    """A library that is older than its sources is not used."""
    if not (_library._FOLDER.parent / "csrc").is_dir():
        pytest.skip("an installed package has no sources beside it")
    monkeypatch.setattr(_library, "_status", {})
    monkeypatch.setattr(_library, "source_hash", lambda folder, cuda: "another")
    with pytest.raises(ImportError, match=r"older than its sources.*make build"):
        _library.load()


def test_import_stops_where_the_library_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "_status", {})
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    with pytest.raises(ImportError, match=r"_cpu.so is missing; run `make build`"):
        _library.load()
