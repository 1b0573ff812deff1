"""Crops for single units: their values and gradients are those of the whole image; what has none says why."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz.engine.gradients.unit_gradients import NoCrop, calls_of_layers, map_shape, unit_crops

f64 = torch.float64


class Branches(nn.Module):
    """Two ways through a block, joined by cat and by a sum, as in Inception and ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, (5, 3), stride=(2, 1), padding=(1, 2))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.narrow, self.wide = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.short = nn.Conv2d(8, 6, 1, stride=2)
        self.average = nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)
        self.last = nn.Conv2d(6, 3, 3, padding="same")
        self.fc = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x), inplace=True))
        x = F.relu_(self.norm(torch.cat([self.narrow(x), self.wide(x)], 1)))
        x = F.leaky_relu(self.down(x) + self.short(x))
        return self.fc(self.last(self.average(x)).flatten(1))


def branches(size: tuple[int, int]) -> Branches:
    torch.manual_seed(0)
    model = Branches().to(f64)
    model(torch.zeros(2, 2, *size, dtype=f64))
    return model.eval()


def plain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).to(f64)


CASES: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, int]]] = {
    "stem": (lambda: branches((41, 38)), "stem", (41, 38)),
    "pool with padding": (lambda: branches((41, 38)), "pool", (41, 38)),
    "dilated and joined": (lambda: branches((41, 38)), "norm", (41, 38)),
    "average in ceil mode": (lambda: branches((83, 70)), "average", (83, 70)),
    "padding by name": (lambda: branches((82, 71)), "last", (82, 71)),
    "pool in ceil mode": (
        lambda: plain(nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(3, 2, 2)),
        "2",
        (30, 33),
    ),
    "stride above the kernel": (
        lambda: plain(nn.Conv2d(2, 3, 2, stride=5), nn.Conv2d(3, 2, 2, stride=2)),
        "1",
        (64, 49),
    ),
    "shuffled channels": (lambda: plain(nn.Conv2d(2, 4, 3), nn.ChannelShuffle(2), nn.Conv2d(4, 2, 3)), "2", (12, 12)),
    "constant padding": (
        lambda: plain(nn.ZeroPad2d((2, 1, 0, 3)), nn.Conv2d(2, 3, 3, stride=2), nn.ReLU6()),
        "2",
        (19, 18),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_whole_image(case: str) -> None:
    """Every unit of the map: corners, edges and inside."""
    make, layer, size = CASES[case]
    torch.manual_seed(1)
    model = make()
    x = torch.randn(1, 2, *size, dtype=f64, generator=torch.Generator().manual_seed(2))
    outputs: list[Tensor] = []
    image = x.clone().requires_grad_()
    _, rows, columns = map_shape(model, layer, size, channels=2)
    positions = [(row, column) for row in range(rows) for column in range(columns)]
    crops = unit_crops(model, layer, positions, size, channels=2)
    assert min((bottom - top) * (right - left) for top, left, bottom, right in crops.boxes) < size[0] * size[1] / 2

    def map_of(batch: Tensor) -> Tensor:
        handle = model.get_submodule(layer).register_forward_hook(lambda *given: outputs.append(given[2].clone()))
        try:
            model(batch)
        except RuntimeError:  # what comes after the layer may not take a crop
            pass
        finally:
            handle.remove()
        return outputs.pop()[0, 1]

    whole = map_of(image)
    for (row, column), (top, left, bottom, right), at in zip(positions, crops.boxes, crops.positions, strict=True):
        (expected,) = torch.autograd.grad(whole[row, column], image, retain_graph=True)
        crop = x[:, :, top:bottom, left:right].clone().requires_grad_()
        value = map_of(crop)[at]
        (found,) = torch.autograd.grad(value, crop)
        assert float(value.detach()) == pytest.approx(float(whole[row, column].detach()), rel=1e-12, abs=1e-13)
        torch.testing.assert_close(found, expected[:, :, top:bottom, left:right], rtol=1e-12, atol=1e-13)
        expected[:, :, top:bottom, left:right] = 0
        assert not expected.any()


def test_the_box_worked_by_hand() -> None:
    """Convolution 3, stride 2, padding 1, then pool 2: unit i sees pixels 4i - 1 to 4i + 3, in steps of 4."""
    model = nn.Sequential(nn.Conv2d(3, 1, 3, stride=2, padding=1), nn.MaxPool2d(2))
    crops = unit_crops(model, "1", [(0, 1), (2, 4)], (20, 20))
    assert crops.boxes == [(0, 0, 4, 8), (4, 12, 12, 20)]
    assert crops.positions == [(0, 1), (1, 1)]
    assert crops.groups() == {(4, 8): [0], (8, 8): [1]}


# ------------------------------------------------------------------------------------------------- what has no crop


class SamePadding(nn.Module):
    """Padding as TensorFlow has it: how much goes before depends on the size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        room = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in (x.shape[3], x.shape[2])]
        x = F.pad(x, (room[0] // 2, room[0] - room[0] // 2, room[1] // 2, room[1] - room[1] // 2))
        return self.conv(x)


class Numbered(nn.Module):
    """A view with its numbers written out: four crops of 8x8 would silently be one map of 16x16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).view(-1, 2, 16, 16))


