"""Style transfer and textures for tests: a small network, and options of the loop given one by one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz import models

f64 = torch.float64


LOOP = {"start", "canvas", "optimizer", "learning_rate", "preview", "preview_every", "checkpoint"}


def split(options: dict[str, object]) -> dict[str, object]:
    """Those of :class:`fastviz.Optimization` as one."""
    loop = {name: options[name] for name in LOOP & options.keys()}
    rest = {name: value for name, value in options.items() if name not in LOOP}
    return {**rest, "optimization": fv.Optimization(**loop)} if loop else rest


def style_transfer(*args: object, **options: object) -> fv.Styled:
    return fv.style_transfer(*args, **split(options))


def neural_texture(*args: object, **options: object) -> fv.Styled:
    return fv.neural_texture(*args, **split(options))


def features(model: nn.Sequential, image: Tensor, last: str) -> dict[str, Tensor]:
    """What the layers up to the ``last`` give, by their names."""
    found = {}
    for name, layer in model.named_children():
        image = layer(image) if not isinstance(layer, nn.ReLU) else image.relu()
        found[name] = image
        if name == last:
            break
    return found


def gram(maps: Tensor) -> Tensor:
    rows = maps.flatten(2)[0]
    return rows @ rows.T


@torch.no_grad()
def papers_weights(
    model: nn.Sequential, content: Tensor, styles: list[tuple[float, Tensor]], alpha: float, of_style: tuple[str, ...],
    of_content: str,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Weights with which the loss is the paper's: each layer's multiplied by the scale that its loss is divided by."""
    squared = features(model, content, of_content)[of_content].square().sum()
    scales = dict.fromkeys(of_style, 0.0)
    for share, style in styles:
        found = features(model, style, of_style[-1])
        for name in of_style:
            scales[name] += share * float(found[name].square().mean())
    weights = {name: scale**2 / len(of_style) for name, scale in scales.items()}
    return {"layers": weights, "content_layers": {of_content: alpha * float(squared)}}


def described(model: nn.Module, channels: int = 3) -> nn.Module:
    """``model`` for pictures as they are."""
    settings = models.Preprocessing((16, 16), 16, (0.0,) * channels, (1.0,) * channels)
    models.describe(model, preprocessing=settings)
    return model


def small() -> nn.Module:
    """Two stages of convolutions in float64."""
    torch.manual_seed(3)
    return described(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 64, 2),
        ).double().eval()
    )  # fmt: skip


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=f64, generator=torch.Generator().manual_seed(seed))
