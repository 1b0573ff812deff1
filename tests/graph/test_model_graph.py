"""Layers, shapes and receptive fields: known numbers, and what gradients say a unit depends on."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastviz import graph
from fastviz.graph.model_graph import NotTraceable, layers, receptive_field, trace
from fastviz.graph.receptive_field import ReceptiveField

torchvision = pytest.importorskip("torchvision")


def network(name: str) -> nn.Module:
    """With weights as torchvision draws them."""
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **quick)
    return model.eval()


def outline(name: str) -> nn.Module:
    """With whatever weights the memory holds: geometry does not depend on them, and drawing them takes seconds."""
    with torch.device("meta"):
        model = network(name)
    model.to_empty(device="cpu")
    for buffer in model.buffers():  # indices among them
        buffer.zero_()
    return model


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


def test_layers_of_alexnet() -> None:
    model = outline("alexnet")
    found = {layer.name: layer for layer in layers(model)}
    assert list(found) == [name for name, _ in model.named_modules() if name]
    assert (found["features.3"].kind, found["features.3"].shape) == ("Conv2d", (192, 27, 27))
    assert found["features.3"].parameters == 192 * 64 * 25 + 192
    assert found["features"].shape == (256, 6, 6)
    assert found["classifier.6"].shape == (1000,)
    assert found["classifier.6"].receptive_field is None
    assert found["classifier.6"].reason == "flatten in 'the model' makes every unit depend on the whole image"
    # does nothing in evaluation mode, and gets what a function, not a layer, made
    assert found["classifier.0"].shape == (9216,)
    assert found["classifier.0"].receptive_field is None


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "convnext_tiny", "googlenet"])
def test_shuffles_layer_norms_and_branches_keep_a_receptive_field(name: str) -> None:
    missing = [layer for layer in layers(outline(name)) if layer.receptive_field is None and len(layer.shape) == 3]
    # stochastic depth does nothing in evaluation mode, to a product that no layer made
    blind = {layer.reason for layer in missing if "avgpool" not in layer.name and "classifier" not in layer.name}
    assert blind <= {"it passes on what no layer made"}


def test_squeeze_and_excitation_makes_everything_global() -> None:
    found = {layer.name: layer for layer in layers(outline("mobilenet_v3_small"), (64, 64))}
    assert found["features.1.block.0.2"].receptive_field == ReceptiveField((7, 7), (4, 4), (-3, -3))
    assert found["features.1"].receptive_field is None
    assert "features.1.block.1.avgpool" in found["features.12"].reason


def test_transformers_have_shapes_and_no_receptive_field() -> None:
    found = {layer.name: layer for layer in layers(outline("swin_t"), (112, 112))}
    assert found["features.0.0"].receptive_field == ReceptiveField((4, 4), (4, 4), (0, 0))
    assert found["features.1"].shape == (28, 28, 96)
    assert found["features.1"].receptive_field is None


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


def test_modules_without_a_call_of_their_own_pass_on_their_input() -> None:
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 3), nn.Dropout(), nn.ReLU(inplace=True))
    found = {layer.name: layer for layer in layers(model, (8, 8))}
    assert found["0"].receptive_field == ReceptiveField((1, 1), (1, 1), (0, 0))
    assert found["0"].shape == (3, 8, 8)
    assert found["2"].receptive_field == found["3"].receptive_field == found["1"].receptive_field


class ChoosesByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.conv(x)
        return out if out.sum() > 0 else -out


def test_a_model_that_cannot_be_traced_still_has_shapes() -> None:
    model = ChoosesByValue()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    (layer,) = layers(model, (9, 9))
    assert layer.shape == (4, 7, 7)
    assert layer.receptive_field is None
    assert layer.reason.startswith("the model writes to its own tensors")
    assert model.calls == 0
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="layer 'conv' has no receptive field: the model writes"):
        receptive_field(model, "conv", (9, 9))


def test_two_outputs_are_not_traceable() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x

    with pytest.raises(NotTraceable, match="gives more than one tensor"):
        trace(Two(), (4, 4))


def test_unknown_layers_and_unused_modules_are_refused_by_name() -> None:
    model = outline("googlenet")
    with pytest.raises(ValueError, match="layer 'inception3' is not known; nearest: inception3"):
        receptive_field(model, "inception3")
    model = nn.Sequential(nn.Conv2d(3, 2, 3))
    model.register_module("unused", None)
    with pytest.raises(TypeError, match=r"model should be a torch.nn.Module, got str"):
        layers("alexnet")  # type: ignore[arg-type]


def test_the_model_is_not_touched() -> None:
    model = network("resnet18").train()
    model.conv1.requires_grad_(False)  # type: ignore[union-attr]
    calls: list[object] = []
    handle = model.layer1.register_forward_hook(lambda *args: calls.append(args))  # type: ignore[union-attr, arg-type]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    pointers = {name: value.data_ptr() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    layers(model, (64, 64))
    trace(model, (64, 64))
    assert all(module.training for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert calls == []
    assert len(model.layer1._forward_hooks) == 1  # type: ignore[union-attr, arg-type]
    handle.remove()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == pointers
    assert torch.equal(random, torch.random.get_rng_state())


def test_the_trace_holds_the_models_own_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).eval()
    traced = trace(model, (8, 8))
    pointers = {value.data_ptr() for value in traced.constants.values()}
    assert model[0].weight.data_ptr() in pointers
    assert model[1].running_mean.data_ptr() in pointers  # type: ignore[union-attr]


def test_two_threads_at_once_while_the_model_runs() -> None:
    model = network("squeezenet1_0")
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected = model(x)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(len(layers(model, (48, 48))))) for _ in range(2)]
    for thread in threads:
        thread.start()
    with torch.no_grad():
        while any(thread.is_alive() for thread in threads):
            assert torch.equal(model(x), expected)
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 2


def test_public_names() -> None:
    assert set(graph.__all__) >= {"layers", "receptive_field", "trace"}
