"""The ways in which gradients are computed with less work: crops, early ends, batches, memory order, bfloat16."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.checkpoint import checkpoint

from fastviz.engine.gradients import input_gradients
from fastviz.methods.attribution.cam import cam
from fastviz.methods.attribution.grad_cam import grad_cam, guided_grad_cam
from fastviz.methods.attribution.gradients import (
    deconvnet,
    gradient_times_input,
    guided_backprop,
    input_gradient,
    saliency,
    smooth_grad,
)
from fastviz.targets.objectives import channel, class_probability, layer, neuron

f64 = torch.float64


class Net(nn.Module):
    """Strides, padding, pooling, a residual sum, an in-place rectifier; two linear layers at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 5, stride=2, padding=2)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 6, 3, padding=1)
        self.average, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = F.relu(self.norm(self.conv2(x)) + x)
        x = self.relu(self.conv3(x))
        return self.fc(self.average(x).flatten(1))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(1)
    net = Net().to(f64)
    net.norm.running_mean.normal_()
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 48, 40, dtype=f64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def seen(model: Net) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the images that the model gets, real ones only; a hook of its own would make it run whole."""
    shapes: list[tuple[int, ...]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module is model:
            shapes.append(tuple(inputs[0].shape))

    handle = register_module_forward_pre_hook(note)
    yield shapes
    handle.remove()


def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch crops off."""
    monkeypatch.setattr(input_gradients._Work, "of_units", lambda *given: None)


METHODS: list[Callable[..., Tensor]] = [
    input_gradient,
    saliency,
    gradient_times_input,
    guided_backprop,
    deconvnet,
    lambda *given, **options: smooth_grad(*given, **options, samples=2),
]
each_method = pytest.mark.parametrize(
    "method", METHODS, ids=["input_gradient", "saliency", "product", "guided", "deconvnet", "smooth_grad"]
)


# -------------------------------------------------------------------------------------------------------- single units


