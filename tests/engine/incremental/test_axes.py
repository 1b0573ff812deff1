"""Signals (one axis) and volumes (three) in the incremental engine, against the model itself, in float64."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastviz
from fastviz import ops
from fastviz.engine.incremental import plan, sweep
from fastviz.engine.incremental.window_grid import grid
from tests.engine.incremental.common import Branches, Function

pytestmark = pytest.mark.usefixtures("traced")

SIZES = {1: (150,), 3: (14, 20, 18)}
axes = pytest.mark.parametrize("axes", [1, 3])


@pytest.fixture
def many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls and bytes cost nothing: as many groups, and as many steps on rectangles, as there can be."""
    module: Any = sys.modules["fastviz.engine.incremental.plan"]  # the package's name "plan" is the function
    monkeypatch.setitem(module.CALL_FLOPS, "cpu", 0.0)
    monkeypatch.setattr(module, "FLOPS_PER_BYTE", 0.0)


def layer(kind: str, axes: int, *args: Any, **options: Any) -> nn.Module:
    """The module of torch with this name and number of axes."""
    made: nn.Module = getattr(nn, f"{kind}{axes}d")(*args, **options)
    return made


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "convolution": lambda n: layer("Conv", n, 6, 6, 3, padding=1),
    "stride, even kernel, no padding": lambda n: layer("Conv", n, 6, 6, 4, stride=2, bias=False),
    "dilation and groups": lambda n: layer("Conv", n, 6, 6, 3, padding=2, dilation=2, groups=3),
    "same padding": lambda n: layer("Conv", n, 6, 6, 4, padding="same"),
    "circular padding": lambda n: layer("Conv", n, 6, 6, 3, padding=1, padding_mode="replicate"),
    "max pool": lambda n: layer("MaxPool", n, 3, 2, 1),
    "max pool, ceil_mode, dilation": lambda n: layer("MaxPool", n, 2, 3, dilation=2, ceil_mode=True),
    "avg pool": lambda n: layer("AvgPool", n, 3, 1, 1),
    "avg pool without padding in the count": lambda n: layer("AvgPool", n, 3, 2, 1, True, False),
    "avg pool, ceil_mode": lambda n: layer("AvgPool", n, 3, 2, 0, True),
    "1x1 convolution, then avg pool": lambda n: nn.Sequential(
        layer("Conv", n, 6, 6, 1), layer("BatchNorm", n, 6), layer("AvgPool", n, 2), nn.ReLU()
    ),
    "batch norm behind": lambda n: nn.Sequential(
        layer("Conv", n, 6, 6, 3), layer("BatchNorm", n, 6), nn.ReLU(inplace=True)
    ),
    "batch norm in front": lambda n: nn.Sequential(layer("BatchNorm", n, 6), nn.GELU(), layer("Conv", n, 6, 6, 3)),
    "residual": lambda n: nn.Sequential(
        Branches(torch.add, nn.Identity(), layer("Conv", n, 6, 6, 3, padding=1)), nn.ReLU()
    ),
    "strided shortcut": lambda n: Branches(
        torch.add, layer("Conv", n, 6, 6, 1, stride=2), layer("Conv", n, 6, 6, 3, stride=2, padding=1)
    ),
    "concatenation and shuffle": lambda n: Branches(
        lambda a, b: F.channel_shuffle(torch.cat([a, b], 1), 3)[:, 3:9], nn.Identity(), layer("MaxPool", n, 3, 1, 1)
    ),
    "shuffle by hand": lambda n: Function(
        lambda x: x.view(len(x), 2, 3, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
    ),
    "padding, then slices": lambda n: nn.Sequential(
        layer("ConstantPad", n, 2, 0.3), layer("Conv", n, 6, 6, 3), Function(lambda x: x[..., 1:-1:2])
    ),
    "split": lambda n: Function(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1) * 2),
    "layer norm over channels": lambda n: Function(lambda x: F.layer_norm(x.movedim(1, -1), (6,)).movedim(-1, 1)),
    "a constant that differs from place to place": lambda n: Function(
        lambda x: x + torch.linspace(0, 1, x.shape[-1]).to(x)
    ),
    "squeeze and excitation": lambda n: Branches(
        torch.mul, nn.Identity(), nn.Sequential(layer("AdaptiveAvgPool", n, 1), layer("Conv", n, 6, 6, 1), nn.Sigmoid())
    ),
    "upsampling": lambda n: nn.Upsample(scale_factor=2),
    "transposed convolution": lambda n: layer("ConvTranspose", n, 6, 6, 3, stride=2),
    "group norm": lambda n: nn.GroupNorm(2, 6),
    "instance norm": lambda n: nn.Sequential(layer("InstanceNorm", n, 6), nn.ReLU()),
    "prelu": lambda n: nn.PReLU(6),
}
ENDS: list[Callable[[int], nn.Module]] = [
    lambda n: nn.Sequential(layer("AdaptiveAvgPool", n, 1), nn.Flatten(), nn.Linear(6, 4)),
    lambda n: Function(lambda x: x.mean(tuple(range(2, 2 + n))) ** 2),
    lambda n: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
    lambda n: nn.Sequential(layer("AdaptiveMaxPool", n, 1), nn.Flatten()),
]


