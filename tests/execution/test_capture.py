"""Evaluation mode, recorded activations and rectifier rules: right inside the ``with``, and gone behind it."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastviz.execution import capture

f64 = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=f64)


# ------------------------------------------------------------------------------------------------- the model kept


class Recorder(nn.Module):
    """Records the training flags and modes that hold while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm = nn.Dropout(), nn.BatchNorm1d(2)
        self.seen: list[tuple[bool, bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(
            (self.training, self.drop.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        )
        return self.norm(self.drop(x))


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_frozen_model_runs_in_evaluation_mode_and_restores_every_flag() -> None:
    model = Recorder()
    model.norm.eval()  # a model in training with a frozen norm, as in fine-tuning
    before = flags(model)
    statistics = model.norm.running_mean.clone()
    with torch.inference_mode(), capture.frozen_model(model):
        model(torch.randn(3, 2))
    assert model.seen == [(False, False, True, False)]
    assert flags(model) == before == [True, True, False]
    assert torch.equal(model.norm.running_mean, statistics)


def test_frozen_model_restores_after_exceptions_and_keyboard_interrupt() -> None:
    model = Recorder()
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), capture.frozen_model(model):
            raise error
        assert flags(model) == [True, True, True]


def test_frozen_model_in_two_threads_ends_with_the_last() -> None:
    """The thread that leaves first must not put the model back into training under the other."""
    model = Recorder()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with capture.frozen_model(model):
            inside.set()
            leave.wait(300)

    thread = threading.Thread(target=hold)
    with capture.frozen_model(model):
        thread.start()
        assert inside.wait(300)
    assert flags(model) == [False, False, False]
    leave.set()
    thread.join()
    assert flags(model) == [True, True, True]
    assert not capture._frozen


def test_layer_module_names_the_nearest_layers() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(1, 1), nn.ReLU()))
    assert capture.layer_module(model, "0.1") is model[0][1]
    assert capture.layer_module(model, "") is model
    with pytest.raises(ValueError, match=r"layer '0.2' is not known; nearest: 0.1"):
        capture.layer_module(model, "0.2")
    with pytest.raises(TypeError, match="layer should be a dotted module name, got int"):
        capture.layer_module(model, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model should be a torch.nn.Module, got str"):
        capture.layer_module("resnet50", "fc")  # type: ignore[arg-type]


def test_layers_of_a_compiled_model_keep_their_names() -> None:
    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(1, 1))))
    assert capture.layer_module(model, "0.0") is capture.layer_module(model, "0._orig_mod.0")
    assert isinstance(capture.layer_module(model, "0.0"), nn.Linear)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
            TypeError,
            r"x should be a floating-point tensor, got torch.uint8",
        ),
        (torch.zeros(1, 3, 4, 4, dtype=torch.bool), TypeError, r"x should be a floating-point tensor, got torch.bool"),
        ([[1.0]], TypeError, "x should be a tensor, got list"),
        (torch.zeros(3, 4, 4), ValueError, r"x should have shape \[N, C, H, W\], got \[3, 4, 4\]"),
        (torch.zeros(1, 3, 0, 4), ValueError, r"x should have at least one channel and one pixel, got \[1, 3, 0, 4\]"),
        (torch.zeros(1, 3, 4, 4, device="meta"), ValueError, "x should be on the device of the model, cpu, got meta"),
    ],
)
def test_input_batch_says_what_is_wrong(x: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        capture.input_batch(nn.Conv2d(3, 1, 1), x)


# ----------------------------------------------------------------------------------------------------- activations


def test_activations_are_outputs_of_the_layers_and_hooks_are_gone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid()).to(f64)
    x = torch.randn(2, 1, 2, 2, dtype=f64)
    expected = model[1](x.flatten(1))
    with capture.activations(model, ["1", "2"]) as recorded:
        output = model(x)
    assert torch.equal(recorded["1"], expected)
    assert torch.equal(recorded["2"], output)
    assert not any(module._forward_hooks for module in model.modules())
    output.sum().backward()  # nothing of the graph is broken


