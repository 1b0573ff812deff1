"""Receptive fields: known numbers, and what gradients say a unit depends on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastviz.graph.layers import layers, receptive_field
from fastviz.graph.receptive_field import ReceptiveField
from tests.graph.common import outline


@pytest.mark.parametrize(
    ("name", "layer", "size", "stride", "start"),
    [
        # kernels of 3 and pools of 2: 1 + 2 * (2 * 1 + 2 * 2 + 3 * 4 + 3 * 8 + 3 * 16) + (1 + 2 + 4 + 8) = 196
        ("vgg16", "features.28", 196, 16, -90),
        ("vgg16", "features.30", 212, 32, -90),
        # 11 + 2 * 4 (pool) + 4 * 8 (kernel of 5) + 2 * 8 (pool) + 3 * 2 * 16 = 163
        ("alexnet", "features.10", 163, 16, -66),
        ("alexnet", "features", 195, 32, -66),
        # 7 + 2 * 2 (pool) + 4 * 8, then for each stage 2 * jump before + 3 * 2 * jump after
        ("resnet18", "layer1", 43, 4, -21),
        ("resnet18", "layer4", 435, 32, -217),
        ("resnet18", "layer4.0.downsample.0", 211, 32, -105),
        ("squeezenet1_0", "features.0", 7, 2, 0),
    ],
)
def test_known_receptive_fields(name: str, layer: str, size: int, stride: int, start: int) -> None:
    expected = ReceptiveField((size, size), (stride, stride), (start, start))
    assert receptive_field(outline(name), layer) == expected


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "convnext_tiny", "googlenet"])
def test_shuffles_layer_norms_and_branches_keep_a_receptive_field(name: str) -> None:
    missing = [layer for layer in layers(outline(name)) if layer.receptive_field is None and len(layer.shape) == 3]
    # stochastic depth does nothing in evaluation mode, to a product that no layer made
    blind = {layer.reason for layer in missing if "avgpool" not in layer.name and "classifier" not in layer.name}
    assert blind <= {"it passes on what no layer made"}


class Zoo(nn.Module):
    """Branches, strides, dilation, asymmetric kernels and padding, pools with ceil_mode, a shuffle, a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 0))
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.left = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.right = nn.Conv2d(4, 4, (1, 4), padding="same")
        self.mean = nn.AvgPool2d(2, stride=1, padding=1)
        self.shuffle = nn.ChannelShuffle(2)
        self.last = nn.Conv2d(8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.shuffle(self.mean(x)[:, :, 1:, :-1])
        out: Tensor = self.last(F.pad(x, (2, 0, 0, 1)))
        return out


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("layer", ["stem", "pool", "left", "right", "mean", "shuffle", "last"])
def test_field_of_every_unit_equals_what_gradients_reach(layer: str) -> None:
    """Positive weights and an average for the maximum: no gradient cancels, so its support is the dependence."""
    model = Zoo().double()
    for parameter in model.parameters():
        parameter.data.abs_().add_(0.1)
    pool = nn.AvgPool2d(3, 2, ceil_mode=True)
    field = receptive_field(model, layer, (30, 26))
    model.pool = pool
    kept: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    x = torch.ones(1, 3, 30, 26, dtype=torch.float64, requires_grad=True)
    model(x)
    height, width = kept[0].shape[2:]
    for row in range(height):
        for column in range(width):
            (gradient,) = torch.autograd.grad(kept[0][0, :, row, column].sum(), x, retain_graph=True)
            reached = (gradient[0] != 0).any(0)
            if not reached.any():
                continue
            top, left, bottom, right = field.box((row, column), (30, 26))
            inside = torch.zeros_like(reached)
            inside[top:bottom, left:right] = True
            assert not (reached & ~inside).any()
            rows, columns = reached.any(1).nonzero(), reached.any(0).nonzero()
            found = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
            # a hull: near the border, the branch that reaches furthest may see only padding
            if field.box((row, column)) == (top, left, bottom, right):
                assert found == (top, left, bottom, right)


@pytest.mark.parametrize("layer", ["1", "4", "6"])
def test_a_crop_gives_the_unit_the_same_value(layer: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 6, 3, padding=1)),
        *(nn.ReLU(), nn.AvgPool2d(2, 2), nn.Conv2d(6, 5, 3, padding=1)),
    ).double()
    x = torch.randn(1, 3, 61, 90, dtype=torch.float64)
    field = receptive_field(model, layer, (61, 90))
    part = model[: int(layer) + 1]
    whole = part(x)
    for row in range(whole.shape[2]):
        for column in range(whole.shape[3]):
            (top, left, bottom, right), (i, j) = field.crop((row, column), (61, 90))
            cropped = part(x[:, :, top:bottom, left:right])
            torch.testing.assert_close(cropped[:, :, i, j], whole[:, :, row, column], rtol=1e-12, atol=1e-12)
