"""Running a model once and noting what its layers give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastviz.execution import forward


def network() -> nn.Sequential:
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Sequential(nn.Conv2d(4, 2, 1), relu))


def test_notes_come_in_the_order_in_which_calls_end():
    model = network()
    with forward.noting(model, lambda output: tuple(output.shape)) as noted:
        model(torch.zeros(2, 3, 6, 6))
    assert noted == [
        ("0", (2, 4, 4, 4)), ("1", (2, 4, 4, 4)), ("2.0", (2, 2, 4, 4)), ("1", (2, 2, 4, 4)), ("2", (2, 2, 4, 4)),
    ]  # fmt: skip
    assert not any(module._forward_hooks for module in model.modules())


def test_only_some_layers():
    model = network()
    with forward.noting(model, lambda output: float(output.detach().sum()), ["2.0"]) as noted:
        result = model(torch.ones(1, 3, 6, 6))
    assert [name for name, _ in noted] == ["2.0"]
    # Noted before the rectifier behind it works in place.
    assert noted[0][1] <= float(result.detach().sum())


def test_scripted_modules_are_left_out_unless_named():
    model = nn.Sequential(torch.jit.script(nn.ReLU()), nn.Conv2d(3, 4, 1))
    with forward.noting(model, type) as noted:
        model(torch.zeros(1, 3, 2, 2))
    assert noted == [("1", Tensor)]
    with (
        pytest.raises(ValueError, match="layer '0' should not be inside a scripted module"),
        forward.noting(model, type, ["0"]),
    ):
        pass


def test_hooks_go_when_the_model_fails():
    model = network()
    with pytest.raises(RuntimeError), forward.noting(model, type):
        model(torch.zeros(1, 5, 6, 6))
    assert not any(module._forward_hooks for module in model.modules())


def test_called_is_in_the_order_of_last_calls():
    model = network()
    assert forward.called(model, torch.zeros(1, 3, 6, 6), (nn.ReLU, nn.Conv2d)) == ["0", "2.0", "1"]
