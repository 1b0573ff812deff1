"""Gradient methods against plain autograd and hand-written backward rules; the model is left as it was."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastviz.execution.evaluation_mode import _holders
from fastviz.execution.rectifiers import RectifierWarning
from fastviz.methods.attribution.grad_cam import grad_cam
from fastviz.methods.attribution.gradients import (
    deconvnet,
    gradient_times_input,
    guided_backprop,
    input_gradient,
    saliency,
    smooth_grad,
)
from fastviz.methods.attribution.occlusion import occlusion
from fastviz.methods.registry import METHODS
from fastviz.targets.objectives import channel, class_probability, class_score, neuron
from fastviz.targets.selection import Target

f64 = torch.float64
ALL: list[Callable[..., Tensor]] = [
    input_gradient,
    saliency,
    gradient_times_input,
    lambda model, x, target=None: smooth_grad(model, x, target, samples=2),
    guided_backprop,
    deconvnet,
]
NAMES = ["input_gradient", "saliency", "gradient_times_input", "smooth_grad", "guided_backprop", "deconvnet"]
each_method = pytest.mark.parametrize("method", ALL, ids=NAMES)


class _Rule(torch.autograd.Function):
    """The backward rules as the papers write them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: str) -> Tensor:
        ctx.active, ctx.rule = x > 0, rule
        return torch.where(x > 0, x, torch.zeros_like(x))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        R = grads[0]
        return R * (R > 0) * (ctx.active if ctx.rule == "guided" else 1), None


class Net(nn.Module):
    """A residual network of five rectifiers in several spellings; dropout and batch norm show the mode it runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(4 * 3 * 3, 6), nn.Linear(6, 5)
        self.rule: str | None = None  # for the definition: the rectifiers written out

    def forward(self, x: Tensor) -> Tensor:
        def rectify(value: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
            return call(value) if self.rule is None else _Rule.apply(value, self.rule)

        a = rectify(self.norm(self.conv1(x)), self.relu)
        shortcut = a
        b = self.conv2(a)
        c = 0.5 * b
        b = rectify(b, lambda v: v.relu_())
        a = rectify(b + shortcut + c, F.relu)
        a = F.max_pool2d(a, 2).flatten(1)
        a = self.drop(rectify(self.fc1(a), lambda v: torch.clamp(v, min=0)))
        return rectify(self.fc2(a), self.relu)


@pytest.fixture
def model() -> Net:
    torch.manual_seed(1)
    net = Net().to(f64)
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    net.fc2.bias.data.fill_(1.0)
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 6, 6, dtype=f64, generator=torch.Generator().manual_seed(2))


def by_definition(model: Net, x: Tensor, k: Tensor, rule: str | None = None) -> Tensor:
    """Gradient of the sum of the scores of classes k, in evaluation mode, with hand-written rectifiers."""
    leaf = x.detach().clone().requires_grad_()
    model.eval()
    model.rule = rule
    model(leaf).gather(1, k[:, None]).sum().backward()
    model.rule = None
    model.zero_grad()
    model.train()
    assert leaf.grad is not None
    return leaf.grad


K = torch.tensor([1, 4, 2])


def test_input_gradient_saliency_and_product_are_autograds(model: Net, x: Tensor) -> None:
    expected = by_definition(model, x, K)
    assert expected.abs().sum((1, 2, 3)).all()
    assert torch.equal(input_gradient(model, x, K), expected)
    assert torch.equal(saliency(model, x, K), expected.abs().max(dim=1).values)
    assert torch.equal(gradient_times_input(model, x, K), expected * x)


@pytest.mark.parametrize(("method", "rule"), [(guided_backprop, "guided"), (deconvnet, "deconvnet")])
def test_backward_rules_are_those_of_the_papers(
    model: Net, x: Tensor, method: Callable[..., Tensor], rule: str
) -> None:
    found = method(model, x, K)
    torch.testing.assert_close(found, by_definition(model, x, K, rule), rtol=1e-12, atol=1e-14)
    assert not torch.equal(found, input_gradient(model, x, K))
    assert found.abs().sum() > 0


def test_guided_backprop_worked_by_hand() -> None:
    """h = ReLU(Wx) with W = (1, -1; 1, 1; -2, 0), S = h1 - h2 + h3: x = (2, 1) gives h = (1, 3, 0)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).to(f64)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -1], [1, 1], [-2, 0]]))
        model[3].weight.copy_(torch.tensor([[1.0, -1, 1]]))
    x = torch.tensor([2.0, 1.0], dtype=f64).reshape(1, 1, 1, 2)
    assert input_gradient(model, x).flatten().tolist() == [0, -2]  # W1 - W2
    assert guided_backprop(model, x).flatten().tolist() == [1, -1]  # W1: the gradient of h2 is negative, h3 is inactive
    assert deconvnet(model, x).flatten().tolist() == [-1, -1]  # W1 + W3


