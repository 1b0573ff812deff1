"""Occlusion of signals and volumes against windows placed and averaged one by one; what is refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastviz
from fastviz.methods.attribution.occlusion import occlusion
from fastviz.targets.objectives import channel, class_probability

pytestmark = pytest.mark.usefixtures("traced")

f64 = torch.float64
axes = pytest.mark.parametrize("axes", [1, 3])
SIZES = {1: (30,), 3: (6, 7, 9)}


def network(axes: int) -> nn.Module:
    """Two convolutions, a batch norm, dropout and a pool, in training mode."""
    torch.manual_seed(5)
    conv, norm, pool = (getattr(nn, f"{kind}{axes}d") for kind in ("Conv", "BatchNorm", "MaxPool"))
    return nn.Sequential(
        *(conv(2, 4, 3, padding=1), norm(4), nn.ReLU(), pool(2), conv(4, 3, 3, padding=1), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(4)),
    ).to(f64)


@pytest.fixture
def model(axes: int) -> nn.Module:
    made = network(axes)
    made.eval()(torch.zeros(1, 2, *SIZES[axes], dtype=f64))
    return made.train()


@pytest.fixture
def x(axes: int) -> Tensor:
    return torch.randn(3, 2, *SIZES[axes], dtype=f64, generator=torch.Generator().manual_seed(6))


def by_definition(
    model: nn.Module, x: Tensor, k: int, window: tuple[int, ...], stride: tuple[int, ...], fill: Any = 0.0
) -> tuple[Tensor, Tensor]:
    """Attribution and scores of class k: one window and one position after another."""
    model.eval()
    size = x.shape[2:]
    counts = [math.ceil((side - w) / s) + 1 for side, w, s in zip(size, window, stride, strict=True)]
    baseline, scores = model(x)[:, k], torch.zeros(len(x), *counts, dtype=x.dtype)
    total, count = torch.zeros(len(x), *size, dtype=x.dtype), torch.zeros(size)
    for place in itertools.product(*map(range, counts)):
        area = (..., *(slice(i * s, i * s + w) for i, s, w in zip(place, stride, window, strict=True)))
        covered = x.clone()
        covered[area] = fill.expand(x.shape)[area] if isinstance(fill, Tensor) else fill
        score = model(covered)[:, k]
        scores[(slice(None), *place)] = score
        total[area] += (baseline - score).view(-1, *[1] * len(size))
        count[area] += 1
    model.train()
    return (total / count).detach(), scores.detach()


GRIDS: list[tuple[int, Any, Any]] = [
    *((1, 5, 3), (1, (7,), (7,)), (1, 30, 1), (1, 1, 1)),
    *((3, 3, 2), (3, (2, 3, 4), (1, 3, 3)), (3, (6, 7, 9), 1), (3, (6, 2, 2), 2)),
]


@pytest.mark.parametrize(("axes", "window", "stride"), GRIDS)
@pytest.mark.parametrize("trace", ["always", "never"])
def test_attribution_is_the_mean_over_the_windows(
    model: nn.Module, x: Tensor, axes: int, window: Any, stride: Any, trace: Any
) -> None:
    found = occlusion(model, x, 2, window=window, stride=stride, trace=trace)
    each = [value if isinstance(value, tuple) else (value,) * axes for value in (window, stride)]
    attribution, scores = by_definition(model, x, 2, *each)
    torch.testing.assert_close(found.attribution, attribution, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.scores, scores, rtol=1e-12, atol=1e-13)


def test_a_signal_worked_by_hand() -> None:
    """S = Σ i·x_i over (1, 1, 1, 1): windows of 2 at 0, 1, 2 take 0 + 1, 1 + 2 and 2 + 3 away."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False)).to(f64)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 1, 2, 3]]))
    x = torch.ones(1, 1, 4, dtype=f64)
    found = occlusion(model, x, 0, window=2, stride=1)
    assert found.scores.tolist() == [[5, 3, 1]]
    assert found.attribution.tolist() == [[1, 2, 4, 5]]
    centred = occlusion(model, x, 0, window=3, stride=1, centred=True)
    assert centred.scores.tolist() == [[5, 3, 0, 1]]


