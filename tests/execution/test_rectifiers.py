"""Every way of writing a rectifier gets the backward rule inside the ``with``, and none behind it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastviz.execution.differentiation import differentiate
from fastviz.execution.rectifiers import RectifierWarning, rectifier_rule

f64 = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=f64)


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
    with rectifier_rule(rule) as found:
        a = 2 * x
        y = write(a)
        value = y.detach().clone()
        S = (tensor(*V) * y).sum()
        assert not found.missed(S)
        (gradient,) = differentiate(S, [x])
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
        with rectifier_rule("guided"):
            (gradient,) = differentiate(write(x * 1).sum(), [x])
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
    with rectifier_rule("guided") as found:
        y = write(a)
    assert found.count == 0
    assert torch.equal(y, expected)
    assert type(y.grad_fn) is type(expected.grad_fn)


def test_calls_with_out_and_without_gradients_are_left_alone() -> None:
    a, out = tensor(-1, 2), tensor(0, 0)
    with rectifier_rule("guided") as found:
        torch.clamp(a, min=0, out=out)
        with torch.no_grad():
            (a.requires_grad_() * 1).relu_()
    assert out.tolist() == [0, 2]
    assert found.count == 0


def test_residual_path_taken_before_an_in_place_rectifier_keeps_its_own_gradient() -> None:
    x = tensor(*X).requires_grad_()
    for rule, rectified in (("guided", tensor(*GRADIENT["guided"])), ("deconvnet", tensor(*GRADIENT["deconvnet"]))):
        with rectifier_rule(rule):
            a = 2 * x
            shortcut = 3 * a
            a.relu_()
            y = a + shortcut
            (gradient,) = differentiate((tensor(*V) * y).sum(), [x])
        assert y.tolist() == [-3, 0, 8, 28, 12]
        assert torch.equal(gradient, rectified + 6 * tensor(*V))


def test_in_place_on_a_part_leaves_the_gradient_of_the_rest() -> None:
    x = torch.tensor([X, X], dtype=f64, requires_grad=True)
    with rectifier_rule("guided"):
        a = 2 * x
        a[0].relu_()
        (gradient,) = differentiate((a * tensor(*V)).sum(), [x])
    assert gradient.tolist() == [GRADIENT["guided"], [2, 2, 2, 2, -2]]


def test_reused_module_gets_the_rule_at_each_call() -> None:
    relu = nn.ReLU()
    x = tensor(3, 3, -1).requires_grad_()
    with rectifier_rule("guided") as found:
        y = relu(relu(x) * tensor(-1, 1, 1) + 5) * tensor(1, 1, 1)
        (gradient,) = differentiate(y.sum(), [x])
    # The outer rectifier passes 1 everywhere; times (-1, 1, 1); the inner one stops the -1 and the inactive unit.
    assert gradient.tolist() == [0, 1, 0]
    assert found.count == 2


def test_exported_graph_gets_the_rule() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu6(F.relu(2 * x))

    graph = torch.export.export(Net(), (tensor(*X),)).module()
    x = tensor(*X).requires_grad_()
    with rectifier_rule("guided") as found:
        y = graph(x)
        (gradient,) = differentiate((tensor(*V) * y).sum(), [x])
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
            with rectifier_rule(rule) as found:
                y = model(x)
                found.check(y)
                (gradient,) = differentiate((tensor(*V) * y).sum(), [x])
            assert gradient.tolist() == GRADIENT[rule]
            assert found.count == 1
        (gradient,) = differentiate((tensor(*V) * model(x)).sum(), [x])
        assert gradient.tolist() == GRADIENT["plain"]


def test_two_threads_with_different_rules_do_not_mix() -> None:
    barrier = threading.Barrier(2)
    found: dict[str, list[float]] = {}

    def work(rule: str) -> None:
        x = tensor(*X).requires_grad_()
        with rectifier_rule(rule):
            barrier.wait(300)  # both modes are active from here
            y = F.relu(2 * x)
            barrier.wait(300)
            (gradient,) = differentiate((tensor(*V) * y).sum(), [x])
        found[rule] = gradient.tolist()

    threads = [threading.Thread(target=work, args=(rule,)) for rule in ("guided", "deconvnet")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {rule: GRADIENT[rule] for rule in ("guided", "deconvnet")}


def test_rule_ends_with_the_block_also_after_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), rectifier_rule("guided"):
        raise KeyboardInterrupt
    x = tensor(*X).requires_grad_()
    assert F.relu(x).grad_fn.name() == "ReluBackward0"


def test_unknown_rule_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="rule should be one of 'plain', 'guided', 'deconvnet', got 'Guided'"),
        rectifier_rule("Guided"),
    ):
        pass


def check(model: Callable[[Tensor], Tensor], module: nn.Module | None = None) -> None:
    x = tensor(*X).requires_grad_()
    with rectifier_rule("guided", model=module) as found:
        found.check(model(2 * x).sum())


def test_a_rectifier_of_nan_written_by_hand_keeps_its_values() -> None:
    """``where`` makes zero of NaN, and a rectifier NaN: then the rule is not applied, and that is said."""
    a = tensor(float("nan"), -1.0, 2.0).requires_grad_() * 1
    with rectifier_rule("guided") as found:
        y = torch.where(a > 0, a, 0)
        with pytest.warns(RectifierWarning, match="torch.where at"):
            found.check(y.sum())
    assert y.tolist() == [0, 0, 2]


def test_a_model_without_rectifier_is_reported() -> None:
    with pytest.warns(RectifierWarning, match=r"no rectifier \(ReLU\): the 'guided' rule gives its ordinary"):
        check(nn.Tanh())


@pytest.mark.parametrize("write", [*UNBOUNDED.values(), *BOUNDED.values()], ids=[*UNBOUNDED, *BOUNDED])
def test_no_warning_where_everything_was_intercepted(write: Callable[[Tensor], Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(write)
