"""The incremental engine against the model itself on covered images, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastviz import ops
from fastviz.incremental import Sweep, sweep

torchvision = pytest.importorskip("torchvision")


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
TRANSFORMERS = ["vit_b_32", "swin_t", "swin_v2_t", "maxvit_t"]


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
def test_transformers_run_as_they_are(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    images = torch.randn(1, 3, 224, 224)
    result = check(model, images, random_boxes(2, (224, 224)), path="dense")
    assert "may mix the images of a batch" in result.stats["reason"]