class Placed(nn.Module):
    """A constant with places, as embeddings of positions have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.place = nn.Conv2d(3, 2, 3), nn.Parameter(torch.zeros(1, 2, 14, 14))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + self.place).relu()


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 3:, :-2].clone()


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 2, 3))
    model[0].register_forward_hook(lambda *given: None)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "padding by size": (SamePadding, "conv", "treats a box of 3x3 pixels differently"),
    "view by numbers": (Numbered, "last", "treats a box of 5x5 pixels differently"),
    "places": (Placed, "", "add depends on the whole image or on places in it"),
    "cut": (lambda: nn.Sequential(Cut(), nn.Conv2d(3, 2, 3)), "1", "slice depends on the whole image"),
    "adaptive": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Conv2d(3, 2, 3)),
        "1",
        "adaptive_avg_pool2d depends",
    ),
    "attention": (lambda: nn.Sequential(nn.GroupNorm(1, 3), nn.Conv2d(3, 2, 3)), "1", "depends on the whole image"),
    "no map": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), "1", r"should have maps \[N, K, h, w\]"),
    "values": (LooksAtValues, "conv", "the model looks at values: "),
    "hooks": (hooked, "0", "the model has hooks, or scripted or compiled parts"),
    "scripted": (lambda: nn.Sequential(torch.jit.script(nn.Conv2d(3, 2, 3))), "0", "scripted or compiled parts"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_what_has_no_crop_says_why(case: str) -> None:
    make, layer, message = REFUSED[case]
    with pytest.raises(NoCrop, match=message):
        unit_crops(make(), layer, [(2, 2)], (16, 16))


def test_padding_by_size_is_taken_where_it_is_the_same() -> None:
    """A box of even size is padded as the image of even size is."""
    model = nn.Sequential(SamePadding(), nn.MaxPool2d(2, stride=2, ceil_mode=True))
    assert unit_crops(model, "1", [(3, 3)], (16, 16)).boxes == [(12, 12, 16, 16)]


def test_bad_layers_and_positions_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    with pytest.raises(ValueError, match="layer '2' is not known"):
        unit_crops(model, "2", [(0, 0)], (16, 16))
    with pytest.raises(ValueError, match=r"positions should be inside the map of layer '1', 14x14, got \(14, 0\)"):
        unit_crops(model, "1", [(0, 0), (14, 0)], (16, 16))


def test_a_layer_that_is_not_called_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3))
    model[0].spare = nn.ReLU()
    with pytest.raises(NoCrop, match=r"layer '0\.spare' gives no tensor in the forward pass"):
        map_shape(model, "0.spare", (8, 8))
    assert calls_of_layers(model, ["0.spare"], (8, 8)) is None


# ------------------------------------------------------------------------------------------------ what is remembered


def test_calls_are_counted() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 2, 3), relu, nn.Sequential(nn.Conv2d(2, 2, 3), relu))
    assert calls_of_layers(model, ["0", "1", "2"], (16, 16)) == {"0": 1, "1": 2, "2": 1}
    assert calls_of_layers(hooked(), ["0"], (16, 16)) is None
    assert calls_of_layers(LooksAtValues(), ["conv"], (16, 16)) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model[0], "stride", (2, 2)),
        lambda model: setattr(model[0], "weight", nn.Parameter(torch.zeros(2, 3, 5, 5))),
        lambda model: model.insert(0, nn.MaxPool2d(2)),
    ],
)
def test_a_changed_model_is_traced_again(change: Callable[[nn.Module], object]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    before = unit_crops(model, "1", [(2, 2)], (16, 16)).boxes
    change(model)
    layer = str(len(model) - 1)
    after = unit_crops(model, layer, [(2, 2)], (16, 16)).boxes
    assert before == [(2, 2, 5, 5)]
    assert after == unit_crops(nn.Sequential(*model), layer, [(2, 2)], (16, 16)).boxes != before


def test_the_model_is_not_touched_and_not_kept_alive() -> None:
    seen: list[object] = []

    class Watched(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            seen.append(x)
            return super().forward(x)

    model = nn.Sequential(Watched(3, 2, 3), nn.Dropout()).train()
    random = torch.get_rng_state()
    unit_crops(model, "1", [(2, 2)], (16, 16))
    assert seen
    assert not hasattr(model[0], "last")
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    seen.clear()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
