"""The incremental engine against the model itself on covered images, in float64."""

from __future__ import annotations

import copy
import gc
import sys
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastviz
from fastviz import ops
from fastviz.engine.incremental import Sweep, drill_down, plan, sweep
from tests.engine.incremental.common import Branches, Function

torchvision = pytest.importorskip("torchvision")

pytestmark = pytest.mark.usefixtures("traced")


def random_boxes(count: int, size: tuple[int, int], seed: int = 0, most: int = 20) -> Tensor:
    """Boxes [count, 4] of sides from 1 to ``most``, anywhere in the image, borders included."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randint(1, min(most, *size) + 1, (count, 2), generator=generator)
    room = torch.tensor(size) - sides + 1
    corner = (torch.rand(count, 2, generator=generator) * room).long()
    return torch.cat([corner, corner + sides], dim=1)


def dense(model: nn.Module, images: Tensor, boxes: Tensor, image: Tensor | None, fill: float | Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(ops.occlude(images, boxes, image, fill))
    return out


def check(
    model: nn.Module,
    images: Tensor,
    boxes: Tensor,
    image: Tensor | None = None,
    fill: float | Tensor = 0.0,
    *,
    path: str = "incremental",
    **options: Any,
) -> Sweep:
    """The sweep, if it gives the dense numbers to 1e-9 of what windows change, on the ``path`` that it should take."""
    result = sweep(model, images, boxes, image, fill, **options)
    expected = dense(model, images, boxes, image, fill)
    clean = dense(model, images, torch.zeros(len(images), 4, dtype=torch.int64), torch.arange(len(images)), 0.0)
    change = (expected - clean[torch.zeros(len(boxes), dtype=torch.int64) if image is None else image]).abs().max()
    exact = images.dtype == torch.float64
    allowed = (1e-9 if exact else 2e-4) * change + (1e-13 if exact else 1e-6) * expected.abs().max()
    torch.testing.assert_close(result.values, expected, rtol=0, atol=float(allowed))
    assert result.stats["path"] == path, result.stats
    return result


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights that keep signals of about the same size from layer to layer, and busy batch norms."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return model.eval()


SIZES = {"inception_v3": (112, 99), "alexnet": (96, 83)}
INCREMENTAL = [
    *("alexnet", "convnext_tiny", "densenet121", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2"),
    *("regnet_x_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1"),
    *("vgg11", "vgg13_bn", "efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf"),
]
TRANSFORMERS = ["vit_b_32", "swin_t", "maxvit_t"]


@pytest.mark.parametrize("name", INCREMENTAL)
def test_torchvision_networks_give_the_dense_numbers(name: str) -> None:
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = lively(torchvision.models.get_model(name, weights=None, **quick)).double()
    size = SIZES.get(name, (72, 61))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    boxes = torch.cat([random_boxes(5, size), torch.tensor([[0, 0, 9, 9], [size[0] - 7, size[1] - 9, *size]])])
    fill = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    # a call costs nothing here: as many groups and steps on rectangles as there can be
    result = check(model, images, boxes, torch.tensor([0, 1, 1, 0, 1, 0, 1]), fill)
    assert result.stats["flops"] < result.stats["dense_flops"]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_that_work_in_windows(name: str) -> None:
    """Their windows stand in the dimension of the images, [images * windows, tokens, C], and are kept apart."""
    model = torchvision.models.get_model(name, weights=None).eval()
    images = torch.randn(1, 3, 224, 224)
    check(model, images, random_boxes(2, (224, 224)))


def test_trained_squeezenet_on_a_photograph(shared: Path) -> None:
    weights = shared / "models" / "squeezenet1_0_imagenet.safetensors"
    model = fastviz.load_model("squeezenet1_0", weights=weights)
    images, _ = fastviz.load_images([shared / "images" / "goose.jpg"], model=model)
    boxes = random_boxes(20, (224, 224), most=60)
    fill = images.mean((0, 2, 3))
    check(model, images, boxes, None, fill)
    check(copy.deepcopy(model).double(), images.double(), boxes, None, fill.double())


# ------------------------------------------------------------------------------------------ every kind of operation


class ChannelsLast(nn.Module):
    """Modules on [N, H, W, C], as in ConvNeXt."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


def conv(channels_in: int, channels_out: int, *args: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, *args, **options)