def test_activations_are_not_changed_by_an_in_place_layer_behind() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2), nn.ReLU(inplace=True)).to(f64)
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2)), model[1].bias.zero_()
    with capture.activations(model, ["1", "2"]) as recorded:
        model(tensor(-1, 2)[None])
    assert recorded["1"].tolist() == [[-1, 2]]
    assert recorded["2"].tolist() == [[0, 2]]


def test_activations_of_a_reused_layer_are_those_of_its_last_call() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Flatten(), relu)
    with capture.activations(model, ["0"]) as recorded:
        model(torch.ones(1, 2, 3))
    assert recorded["0"].shape == (1, 6)


def test_activations_say_which_layer_was_not_called() -> None:
    class Skips(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    with capture.activations(Skips(nn.ReLU(), nn.Tanh()), ["1"]) as recorded:
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
        capture.activations(model, ["0"]),
    ):
        model(torch.zeros(1))
    assert not model[0]._forward_hooks


def test_activations_of_an_unknown_layer_leave_no_hook() -> None:
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="layer '7' is not known"), capture.activations(model, ["0", "7"]):
        pass
    assert not model[0]._forward_hooks


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_activations_of_scripted_layers_are_refused() -> None:
    model = nn.Sequential(nn.Tanh(), torch.jit.script(nn.Sequential(nn.ReLU())))
    for name in ("1", "1.0"):
        with (
            pytest.raises(ValueError, match=f"layer '{name}' should not be inside a scripted module"),
            capture.activations(model, ["0", name]),
        ):
            pass
    assert not model[0]._forward_hooks


def test_activations_hooks_are_gone_after_an_interrupt() -> None:
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(KeyboardInterrupt), capture.activations(model, ["0"]):
        raise KeyboardInterrupt
    assert not model[0]._forward_hooks


def test_activations_record_only_calls_of_their_own_thread() -> None:
    model = nn.Sequential(nn.ReLU())
    with capture.activations(model, ["0"]) as recorded:
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
    with torch.no_grad(), capture.activations(model, ["0"], start_gradients=True) as recorded:
        output = model(x)
    assert torch.is_grad_enabled()
    assert recorded["0"].is_leaf
    (gradient,) = torch.autograd.grad(output[:, 1].sum(), recorded["0"])
    expected = model[2].weight[1] * (model[0](x) > 0)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------ rectifiers
#
# Worked by hand: a = 2x = (-1, 0, 2, 7, 3), y = rectifier(a), S = Σ v·y with v = (1, 1, 1, 1, -1).

X = (-0.5, 0.0, 1.0, 3.5, 1.5)
V = (1.0, 1.0, 1.0, 1.0, -1.0)
VALUE = [0, 0, 2, 7, 3]
GRADIENT = {"plain": [0, 0, 2, 2, -2], "guided": [0, 0, 2, 2, 0], "deconvnet": [2, 2, 2, 2, 0]}
BOUNDED_VALUE = [0, 0, 2, 6, 3]
BOUNDED_GRADIENT = {"plain": [0, 0, 2, 0, -2], "guided": [0, 0, 2, 0, 0], "deconvnet": [2, 2, 2, 0, 0]}


