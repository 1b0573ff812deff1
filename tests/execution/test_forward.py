"""Recorded outputs of layers, and passes that end at them."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from fastviz.execution.forward import layer_outputs

f64 = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=f64)


def test_activations_are_outputs_of_the_layers_and_hooks_are_gone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid()).to(f64)
    x = torch.randn(2, 1, 2, 2, dtype=f64)
    expected = model[1](x.flatten(1))
    with layer_outputs(model, ["1", "2"]) as recorded:
        output = model(x)
    assert torch.equal(recorded["1"], expected)
    assert torch.equal(recorded["2"], output)
    assert not any(module._forward_hooks for module in model.modules())
    output.sum().backward()  # nothing of the graph is broken


def test_activations_are_not_changed_by_an_in_place_layer_behind() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2), nn.ReLU(inplace=True)).to(f64)
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2)), model[1].bias.zero_()
    with layer_outputs(model, ["1", "2"]) as recorded:
        model(tensor(-1, 2)[None])
    assert recorded["1"].tolist() == [[-1, 2]]
    assert recorded["2"].tolist() == [[0, 2]]


def test_activations_of_a_reused_layer_are_those_of_its_last_call() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Flatten(), relu)
    with layer_outputs(model, ["0"]) as recorded:
        model(torch.ones(1, 2, 3))
    assert recorded["0"].shape == (1, 6)


def test_activations_say_which_layer_was_not_called() -> None:
    class Skips(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    with layer_outputs(Skips(nn.ReLU(), nn.Tanh()), ["1"]) as recorded:
        Skips(nn.ReLU(), nn.Tanh())(torch.zeros(1))
    with pytest.raises(ValueError, match="layer '1' was not called in the forward pass"):
        recorded["1"]


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ((torch.zeros(1), torch.zeros(1)), "tuple"),
        ({"out": torch.zeros(1)}, "dict"),
        (torch.zeros(1).int(), "torch.int32"),
    ],
)
def test_activations_refuse_layers_that_return_no_floating_tensor(output: object, what: str) -> None:
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> object:
            return output

    model = nn.Sequential(Returns())
    with (
        pytest.raises(TypeError, match=f"layer '0' should return one floating-point tensor, got {what}"),
        layer_outputs(model, ["0"]),
    ):
        model(torch.zeros(1))
    assert not model[0]._forward_hooks


def test_activations_of_an_unknown_layer_leave_no_hook() -> None:
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="layer '7' is not known"), layer_outputs(model, ["0", "7"]):
        pass
    assert not model[0]._forward_hooks


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_activations_of_scripted_layers_are_refused() -> None:
    model = nn.Sequential(nn.Tanh(), torch.jit.script(nn.Sequential(nn.ReLU())))
    for name in ("1", "1.0"):
        with (
            pytest.raises(ValueError, match=f"layer '{name}' should not be inside a scripted module"),
            layer_outputs(model, ["0", name]),
        ):
            pass
    assert not model[0]._forward_hooks


def test_activations_hooks_are_gone_after_an_interrupt() -> None:
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(KeyboardInterrupt), layer_outputs(model, ["0"]):
        raise KeyboardInterrupt
    assert not model[0]._forward_hooks


def test_activations_record_only_calls_of_their_own_thread() -> None:
    model = nn.Sequential(nn.ReLU())
    with layer_outputs(model, ["0"]) as recorded:
        other = threading.Thread(target=lambda: model(torch.full((1,), 5.0)))
        model(torch.ones(1))
        other.start()
        other.join()
    assert recorded["0"].tolist() == [1]


def test_activations_can_start_the_graph_at_the_layer() -> None:
    """The gradient for the layer is the usual one, and what is in front of the layer has no graph."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).to(f64)
    x = torch.randn(5, 3, dtype=f64, requires_grad=True)
    with torch.no_grad(), layer_outputs(model, ["0"], start_gradients=True) as recorded:
        output = model(x)
    assert torch.is_grad_enabled()
    assert recorded["0"].is_leaf
    (gradient,) = torch.autograd.grad(output[:, 1].sum(), recorded["0"])
    expected = model[2].weight[1] * (model[0](x) > 0)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