def test_smooth_grad_without_noise_is_the_gradient(model: Net, x: Tensor) -> None:
    found = smooth_grad(model, x, K, samples=3, noise=0)
    torch.testing.assert_close(found, by_definition(model, x, K), rtol=1e-12, atol=0)


def test_smooth_grad_is_the_mean_over_noise_of_the_given_size(model: Net, x: Tensor) -> None:
    generator = torch.Generator().manual_seed(7)
    span = x.flatten(1).max(1).values - x.flatten(1).min(1).values
    expected = torch.zeros_like(x)
    for _ in range(4):
        noise = torch.randn(x.shape, dtype=f64, generator=generator) * (0.3 * span)[:, None, None, None]
        expected += by_definition(model, x + noise, K) / 4
    found = smooth_grad(model, x, K, samples=4, noise=0.3, seed=7)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_smooth_grad_keeps_the_class_predicted_without_noise() -> None:
    """Two classes almost tie, so noise makes the other one win in about half of the copies."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).to(f64)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
    x = torch.tensor([[1.01, 1, 0, 0], [1, 1.01, 0, 0]], dtype=f64).reshape(2, 1, 2, 2)
    found = smooth_grad(model, x, samples=16, noise=1.0)
    assert found.flatten(1).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples should be at least 1, got 0"),
        ({"noise": -0.1}, "noise should be finite and above 0, got -0.1"),
        ({"seed": -1}, "seed should be at least 0, got -1"),
    ],
)
def test_smooth_grad_refuses(model: Net, x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smooth_grad(model, x, **options)


def test_gradients_in_low_precision_are_float32(model: Net, x: Tensor) -> None:
    low = model.to(torch.bfloat16)
    for method in ALL:
        assert method(low, x.bfloat16(), 1).dtype == torch.float32
    assert input_gradient(low, x.bfloat16(), neuron("conv1", 0)).dtype == torch.float32  # of a crop


# ------------------------------------------------------------------------------------------------------- targets


@each_method
def test_several_targets_per_sample_are_the_single_ones(method: Callable[..., Tensor], model: Net, x: Tensor) -> None:
    columns: list[Any] = [2, None, K, class_probability(1), neuron("conv2", 1, (2, 5)), channel("fc1", 3)]
    together = method(model, x, columns)
    for number, target in enumerate(columns):
        torch.testing.assert_close(together[:, number], method(model, x, target), rtol=1e-12, atol=1e-14)
    table = torch.tensor([[0, 2], [4, 1], [3, 3]])
    assert torch.equal(method(model, x, table), method(model, x, [table[:, 0], table[:, 1]]))


def test_unit_inside_the_network(model: Net, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    model.eval()
    (expected,) = torch.autograd.grad(model.norm(model.conv1(leaf))[:, 2, 0, 3].sum(), leaf)
    assert torch.equal(input_gradient(model, x, neuron("norm", 2, (0, 3))), expected)
    # A convolution of 3x3 sees 3x3 pixels, of which the border cuts one row off.
    assert (expected[0].abs().sum(0) > 0).sum() == 6


def test_guided_unit_in_front_of_an_in_place_rectifier(model: Net, x: Tensor) -> None:
    """conv2 is followed by ``relu_()``: the target is the value before it."""
    assert torch.equal(guided_backprop(model, x, neuron("conv1", 0)), input_gradient(model, x, neuron("conv1", 0)))


# ---------------------------------------------------------------------------------------- the model is not touched


def snapshot(model: nn.Module) -> list[object]:
    state: list[object] = [value.clone() for value in model.state_dict().values()]
    for module in model.modules():
        state += [
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._backward_hooks),
        ]
    for parameter in model.parameters():
        state += [parameter.requires_grad, parameter.grad is None]
    return [value.tolist() if isinstance(value, Tensor) else value for value in state]


@each_method
def test_model_input_and_random_state_are_left_alone(method: Callable[..., Tensor], model: Net, x: Tensor) -> None:
    model.conv1.eval()
    model.fc1.weight.requires_grad_(False)
    before, values, random = snapshot(model), x.clone(), torch.get_rng_state()
    result = method(model, x)
    assert snapshot(model) == before
    assert torch.equal(x, values)
    assert torch.equal(torch.get_rng_state(), random)
    assert x.grad is None
    assert not x.requires_grad
    assert not result.requires_grad
    assert not result.is_inference()


def test_input_that_requires_gradients_keeps_its_own(model: Net, x: Tensor) -> None:
    x.requires_grad_()
    x.grad = torch.ones_like(x)
    result = saliency(model, x * 1, K)
    assert torch.equal(saliency(model, x, K), result)
    assert x.requires_grad
    assert torch.equal(x.grad, torch.ones_like(x))


@each_method
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_frozen_parameters_and_gradients_switched_off(
    method: Callable[..., Tensor], around: Callable[[], Any], model: Net, x: Tensor
) -> None:
    expected = method(model, x, K)
    model.requires_grad_(False)
    assert torch.equal(method(model, x, K), expected)
    with around():
        made_inside = x.clone()
        assert torch.equal(method(model, x, K), expected)
        assert torch.equal(method(model, made_inside, K), expected)


def test_no_gradient_of_a_parameter_is_computed(model: Net, x: Tensor) -> None:
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weight: Tensor) -> Tensor:
            return weight * 1

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise AssertionError("the gradient of a weight was computed")

    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 72, dtype=f64))

        def forward(self, value: Tensor) -> Tensor:
            return F.linear(value.flatten(1), Refuses.apply(self.weight)).relu()

    assert guided_backprop(Guarded(), x, 0).shape == x.shape


@each_method
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_restored_after_an_error(
    method: Callable[..., Tensor], error: type[BaseException], model: Net, x: Tensor
) -> None:
    def fail(*_: object) -> None:
        raise error

    before, random = snapshot(model), torch.get_rng_state()
    handle = model.fc2.register_forward_hook(fail)
    with pytest.raises(error):
        method(model, x, neuron("conv1", 0))
    handle.remove()
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert F.relu(x.requires_grad_()).grad_fn.name() == "ReluBackward0"
    assert not _holders


def test_a_model_that_works_in_place_on_its_input(x: Tensor) -> None:
    class Preprocesses(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            value -= 1
            return (value * 3).flatten(1).relu_()

    before = x.clone()
    gradient = input_gradient(Preprocesses(), x + 2, 0)
    assert gradient[0].flatten().tolist() == [3.0 * float(before[0].flatten()[0] > -1)] + [0.0] * 71
    saliency(Preprocesses(), x)
    assert torch.equal(x, before)


def test_two_threads_with_different_rules_on_one_model(model: Net, x: Tensor) -> None:
    expected = {method: method(model, x, K) for method in (guided_backprop, deconvnet, input_gradient)}
    before = snapshot(model)
    wrong: list[str] = []

    def work(method: Callable[..., Tensor]) -> None:
        for _ in range(10):
            if not torch.equal(method(model, x, K), expected[method]):
                wrong.append(method.__name__)

    threads = [threading.Thread(target=work, args=(method,)) for method in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert snapshot(model) == before


@pytest.mark.cuda
@each_method
def test_cuda_gives_the_numbers_of_the_cpu(method: Callable[..., Tensor], model: Net, x: Tensor) -> None:
    if method is ALL[3]:
        pytest.skip("the noise of SmoothGrad comes from the device's own generator")
    columns = [None, K, neuron("conv2", K % 4, (2, K)), channel("fc1", 3) * 2.0]
    expected = method(model, x, columns)
    found = method(model.cuda(), x.cuda(), columns)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(method(model, x.cuda(), K), method(model, x.cuda(), K.cuda()))


@pytest.mark.cuda
def test_cuda_checkpointed_parts_get_the_rule(x: Tensor) -> None:
    """The backward pass, and what it runs again, is on another thread there."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 3, 3), nn.Linear(48, 4)
    tail = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), second, nn.ReLU())

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.tail = first, tail

        def forward(self, value: Tensor) -> Tensor:
            return checkpoint(self.tail, self.first(value), use_reentrant=False)

    expected = guided_backprop(nn.Sequential(first, tail).to(f64), x, 1)
    assert expected.abs().sum() > 0
    found = guided_backprop(Checkpointed().to("cuda", f64), x.cuda(), 1)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-12)