def ignoring(call: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """A way of writing that relies on the in-place effect and drops what the call returns."""

    def write(a: Tensor) -> Tensor:
        call(a)
        return a

    return write


UNBOUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "nn.ReLU in place, ignored": ignoring(nn.ReLU(inplace=True)),
    "F.relu": F.relu,
    "F.relu keyword": lambda a: F.relu(input=a),
    "F.relu in place": lambda a: F.relu(a, inplace=True),
    "F.relu in place, ignored": ignoring(lambda a: F.relu(a, True)),
    "F.relu_": F.relu_,
    "F.relu_, ignored": ignoring(F.relu_),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "torch.relu_, ignored": ignoring(torch.relu_),
    "Tensor.relu": lambda a: a.relu(),
    "Tensor.relu_": lambda a: a.relu_(),
    "Tensor.relu_, ignored": ignoring(lambda a: a.relu_()),
    "nn.Threshold": nn.Threshold(0, 0),
    "nn.Threshold in place": nn.Threshold(0, 0, inplace=True),
    "F.threshold": lambda a: F.threshold(a, 0, 0),
    "F.threshold_, ignored": ignoring(lambda a: F.threshold_(a, 0.0, 0.0)),
    "torch.threshold": lambda a: torch.threshold(a, threshold=0, value=0),
    "torch.clamp": lambda a: torch.clamp(a, min=0),
    "torch.clamp positional": lambda a: torch.clamp(a, 0.0),
    "torch.clamp_": lambda a: torch.clamp_(a, min=0),
    "Tensor.clamp": lambda a: a.clamp(min=0),
    "Tensor.clamp to a tensor": lambda a: a.clamp(min=torch.tensor(0)),
    "Tensor.clamp_, ignored": ignoring(lambda a: a.clamp_(0)),
    "torch.clip": lambda a: torch.clip(a, 0),
    "Tensor.clip": lambda a: a.clip(min=0),
    "Tensor.clip_, ignored": ignoring(lambda a: a.clip_(0)),
    "torch.clamp_min": lambda a: torch.clamp_min(a, 0),
    "torch.clamp_min_, ignored": ignoring(lambda a: torch.clamp_min_(a, 0)),
    "Tensor.clamp_min": lambda a: a.clamp_min(min=0),
    "Tensor.clamp_min_": lambda a: a.clamp_min_(0),
    "aten.relu": torch.ops.aten.relu.default,
    "aten.relu packet": lambda a: torch.ops.aten.relu(a),
    "aten.relu_, ignored": ignoring(torch.ops.aten.relu_.default),
    "aten.clamp_min": lambda a: torch.ops.aten.clamp_min.default(a, 0),
    "checkpoint": lambda a: checkpoint(F.relu, a, use_reentrant=False),
    "checkpoint, in place": lambda a: checkpoint(lambda b: (b * 1).relu_(), a, use_reentrant=False),
    "view in place": ignoring(lambda a: a[:3].relu_() + a[3:].relu_().sum()),
}


def assigning(a: Tensor) -> Tensor:
    a[a < 0] = 0
    return a


def assigning_to_a_copy(a: Tensor) -> Tensor:
    b = a.clone()
    b[a <= 0] = 0.0
    return b


def with_a_mask_apart(a: Tensor) -> Tensor:
    with torch.no_grad():
        mask = (a > 0).to(a.dtype)
    return a * mask


BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda a: torch.where(a > 0, a, 0),
    "where, zeros_like": lambda a: torch.where(a > 0, a, torch.zeros_like(a)),
    "where, zeros": lambda a: torch.where(a < 0, torch.zeros(a.shape, dtype=f64), a),
    "where, not": lambda a: torch.where(~(a > 0), 0, a),
    "Tensor.where": lambda a: a.where(a >= 0, 0),
    "aten.where": lambda a: torch.ops.aten.where.self(a > 0, a, torch.zeros((), dtype=f64)),
    "times comparison": lambda a: a * (a > 0),
    "comparison times": lambda a: (a > 0).float() * a,
    "gt": lambda a: a * a.gt(0).type_as(a),
    "mul_": lambda a: a.mul_(a > 0),
    "mul_, ignored": ignoring(lambda a: a.mul_(a > 0)),
    "mask of detached values": lambda a: a * (a.detach() > 0),
    "mask of data": lambda a: a * (a.data > 0),
    "mask without a graph": with_a_mask_apart,
    "addcmul": lambda a: torch.addcmul(torch.zeros_like(a), a, (a > 0).to(a.dtype)),
    "masked_fill": lambda a: a.masked_fill(a < 0, 0),
    "masked_fill_, ignored": ignoring(lambda a: a.masked_fill_(a <= 0, 0.0)),
    "maximum": lambda a: torch.maximum(a, torch.zeros((), dtype=f64)),
    "max": lambda a: torch.max(a.new_zeros(1), a),
    "fmax": lambda a: torch.fmax(a, torch.zeros_like(a)),
    "minimum": lambda a: -torch.minimum(-a, torch.zeros_like(a)),
    "less its negative part": lambda a: a - a.clamp(max=0),
    "clamp to zeros": lambda a: a.clamp(min=torch.zeros_like(a)),
    "abs": lambda a: (a + a.abs()) / 2,
    "abs apart": lambda a: 0.5 * a + 0.5 * abs(a),
    "sqrt": lambda a: (a + torch.sqrt(a * a)) / 2,
    "sign": lambda a: a * (1 + a.sign()) / 2,
    "clamped sign": lambda a: a * a.sign().clamp(min=0),
    "index_put": lambda a: a.index_put((a < 0,), torch.zeros((), dtype=f64)),
    "assignment": assigning,
    "assignment to a copy": assigning_to_a_copy,
    "leaky_relu of slope 0": lambda a: F.leaky_relu(a, 0.0),
    "prelu of slope 0": lambda a: F.prelu(a, torch.zeros(1, dtype=f64)),
}
UNBOUNDED |= BY_HAND
BOUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "minimum of maximum": lambda a: torch.minimum(torch.maximum(a, torch.zeros_like(a)), torch.full_like(a, 6)),
    "where of where": lambda a: torch.where(a > 6, 6, torch.where(a > 0, a, 0)),
    "maximum of minimum": lambda a: torch.max(a.clamp(max=6), torch.zeros_like(a)),
    "masks": lambda a: torch.where((a > 0) & (a < 6), a, 6.0 * (a >= 6)),
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 in place, ignored": ignoring(nn.ReLU6(inplace=True)),
    "F.relu6": F.relu6,
    "F.relu6 in place": lambda a: F.relu6(a, inplace=True),
    "nn.Hardtanh": nn.Hardtanh(0.0, 6.0),
    "F.hardtanh": lambda a: F.hardtanh(a, 0, 6),
    "F.hardtanh keywords": lambda a: F.hardtanh(a, max_val=6, min_val=0),
    "F.hardtanh_, ignored": ignoring(lambda a: F.hardtanh_(a, 0.0, 6.0)),
    "torch.clamp": lambda a: torch.clamp(a, 0, 6),
    "torch.clamp_, ignored": ignoring(lambda a: torch.clamp_(a, min=0, max=6)),
    "Tensor.clip": lambda a: a.clip(0, 6),
    "aten.hardtanh": lambda a: torch.ops.aten.hardtanh.default(a, 0.0, 6.0),
    "aten.relu6": torch.ops.aten.relu6.default,
}


def value_and_gradient(write: Callable[[Tensor], Tensor], rule: str) -> tuple[list[float], list[float]]:
    x = tensor(*X).requires_grad_()
    with capture.rectifiers(rule) as found:
        a = 2 * x
        y = write(a)
        value = y.detach().clone()
        S = (tensor(*V) * y).sum()
        assert not found.missed(S)
        (gradient,) = capture.differentiate(S, [x])
    assert found.count >= 1
    return value.tolist(), gradient.tolist()


@pytest.mark.parametrize("rule", ["plain", "guided", "deconvnet"])
@pytest.mark.parametrize("way", UNBOUNDED)
def test_every_way_of_writing_a_rectifier_gets_the_rule(way: str, rule: str) -> None:
    assert value_and_gradient(UNBOUNDED[way], rule) == (VALUE, GRADIENT[rule])


@pytest.mark.parametrize("rule", ["plain", "guided", "deconvnet"])
@pytest.mark.parametrize("way", BOUNDED)
def test_every_way_of_writing_a_bounded_rectifier_gets_the_rule(way: str, rule: str) -> None:
    assert value_and_gradient(BOUNDED[way], rule) == (BOUNDED_VALUE, BOUNDED_GRADIENT[rule])


def test_at_the_bounds_there_is_no_gradient() -> None:
    for write in (F.relu6, lambda a: a.clamp(0, 6)):
        x = tensor(0.0, 6.0).requires_grad_()
        with capture.rectifiers("guided"):
            (gradient,) = capture.differentiate(write(x * 1).sum(), [x])
        assert gradient.tolist() == [0, 0]