def test_a_volume_worked_by_hand() -> None:
    """S = Σ i·x_i over eight ones: the slices of the front and the back are worth 6 and 22."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 1, bias=False)).to(f64)
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(8.0))
    x = torch.ones(1, 1, 2, 2, 2, dtype=f64)
    found = occlusion(model, x, 0, window=(1, 2, 2), stride=(1, 1, 1))
    assert found.scores.tolist() == [[[[22]], [[6]]]]
    assert found.attribution.tolist() == [[[[6, 6], [6, 6]], [[22, 22], [22, 22]]]]


@axes
@pytest.mark.parametrize("fill", ["mean", "blur", "number", "channels", "one", "each"])
def test_fills(model: nn.Module, x: Tensor, axes: int, fill: str) -> None:
    size = x.shape[2:]
    made: dict[str, Any] = {
        "mean": x.mean(tuple(range(2, x.dim())), keepdim=True),
        "number": 0.4,
        "channels": torch.tensor([0.3, -0.2], dtype=f64),
        "one": torch.randn(2, *size, dtype=f64),
        "each": torch.randn(3, 2, *size, dtype=f64),
    }
    given = fill if fill in ("mean", "blur") else made[fill]
    covering = made.get(fill)
    if fill == "channels":
        covering = made[fill].view(2, *[1] * axes)
    if fill == "blur":
        covering = blurred(x, 2.0)
    found = occlusion(model, x, 1, window=4, stride=2, fill=given)
    _, scores = by_definition(model, x, 1, (4,) * axes, (2,) * axes, covering)
    torch.testing.assert_close(found.scores, scores, rtol=1e-11, atol=1e-12)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian along each axis as a matrix whose rows sum to 1, the border repeated."""
    for dim in range(2, x.dim()):
        size, radius = x.shape[dim], round(3 * sigma)
        matrix = torch.zeros(size, size, dtype=x.dtype)
        for row in range(size):
            for step in range(-radius, radius + 1):
                matrix[row, min(size - 1, max(0, row + step))] += math.exp(-0.5 * (step / sigma) ** 2)
        x = (x.movedim(dim, -1) @ (matrix / matrix.sum(1, keepdim=True)).T).movedim(-1, dim)
    return x


@axes
def test_several_targets_classes_and_probabilities(model: nn.Module, x: Tensor, axes: int) -> None:
    several = occlusion(model, x, [2, class_probability(1)], window=4, stride=2, classes=True)
    assert several.attribution.shape == (3, 2, *x.shape[2:])
    _, scores = by_definition(model, x, 2, (4,) * axes, (2,) * axes)
    torch.testing.assert_close(several.scores[:, 0], scores, rtol=1e-11, atol=1e-12)
    softmax = nn.Sequential(model, nn.Softmax(1))
    _, scores = by_definition(softmax, x, 1, (4,) * axes, (2,) * axes)
    torch.testing.assert_close(several.scores[:, 1], scores, rtol=1e-11, atol=1e-12)
    assert several.classes is not None
    assert several.classes.shape == scores.shape


@axes
def test_targets_inside_of_the_network(model: nn.Module, x: Tensor, axes: int) -> None:
    found = occlusion(model, x, channel("4", 1), window=4, stride=4)
    assert found.stats["path"] == "dense"
    part = nn.Sequential(*list(model)[:5], nn.Flatten(2))
    wanted = nn.Sequential(part, _Channel())
    _, scores = by_definition(wanted, x, 0, (4,) * axes, (4,) * axes)
    torch.testing.assert_close(found.scores, scores, rtol=1e-11, atol=1e-12)


class _Channel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1].sum(1, keepdim=True)


@axes
def test_default_windows_no_inputs_and_what_is_shown(model: nn.Module, x: Tensor, axes: int) -> None:
    found = occlusion(model, x)
    assert found.attribution.shape == (3, *x.shape[2:])
    assert found.stats["windows"] == found.scores[0].numel()
    assert occlusion(model, x[:0], 1).attribution.shape == (0, *x.shape[2:])
    assert "attribution" in repr(found)
    assert found._repr_html_()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_only_a_region(axes: int) -> None:
    """The windows of the part, on the whole input: those of the whole that lie there, where the grids fit."""
    torch.manual_seed(2)
    size = (12, 10, 8)[3 - axes :]
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * math.prod(size), 3)).to(f64)
    x = torch.randn(2, 2, *size, dtype=f64)
    starts, stops = (4, 2, 0)[3 - axes :], (10, 8, 6)[3 - axes :]
    part = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    whole = occlusion(model, x, 1, window=2, stride=2)
    found = occlusion(model, x, 1, window=2, stride=2, region=(*starts, *stops))
    torch.testing.assert_close(found.attribution, whole.attribution[(slice(None), *part)], rtol=1e-12, atol=1e-13)
    assert found.scores.shape == (2, *[3] * axes)
    with pytest.raises(ValueError, match=r"region should lie in the image of .* pixels and hold some of it"):
        occlusion(model, x, 1, window=2, region=(*starts, *[20] * axes))
    with pytest.raises(ValueError, match=r"region should be \(.*(right|stop)\) in pixels, got \[1\]"):
        occlusion(model, x, 1, window=2, region=[1])
    with pytest.raises(ValueError, match="window should be at most the image"):
        occlusion(model, x, 1, window=7, region=(*starts, *stops))


