"""Recorded outputs of layers, passes that end at them, and notes of what layers give."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from fastviz.execution.forward import called, hooked_until, layer_outputs, noting, run

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


# ------------------------------------------------------------------------------------------ passes that end early


def counting(model: nn.Module) -> list[int]:
    """Which modules of a sequential model are called, in order; by a hook that stays."""
    seen: list[int] = []
    for number, module in enumerate(model):
        module.register_forward_hook(lambda module, inputs, output, number=number: seen.append(number))
    return seen


def nothing(module: nn.Module, inputs: object, output: object) -> None:
    pass


def test_a_pass_ends_after_the_last_of_the_calls() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Tanh(), relu, nn.Sigmoid())
    seen = counting(model)
    output = "not assigned"
    with hooked_until(model, {"0": nothing, "1": nothing}, {"0": 2, "1": 1}) as counts:
        output = model(torch.ones(1))
    assert output == "not assigned"
    assert counts == {"0": 2, "1": 1}
    assert 3 not in seen
    assert len(relu._forward_hooks) == 2


@pytest.mark.parametrize("calls", [None, {}])
def test_a_pass_without_calls_runs_to_its_end(calls: dict[str, int] | None) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    with hooked_until(model, {"0": nothing}, calls) as counts:
        output = model(torch.ones(1))
    assert output.tolist() == torch.ones(1).tanh().tolist()
    assert counts == {"0": 1}


def test_a_pass_inside_another_ends_only_itself() -> None:
    inner = nn.Sequential(nn.ReLU(), nn.Tanh())

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.ReLU(), nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            with hooked_until(inner, {"0": nothing}, {"0": 1}):
                inner(x)
            return self.second(self.first(x))

    model, output = Outer(), None
    with hooked_until(model, {"second": nothing}, {"second": 2}) as counts:
        output = model(torch.ones(1))
    assert output is not None
    assert counts == {"second": 1}


def test_a_model_that_catches_exceptions_does_not_catch_the_end() -> None:
    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            with suppress(Exception):
                self.relu(x)
            raise AssertionError("behind the end")

    model = Catches()
    with layer_outputs(model, ["relu"], calls={"relu": 1}) as recorded:
        model(torch.ones(1))
    assert recorded["relu"].tolist() == [1]


def test_what_was_recorded_where_the_pass_ends_is_the_output_itself() -> None:
    """No copy is made of what nothing behind can change."""
    outputs: list[Tensor] = []
    model = nn.Sequential(nn.Tanh(), nn.Sigmoid())
    model[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with layer_outputs(model, ["0"], calls={"0": 1}) as recorded:
        model(torch.ones(1))
    assert recorded["0"] is outputs[0]


def test_the_end_of_a_pass_keeps_no_tensor() -> None:
    """The exception would hold the frames of the model, and those their tensors, until the next collection."""
    model = nn.Sequential(nn.Tanh(), nn.Sigmoid())
    gc.disable()
    try:
        with layer_outputs(model, ["0"], calls={"0": 1}) as recorded:
            model(torch.ones(1))
        gone = weakref.ref(recorded["0"])
        del recorded
        assert gone() is None
    finally:
        gc.enable()


def test_run_notes_how_often_layers_are_called_and_ends_the_next_pass_there() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(1, 2, 1), relu, nn.Conv2d(2, 2, 1), relu, nn.Flatten())
    seen = counting(model)
    calls: Counter[str] = Counter()
    for _ in range(2):
        run(model, torch.ones(2, 1, 3, 3), {"1": nothing}, calls)
    assert calls == {"1": 2}
    assert seen.count(4) == 1
    model.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="layer '1' was not called in the forward pass"):
        run(model, torch.ones(2, 1, 3, 3), {"1": nothing}, Counter())


# ------------------------------------------------------------------------------------------ notes of what layers give


def network() -> nn.Sequential:
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Sequential(nn.Conv2d(4, 2, 1), relu))


def test_notes_come_in_the_order_in_which_calls_end():
    model = network()
    with noting(model, lambda output: tuple(output.shape)) as noted:
        model(torch.zeros(2, 3, 6, 6))
    assert noted == [
        ("0", (2, 4, 4, 4)), ("1", (2, 4, 4, 4)), ("2.0", (2, 2, 4, 4)), ("1", (2, 2, 4, 4)), ("2", (2, 2, 4, 4)),
    ]  # fmt: skip
    assert not any(module._forward_hooks for module in model.modules())


def test_only_some_layers():
    model = network()
    with noting(model, lambda output: float(output.detach().sum()), ["2.0"]) as noted:
        result = model(torch.ones(1, 3, 6, 6))
    assert [name for name, _ in noted] == ["2.0"]
    # Noted before the rectifier behind it works in place.
    assert noted[0][1] <= float(result.detach().sum())


def test_scripted_modules_are_left_out_unless_named():
    model = nn.Sequential(torch.jit.script(nn.ReLU()), nn.Conv2d(3, 4, 1))
    with noting(model, type) as noted:
        model(torch.zeros(1, 3, 2, 2))
    assert noted == [("1", Tensor)]
    with (
        pytest.raises(ValueError, match="layer '0' should not be inside a scripted module"),
        noting(model, type, ["0"]),
    ):
        pass


def test_hooks_go_when_the_model_fails():
    model = network()
    with pytest.raises(RuntimeError), noting(model, type):
        model(torch.zeros(1, 5, 6, 6))
    assert not any(module._forward_hooks for module in model.modules())


def test_called_is_in_the_order_of_last_calls():
    model = network()
    assert called(model, torch.zeros(1, 3, 6, 6), (nn.ReLU, nn.Conv2d)) == ["0", "2.0", "1"]