@pytest.mark.parametrize(
    "write",
    [
        lambda a: a.clamp(min=0.5),
        lambda a: a.clamp(max=0),
        lambda a: a.clamp(0, 0),
        lambda a: F.hardtanh(a),
        lambda a: F.threshold(a, 0, 1),
        lambda a: F.threshold(a, 0.1, 0),
        lambda a: a.detach().relu(),
        lambda a: a.long().clamp(min=0),
    ],
)
def test_what_is_no_rectifier_is_left_alone(write: Callable[[Tensor], Tensor]) -> None:
    a = tensor(*X).requires_grad_() * 2
    expected = write(a)
    with capture.rectifiers("guided") as found:
        y = write(a)
    assert found.count == 0
    assert torch.equal(y, expected)
    assert type(y.grad_fn) is type(expected.grad_fn)


def test_calls_with_out_and_without_gradients_are_left_alone() -> None:
    a, out = tensor(-1, 2), tensor(0, 0)
    with capture.rectifiers("guided") as found:
        torch.clamp(a, min=0, out=out)
        with torch.no_grad():
            (a.requires_grad_() * 1).relu_()
    assert out.tolist() == [0, 2]
    assert found.count == 0


def test_residual_path_taken_before_an_in_place_rectifier_keeps_its_own_gradient() -> None:
    x = tensor(*X).requires_grad_()
    for rule, rectified in (("guided", tensor(*GRADIENT["guided"])), ("deconvnet", tensor(*GRADIENT["deconvnet"]))):
        with capture.rectifiers(rule):
            a = 2 * x
            shortcut = 3 * a
            a.relu_()
            y = a + shortcut
            (gradient,) = capture.differentiate((tensor(*V) * y).sum(), [x])
        assert y.tolist() == [-3, 0, 8, 28, 12]
        assert torch.equal(gradient, rectified + 6 * tensor(*V))


def test_in_place_on_a_part_leaves_the_gradient_of_the_rest() -> None:
    x = torch.tensor([X, X], dtype=f64, requires_grad=True)
    with capture.rectifiers("guided"):
        a = 2 * x
        a[0].relu_()
        (gradient,) = capture.differentiate((a * tensor(*V)).sum(), [x])
    assert gradient.tolist() == [GRADIENT["guided"], [2, 2, 2, 2, -2]]


def test_reused_module_gets_the_rule_at_each_call() -> None:
    relu = nn.ReLU()
    x = tensor(3, 3, -1).requires_grad_()
    with capture.rectifiers("guided") as found:
        y = relu(relu(x) * tensor(-1, 1, 1) + 5) * tensor(1, 1, 1)
        (gradient,) = capture.differentiate(y.sum(), [x])
    # The outer rectifier passes 1 everywhere; times (-1, 1, 1); the inner one stops the -1 and the inactive unit.
    assert gradient.tolist() == [0, 1, 0]
    assert found.count == 2


def test_exported_graph_gets_the_rule() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu6(F.relu(2 * x))

    graph = torch.export.export(Net(), (tensor(*X),)).module()
    x = tensor(*X).requires_grad_()
    with capture.rectifiers("guided") as found:
        y = graph(x)
        (gradient,) = capture.differentiate((tensor(*V) * y).sum(), [x])
    assert gradient.tolist() == BOUNDED_GRADIENT["guided"]
    assert found.count == 2


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_module_gets_the_rule(backend: str, in_place: bool) -> None:
    """Dynamo follows the mode into what it compiles, and compiles again for another rule or none.

    In-place rectifiers lost their gradient in compiled modules once.
    """
    torch._dynamo.reset()

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    model = torch.compile(nn.Sequential(Twice(), nn.ReLU(inplace=in_place)), backend=backend)
    x = tensor(*X).requires_grad_()
    for _ in range(2):
        for rule in ("plain", "guided", "deconvnet"):
            with capture.rectifiers(rule) as found:
                y = model(x)
                found.check(y)
                (gradient,) = capture.differentiate((tensor(*V) * y).sum(), [x])
            assert gradient.tolist() == GRADIENT[rule]
            assert found.count == 1
        (gradient,) = capture.differentiate((tensor(*V) * model(x)).sum(), [x])
        assert gradient.tolist() == GRADIENT["plain"]