@each_method
def test_units_on_crops_are_those_of_the_whole_image(
    method: Callable[..., Tensor],
    model: Net,
    x: Tensor,
    seen: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Corners, edges, inside; two layers; one position per sample; the centre. With a class it is a whole pass."""
    rows = torch.tensor([0, 6, 11])
    targets: list[Any] = [
        neuron("conv2", 1, (0, 0)),
        neuron("conv2", torch.tensor([0, 3, 2]), (rows, 9)),
        neuron("conv3", 5),
        neuron("conv2", 2, (11, 0)),
    ]
    found = method(model, x, targets)
    single = method(model, x, targets[1])
    assert seen
    assert all(shape[2] < 40 for shape in seen)
    whole(monkeypatch)
    expected = method(model, x, targets)
    assert seen[-1] == (3, 3, 48, 40)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(single, expected[:, 1], rtol=1e-12, atol=1e-14)
    assert expected.flatten(2).abs().sum(2).min() > 0


def test_units_at_one_place_share_a_pass(model: Net, x: Tensor, seen: list[tuple[int, ...]]) -> None:
    input_gradient(model, x, [neuron("conv2", k, (6, 5)) for k in range(4)])
    assert [shape[0] for shape in seen] == [12]
    input_gradient(model, x, [neuron("conv2", k, (6, 5)) for k in range(4)], batch_size=1)
    assert sum(shape[0] for shape in seen[1:]) == 12
    assert max(shape[0] * shape[2] * shape[3] for shape in seen[1:]) <= 48 * 40


@pytest.mark.parametrize(
    "target",
    [
        neuron("conv3", 0) + neuron("conv2", 1),
        [neuron("conv2", 1), None],
        channel("conv2", 1),
    ],
)
def test_what_is_not_single_units_takes_the_whole_image(
    target: Any, model: Net, x: Tensor, seen: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = input_gradient(model, x, target)
    assert seen == [(3, 3, 48, 40)]
    whole(monkeypatch)
    assert torch.equal(found, input_gradient(model, x, target))


def test_many_large_crops_take_the_whole_image(model: Net, x: Tensor, seen: list[tuple[int, ...]]) -> None:
    """Crops of 25 by 25 pixels are less work than 30 by 30, but with one forward pass for twelve units they are not."""
    units = [neuron("conv3", k % 6, (4, 4)) for k in range(12)]
    for count, shape in ((1, (3, 3, 25, 25)), (12, (3, 3, 30, 30))):
        seen.clear()
        input_gradient(model, x[:, :, :30, :30], units[:count])
        assert seen == [shape]


def test_a_unit_behind_a_global_operation_takes_the_whole_image(x: Tensor) -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU()).to(f64)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1, 2, 3].sum(), leaf)
    assert torch.equal(input_gradient(model, x, neuron("2", 1, (2, 3))), expected)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (neuron("conv2", 4), "channel should be a channel of layer 'conv2' from 0 to 3, got 4"),
        (neuron("conv2", 0, (12, 0)), "position should be a position of layer 'conv2' from 0 to 11"),
        (neuron("conv2", 0, (1,)), "position should have 2 numbers for layer 'conv2'"),
        (
            neuron("conv2", torch.tensor([0, 1])),
            "should have one channel of layer 'conv2' per sample, 3, got 2",
        ),
        (neuron("fc", 0, (1, 1)), r"position should have 0 numbers for layer 'fc', whose output is \[3, 5\], got 2"),
    ],
)
def test_bad_units_are_refused(unit: Any, message: str, model: Net, x: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        saliency(model, x, unit)


def test_warnings_about_rectifiers_come_once_and_point_here(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3)).to(f64)
    for target, options in (
        (neuron("2", 0), {}),
        ([neuron("2", 0), neuron("2", 1, (0, 0))], {}),
        (channel("2", 0), {"batch_size": 1}),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            guided_backprop(model, x, target, **options)
        assert [warning.filename for warning in caught] == [__file__]


# ------------------------------------------------------------------------------------------------------- the early end


@pytest.mark.parametrize(
    "target", [neuron("conv2", 1, (3, 3)), channel("conv2", 1), layer("norm"), [channel("conv2", 0), layer("pool")]]
)
def test_the_pass_ends_at_the_layer(target: Any, model: Net, x: Tensor) -> None:
    """What comes behind the layers would raise; what is in front of them is as it was."""
    expected = input_gradient(model, x, target)
    model.conv3.weight = nn.Parameter(torch.zeros(6, 4, 3, 3, dtype=f64))
    model.fc = nn.Linear(999, 1)  # does not fit
    with pytest.raises(RuntimeError):
        input_gradient(model, x, 0)
    model.fc.forward = lambda x: x  # type: ignore[method-assign]
    calls: list[int] = []

    class Watched(nn.ReLU):
        def forward(self, value: Tensor) -> Tensor:
            if type(value) is Tensor:
                calls.append(1)
            return super().forward(value)

    model.average = Watched()
    torch.testing.assert_close(input_gradient(model, x, target), expected, rtol=1e-12, atol=1e-14)
    assert not calls
    model(x)
    assert calls
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_called_twice_ends_at_its_last_call(model: Net, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    maps = model.eval().pool(F.relu(model.conv1(leaf)))
    maps = F.relu(model.conv3(F.relu(model.norm(model.conv2(maps)) + maps)))
    (expected,) = torch.autograd.grad(maps[:, 3].sum(), leaf)
    torch.testing.assert_close(input_gradient(model, x, channel("relu", 3)), expected, rtol=1e-12, atol=1e-14)


def test_the_end_inside_a_checkpoint(model: Net, x: Tensor) -> None:
    class Saves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, value: Tensor) -> Tensor:
            return checkpoint(self.net, value, use_reentrant=False)

    for ours, theirs in (
        (channel("net.conv2", 1), channel("conv2", 1)),
        (neuron("net.conv2", 1, (0, 5)), neuron("conv2", 1, (0, 5))),
    ):
        expected = guided_backprop(model, x, theirs)
        torch.testing.assert_close(guided_backprop(Saves(), x, ours), expected, rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------------------------------------ batches, memory, precision


TARGETS: list[Any] = [
    None,
    torch.tensor([4, 0, 2]),
    [1, None, class_probability(2)],
    [channel("conv2", 1), torch.tensor([1, 2, 3])],
]


@pytest.mark.parametrize("target", TARGETS)
@each_method
def test_batches_give_the_numbers_of_one_pass(
    method: Callable[..., Tensor], target: Any, model: Net, x: Tensor, seen: list[tuple[int, ...]]
) -> None:
    expected = method(model, x, target)
    seen.clear()
    torch.testing.assert_close(method(model, x, target, batch_size=2), expected, rtol=1e-12, atol=1e-14)
    assert max(shape[0] for shape in seen) == 2
    torch.testing.assert_close(method(model, x, target, batch_size=99), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("target", TARGETS[:3])
@pytest.mark.parametrize("method", [cam, grad_cam, guided_grad_cam])
def test_maps_in_batches_are_those_of_one_pass(
    method: Callable[..., Tensor], target: Any, model: Net, x: Tensor
) -> None:
    expected = method(model, x, target)
    torch.testing.assert_close(method(model, x, target, batch_size=2), expected, rtol=1e-12, atol=1e-14)
    assert len(method(model, x[:0], [None, 1], batch_size=2)) == 0


@each_method
def test_batch_size_and_precision_are_checked(method: Callable[..., Tensor], model: Net, x: Tensor) -> None:
    with pytest.raises(ValueError, match="batch_size should be at least 1, got 0"):
        method(model, x, batch_size=0)
    with pytest.raises(ValueError, match="precision should be one of 'model', 'bfloat16', got 'half'"):
        method(model, x, precision="half")


@pytest.mark.parametrize("method", METHODS[:-1])  # the noise of SmoothGrad depends on the dtype
def test_channels_last_memory_changes_no_number(method: Callable[..., Tensor], model: Net, x: Tensor) -> None:
    """float32 on the CPU runs in channels_last; results come in the order of contiguous memory."""
    model, x = model.float(), x.float()
    found = method(model, x, [1, channel("conv2", 0)])
    expected = method(model.double(), x.double(), [1, channel("conv2", 0)]).float()
    assert found.is_contiguous()
    # guided rules jump where a gradient is zero: a rounding error may let a tiny one through
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("views", [False, True])
def test_a_compiled_model_gives_the_numbers_of_the_plain_one(views: bool, x: Tensor) -> None:
    """The compiler says otherwise than torch that a view fails in channels_last memory."""

    class Head(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value.view(len(value), -1) if views else value.flatten(1)

    torch.manual_seed(3)
    convolutions = [nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, stride=4), nn.ReLU()]
    model = nn.Sequential(*convolutions, Head(), nn.Linear(4 * 3 * 2, 5))
    x = x[:2].float()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    several = [None, torch.tensor([4, 0]), class_probability(2)]
    for method, target in ((saliency, 1), (guided_backprop, several), (deconvnet, torch.tensor([[0, 1], [2, 3]]))):
        torch.testing.assert_close(method(compiled, x, target), method(model, x, target), rtol=1e-4, atol=1e-7)


@each_method
def test_bfloat16_is_close_and_comes_in_the_dtype_of_the_input(
    method: Callable[..., Tensor], model: Net, x: Tensor
) -> None:
    model, x = model.float(), x.float()
    dtypes: list[torch.dtype] = []
    handle = model.conv2.register_forward_hook(lambda *given: dtypes.append(given[2].dtype))
    exact, low = method(model, x, 1), method(model, x, 1, precision="bfloat16")
    handle.remove()
    assert set(dtypes) == {torch.float32, torch.bfloat16}
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    assert F.cosine_similarity(low.flatten(1), exact.flatten(1)).min() > 0.98


@pytest.mark.parametrize("method", [cam, grad_cam, guided_grad_cam])
def test_maps_in_bfloat16(method: Callable[..., Tensor], model: Net, x: Tensor) -> None:
    model, x = model.float(), x.float()
    exact, low = method(model, x, [1, 2]), method(model, x, [1, 2], precision="bfloat16")
    assert low.dtype == torch.float32
    assert F.cosine_similarity(low.flatten(1), exact.flatten(1)).min() > 0.98
