"""timm's networks by name: their weights from files, how images are prepared for them, their class names."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastviz as fv
from fastviz import models
from fastviz.models.descriptions import ModelInfo
from fastviz.models.preparation import Preprocessing

timm = pytest.importorskip("timm")

LITE0 = Preprocessing((224, 224), 256, (0.5,) * 3, (0.5,) * 3, "bicubic")


def test_a_network_of_timm_with_a_file_of_weights_knows_the_photographs(shared: Path) -> None:
    """57 of the 63 photographs, as the README beside the weights says."""
    before = torch.get_rng_state()
    model = fv.load_model("timm/tf_efficientnet_lite0", shared / "models" / "efficientnet_lite0_imagenet.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert models.preprocessing(model) == LITE0
    assert fv.class_names(model)[281] == "tabby"
    with (shared / "images" / "labels.csv").open() as file:
        truth = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    x, names = fv.load_images(shared / "images", model=model)
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(1) for part in x.split(8)]).tolist()
    assert sum(truth[Path(name).name] == k for name, k in zip(names, predicted, strict=True)) == 57


def test_random_weights_and_what_is_known_of_them() -> None:
    torch.manual_seed(3)
    model = fv.load_model("timm/resnet18.a1_in1k")
    torch.manual_seed(3)
    assert torch.equal(model.get_parameter("fc.weight"), timm.create_model("resnet18.a1_in1k").fc.weight)
    assert models.model_info(model) == ModelInfo("timm/resnet18.a1_in1k", None)
    assert models.preprocessing(model).resize == 235  # floor(224 / 0.95)


def test_models_that_timm_made_elsewhere_are_known_too() -> None:
    assert models.preprocessing(timm.create_model("tf_efficientnet_lite0")) == LITE0
    grey = models.preprocessing(timm.create_model("resnet18", in_chans=1))
    assert grey.mean == pytest.approx((0.449,), abs=1e-3)
    small = timm.create_model("vit_tiny_patch16_224", img_size=64)
    assert models.preprocessing(small).size == (64, 64)
    with pytest.raises(ValueError, match="class names of this ResNet are not known"):
        fv.class_names(timm.create_model("resnet18", num_classes=7))


def test_preprocessing_is_that_of_timm(shared: Path) -> None:
    """The same pixels as timm's own transform makes; to one level of 8 bits, where Pillow rounds a different order."""
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    from fastviz.images.preprocessing import prepare

    with Image.open(shared / "images" / "tabby.jpg") as file:
        picture = file.convert("RGB")
    for name in ("tf_efficientnet_lite0", "resnet18", "resnetv2_50x1_bit.goog_in21k_ft_in1k"):
        model = timm.create_model(name)
        expected = create_transform(**resolve_model_data_config(model))(picture)
        found = prepare(picture, models.preprocessing(model))
        assert found.shape == expected.shape, name
        assert float((found - expected).abs().max()) < 1e-5, name


def test_weights_of_other_classes_and_channels(tmp_path: Path) -> None:
    trained = timm.create_model("resnet18", num_classes=7, in_chans=2)
    path = tmp_path / "w.safetensors"
    save_file({f"module.{key}": value.half() if value.is_floating_point() else value
               for key, value in trained.state_dict().items()}, path)  # fmt: skip
    model = fv.load_model("timm/resnet18", path)
    assert torch.equal(model.get_parameter("fc.weight"), trained.fc.weight.half().float())
    assert model(torch.zeros(1, 2, 64, 64)).shape == (1, 7)
    assert len(models.preprocessing(model).mean) == 2


def test_weights_in_the_layout_of_their_authors_are_converted_with_a_warning(tmp_path: Path) -> None:
    """By timm's own code: in old files of vision transformers the patches are embedded by a linear layer."""
    state = timm.create_model("vit_tiny_patch16_224", num_classes=5).state_dict()
    torch.save(state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="timm's own conversion of them is taken"):
        found = fv.load_model("timm/vit_tiny_patch16_224", tmp_path / "w.pth")
    assert all(torch.equal(found.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("name", "weights", "kind", "words"),
    [
        ("timm/resnt18", None, ValueError, "model 'timm/resnt18' is not known; nearest: timm/resnet18"),
        ("timm/resnet18.a9", None, ValueError, "'a9' is not known; there are: a1_in1k"),
        ("timm/resnet18", "V1", ValueError, "weights of timm/resnet18 should be 'DEFAULT', or the path of"),
        ("tf_efficientnet_lite0", None, ValueError, "timm has it, as 'timm/tf_efficientnet_lite0'"),
    ],
)
def test_what_is_not_there(name: str, weights: str | None, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        fv.load_model(name, weights)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    state["left.over"] = state.pop("bn1.weight")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"missing bn1.weight; unexpected left.over; layer1.0.conv1.weight is float32"):
        fv.load_model("timm/resnet18", tmp_path / "w.pth")


def test_published_weights_where_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("fastviz.models.timm_networks._has_address", lambda url: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"weights of timm/tf_efficientnet_lite0 could not be downloaded: the hub cannot"):
        fv.load_model("timm/tf_efficientnet_lite0", "DEFAULT")


def test_published_weights_are_those_that_timm_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through timm's own loading code; here it finds a state dict where it would download one."""
    state = timm.create_model("resnet10t").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: dict(state))
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", lambda *args, **kwargs: dict(state))
    model = fv.load_model("timm/resnet10t", "DEFAULT")
    assert torch.equal(model.get_parameter("fc.weight"), state["fc.weight"])
    assert models.model_info(model).weights == "DEFAULT"


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "timm"] + ["timm"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert models.model_names("timm/*") == []
    with pytest.raises(ModuleNotFoundError, match=r"model 'timm/resnet18' needs timm: pip install \"fastviz\[timm\]\""):
        fv.load_model("timm/resnet18")


def test_names_of_timm_only_where_asked_for() -> None:
    assert not [name for name in models.model_names() if name.startswith("timm/")]
    assert len(models.model_names("timm/*")) > 1000
    assert {"resnet18", "timm/resnet18"} <= set(models.model_names("*resnet18"))
    assert isinstance(fv.load_model("timm/resnet10t"), nn.Module)