def test_two_threads_with_different_rules_do_not_mix() -> None:
    barrier = threading.Barrier(2)
    found: dict[str, list[float]] = {}

    def work(rule: str) -> None:
        x = tensor(*X).requires_grad_()
        with capture.rectifiers(rule):
            barrier.wait(300)  # both modes are active from here
            y = F.relu(2 * x)
            barrier.wait(300)
            (gradient,) = capture.differentiate((tensor(*V) * y).sum(), [x])
        found[rule] = gradient.tolist()

    threads = [threading.Thread(target=work, args=(rule,)) for rule in ("guided", "deconvnet")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {rule: GRADIENT[rule] for rule in ("guided", "deconvnet")}


def test_rule_ends_with_the_block_also_after_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), capture.rectifiers("guided"):
        raise KeyboardInterrupt
    x = tensor(*X).requires_grad_()
    assert F.relu(x).grad_fn.name() == "ReluBackward0"


def test_unknown_rule_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="rule should be one of 'plain', 'guided', 'deconvnet', got 'Guided'"),
        capture.rectifiers("Guided"),
    ):
        pass


# -------------------------------------------------------------------------------------------- what gets no rule


def check(model: Callable[[Tensor], Tensor], module: nn.Module | None = None) -> None:
    x = tensor(*X).requires_grad_()
    with capture.rectifiers("guided", model=module) as found:
        found.check(model(2 * x).sum())


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.GELU(), "GELU"),
        (nn.SiLU(), "SiLU"),
        (nn.LeakyReLU(), "LeakyReLU"),
        (nn.ELU(), "ELU or SELU"),
        (nn.SELU(), "ELU or SELU"),
        (nn.CELU(), "CELU"),
        (nn.Mish(), "Mish"),
        (nn.Softplus(), "Softplus"),
        (nn.Hardswish(), "Hardswish"),
        (nn.RReLU().eval(), "LeakyReLU|RReLU"),
        (nn.PReLU(dtype=f64), "PReLU"),
    ],
)
def test_other_activations_are_named(module: nn.Module, name: str) -> None:
    with pytest.warns(capture.RectifierWarning, match=rf"'guided' rule was not applied to ({name}) \(2 times\)"):
        check(nn.Sequential(module, nn.ReLU(), module))


def test_rectifiers_that_were_not_intercepted_are_named() -> None:
    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad

    class MyReLU(Custom):
        pass

    with pytest.warns(capture.RectifierWarning, match=r"MyReLUBackward at .*test_capture.py:\d+ \(1 times\)"):
        check(MyReLU.apply)


def halving_assignment(a: Tensor) -> Tensor:
    b = a.clone()
    b[b < 0] *= 0.5
    return b


def outside_of_torch(a: Tensor) -> Tensor:
    return a * torch.from_numpy(a.detach().numpy() > 0)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda a: torch.where(a > 0, a, 0.1 * a), "torch.where"),
        (lambda a: torch.maximum(a, 0.1 * a), "torch.maximum"),
        (lambda a: torch.max(a, a.flip(0)), "torch.max"),
        (lambda a: a * (a > 0.1), "torch.mul"),
        (lambda a: torch.where(a > 0, a, torch.expm1(a)), "torch.where"),
        (lambda a: 0.55 * a + 0.45 * a.abs(), "torch.add"),
        (lambda a: a * torch.sigmoid(a), "torch.mul"),
        (lambda a: torch.log(1 + a.exp()), "torch.log"),
        (halving_assignment, "torch.setitem"),
        (lambda a: a * (a.flip(0) > 0).flip(0), "torch.mul"),
        (lambda a: torch.einsum("i,i->i", a, (a > 0).to(a.dtype)), "torch.einsum"),
        (lambda a: torch.zeros_like(a).masked_scatter(a > 0, a[a > 0]), "torch.masked_scatter"),
        (lambda a: torch.stack([a, torch.zeros_like(a)]).amax(0), "torch.amax"),
        (lambda a: torch.stack([a, torch.zeros_like(a)]).max(0).values, "torch.max"),
        (outside_of_torch, "what is done outside of torch after torch.numpy"),
    ],
)
def test_activations_written_by_hand_are_named_with_their_place(write: Callable[[Tensor], Tensor], name: str) -> None:
    place = rf"{re.escape(__file__)}:\d+ \(1 times\)"
    with pytest.warns(capture.RectifierWarning, match=rf"'guided' rule was not applied to {name} at {place}"):
        check(lambda a: write(a.relu() - 1))
    a = tensor(*X).requires_grad_() * 2
    with capture.rectifiers("guided") as found:
        y = write(a)
    assert found.count == 0
    assert torch.equal(y, write(tensor(*X) * 2))