def random_boxes(count: int, size: tuple[int, ...], seed: int, most: int = 9) -> Tensor:
    """Boxes [count, 2 · axes] of sides from 1 to ``most``, anywhere, borders included."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randint(1, min(most, *size) + 1, (count, len(size)), generator=generator)
    corner = (torch.rand(count, len(size), generator=generator) * (torch.tensor(size) - sides + 1)).long()
    return torch.cat([corner, corner + sides], dim=1)


def dense(model: nn.Module, images: Tensor, boxes: Tensor, image: Tensor | None, fill: float | Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(ops.occlude(images, boxes, image, fill))
    return out


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning", "ignore:Lazy modules")
@pytest.mark.usefixtures("many_groups")
@axes
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_operation(kind: str, axes: int) -> None:
    torch.manual_seed(3)
    size, place = SIZES[axes], list(KINDS).index(kind)
    model = nn.Sequential(
        layer("Conv", axes, 2, 6, 3, stride=2 if axes == 1 else 1, padding=1),
        *(KINDS[kind](axes), ENDS[place % len(ENDS)](axes)),
    ).double()
    images = torch.randn(2, 2, *size, dtype=torch.float64)
    model(images)
    whole, nothing = torch.tensor([[*[0] * axes, *size]]), torch.tensor([[*[3] * axes, *[3] * axes]])
    boxes = torch.cat([random_boxes(10, size, seed=place), whole, nothing])
    image = torch.arange(len(boxes)) % 2
    result = sweep(model, images, boxes, image, -0.5)
    torch.testing.assert_close(result.values, dense(model, images, boxes, image, -0.5), rtol=1e-11, atol=1e-11)
    assert result.stats["reason"] == ""
    assert result.stats["flops"] < result.stats["dense_flops"]


def residual_network(axes: int, channels: int = 8) -> nn.Module:
    """A small ResNet."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            *(layer("Conv", axes, inputs, outputs, 3, stride, 1, bias=False), layer("BatchNorm", axes, outputs)),
            *(nn.ReLU(), layer("Conv", axes, outputs, outputs, 3, 1, 1), layer("BatchNorm", axes, outputs)),
        )
        shortcut = nn.Identity() if stride == 1 else layer("Conv", axes, inputs, outputs, 1, stride)
        return nn.Sequential(Branches(torch.add, body, shortcut), nn.ReLU())

    torch.manual_seed(0)
    model = nn.Sequential(
        layer("Conv", axes, 2, channels, 5, 1, 2), layer("BatchNorm", axes, channels), nn.ReLU(),
        layer("MaxPool", axes, 3, 2, 1), block(channels, channels, 1), block(channels, 2 * channels, 2),
        layer("AdaptiveAvgPool", axes, 1), nn.Flatten(), nn.Linear(2 * channels, 3),
    )  # fmt: skip
    for module in model.modules():
        if hasattr(module, "running_var"):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


@axes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fill", ["number", "channels", "one", "each"])
def test_all_fills_and_dtypes(fill: str, dtype: torch.dtype, axes: int) -> None:
    model, size = residual_network(axes).to(dtype), SIZES[axes]
    images = torch.randn(2, 2, *size, dtype=dtype)
    made: dict[str, float | Tensor] = {
        "number": 0.7,
        "channels": torch.randn(2, dtype=dtype),
        "one": torch.randn(1, 2, *size, dtype=dtype),
        "each": torch.randn(2, 2, *size, dtype=dtype),
    }
    boxes, image = random_boxes(20, size, seed=1, most=6), torch.arange(20) % 2
    result = sweep(model, images, boxes, image, made[fill])
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    expected = dense(model, images, boxes, image, made[fill])
    torch.testing.assert_close(result.values, expected, rtol=tolerance, atol=tolerance)
    assert result.stats["path"] == "incremental", result.stats["reason"]


@axes
def test_one_channel_and_half_precision(axes: int) -> None:
    """Signals of one channel are contiguous and channels last at once."""
    torch.manual_seed(0)
    model = nn.Sequential(
        layer("Conv", axes, 1, 4, 3, padding=1), nn.ReLU(), layer("Conv", axes, 4, 1, 3), nn.Flatten(1)
    ).eval()
    images, boxes = torch.randn(1, 1, *SIZES[axes]), random_boxes(6, SIZES[axes], seed=2)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)):
        half, x = model.to(dtype), images.to(dtype)
        result = sweep(half, x, boxes)
        torch.testing.assert_close(result.values, dense(half, x, boxes, None, 0.0), rtol=tolerance, atol=tolerance)