def cat(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "stride, asymmetric kernel and padding": lambda: conv(6, 6, (3, 5), stride=(1, 2), padding=(2, 0)),
    "dilation and groups": lambda: conv(6, 6, 3, padding=2, dilation=(2, 1), groups=3, bias=False),
    "same padding": lambda: conv(6, 6, (2, 4), padding="same"),
    "stride above the kernel": lambda: conv(6, 6, 1, stride=3),
    "max pool": lambda: nn.MaxPool2d(3, 2, padding=1),
    "max pool, ceil_mode, dilation": lambda: nn.MaxPool2d((2, 3), (3, 2), dilation=(2, 1), ceil_mode=True),
    "avg pool": lambda: nn.AvgPool2d(3, 1, 1),
    "avg pool without padding in the count": lambda: nn.AvgPool2d((3, 2), 2, (1, 0), count_include_pad=False),
    "avg pool, ceil_mode": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "1x1 convolution, then avg pool": lambda: nn.Sequential(
        conv(6, 6, 1), nn.BatchNorm2d(6), nn.AvgPool2d(2), nn.ReLU()
    ),
    "avg pool with a divisor of its own": lambda: nn.AvgPool2d(2, 2, divisor_override=3),
    "adaptive pools": lambda: Branches(torch.add, nn.AdaptiveAvgPool2d((10, 14)), nn.AdaptiveMaxPool2d((10, 14))),
    "zero padding, then slices": lambda: nn.Sequential(
        nn.ZeroPad2d((3, 1, 0, 2)), conv(6, 6, 3), Function(lambda x: x[:, :, 1:-2:2, 1:])
    ),
    "padding with a number": lambda: nn.Sequential(nn.ConstantPad2d((1, 2, 2, 1), 0.7), conv(6, 6, 3)),
    "batch norm in front": lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), conv(6, 6, 3)),
    "batch norm behind": lambda: nn.Sequential(conv(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
    "sum with a factor": lambda: Branches(
        lambda a, b: torch.add(a, b, alpha=3), nn.Identity(), conv(6, 6, 3, padding=1)
    ),
    "maps without channels": lambda: Branches(
        lambda a, b: torch.stack([a[:, 0], b[:, 1], a[:, 2] * b[:, 3], *(a + b)[:, 3:].unbind(1)], 1),
        *(nn.Identity(), conv(6, 6, 3, padding=1)),
    ),
    "normalization inside": lambda: Function(
        lambda x: torch.cat([x[:, :1] * 0.4 + 0.1, torch.unsqueeze(x[:, 1], 1) * 2, x[:, 2:] - 1], 1)
    ),
    "expand": lambda: Branches(lambda a, b: a * b.expand_as(a), nn.Identity(), nn.AdaptiveMaxPool2d(1)),
    "residual": lambda: Branches(torch.add, nn.Identity(), nn.Sequential(conv(6, 6, 3, padding=1), nn.BatchNorm2d(6))),
    "residual with a strided shortcut": lambda: nn.Sequential(
        Branches(torch.add, conv(6, 6, 1, stride=2), conv(6, 6, 3, stride=2, padding=1)), nn.ReLU()
    ),
    "difference and product": lambda: Branches(
        lambda a, b, c: (a - b) * c, nn.Identity(), conv(6, 6, 5, padding=2), nn.MaxPool2d(3, 1, 1)
    ),
    "concatenation": lambda: nn.Sequential(Branches(cat, conv(6, 4, 1), conv(6, 4, 3, padding=1)), nn.BatchNorm2d(8)),
    "split and shuffle": lambda: Function(
        lambda x: F.channel_shuffle(torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0].relu()], 1), 3)
    ),
    "shuffle by hand": lambda: Function(lambda x: x.view(len(x), 2, 3, *x.shape[2:]).transpose(1, 2).reshape(x.shape)),
    "unbind": lambda: Function(lambda x: torch.stack(x.unbind(1)[::-1], 1)),
    "layer norm and linear over channels": lambda: Branches(
        torch.add, nn.Identity(), ChannelsLast(nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
    ),
    "softmax over channels": lambda: nn.Softmax(dim=1),
    "mean over channels": lambda: Function(lambda x: x - x.mean(1, keepdim=True)),
    "reused module": lambda: nn.Sequential(*[conv(6, 6, 3, padding=1)] * 3),
    "in-place sum and rectifier": lambda: Function(lambda x: (x * 2).add_(x).relu_()),
    "a branch that is a constant": lambda: Function(lambda x: x + torch.linspace(0, 1, 6).view(6, 1, 1).to(x)),
    "a constant that differs from place to place": lambda: Function(
        lambda x: x + torch.linspace(0, 1, x.shape[3]).to(x)
    ),
    "squeeze and excitation": lambda: Branches(
        torch.mul, nn.Identity(), nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(6, 6, 1), nn.Sigmoid())
    ),
    "upsampling": lambda: nn.Upsample(scale_factor=2),
    "flip": lambda: Function(lambda x: x.flip(3)),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "transposed convolution": lambda: nn.ConvTranspose2d(6, 6, 3, stride=2),
    **{
        type(module).__name__: lambda module=module: nn.Sequential(conv(6, 6, 3), copy.deepcopy(module))  # type: ignore[misc]
        for module in (
            *(
                nn.ReLU6(),
                nn.Hardtanh(-0.4, 0.6),
                nn.SiLU(),
                nn.Hardswish(),
                nn.GELU(),
                nn.GELU("tanh"),
                nn.LeakyReLU(0.2),
            ),
            *(
                nn.ELU(0.7),
                nn.Sigmoid(),
                nn.Tanh(),
                nn.Mish(),
                nn.Softplus(2.0),
                nn.Hardsigmoid(),
                nn.PReLU(6),
                nn.CELU(),
            ),
            nn.SELU(),
        )
    },
}
ENDS: dict[str, Callable[[], nn.Module]] = {
    "pooled": lambda: nn.Sequential(conv(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)),
    "mean": lambda: Function(lambda x: x.mean((2, 3)) ** 2),
    "flat": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
    "a map": lambda: conv(6, 2, 3, padding=1),
}