def standardized(a: Tensor) -> Tensor:
    return a / (a.square().mean() + 1e-6).sqrt()


@pytest.mark.parametrize(
    "write",
    [
        lambda a: a * torch.sigmoid(a.mean()),
        standardized,
        lambda a: a * 0.5 + a.flip(0),
        lambda a: a + (a.round() - a).detach(),
        torch.sigmoid,
        lambda a: a.clamp(min=1e-6).pow(3).mean().pow(1 / 3),
        lambda a: torch.where(torch.ones(5, dtype=torch.bool), a, 0),
        lambda a: torch.cat([a, torch.zeros(2, dtype=f64)]),
    ],
)
def test_what_is_no_activation_is_not_named(write: Callable[[Tensor], Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(lambda a: write(a.relu() + a))


def test_a_rectifier_of_nan_written_by_hand_keeps_its_values() -> None:
    """``where`` makes zero of NaN, and a rectifier NaN: then the rule is not applied, and that is said."""
    a = tensor(float("nan"), -1.0, 2.0).requires_grad_() * 1
    with capture.rectifiers("guided") as found:
        y = torch.where(a > 0, a, 0)
        with pytest.warns(capture.RectifierWarning, match="torch.where at"):
            found.check(y.sum())
    assert y.tolist() == [0, 0, 2]


@torch.jit.script
def scripted_rectifier(a: Tensor) -> Tensor:
    return a * (a > 0)


def test_scripted_functions_are_named() -> None:
    class Calls(nn.Module):
        def forward(self, a: Tensor) -> Tensor:
            return scripted_rectifier(a.relu() - 1)

    with pytest.warns(capture.RectifierWarning, match=r"scripted code.*'scripted_rectifier'"):
        check(Calls(), Calls())


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("inner", "name"),
    [
        (nn.ReLU(), "ReLU"),
        (nn.ReLU6(), "hardtanh"),
        (nn.Threshold(0.0, 0.0), "threshold"),
    ],
)
def test_scripted_modules_are_named(inner: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.ReLU(), torch.jit.script(inner))
    with pytest.warns(capture.RectifierWarning, match=rf"{name} \(1 times\).*scripted modules .* '1'"):
        check(model, model)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_code_that_torch_has_fused_is_named() -> None:
    """After a few calls, torch hides the operators of scripted code behind one autograd node."""
    model = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Sigmoid()))
    for _ in range(4):
        model(tensor(*X).requires_grad_())
    with pytest.warns(capture.RectifierWarning, match=r"not applied to scripted code \(1 times\)"):
        check(model)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_clamp_is_found() -> None:
    def clamps(a: Tensor) -> Tensor:
        return a.clamp(min=0.0) + a.clamp_min(0.0) + a.clamp(min=0.5) + a.clamp(max=0.0)

    with pytest.warns(capture.RectifierWarning, match=r"clamp \(2 times\)"):
        check(torch.jit.script(clamps))


def test_a_model_without_rectifier_is_reported() -> None:
    with pytest.warns(capture.RectifierWarning, match=r"no rectifier \(ReLU\): the 'guided' rule gives its ordinary"):
        check(nn.Tanh())


@pytest.mark.parametrize("write", [*UNBOUNDED.values(), *BOUNDED.values()], ids=[*UNBOUNDED, *BOUNDED])
def test_no_warning_where_everything_was_intercepted(write: Callable[[Tensor], Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(write)