@axes
def test_same_bits_at_any_number_of_threads(axes: int) -> None:
    model, images = residual_network(axes), torch.randn(1, 2, *SIZES[axes])
    boxes, threads, found = random_boxes(40, SIZES[axes], seed=4), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(sweep(model, images, boxes, batch_size=8).values)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@axes
def test_approximate_modes_tell_their_error(axes: int) -> None:
    model, images = residual_network(axes), torch.randn(1, 2, *SIZES[axes])
    boxes = random_boxes(20, SIZES[axes], seed=5)
    exact = sweep(model, images, boxes).values
    for options in ({"growth_cap": 0.5}, {"precision": "bfloat16"}):
        result = sweep(model, images, boxes, **options)  # type: ignore[arg-type]
        assert result.stats["error"]["windows"] == 16
        assert 0 < result.stats["error"]["largest"] <= float((result.values - exact).abs().max()) * 1.01 + 1e-6


def test_plan_of_a_signal_by_hand() -> None:
    """A window of 4 changes 6 positions behind a kernel of 3, and 2 or 3 of those behind a pool of 3 by 3."""
    model = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.MaxPool1d(3), nn.Flatten(), nn.Linear(200, 2))
    found = plan(model.eval(), (300,), window=4, stride=4)
    lines = {line.operation: line for line in found.lines}
    assert found.windows == 75
    assert 5 < lines["conv1d"].rectangle[0] <= 6
    assert 2 <= lines["max_pool1d"].rectangle[0] <= 3
    assert lines["conv1d"].dense_flops == 300 * 2 * 3 * 2
    assert "conv1d" in str(found)


def test_plan_of_a_volume_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv3d(2, 1, 1), nn.Flatten(), nn.Linear(8**3, 2)
    )
    found = plan(model.eval(), (8, 8, 8), window=2, stride=2)
    line = next(line for line in found.lines if line.operation == "conv3d+relu")
    assert found.windows == 64
    assert all(3 < extent <= 4 for extent in line.rectangle)
    assert line.dense_flops == 8**3 * 2 * 27 * 2
    assert f"{line.rectangle[0]:.1f}x{line.rectangle[1]:.1f}x{line.rectangle[2]:.1f}" in str(found)


def test_grids_of_one_and_three_axes() -> None:
    signal = grid((10,), 4, 3)
    assert signal.boxes.tolist() == [[0, 4], [3, 7], [6, 10]]
    assert signal.spread(torch.tensor([[1.0, 3.0, 5.0]])).tolist() == [[1, 1, 1, 2, 3, 3, 4, 5, 5, 5]]
    assert grid((10,), 4, 5 - 2, centred=True).boxes.tolist() == [[0, 2], [1, 5], [4, 8], [7, 10]]
    volume = grid((2, 4, 4), (2, 3, 4), None)
    assert volume.shape == (1, 2, 1)
    assert volume.boxes.tolist() == [[0, 0, 0, 2, 3, 4], [0, 1, 0, 2, 4, 4]]
    assert grid((7, 14, 21), None, None).window == (1, 2, 3)
    with pytest.raises(ValueError, match=r"window should be one number or \(depth, height, width\), got 2 numbers"):
        grid((4, 4, 4), (2, 2), 1)
    with pytest.raises(ValueError, match="window should be at most the image, D = 2 pixels, got 3"):
        grid((2, 4, 4), 3, 1)


def test_receptive_fields_of_signals_and_volumes() -> None:
    signal = nn.Sequential(nn.Conv1d(3, 4, 7, 2, 3), nn.MaxPool1d(3, 2, 1))
    assert fastviz.graph.receptive_field(signal, "1", (100,)) == fastviz.graph.ReceptiveField((11,), (4,), (-5,))
    volume = nn.Sequential(nn.Conv3d(1, 4, (3, 5, 5), padding=(1, 2, 2)), nn.AvgPool3d((1, 2, 2)))
    found = fastviz.graph.layers(volume, (4, 12, 12))
    assert found[1].shape == (4, 4, 6, 6)
    field = found[1].receptive_field
    assert field is not None
    assert field.size == (3, 6, 6)
    assert field.box((0, 1, 1), (4, 12, 12)) == (0, 0, 0, 2, 6, 6)


def test_bad_boxes_name_what_is_needed() -> None:
    with pytest.raises(ValueError, match=r"boxes should have shape \[P, 2\], got \[1, 4\]"):
        sweep(nn.Conv1d(2, 3, 3), torch.zeros(1, 2, 9), torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"boxes should have shape \[P, 6\], got \[1, 4\]"):
        sweep(nn.Conv3d(2, 3, 3), torch.zeros(1, 2, 9, 9, 9), torch.zeros(1, 4, dtype=torch.long))
