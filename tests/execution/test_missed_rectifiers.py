"""Activations that get no backward rule are named."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastviz.execution.rectifiers import RectifierWarning, rectifier_rule

f64 = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=f64)


X = (-0.5, 0.0, 1.0, 3.5, 1.5)


def check(model: Callable[[Tensor], Tensor], module: nn.Module | None = None) -> None:
    x = tensor(*X).requires_grad_()
    with rectifier_rule("guided", model=module) as found:
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
    with pytest.warns(RectifierWarning, match=rf"'guided' rule was not applied to ({name}) \(2 times\)"):
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

    with pytest.warns(RectifierWarning, match=r"MyReLUBackward at .*test_missed_rectifiers.py:\d+ \(1 times\)"):
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
    with pytest.warns(RectifierWarning, match=rf"'guided' rule was not applied to {name} at {place}"):
        check(lambda a: write(a.relu() - 1))
    a = tensor(*X).requires_grad_() * 2
    with rectifier_rule("guided") as found:
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


@torch.jit.script
def scripted_rectifier(a: Tensor) -> Tensor:
    return a * (a > 0)


def test_scripted_functions_are_named() -> None:
    class Calls(nn.Module):
        def forward(self, a: Tensor) -> Tensor:
            return scripted_rectifier(a.relu() - 1)

    with pytest.warns(RectifierWarning, match=r"scripted code.*'scripted_rectifier'"):
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
    with pytest.warns(RectifierWarning, match=rf"{name} \(1 times\).*scripted modules .* '1'"):
        check(model, model)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_code_that_torch_has_fused_is_named() -> None:
    """After a few calls, torch hides the operators of scripted code behind one autograd node."""
    model = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Sigmoid()))
    for _ in range(4):
        model(tensor(*X).requires_grad_())
    with pytest.warns(RectifierWarning, match=r"not applied to scripted code \(1 times\)"):
        check(model)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_clamp_is_found() -> None:
    def clamps(a: Tensor) -> Tensor:
        return a.clamp(min=0.0) + a.clamp_min(0.0) + a.clamp(min=0.5) + a.clamp(max=0.0)

    with pytest.warns(RectifierWarning, match=r"clamp \(2 times\)"):
        check(torch.jit.script(clamps))
