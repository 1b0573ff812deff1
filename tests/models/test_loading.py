"""Networks by name: names, the demo network, and loading without torchvision."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastviz import images, models
from fastviz.models.demo_network import CLASS_NAMES, DemoNetwork
from fastviz.models.descriptions import ModelInfo


def test_names_are_the_classification_networks() -> None:
    names = models.model_names()
    assert names[0] == "demo"
    assert names[1:] == sorted(names[1:])
    assert {"alexnet", "vgg16", "googlenet", "inception_v3", "resnet50", "densenet121"} <= set(names)
    assert not [name for name in names if "rcnn" in name or "deeplab" in name or "raft" in name or "r3d" in name]


def test_without_torchvision_there_is_the_built_in_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(DemoNetwork().state_dict(), tmp_path / "w.safetensors")
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert models.model_names() == ["demo"]
    assert len(models.class_names(models.load_model("demo", tmp_path / "w.safetensors"))) == 20
    with pytest.raises(
        ModuleNotFoundError, match=r"model 'resnet18' needs torchvision: pip install \"fastviz\[vision\]\""
    ):
        models.load_model("resnet18")


def test_built_in_network_from_a_file(tmp_path: Path) -> None:
    expected = DemoNetwork()
    save_file({key: tensor.half() for key, tensor in expected.state_dict().items()}, tmp_path / "w.safetensors")
    model = models.load_model("demo", tmp_path / "w.safetensors")
    assert isinstance(model, DemoNetwork)
    assert not model.training
    assert torch.equal(model.get_parameter("fc8.bias"), expected.get_parameter("fc8.bias").half().float())
    assert models.model_info(model) == ModelInfo("demo", str(tmp_path / "w.safetensors"))
    assert models.class_names(model) == list(CLASS_NAMES)
    assert models.preprocessing(model).size == (64, 64)
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ValueError, match=r"do not fit demo: missing conv1.weight, conv1.bias, .*unexpected bias, weight"
    ):
        models.load_model("demo", tmp_path / "w.safetensors")


def test_built_in_weights_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models.loading, "_DEMO_WEIGHTS", tmp_path / "demo.safetensors")
    with pytest.raises(FileNotFoundError, match="the weights of the built-in network are missing, reinstall fastviz"):
        models.load_model("demo")


needs_built_in_weights = pytest.mark.skipif(
    not models.loading._DEMO_WEIGHTS.is_file(),
    reason="the built-in network's weights, fastviz/models/data/demo.safetensors, are missing",
)


@needs_built_in_weights
def test_built_in_weights_are_float16_in_the_file() -> None:
    assert {tensor.dtype for tensor in load_file(models.loading._DEMO_WEIGHTS).values()} == {torch.float16}
    assert models.loading._DEMO_WEIGHTS.stat().st_size <= 2_000_000
    before = torch.get_rng_state()
    model = models.load_model("demo")
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert models.model_info(model) == ModelInfo("demo", "built-in")


@needs_built_in_weights
@pytest.mark.parametrize(
    ("photograph", "name"), [("espresso.jpg", "espresso"), ("rocket.jpg", "missile"), ("tabby_cat.jpg", "tabby cat")]
)
def test_built_in_network_knows_the_photographs(photograph: str, name: str) -> None:
    model = models.load_model("demo")
    x, _ = images.load_images(models.loading._DEMO_WEIGHTS.parent / "photos" / photograph, model=model)
    with torch.no_grad():
        assert models.class_names(model)[int(model(x).argmax())] == name
