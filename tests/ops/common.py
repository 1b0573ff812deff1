"""What the tests of all operators share: devices, dtypes, memory orders, tolerances, comparison with a definition.

Tolerances (one table, `TOLERANCE`): copies are exact; sums run in float32 or wider in another order than torch's, so
they differ by rounding; float16 and bfloat16 results are rounded once at the end, the reference is computed in float64.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from fastviz import ops

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
    if order == "channels_last" and len(shape) == 3:  # of a picture of one row
        return x.unsqueeze(2).to(memory_format=torch.channels_last).squeeze(2)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.to(memory_format=formats[len(shape)]) if order == "channels_last" and len(shape) in formats else x


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
    x = x.unsqueeze(2) if x.dim() == 3 else x
    last = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    return not x.is_contiguous() and x.is_contiguous(memory_format=last)


BOXES = torch.tensor(
    [[0, 0, 2, 3], [-2, -1, 1, 2], [3, 4, 90, 90], [2, 2, 2, 5], [5, 5, 3, 3], [0, 0, 90, 90], [-9, 0, -5, 2]]
)


@functools.cache
def fixed(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Boxes, their images, origins, theirs, a mask: made beforehand, as a CUDA graph copies nothing from the host."""
    index, origins = torch.tensor([0, 1, 0, 1, 0, 1, 1]), torch.tensor([[0, 1], [-1, 2]])
    mask = torch.tensor([[[True, True], [True, False], [False, True]]])
    return (*(part.to(device) for part in (BOXES, index, origins, torch.tensor([1, 0]), mask)),)


def as_volume(x: Tensor) -> Tensor:
    """Pictures of even height as volumes of two slices."""
    return x.unflatten(2, (2, -1))


@functools.cache
def of_volumes(device: torch.device) -> tuple[Tensor, Tensor]:
    """Boxes and origins of volumes, made beforehand."""
    boxes = torch.cat([torch.tensor([[0], [1], [-2], [0], [1], [0], [1]]), BOXES], 1)[:, [0, 1, 2, 0, 3, 4]]
    boxes[:, 3] += torch.tensor([1, 1, 9, 2, 0, 2, 5])
    return boxes.to(device), torch.tensor([[0, 0, 1], [1, -1, 2]], device=device)


def splice_volumes_call(x: Tensor) -> Tensor:
    origins, index, volumes = of_volumes(x.device)[1], fixed(x.device)[3], as_volume(x)
    return ops.splice(volumes, volumes[:, :, :1, :2, :2].contiguous(), origins, origins, (2, 3, 5), index)


def splice_call(x: Tensor) -> Tensor:
    origins, index = fixed(x.device)[2:4]
    return ops.splice(x, x[:, :, :3, :2].contiguous(), origins, origins, (4, 5), index)


def patch_search_call(x: Tensor) -> Tensor:
    known = fixed(x.device)[4]
    return ops.patch_search(x[0], x[1:, :, 1:4, 2:4], known, x[0, 0, :3, :2].abs())
