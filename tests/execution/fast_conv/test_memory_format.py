"""Images in channels_last memory where convolutions are faster with it, and never where a model cannot take it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastviz as fv
from fastviz.execution.fast_conv import memory_format
from fastviz.execution.fast_conv.memory_format import in_fast_order


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def orders(model: nn.Module, x: Tensor, call: Callable[[nn.Module, Tensor], object]) -> list[bool]:
    """Whether the inputs of the first layer are in channels_last memory, for each pass of ``call``."""
    found: list[bool] = []
    handle = model[0].register_forward_hook(lambda module, inputs, output: found.append(is_channels_last(inputs[0])))
    call(model, x)
    handle.remove()
    return found


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, True), (torch.float64, False)])
def test_convolutions_get_channels_last_memory_in_float32(dtype: torch.dtype, expected: bool) -> None:
    x = torch.rand(2, 3, 8, 8, dtype=dtype)
    assert orders(network().to(dtype), x, lambda model, x: fv.saliency(model, x, 1)) == [expected]


def test_a_few_images_do_not_pay_for_copies_of_many_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_format, "_MANY_WEIGHTS", 100)
    for images, expected in ((3, False), (4, True)):
        found = orders(network(), torch.rand(images, 3, 8, 8), lambda model, x: fv.saliency(model, x, 1))
        assert found == [expected]


def test_a_model_that_views_its_maps_gets_contiguous_memory() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=8), nn.Linear(4 * 6 * 5, 2)
            self.calls = 0

        def forward(self, value: Tensor) -> Tensor:
            self.calls += 1
            return self.fc(F.relu(self.conv(value)).view(len(value), -1))

    model, x = Views(), torch.randn(3, 3, 48, 40, generator=torch.Generator().manual_seed(2))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    for calls in (3, 4):  # the first time it is tried in vain
        torch.testing.assert_close(fv.input_gradient(model, x, 1), expected)
        assert model.calls == calls
    # a view that fails in any order is the model's own fault
    model.fc = nn.Linear(7, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fv.input_gradient(model, x, 1)


def test_other_arguments_reach_the_function() -> None:
    found = in_fast_order(network(), "model", lambda x, factor, plus: (is_channels_last(x), factor, plus))
    assert found(torch.rand(2, 3, 8, 8), 3, plus=4) == (True, 3, 4)