@pytest.fixture
def many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls and bytes cost nothing: as many groups, and as many steps on rectangles, as there can be."""
    module: Any = sys.modules["fastviz.engine.incremental.plan"]  # the package's name "plan" is the function
    monkeypatch.setitem(module.CALL_FLOPS, "cpu", 0.0)
    monkeypatch.setattr(module, "FLOPS_PER_BYTE", 0.0)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.usefixtures("many_groups")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_operation(kind: str) -> None:
    torch.manual_seed(3)
    size = (40, 42)
    place = list(KINDS).index(kind)
    for number, end in enumerate(("pooled", list(ENDS)[1 + place % (len(ENDS) - 1)])):
        make_end = ENDS[end]
        body = nn.Sequential(conv(3, 6, 3, stride=2, padding=1), KINDS[kind]())
        channels = body(torch.zeros(1, 3, *size)).shape[1]
        glue = nn.Identity() if channels == 6 else conv(channels, 6, 1)
        model = nn.Sequential(body, glue, make_end()).double()
        model(torch.zeros(1, 3, *size, dtype=torch.float64))
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        boxes = torch.cat([random_boxes(12, size, seed=number, most=14), torch.tensor([[0, 0, 40, 42], [7, 9, 7, 30]])])
        image = torch.arange(14) % 2
        result = sweep(model, images, boxes, image, -0.5)
        expected = dense(model, images, boxes, image, -0.5)
        torch.testing.assert_close(result.values, expected, rtol=1e-11, atol=1e-11)
        assert result.stats["reason"] == "", end
        assert result.stats["flops"] < result.stats["dense_flops"]


def random_network(generator: torch.Generator) -> nn.Module:
    """A few random steps of random kinds, then a random end."""

    def choose(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    kinds = [kind for kind in KINDS if kind not in ("upsampling", "flip", "concatenation", "transposed convolution")]
    body = [conv(3, 6, 1 + choose(4), stride=1 + choose(2), padding=choose(2))]
    for _ in range(2 + choose(3)):
        kind = kinds[choose(len(kinds))]
        if kind != "adaptive pools":
            body.append(KINDS[kind]())
    return nn.Sequential(*body, list(ENDS.values())[choose(len(ENDS))]())


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.usefixtures("many_groups")
@pytest.mark.parametrize("seed", range(25))
def test_random_networks_windows_and_fills(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    size = tuple(torch.randint(50, 75, (2,), generator=generator).tolist())
    model = random_network(generator).double().eval()
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    try:
        model(images)
    except RuntimeError:
        pytest.skip("the maps became too small for the next step")
    fill: float | Tensor = [
        0.3,
        torch.randn(3, dtype=torch.float64),
        torch.randn(1, 3, *size, dtype=torch.float64),
        torch.randn(3, 3, *size, dtype=torch.float64),
    ][seed % 4]
    image = torch.randint(3, (15,), generator=generator)
    boxes = random_boxes(15, (size[0], size[1]), seed)
    result = sweep(model, images, boxes, image, fill, batch_size=4, memory=200_000)
    expected = dense(model, images, boxes, image, fill)
    torch.testing.assert_close(result.values, expected, rtol=1e-10, atol=1e-10)
    assert result.stats["reason"] == ""


# ------------------------------------------------------------------------------------------------ the sweep's options


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        *(conv(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(conv(8, 8, 3, padding=1), nn.ReLU(), conv(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ).eval()


def grid(size: int, window: int, stride: int) -> Tensor:
    starts = torch.arange(0, size - window + 1, stride)
    top, left = (each.reshape(-1) for each in torch.meshgrid(starts, starts, indexing="ij"))
    return torch.stack([top, left, top + window, left + window], dim=1)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "shufflenet_v2_x0_5"])
def test_float32_runs_in_packed_kernels_and_stays_close(name: str) -> None:
    model = lively(torchvision.models.get_model(name, weights=None))
    check(model, torch.randn(1, 3, 96, 80), random_boxes(9, (96, 80)))


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "convnext_tiny"])
def test_on_a_gpu(name: str) -> None:
    model = lively(torchvision.models.get_model(name, weights=None)).cuda()
    images, boxes = torch.randn(2, 3, 96, 80), random_boxes(9, (96, 80)).cuda()
    image = torch.arange(9).cuda() % 2
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    result = sweep(model, images.cuda(), boxes, image, 0.1)
    assert torch.backends.cudnn.conv.fp32_precision == before  # type: ignore[attr-defined]
    assert result.values.is_cuda
    double = copy.deepcopy(model).double().cpu()
    expected = dense(double, images.double(), boxes.cpu(), image.cpu(), 0.1)
    change = (expected - expected.mean(0)).abs().max()
    torch.testing.assert_close(result.values.double().cpu(), expected, rtol=0, atol=1e-4 * float(change))
    coarse = sweep(model, images.cuda(), boxes, image, 0.1, precision="bfloat16")
    assert coarse.stats["error"]["largest"] < 0.1 * float(expected.abs().max())


def test_evaluate_gets_every_window_once_in_any_order() -> None:
    model, images, boxes = small().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64), grid(32, 8, 4)
    image = torch.arange(len(boxes)) % 2
    seen: list[int] = []
    done: list[int] = []

    def top(output: Tensor, windows: Tensor) -> Tensor:
        seen.extend(windows.tolist())
        return torch.stack([output.softmax(1).max(1).values, output.argmax(1).double()], 1)

    result = sweep(model, images, boxes, image, evaluate=top, batch_size=5, advance=done.append)
    expected = dense(model, images, boxes, image, 0.0)
    torch.testing.assert_close(result.values[:, 0], expected.softmax(1).max(1).values)
    assert torch.equal(result.values[:, 1].long(), expected.argmax(1))
    assert sorted(seen) == list(range(len(boxes)))
    assert sum(done) == len(boxes)
    assert result.stats["batch_size"] == 5
    assert result.stats["batches"] == len(done)


def test_outputs_that_no_one_reads_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """SqueezeNet's last convolution gives 1000 classes; for two of them it does 2/1000 of the work."""
    model = lively(torchvision.models.squeezenet1_1(weights=None)).double()
    images, boxes = torch.randn(1, 3, 64, 64, dtype=torch.float64), random_boxes(5, (64, 64))
    every = sweep(model, images, boxes)
    two = sweep(model, images, boxes, outputs=[7, 3])
    torch.testing.assert_close(two.values[:, [7, 3]], every.values[:, [7, 3]], rtol=1e-12, atol=1e-14)
    assert two.values.shape == every.values.shape
    assert two.values[:, 4].isnan().all()
    assert two.stats["flops"] < 0.9 * every.stats["flops"]
    # other entries need no new export
    monkeypatch.setattr("fastviz.engine.incremental.network.trace", None)
    nine = sweep(model, images, boxes, outputs=[9])
    torch.testing.assert_close(nine.values[:, 9], every.values[:, 9], rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"outputs should be from 0 to 999, got \[1000\]"):
        sweep(model, images, boxes, outputs=[1000])
    monkeypatch.undo()
    # where the last layers need all channels, nothing is left out
    linear = nn.Sequential(model, nn.Linear(1000, 5).double())
    assert not sweep(linear, images, boxes, outputs=[1]).values.isnan().any()


