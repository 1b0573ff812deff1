"""`guided_relu` against its definition, on every device, dtype and memory order."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastviz import ops, reference
from tests.ops.common import DEVICES, DTYPES, RULES, SHAPES, compare, devices, dtypes, make, orders


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
