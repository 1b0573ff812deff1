"""Rows and columns followed through forward passes: permutations, tokens, heads, signals and volumes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastviz.execution.map_axes import Axes, Planes, Tokens


def followed(compute: Callable[[Tensor], Tensor], *shape: int) -> tuple[Planes | None, Tensor, Tensor]:
    """Where the maps are in what is computed, that itself, and laid out; the input numbers its places."""
    size = shape[2:]
    places = torch.arange(float(torch.Size(size).numel())).reshape(size).expand(shape).clone()
    with Axes() as axes:
        y = compute(axes.images(places))
    found = axes.planes(y)
    return found, y, torch.empty(0) if found is None else found.laid(y)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.permute(0, 2, 3, 1),
        tokens,
        lambda x: tokens(x).reshape(len(x), 3, 4, -1),
        lambda x: torch.cat([torch.zeros(len(x), 2, 5), tokens(x), torch.zeros(len(x), 1, 5)], dim=1),
        lambda x: torch.cat([torch.zeros(len(x), 2, 5), tokens(x)], dim=1)[:, 1:],
        lambda x: torch.cat([torch.zeros(len(x), 1, 5), tokens(x)], dim=1).split([1, 12], dim=1)[1],
        lambda x: torch.cat([tokens(x), torch.zeros(len(x), 1, 5)], dim=1).narrow(1, 0, 12),
        lambda x: F.layer_norm(tokens(x), (5,), bias=torch.zeros(5)) * 0 + tokens(x),
        lambda x: tokens(x).reshape(len(x), 12, 1, 5).transpose(1, 2).transpose(1, 2).reshape(len(x), 12, 5),
    ],
)
def test_places_stay_where_they_were(compute: Callable[[Tensor], Tensor]) -> None:
    found, _, laid = followed(compute, 2, 5, 3, 4)
    assert found is not None
    assert torch.equal(laid, torch.arange(12.0).reshape(3, 4).expand(2, 5, 3, 4))


def test_heads_come_together_again() -> None:
    def attention(x: Tensor) -> Tensor:
        rows = torch.cat([torch.zeros(len(x), 1, 6), tokens(x)], dim=1)
        q, k, v = rows.repeat(1, 1, 3).reshape(2, 13, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(q, k, v)
        return heads.transpose(1, 2).reshape(2, 13, 6)

    def by_hand(x: Tensor) -> Tensor:
        rows = F.linear(tokens(x), torch.eye(6).repeat(3, 1))
        q, k, v = rows.reshape(2, 12, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(2, 12, 6)

    assert followed(by_hand, 2, 6, 3, 4)[0] == Planes((0, 2, 1), Tokens((3, 4)))
    # a call that is not known in between: nothing is guessed
    assert followed(attention, 2, 6, 3, 4)[0] is None


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: tokens(x)[:, ::2],
        lambda x: tokens(x)[:, 1:],
        lambda x: tokens(x)[:, torch.arange(12).flip(0)],
        lambda x: x.reshape(2, 5, 2, 6),
        lambda x: tokens(x).transpose(0, 1),
        lambda x: x.flip(2),
        lambda x: x.roll(1, 2),
        lambda x: x.flatten(1),
    ],
)
def test_what_is_not_known_is_not_guessed(compute: Callable[[Tensor], Tensor]) -> None:
    assert followed(compute, 2, 5, 3, 4)[0] is None


def test_signals_and_volumes() -> None:
    found, _, laid = followed(lambda x: F.conv1d(x, torch.eye(3)[..., None]).transpose(1, 2), 2, 3, 7)
    assert found == Planes((0, 2, 1))
    assert torch.equal(laid, torch.arange(7.0).expand(2, 3, 7))
    found, _, laid = followed(tokens, 2, 3, 2, 3, 4)
    assert found == Planes((0, 2, 1), Tokens((2, 3, 4)))
    assert torch.equal(laid, torch.arange(24.0).reshape(2, 3, 4).expand(2, 3, 2, 3, 4))
    joined = followed(lambda x: torch.cat([torch.zeros(2, 1, 3), x.transpose(1, 2)], dim=1), 2, 3, 7)
    assert joined[0] == Planes((0, 2, 1), Tokens((7,), before=1))


def test_gradients_of_several_targets_are_laid_out_too() -> None:
    planes = Planes((0, 2, 1), Tokens((2, 2), before=1))
    values = torch.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4)
    laid = planes.laid(values)
    assert laid.shape == (2, 3, 4, 2, 2)
    assert torch.equal(laid[:, 1], planes.laid(values[:, 1]))
    assert laid[1, 2, 3, 1, 0] == values[1, 2, 3, 3]