def test_no_windows_no_change_and_one_pixel() -> None:
    model, images = small().double(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    assert sweep(model, images, torch.zeros(0, 4, dtype=torch.int64)).values.shape == (0, 6)
    clean = dense(model, images, torch.zeros(1, 4, dtype=torch.int64), None, 0.0)
    nothing = torch.tensor([[5, 5, 5, 9], [9, 9, 3, 3], [40, 40, 50, 50]])
    torch.testing.assert_close(sweep(model, images, nothing).values, clean.expand(3, -1))
    check(model, images, torch.tensor([[0, 0, 1, 1], [31, 31, 32, 32], [17, 3, 18, 4]]))
    # boxes that stick out are cut off
    outside = torch.tensor([[-5, -5, 4, 4], [28, 28, 90, 90]])
    inside = torch.tensor([[0, 0, 4, 4], [28, 28, 32, 32]])
    torch.testing.assert_close(sweep(model, images, outside).values, sweep(model, images, inside).values)


def test_little_memory_gives_the_same_numbers_in_chunks_of_images() -> None:
    model, images, boxes = small().double(), torch.randn(5, 3, 32, 32, dtype=torch.float64), grid(32, 8, 8).repeat(5, 1)
    image = torch.arange(len(boxes)) % 5
    fill = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    tight = check(model, images, boxes, image, fill, memory=300_000)
    wide = check(model, images, boxes, image, fill)
    assert tight.stats["batches"] > wide.stats["batches"]


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    import fastviz.engine.incremental.execute as execute

    run = execute.Runner.run

    def greedy(self: Any, clean: Any, covered: Any, windows: Tensor, members: Tensor) -> Tensor:
        if len(windows) > 3:
            torch.empty(1 << 60)  # more than any machine has: the allocator's own error
        return run(self, clean, covered, windows, members)

    monkeypatch.setattr(execute.Runner, "run", greedy)
    result = check(small().double(), torch.randn(1, 3, 32, 32, dtype=torch.float64), grid(32, 8, 8))
    assert result.stats["retries"] > 0

    def broken(self: Any, *args: Any) -> Tensor:
        raise RuntimeError("a fault of another kind")

    monkeypatch.setattr(execute.Runner, "run", broken)
    with pytest.raises(RuntimeError, match="a fault of another kind"):
        sweep(small(), torch.randn(1, 3, 32, 32), grid(32, 8, 8))


def test_bfloat16_and_a_growth_cap_report_their_error() -> None:
    model, images, boxes = small(), torch.randn(1, 3, 64, 64), grid(64, 8, 8)
    expected = dense(model, images, boxes, None, 0.0)
    coarse = sweep(model, images, boxes, precision="bfloat16")
    assert coarse.values.dtype == torch.float32
    difference = (coarse.values - expected).abs()
    assert 0 < difference.max() < 0.02 * expected.abs().max()
    assert coarse.stats["error"]["windows"] == 16
    assert 0 < coarse.stats["error"]["mean"] <= coarse.stats["error"]["largest"] <= float(difference.max()) + 1e-7
    capped = sweep(model, images, boxes, growth_cap=0.1)
    assert capped.stats["flops"] < sweep(model, images, boxes).stats["flops"]
    assert capped.stats["error"]["largest"] > 1e-6
    assert "error" not in sweep(model, images, boxes).stats
    uncapped = sweep(model, images, boxes, growth_cap=1.0)
    assert uncapped.stats["error"]["largest"] < 1e-5


# ------------------------------------------------------------------------------- never a wrong number, never a trace


def test_changed_weights_are_seen_however_they_change() -> None:
    model, images, boxes = small().double(), torch.randn(1, 3, 32, 32, dtype=torch.float64), grid(32, 8, 8)
    check(model, images, boxes)
    with torch.no_grad():
        model[0].weight.mul_(1.1)
    check(model, images, boxes)
    model[4].bias.data[2] += 1e-6
    check(model, images, boxes)
    model[1].running_var.data.mul_(1.01)
    check(model, images, boxes)
    model[5] = nn.Tanh()
    check(model, images, boxes)
    model[6].stride = (2, 2)
    check(model, images, boxes)


def test_a_graph_that_disagrees_with_the_model_is_not_used() -> None:
    class Moody(nn.Module):
        """Gives other numbers while it is exported than when it runs."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x).mean((2, 3))
            return out * 2 if len(x) > 20 else out

    model, images = Moody().double(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    result = check(model, images, grid(32, 8, 8), path="dense", batch_size=4)
    assert result.stats["reason"].startswith("code that looks at the number of images")


class Scaled(nn.Module):
    """A network and what it depends on beside its modules."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.net = small().double()
        self.settings = types.SimpleNamespace(scale=1.0, above=torch.inf)
        self.scale = torch.ones(1, dtype=torch.float64)
        self.several = [torch.ones(1, dtype=torch.float64)]
        self.shared = {"settings": types.SimpleNamespace(scale=1.0)}

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x.clamp(max=self.settings.above)) * self.settings.scale * self.scale * GLOBALS["scale"]
        return out * Scaled.factor * self.several[0] * self.shared["settings"].scale