def test_four_threads_get_the_bits_of_one(x: Tensor) -> None:
    """Hooks that one thread had on the model sent the sweeps and crops of others on another path, of other rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    images = torch.randn(2, 2, 24, 24)
    methods: dict[str, Callable[[], Tensor]] = {
        "saliency": lambda: saliency(model, images, 1),
        "guided": lambda: guided_backprop(model, images, 1),
        "unit": lambda: input_gradient(model, images, neuron("3", 2, (3, 3))),
        "smooth": lambda: smooth_grad(model, images, 1, samples=2),
        "grad_cam": lambda: grad_cam(model, images, 1),
        "occlusion": lambda: occlusion(model, images, 1, window=6, stride=6).scores,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads begin with the default number, which may sum in another order
    try:
        expected = {name: method() for name, method in methods.items()}
        barrier, different = threading.Barrier(4), []

        def work(first: int) -> None:
            torch.set_num_threads(1)
            barrier.wait(30)
            names = list(methods)[first:] + list(methods)[:first]
            for name in 5 * names:
                if not torch.equal(methods[name](), expected[name]):
                    different.append(name)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        torch.set_num_threads(threads)
    assert not different


# ----------------------------------------------------------------------------------------------- warnings and errors


def test_warning_names_the_activation_and_points_at_the_caller(x: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.GELU(), nn.Linear(4, 3)).to(f64)
    for method in (guided_backprop, deconvnet):
        with pytest.warns(RectifierWarning, match=r"GELU \(1 times\)") as caught:
            found = method(model, x, 1)
        assert [warning.filename for warning in caught] == [__file__]
        assert torch.equal(found, input_gradient(model, x, 1))


def test_plain_gradients_do_not_warn(model: Net, x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saliency(nn.Sequential(nn.Flatten(), nn.GELU()), x)
        guided_backprop(model, x)


@each_method
def test_empty_batch_gives_an_empty_result(method: Callable[..., Tensor], model: Net, x: Tensor) -> None:
    shape = (6, 6) if method is saliency else (2, 6, 6)
    assert method(model, x[:0]).shape == (0, *shape)
    assert method(model, x[:0], [1, 2, 3]).shape == (0, 3, *shape)
    assert method(model, x[:0].float()).dtype == torch.float32


@each_method
@pytest.mark.parametrize(
    ("change", "target", "error", "message"),
    [
        (lambda x: x[0], 0, ValueError, r"x should have shape \[N, C, H, W\], got \[2, 6, 6\]"),
        (lambda x: x.long(), 0, TypeError, "x should be a floating-point tensor, got torch.int64"),
        (lambda x: x.to("meta"), 0, ValueError, "x should be on the device of the model, cpu, got meta"),
        (lambda x: x, 5, ValueError, "target should be a class from 0 to 4, got 5"),
        (lambda x: x, torch.tensor([0, 1]), ValueError, "target should have one class per sample, 3, got 2"),
        (lambda x: x, "dog", TypeError, "target should be None, a class index"),
        (lambda x: x, neuron("conv3", 0), ValueError, "layer 'conv3' is not known; nearest: conv2, conv1"),
    ],
)
def test_bad_input_is_named(
    method: Callable[..., Tensor],
    change: Callable[[Tensor], Tensor],
    target: Target,
    error: type[Exception],
    message: str,
    model: Net,
    x: Tensor,
) -> None:
    with pytest.raises(error, match=message):
        method(model, change(x), target)


def test_models_that_cannot_be_differentiated_are_refused(x: Tensor) -> None:
    class Cut(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            with torch.no_grad():
                return value.flatten(1)

    with pytest.raises(ValueError, match=r"target should depend on x, but has no gradient for it .*torch.no_grad"):
        saliency(Cut(), x)
    with torch.inference_mode():
        unusable = nn.Sequential(nn.Flatten(), nn.Linear(72, 2, dtype=f64))
    with pytest.raises(ValueError, match=r"model should not have parameters made under torch.inference_mode\(\)"):
        guided_backprop(unusable, x)


def test_of_several_things_the_class_scores_are_taken(x: Tensor) -> None:
    class Pair(nn.Module):
        def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
            return value.flatten(1), value

    assert torch.equal(saliency(Pair(), x, 1), saliency(nn.Flatten(), x, 1))


def test_what_is_no_model_is_refused(x: Tensor) -> None:
    with pytest.raises(TypeError, match=r"model should be a torch.nn.Module, got function"):
        saliency(lambda value: value, x)  # type: ignore[arg-type]


def test_class_score_and_class_index_are_the_same(model: Net, x: Tensor) -> None:
    assert torch.equal(saliency(model, x, class_score(2)), saliency(model, x, 2))


def test_registry_lists_every_method_with_its_paper() -> None:
    assert set(NAMES) < set(METHODS)
    for name, method in METHODS.items():
        assert method.name == name == method.function.__name__
        assert "https://" in method.paper
        assert method.paper.split("https://")[1] in (method.function.__doc__ or "")
        assert method.draws in ("heat", "signed", "gradient", "mask", "picture")
        assert method.summary[0].islower()
