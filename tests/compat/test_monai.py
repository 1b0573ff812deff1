"""``OcclusionSensitivity`` against MONAI's own, number for number, in two and three dimensions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastviz.compat import monai as ours
from fastviz.engine import incremental


def network(sides: int, channels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    convolution, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if sides == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
    return nn.Sequential(
        convolution(channels, 5, 3, padding=1), nn.ReLU(inplace=True), pool(2), nn.Flatten(), nn.Linear(5 * 2**sides, 4)
    )


def picture(sides: int, channels: int = 2) -> Tensor:
    size = (13, 16, 9)[:sides]
    return torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(1))


CASES: dict[str, tuple[int, int, dict[str, Any], Any]] = {
    "gaussian": (2, 2, {"mask_size": 5}, None),
    "even sides": (2, 2, {"mask_size": (4, 6)}, None),
    "number": (2, 2, {"mask_size": 5, "mode": 0.3, "overlap": 0.0}, None),
    "mean of the image": (2, 1, {"mask_size": 5, "mode": "mean_img", "overlap": 0.5}, None),
    "one channel": (2, 1, {"mask_size": 5, "n_batch": 1}, None),
    "scores": (2, 2, {"mask_size": 5, "activate": False}, None),
    "a function of the output": (2, 2, {"mask_size": 5, "activate": torch.tanh}, None),
    "a box": (2, 2, {"mask_size": 3, "mode": 0.0}, [2, 9, -1, -1]),
    "a box in a corner": (2, 2, {"mask_size": 5}, [0, 6, 8, 15]),
    "a volume": (3, 2, {"mask_size": (5, 6, 4)}, None),
    "a box of a volume": (3, 1, {"mask_size": 4, "mode": 0.1, "overlap": 0.25}, [1, 8, 2, 11, -1, -1]),
    "the whole picture": (2, 2, {"mask_size": (13, 16), "mode": 0.0}, None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_monai(name: str) -> None:
    theirs = pytest.importorskip("monai.visualize")
    sides, channels, options, box = CASES[name]
    model, x = network(sides, channels).train(), picture(sides, channels)
    expected, likeliest = theirs.OcclusionSensitivity(model, verbose=False, **options)(x, box)
    found, mine = ours.OcclusionSensitivity(model, verbose=False, **options)(x, box)
    assert type(found) is Tensor
    torch.testing.assert_close(found, torch.as_tensor(expected.numpy()), rtol=1e-4, atol=1e-5)
    assert mine.shape == likeliest.shape
    assert float((mine == torch.as_tensor(likeliest.numpy())).float().mean()) > 0.97  # ties by rounding
    assert model.training


@pytest.mark.parametrize("mode", ["gaussian", 0.2, "mean_patch", lambda x, window: window.flip(-1) + x.mean()])
@pytest.mark.parametrize("sides", [2, 3])
def test_windows_are_computed_incrementally(monkeypatch: pytest.MonkeyPatch, sides: int, mode: Any) -> None:
    """As by whole volumes, which networks with further arguments get; windows overlap by more than half."""
    sweep = incremental.sweep
    paths: list[str] = []

    def traced(*arguments: Any, **options: Any) -> Any:
        swept = sweep(*arguments, **options, trace="always")
        paths.append(swept.stats["path"])
        return swept

    monkeypatch.setattr(incremental, "sweep", traced)
    convolution = (nn.Conv2d, nn.Conv3d)[sides - 2]
    torch.manual_seed(0)
    model = nn.Sequential(
        *(convolution(2, 6, 3, padding=1), nn.ReLU(), convolution(6, 6, 3, stride=2), nn.ReLU()),
        *(convolution(6, 6, 3, padding=1), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4)),
    ).eval()

    class Further(nn.Module):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return model(x) * scale

    x = torch.rand(1, 2, *(25, 27, 21)[:sides], generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"mask_size": 5, "mode": mode, "verbose": False}
    found, _ = ours.OcclusionSensitivity(model, **options)(x)
    expected, _ = ours.OcclusionSensitivity(Further(), **options)(x, scale=1.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert paths == ["incremental"]


def test_by_hand() -> None:
    """Two windows side by side, covered with zero: each pixel has the score without its half."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 1, bias=False))
    x = torch.arange(8.0).view(1, 1, 2, 4)
    found, _ = ours.OcclusionSensitivity(model, 2, mode=0.0, overlap=0.0, activate=False, verbose=False)(x)
    weight = model[1].weight.detach().view(2, 4)
    whole = (weight * x[0, 0]).sum()
    left, right = ((weight * x[0, 0])[:, part].sum() for part in (slice(0, 2), slice(2, 4)))
    expected = torch.stack([whole - left, whole - left, whole - right, whole - right]).expand(2, 4)
    torch.testing.assert_close(found[0, 0], expected)


def test_the_mean_of_the_window_by_hand() -> None:
    """As MONAI's words have it; MONAI 1.6 multiplies the window by its mean instead."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
    x = torch.tensor([1.0, 3.0, 5.0, 9.0]).view(1, 1, 1, 4)
    found, _ = ours.OcclusionSensitivity(
        model, (1, 2), mode="mean_patch", overlap=0.0, activate=False, verbose=False, n_batch=2
    )(x)
    weight = model[1].weight.detach()[0]
    first, second = ((weight * torch.tensor(covered)).sum() for covered in ([2.0, 2.0, 5.0, 9.0], [1.0, 3.0, 7.0, 7.0]))
    torch.testing.assert_close(found[0, 0, 0], torch.stack([first, first, second, second]))


def test_a_model_that_mixes_gets_one_at_a_time() -> None:
    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)).flatten(1).sum(1, keepdim=True) + x.amax((1, 2, 3))[:, None]

    x = picture(2)
    found, _ = (ours.OcclusionSensitivity(Mixes(), 5, mode=0.0, n_batch=n, verbose=False) for n in (7, 1))
    torch.testing.assert_close(found(x)[0], _(x)[0], rtol=0, atol=0)


def test_errors() -> None:
    with pytest.raises(NotImplementedError, match="mode should be"):
        ours.OcclusionSensitivity(network(2), mode="blur")
    with pytest.raises(ValueError, match="batch size of 1"):
        ours.OcclusionSensitivity(network(2))(torch.rand(2, 2, 9, 9))
    with pytest.raises(ValueError, match="should be bigger than mask"):
        ours.OcclusionSensitivity(network(2), 20)(picture(2))
    model = network(2).train()
    with pytest.raises(RuntimeError):
        ours.OcclusionSensitivity(model, 3, verbose=False)(torch.rand(1, 5, 9, 9))
    assert model.training