GLOBALS = {"scale": 1.0}

CHANGES: dict[str, Callable[[Scaled], object]] = {
    "an object's attribute": lambda model: setattr(model.settings, "scale", 3.0),
    "by little": lambda model: setattr(model.settings, "scale", 1.00001),
    "a tensor": lambda model: setattr(model, "scale", torch.full((1,), 3.0, dtype=torch.float64)),
    "a tensor in place": lambda model: model.scale.data.fill_(3.0),
    "a tensor in a list": lambda model: model.several[0].fill_(3.0),
    "an object in a dictionary": lambda model: setattr(model.shared["settings"], "scale", 3.0),
    "a global": lambda model: GLOBALS.update(scale=3.0),
    "an attribute of the class": lambda model: setattr(Scaled, "factor", 3.0),
    "a forward": lambda model: setattr(model.net[0], "forward", lambda x: F.conv2d(x, 2 * model.net[0].weight)),
    "weights through data": lambda model: model.net[0].weight.data.mul_(1.001),
    "what only covered images show": lambda model: setattr(model.settings, "above", 1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_unseen_is_seen_by_the_next_sweep(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second sweep gave the scores of the old graph beside a baseline of the new model."""
    monkeypatch.setitem(GLOBALS, "scale", 1.0)
    monkeypatch.setattr(Scaled, "factor", 1.0)
    model, boxes = Scaled(), grid(32, 8, 8)
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    check(model, images, boxes, fill=4.0)
    CHANGES[change](model)
    result = check(model, images, boxes, fill=4.0)
    assert result.stats["prepare_seconds"] > 0


def test_a_model_that_changes_with_every_call_runs_as_it_is() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = small(), [0]

        def forward(self, x: Tensor) -> Tensor:
            self.calls[0] += 1
            out: Tensor = self.net(x) * self.calls[0]
            return out

    result = sweep(Counts(), torch.randn(1, 3, 32, 32), grid(32, 8, 8))
    assert result.stats["path"] == "dense"


def test_images_of_a_batch_do_not_meet() -> None:
    """With eight windows at once, the largest value was that of all of them."""

    class Normalizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small().double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x / x.abs().max())
            return out

    for model in (Normalizes(), nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), small()).double()):
        images, boxes = torch.randn(2, 3, 32, 32, dtype=torch.float64), grid(32, 8, 8)
        image = torch.arange(len(boxes)) % 2
        expected = torch.cat(
            [dense(model, images, boxes[at : at + 1], image[at : at + 1], 0.0) for at in range(len(boxes))]
        )
        for batch_size in (None, 1, 16):
            result = sweep(model, images, boxes, image, batch_size=batch_size)
            torch.testing.assert_close(result.values, expected, rtol=0, atol=0)
            assert (result.stats["path"], result.stats["batch_size"]) == ("dense", 1)
            assert batch_size == 1 or "may mix the images of a batch" in result.stats["alone"]


def test_batches_of_what_is_not_traced_stay() -> None:
    result = sweep(small(), torch.randn(1, 3, 32, 32), grid(32, 8, 8), trace="never")
    assert (result.stats["path"], result.stats["reason"]) == ("dense", "no trace was wanted")
    assert (result.stats["batch_size"], result.stats["alone"]) == (16, "")


@pytest.mark.parametrize("fill", [torch.nan, torch.inf, torch.tensor([0.0, torch.nan, 0.0])])
def test_a_fill_that_is_not_finite(fill: float | Tensor) -> None:
    model, images, boxes = small(), torch.randn(1, 3, 32, 32), grid(32, 8, 8)
    result = sweep(model, images, boxes, fill=fill)
    torch.testing.assert_close(result.values, dense(model, images, boxes, None, fill), equal_nan=True)
    assert result.stats["reason"] == "the images, the fill or the network's values are not finite"


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_images_that_are_not_finite_run_as_they_are(value: float) -> None:
    model, images, boxes = small(), torch.randn(2, 3, 32, 32), grid(32, 8, 8)
    images[1, 0, 9, 9] = value
    image = torch.arange(len(boxes)) % 2
    result = sweep(model, images, boxes, image)
    expected = dense(model, images, boxes, image, 0.0)
    torch.testing.assert_close(result.values, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert result.stats["reason"] == "the images, the fill or the network's values are not finite"


def test_hooks_and_models_that_do_not_export_run_as_they_are() -> None:
    model, images, boxes = small().double(), torch.randn(1, 3, 32, 32, dtype=torch.float64), grid(32, 8, 8)
    handle = model[2].register_forward_hook(lambda module, inputs, output: output * 2)
    result = check(model, images, boxes, path="dense")
    assert result.stats["reason"] == "2 has forward hooks, which a graph leaves out"
    handle.remove()

    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if x.sum() > 1e9 else x.amax((2, 3))

    result = check(Chooses(), images, boxes, path="dense")
    assert result.stats["reason"].startswith("the model looks at values")

    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = (x.flatten(1) @ x.flatten(1).T).sum(1, keepdim=True)
            return out

    result = sweep(Mixes(), images, boxes[:3], batch_size=1)
    expected = torch.cat([dense(Mixes(), images, boxes[at : at + 1], None, 0.0) for at in range(3)])
    torch.testing.assert_close(result.values, expected)
    assert "may mix the images of a batch" in result.stats["reason"]


def test_chance_is_not_frozen() -> None:
    """Dropout that stays on in evaluation mode draws new numbers for each window."""
    model = nn.Sequential(conv(3, 4, 3), Function(lambda x: F.dropout(x, 0.5, training=True).mean((2, 3))))
    result = sweep(model, torch.ones(1, 3, 16, 16), torch.tensor([[0, 0, 4, 4]] * 3))
    assert result.stats["reason"] == "dropout in '1' draws random numbers"
    assert not torch.equal(result.values[0], result.values[1])


def test_outputs_that_are_no_tensor_reach_evaluate() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean((2, 3)), x

    images, boxes = torch.randn(1, 3, 16, 16), grid(16, 8, 8)
    result = sweep(Two(), images, boxes, evaluate=lambda output, windows: output[0][:, 1])
    assert result.values.shape == (4,)
    assert result.stats["path"] == "dense"


def test_the_model_is_not_touched() -> None:
    model = small().train()
    model[0].requires_grad_(False)
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    before = images.detach().clone()

    def stop(output: Tensor, windows: Tensor) -> Tensor:
        raise KeyboardInterrupt

    result = sweep(model, images, grid(32, 8, 8))
    assert not result.values.requires_grad
    with pytest.raises(KeyboardInterrupt):
        sweep(model, images, grid(32, 8, 8), evaluate=stop)
    assert all(module.training for module in model.modules())
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["0.weight", "0.bias"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.equal(before, images.detach())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("make", [small, lambda: nn.Sequential(Function(lambda x: x.mean() + x))])
def test_kept_networks_do_not_keep_the_model(make: Callable[[], nn.Module]) -> None:
    model = make()
    sweep(model, torch.randn(1, 3, 32, 32), grid(32, 8, 8))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_threads_at_once() -> None:
    model, images, boxes = small().double(), torch.randn(1, 3, 48, 48, dtype=torch.float64), grid(48, 8, 8)
    expected = dense(model, images, boxes, None, 0.0)
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(sweep(model, images, boxes).values)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for values in found:
        torch.testing.assert_close(values, expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"boxes": torch.zeros(3, 5, dtype=torch.int64)},
            ValueError,
            r"boxes should have shape \[P, 4\], got \[3, 5\]",
        ),
        ({"boxes": torch.zeros(3, 4)}, TypeError, "boxes should be a tensor of integers, got torch.float32"),
        ({"images": torch.zeros(2, 3, 8, 8)}, ValueError, "image_index is needed for 2 images, got None"),
        ({"image_index": torch.tensor([0, 1, 0])}, ValueError, "image_index should be from 0 to 0, got 0 to 1"),
        (
            {"image_index": torch.tensor([0])},
            ValueError,
            "image_index should have one entry for each of 3 boxes, got 1",
        ),
        ({"fill": "grey"}, TypeError, "fill should be a number or a tensor, got str"),
        ({"fill": torch.zeros(4)}, ValueError, "fill should have shape"),
        ({"memory": 0}, ValueError, "memory should be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size should be at least 1, got 0"),
        ({"precision": "half"}, ValueError, "precision should be one of 'model', 'bfloat16', got 'half'"),
        ({"growth_cap": 1.5}, ValueError, "growth_cap should be above 0 and at most 1, got 1.5"),
        ({"model": torch.relu}, TypeError, "model should be a torch.nn.Module"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {
        "model": small(), "images": torch.zeros(1, 3, 8, 8), "boxes": torch.zeros(3, 4, dtype=torch.int64)
    }  # fmt: skip
    with pytest.raises(error, match=text):
        sweep(**{**arguments, **change})


# ---------------------------------------------------------------------------------------------------------- the plan


def test_pools_go_in_front_of_1x1_convolutions() -> None:
    model = nn.Sequential(conv(3, 8, 1), nn.AvgPool2d(2), conv(8, 8, 1), nn.AvgPool2d(2, padding=1))
    operations = [line.operation for line in plan(model, (32, 32)).lines]
    assert operations == ["image", "avg_pool2d", "conv2d", "conv2d", "avg_pool2d"]


def test_plan_counts_what_hand_work_gives() -> None:
    """One 3x3 convolution over 32x32 with 3 → 4 channels, a window of 8 in the middle: 10x10 of its 32x32 outputs."""
    model = nn.Sequential(conv(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    found = plan(model, (32, 32), window=8, stride=8)
    assert found.windows == 16
    line = found.lines[1]
    assert (line.label, line.operation, line.shape) == ("0", "conv2d+relu", (4, 32, 32))
    assert line.dense_flops == 2 * 3 * 9 * 4 * 32 * 32
    # starts 0, 8, 16, 24: 9, 10, 10 and 9 outputs; one group, so the largest for all of them
    assert line.rectangle == (10, 10)
    assert line.flops == 2 * 3 * 9 * 4 * 100
    assert line.incremental == 1.0
    table = str(found).splitlines()
    assert table[0].split()[:3] == ["layer", "operation", "map"]
    assert table[2].split() == [
        "0",
        "conv2d+relu",
        "4x32x32",
        "10.0x10.0",
        "100",
        "%",
        "0.0002",
        "0.0000",
        "0.03",
        "0.01",
    ]
    assert "16 windows in 1 groups" in table[-1]


def test_plan_takes_the_windows_of_the_sweep() -> None:
    """It took a quarter of the window as its step, where a sweep takes half."""
    model = small()
    assert plan(model, (32, 24)).windows == fastviz.occlusion(model, torch.zeros(1, 3, 32, 24), 0).stats["windows"]
    assert plan(model, (32, 32), window=8).windows == 49
    with pytest.raises(ValueError, match="stride should be at most the window"):
        plan(model, (32, 32), window=8, stride=9)


def test_plan_says_why_a_model_runs_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    found = plan(model)
    assert found.lines == ()
    assert "may mix the images of a batch" in str(found)
    with pytest.raises(ValueError, match="window should be at most the image, H = 16 pixels, got 20"):
        plan(small(), (16, 16), window=20)


@pytest.mark.parametrize(
    ("name", "least"), [("vgg16", 8.5), ("squeezenet1_0", 6.5), ("alexnet", 3.1), ("resnet18", 2.7), ("googlenet", 3.5)]
)
def test_operations_saved_on_the_usual_networks(name: str, least: float) -> None:
    """Windows inside the image save 6.5x, 4.6x, 2.4x, 2.2x and 2.7x; those at the border more."""
    quick = {"init_weights": False} if name == "googlenet" else {}
    found = plan(torchvision.models.get_model(name, weights=None, **quick), window=16, stride=16)
    assert found.dense_flops / found.flops > least


# ---------------------------------------------------------------------------------------------------- coarse to fine


def peak(rows: int, columns: int) -> Tensor:
    """Scores that fall from 1 to 0 around row 3, column 5."""
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    return 1 - torch.exp(-((row - 3) ** 2 + (column - 5) ** 2) / 4.0).double()


@pytest.mark.parametrize(("rows", "columns"), [(17, 13), (1, 9), (6, 1), (1, 1), (4, 4)])
def test_drilling_all_cells_is_the_whole_grid(rows: int, columns: int) -> None:
    scores, seen = peak(rows, columns), []

    def evaluate(number: Tensor) -> Tensor:
        seen.extend(number.tolist())
        return scores.flatten()[number]

    found, computed = drill_down(evaluate, rows, columns, torch.ones(1), fraction=1.0)
    assert torch.equal(found, scores.flatten())
    assert bool(computed.all())
    assert sorted(seen) == list(range(rows * columns))


def test_drilling_computes_where_scores_fall_and_interpolates_elsewhere() -> None:
    scores = peak(17, 17)
    found, computed = drill_down(lambda number: scores.flatten()[number], 17, 17, torch.ones(1), fraction=0.25)
    found, computed = found.reshape(17, 17), computed[0]
    assert computed[0:9, 0:9].all()  # the cells around the minimum
    assert int(computed.sum()) < 120
    assert torch.equal(found[computed], scores[computed])
    # by hand: halfway between the coarse windows (12, 12) and (16, 12), and in the middle of a cell
    assert found[14, 12] == pytest.approx(float(scores[12, 12] + scores[16, 12]) / 2, abs=1e-12)
    corners = scores[12, 12] + scores[12, 16] + scores[16, 12] + scores[16, 16]
    assert found[14, 14] == pytest.approx(float(corners) / 4, abs=1e-12)


def test_drilling_looks_at_each_image_and_target_by_itself() -> None:
    """One image falls at its top left, the other at its bottom right; the second target does not fall at all."""
    scores = torch.stack([peak(17, 17), peak(17, 17).flip(0, 1)])  # [N, rows, columns]
    both = torch.stack([scores, torch.full_like(scores, 5.0)], dim=-1).reshape(-1, 2)
    baseline = torch.tensor([[1.0, 5.0], [1.0, 5.0]])
    found, computed = drill_down(lambda number: both[number], 17, 17, baseline, fraction=0.25)
    for n in range(2):
        alone, where = drill_down(lambda number, n=n: scores[n].flatten()[number], 17, 17, torch.ones(1), fraction=0.25)
        torch.testing.assert_close(found.reshape(2, -1, 2)[n, :, 0], alone)
        assert torch.equal(computed[n], where[0])
    torch.testing.assert_close(found[:, 1], torch.full((578,), 5.0, dtype=torch.float64))


def test_drilling_nothing_is_interpolation_and_bad_numbers_are_named() -> None:
    _, computed = drill_down(lambda number: torch.zeros(len(number)), 9, 9, torch.zeros(1), factor=4, fraction=0.0)
    assert int(computed.sum()) == 9
    with pytest.raises(ValueError, match="fraction should be from 0 to 1, got 2"):
        drill_down(lambda number: number, 3, 3, torch.zeros(1), fraction=2)
    with pytest.raises(ValueError, match="factor should be at least 1, got 0"):
        drill_down(lambda number: number, 3, 3, torch.zeros(1), factor=0)


def test_memory_that_torch_holds_without_using_it_is_free(monkeypatch) -> None:
    """After a first sweep torch keeps most of a GPU's memory for itself; a second one found next to nothing free."""
    from fastviz.engine.incremental.limits import free_memory

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 80)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_memory(torch.device("cuda")) == 35


def test_maps_are_in_the_order_that_convolutions_want() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from fastviz.engine.incremental.convolution import in_best_order

    with FakeTensorMode():
        for device, dtype, order in (
            ("cuda", torch.float32, torch.contiguous_format),
            ("cuda", torch.float64, torch.contiguous_format),
            ("cuda", torch.bfloat16, torch.channels_last),
            ("cpu", torch.float32, torch.channels_last),
        ):
            made = in_best_order(torch.empty(1, 2, 3, 4, device=device, dtype=dtype))
            assert made.is_contiguous(memory_format=order)
            volume = in_best_order(torch.empty(1, 2, 3, 4, 5, device=device, dtype=dtype))
            last = order == torch.channels_last
            assert volume.is_contiguous(memory_format=torch.channels_last_3d if last else order)
            signal = in_best_order(torch.empty(1, 2, 5, device=device, dtype=dtype))
            assert signal.stride() == ((10, 1, 2) if last else (10, 5, 1))
