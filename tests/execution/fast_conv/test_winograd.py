"""Convolutions with fewer products: the same values and gradients, where they are taken, what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastviz.execution.fast_conv import winograd
from fastviz.execution.fast_conv.winograd import Winograd


@pytest.fixture
def used(monkeypatch):
    """Counts the convolutions that were computed so."""
    calls = []
    convolved = winograd.convolved
    monkeypatch.setattr(winograd, "_WORTH_TRANSFORMS", 1)
    monkeypatch.setattr(winograd, "convolved", lambda *args: (calls.append(1), convolved(*args))[1])
    return calls


@pytest.mark.parametrize("size", [(16, 16), (17, 22), (30, 19), (18, 190)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_values_and_gradients_are_the_direct_ones(size, bias, keep, used):
    torch.manual_seed(1)
    conv = nn.Conv2d(128, 144, 3, padding=1, bias=bias)
    x = torch.randn(2, 128, *size)
    weight = torch.randn(2, 144, *size)

    def run(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        output = module(leaf).mul_(0.5)  # in place, as rectifiers may be
        (gradient,) = torch.autograd.grad((output * weight.to(output)).sum(), leaf)
        return output.detach(), gradient

    with Winograd(keep=keep):
        fast = run(conv, x)
    assert len(used) == 2
    exact = run(conv.double(), x.double())
    for mine, theirs in zip(fast, exact, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))
    assert conv.weight.grad is None


@pytest.mark.parametrize("size", [(6, 6), (3, 9), (13, 10), (8, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 0)])
@pytest.mark.parametrize(("bias", "summed", "rectify"), [(True, True, True), (False, True, False), (True, False, True)])
def test_the_whole_operation(size, padding, bias, summed, rectify, monkeypatch):
    """Batches in pieces of tiles; channels that fill no register; any border, with the sum and the rectifier."""
    monkeypatch.setattr(winograd, "_TILES", 7)
    torch.manual_seed(2)
    conv = nn.Conv2d(21, 35, 3, padding=padding, bias=bias).double()
    x = torch.randn(3, 21, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = conv(x)
        other = torch.randn_like(expected) if summed else None
        expected = expected if other is None else expected + other
        expected = expected.relu() if rectify else expected
        kernels = winograd.transformed(conv.weight.float())
        shift = None if conv.bias is None else conv.bias.float()
        found = winograd.convolved(
            x.float(), kernels, shift, padding, None if other is None else other.float(), rectify=rectify
        )
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, out, p: torch.ops.fastviz._winograd_tiles(x.double(), 1, 1, 2, 2, 0, 4), "x should be float32"),
        (lambda x, out, p: torch.ops.fastviz._winograd_tiles(x, 1, 1, 2, 2, 0, 9), "among the 8 tiles, got 0 and 9"),
        (
            lambda x, out, p: torch.ops.fastviz._winograd_maps(out, p, None, None, False, 5),
            "tiles among the 8, got 4 from 5",
        ),
        (
            lambda x, out, p: torch.ops.fastviz._winograd_maps(out, p[:35], None, None, False, 0),
            "product should have 36",
        ),
        (
            lambda x, out, p: torch.ops.fastviz._winograd_maps(out.contiguous(), p, None, None, False, 0),
            "output should be channels_last",
        ),
        (lambda x, out, p: torch.ops.fastviz._winograd_maps(out, p, p[0, 0, :4], None, False, 0), "bias should have 5"),
        (lambda x, out, p: torch.ops.fastviz._winograd_maps(out, p, None, x, False, 0), "other should have 5"),
        (
            lambda x, out, p: torch.ops.fastviz._winograd_maps(out, p, None, None, False, 2**63 - 1),
            "product should be of tiles among the 8",
        ),
        (lambda x, out, p: torch.ops.fastviz._winograd_tiles(x, -(2**63), 0, 2, 2, 0, 1), "padding should be from 0"),
        (lambda x, out, p: torch.ops.fastviz._winograd_tiles(x, 0, 0, 2**62, 4, 0, 1), "tiles should be at most"),
    ],
)
def test_operators_refuse_what_would_leave_their_memory(call, message):
    x, out = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 8, 8).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=message):
        call(x, out, torch.zeros(36, 4, 5))


def test_one_tile_by_hand(used):
    """A kernel of a single 1 in the middle leaves the input as it is."""
    conv = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[range(128), range(128), 1, 1] = 1
        x = torch.arange(128.0 * 256).view(1, 128, 16, 16) / 1000
        with Winograd(keep=True):
            torch.testing.assert_close(conv(x), x, rtol=0, atol=1e-3)
    assert len(used) == 1


def test_few_tiles_are_not_worth_transforming_the_weights_again(used, monkeypatch):
    conv = nn.Conv2d(64, 64, 3, padding=1)
    monkeypatch.setattr(winograd, "_WORTH_TRANSFORMS", 33)
    with torch.no_grad(), Winograd(keep=False):
        conv(torch.randn(2, 64, 16, 16))
        assert not used
        conv(torch.randn(3, 64, 16, 16))
    assert len(used) == 1


def test_changed_weights_are_noticed(used):
    conv, x, mode = nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 16, 16), Winograd(keep=True)
    with torch.no_grad():
        with mode:
            before = conv(x)
        conv.weight.mul_(2)
        conv.bias.mul_(2)
        with mode:
            torch.testing.assert_close(conv(x), 2 * before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(48, 128, 3, padding=1), (1, 48, 16, 16)),
        (nn.Conv2d(64, 24, 3, padding=1), (1, 64, 16, 16)),
        (nn.Conv2d(128, 128, 3), (1, 128, 20, 20)),
        (nn.Conv2d(128, 128, 3, padding=1, stride=2), (1, 128, 20, 20)),
        (nn.Conv2d(128, 128, 3, padding=2, dilation=2), (1, 128, 20, 20)),
        (nn.Conv2d(128, 128, 3, padding="same"), (1, 128, 20, 20)),
        (nn.Conv2d(256, 256, 3, padding=1, groups=2), (1, 256, 16, 16)),
        (nn.Conv2d(128, 128, 5, padding=1), (1, 128, 20, 20)),
        (nn.Conv2d(128, 128, 3, padding=1), (1, 128, 2, 9)),
        (nn.Conv2d(128, 128, 3, padding=1), (128, 20, 20)),
        (nn.Conv2d(128, 128, 3, padding=1).double(), (1, 128, 16, 16)),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(128, 128, 3, padding=1)), (1, 128, 16, 16)),
    ],
)
def test_all_other_convolutions_are_left_alone(module, shape, used):
    x = torch.randn(shape, dtype=next(module.parameters()).dtype)
    with torch.no_grad(), Winograd(keep=True):
        found = module(x)
    assert not used
    with torch.no_grad():
        assert torch.equal(found, module(x))


def test_under_autocast_they_are_left_alone(used):
    conv, x = nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Winograd(keep=True):
        assert conv(x).dtype == torch.bfloat16
    assert not used


def test_shapes_that_do_not_fit_give_torch_s_own_error():
    conv = nn.Conv2d(128, 128, 3, padding=1)
    with pytest.raises(RuntimeError, match="to have 128 channels"), Winograd(keep=True):
        conv(torch.randn(1, 130, 16, 16))
