"""The layers of a model: their shapes, and where they have no receptive field."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from fastviz.graph.layers import layers, receptive_field
from fastviz.graph.model_graph import trace
from fastviz.graph.receptive_field import ReceptiveField
from tests.graph.common import network, outline


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