@axes
def test_drill_down(model: nn.Module, x: Tensor, axes: int) -> None:
    if axes == 3:
        with pytest.raises(ValueError, match="drill_down should be None for volumes"):
            occlusion(model, x, 1, window=2, drill_down=0.5)
        return
    exact = occlusion(model, x, 1, window=3, stride=1)
    everything = occlusion(model, x, 1, window=3, stride=1, drill_down=1.0)
    torch.testing.assert_close(everything.scores, exact.scores, rtol=1e-11, atol=1e-12)
    half = occlusion(model, x, 1, window=3, stride=1, drill_down=0.5)
    assert 0.5 < half.stats["computed"] < 1


def test_one_input_without_its_batch_is_named() -> None:
    """[C, H, W] is no batch of signals for a network of images, nor [C, D, H, W] one of images for volumes."""
    images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with pytest.raises(
        ValueError, match=r"x should have shape \[N, C, H, W\], got \[3, 16, 16\]; x\[None\] is a batch"
    ):
        occlusion(images, torch.zeros(3, 16, 16), window=4)
    volumes = nn.Conv3d(2, 3, 3).eval()
    with pytest.raises(ValueError, match=r"x should have shape \[N, C, D, H, W\], got \[2, 8, 8, 8\]; x\[None\]"):
        occlusion(volumes, torch.zeros(2, 8, 8, 8), window=4)
    with pytest.raises(ValueError, match=r"x should have shape \[N, C, L\], \[N, C, H, W\] or \[N, C, D, H, W\]"):
        occlusion(nn.Flatten(), torch.zeros(2, 8), window=4)


def test_other_numbers_of_axes_are_refused_in_words() -> None:
    model, x = nn.Sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()), torch.zeros(1, 2, 30)
    with pytest.raises(ValueError, match=r"window should be one number or \(length,\), got 2 numbers"):
        occlusion(model, x, window=(3, 3))
    with pytest.raises(ValueError, match="window should be at most the image, L = 30 pixels, got 40"):
        occlusion(model, x, window=40)
    with pytest.raises(
        ValueError, match=r"fill should have shape \[2\], \[2, 30\] or \[1, 2, 30\] for this x, got \[3\]"
    ):
        occlusion(model, x, window=3, fill=torch.zeros(3))
    with pytest.raises(ValueError, match="the model cannot be run on x of shape"):
        occlusion(model, torch.zeros(1, 5, 30), window=3)


def test_a_network_that_makes_images_of_signals() -> None:
    """What is no sliding window along the signal runs as a whole, and gives the same numbers."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Unflatten(2, (5, 6)),
        nn.Conv2d(4, 3, 3),
        nn.Flatten(),
        nn.Linear(36, 2),
    ).double()
    x = torch.randn(2, 2, 30, dtype=f64)
    found = occlusion(model, x, 1, window=5, stride=5, trace="always")
    _, scores = by_definition(model, x, 1, (5,), (5,))
    torch.testing.assert_close(found.scores, scores, rtol=1e-11, atol=1e-12)


def test_recurrent_networks_of_signals() -> None:
    """A recurrent layer sees all of the signal."""
    torch.manual_seed(1)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm, self.fc = nn.Conv1d(2, 4, 3, 2, 1), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            states, _ = self.lstm(self.conv(x).relu().transpose(1, 2))
            out: Tensor = self.fc(states[:, -1])
            return out

    model, x = Recurrent().double(), torch.randn(2, 2, 30, dtype=f64)
    found = occlusion(model, x, 1, window=6, stride=3, trace="always")
    _, scores = by_definition(model, x, 1, (6,), (3,))
    torch.testing.assert_close(found.scores, scores, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18"])
def test_networks_of_videos(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    x = torch.randn(1, 3, 4, 32, 32)
    options: dict[str, Any] = {"window": (2, 8, 8), "stride": (2, 8, 8), "region": (0, 0, 8, 4, 16, 24)}
    found = fastviz.occlusion(model, x, 1, **options, trace="always")
    dense = fastviz.occlusion(model, x, 1, **options, trace="never")
    assert found.stats["path"] == "incremental", found.stats["reason"]
    changes = float((dense.scores - dense.baseline.view(-1, 1, 1, 1)).abs().max())
    assert changes > 0
    torch.testing.assert_close(found.scores, dense.scores, rtol=0, atol=1e-3 * changes + 1e-6)
