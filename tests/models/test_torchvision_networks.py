"""torchvision's networks: random weights, weights by name, and what is known of real ones."""

from __future__ import annotations

import csv
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastviz import images, models
from fastviz.models import weight_files
from fastviz.models.descriptions import ModelInfo, Preprocessing

vision = pytest.importorskip("torchvision.models")

SMALL = "squeezenet1_1"


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_an_unknown_name_is_answered_with_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match=r"model 'resnet5' is not known; nearest: .*resnet50"):
        models.load_model("resnet5")
    with pytest.raises(TypeError, match="name should be a string, got int"):
        models.load_model(3)  # type: ignore[arg-type]


def test_random_weights_are_torchvisions_for_the_same_seed() -> None:
    torch.manual_seed(7)
    expected = vision.get_model(SMALL, weights=None)
    torch.manual_seed(7)
    model = models.load_model(SMALL)
    assert same_weights(model, expected)
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert models.model_info(model) == ModelInfo(SMALL, None)
    assert models.preprocessing(model) == Preprocessing((224, 224), 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert models.class_names(model)[281] == "tabby"


def test_preprocessing_has_what_torchvision_publishes() -> None:
    found = models.preprocessing(models.load_model("efficientnet_b1"))
    assert (found.size, found.resize, found.interpolation) == ((240, 240), 256, "bicubic")


def test_another_number_of_classes(tmp_path: Path) -> None:
    torch.save(vision.get_model("resnet18", weights=None, num_classes=7).state_dict(), tmp_path / "w.pth")
    model = models.load_model("resnet18", tmp_path / "w.pth")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(ValueError, match=r"class names of this resnet18 are not known.*describe\(model, class_names"):
        models.class_names(model)


def test_old_files_lack_batch_counters(tmp_path: Path) -> None:
    state = vision.get_model("resnet18", weights=None).state_dict()
    torch.save({k: v for k, v in state.items() if "num_batches_tracked" not in k}, tmp_path / "w.pth")
    loaded = models.load_model("resnet18", tmp_path / "w.pth").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_batch_counters_are_not_held_against_a_file(tmp_path: Path) -> None:
    state = vision.get_model("resnet18", weights=None).state_dict()
    torch.save({**state, "layer9.num_batches_tracked": torch.tensor(3)}, tmp_path / "w.pth")
    models.load_model("resnet18", tmp_path / "w.pth")
    state = {key: tensor for key, tensor in state.items() if "num_batches_tracked" not in key}
    torch.save({**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"do not fit resnet18: conv1\.weight is float32"):
        models.load_model("resnet18", tmp_path / "w.pth")


def test_densenet_files_have_names_with_dots(tmp_path: Path) -> None:
    """torchvision's own files call it ``norm.1``, its network ``norm1``."""
    expected = vision.get_model("densenet121", weights=None)
    state = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: tensor
        for key, tensor in expected.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "w.pth")
    assert same_weights(models.load_model("densenet121", tmp_path / "w.pth"), expected)


def test_vit_files_have_old_names() -> None:
    """torchvision's own files call the layers of an MLP ``linear_1`` and ``linear_2``, its network ``0`` and ``3``."""
    from torchvision.models.vision_transformer import MLPBlock

    state = {
        key.replace("0.0.", "0.linear_1.").replace("0.3.", "0.linear_2."): tensor
        for key, tensor in nn.Sequential(MLPBlock(2, 4, 0.0)).state_dict().items()
    }
    assert "0.linear_1.weight" in state
    with weight_files.NoWeightsYet():
        block = nn.Sequential(MLPBlock(2, 4, 0.0))
    assert weight_files.fill(block, state) == ""
    assert torch.equal(block.state_dict()["0.3.bias"], state["0.linear_2.bias"])


@pytest.mark.parametrize("with_side_heads", [False, True])
def test_googlenet_side_heads_and_input(tmp_path: Path, with_side_heads: bool) -> None:
    expected = vision.googlenet(weights=None, init_weights=False, aux_logits=with_side_heads, transform_input=True)
    torch.save(expected.eval().state_dict(), tmp_path / "w.pth")
    model = models.load_model("googlenet", tmp_path / "w.pth")
    assert not [name for name, _ in model.named_children() if name.startswith("aux") and getattr(model, name)]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)


def test_a_file_named_as_a_download_is_those_weights(tmp_path: Path) -> None:
    newest = vision.MobileNet_V2_Weights.IMAGENET1K_V2
    state = vision.get_model("mobilenet_v2", weights=None).state_dict()
    named = tmp_path / (Path(newest.url).stem + ".safetensors")
    for file, resize in ((named, 232), (tmp_path / "mine.safetensors", 256)):
        save_file(state, file)
        assert models.preprocessing(models.load_model("mobilenet_v2", file)).resize == resize


def test_published_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    state = vision.get_model("mobilenet_v2", weights=None).state_dict()
    asked: list[tuple[str, dict[str, Any]]] = []

    def pretend(member: Any, **options: Any) -> dict[str, torch.Tensor]:
        asked.append((member.name, options))
        return state  # type: ignore[no-any-return]

    monkeypatch.setattr(vision.MobileNet_V2_Weights, "get_state_dict", pretend)
    model = models.load_model("mobilenet_v2", "DEFAULT")
    models.load_model("mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V1")
    assert [name for name, _ in asked] == ["IMAGENET1K_V2", "IMAGENET1K_V1"]
    assert all(options["weights_only"] and options["check_hash"] for _, options in asked)
    assert models.model_info(model) == ModelInfo("mobilenet_v2", "IMAGENET1K_V2")
    assert models.preprocessing(model).resize == 232
    assert torch.equal(model.state_dict()["classifier.1.bias"], state["classifier.1.bias"])


@pytest.mark.parametrize("failure", [urllib.error.URLError("no route"), RuntimeError("invalid hash value")])
def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(member: Any, **options: Any) -> None:
        raise failure

    monkeypatch.setattr(vision.MobileNet_V2_Weights, "get_state_dict", fail)
    with pytest.raises(OSError, match=r"weights IMAGENET1K_V1 of mobilenet_v2 could not be downloaded.*by its path"):
        models.load_model("mobilenet_v2", "IMAGENET1K_V1")


def test_unknown_weights_are_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"weights of resnet50 should be 'IMAGENET1K_V1', 'IMAGENET1K_V2', 'DEFAULT'"):
        models.load_model("resnet50", "IMAGENET")
    with pytest.raises(TypeError, match=r"weights should be the name .* got int"):
        models.load_model("resnet50", 1)  # type: ignore[arg-type]


def test_real_weights_reproduce_what_is_known_of_63_photographs(shared: Path) -> None:
    """``labels.csv`` has the network's class and the true class's probability, at 227 pixels, to four digits."""
    with (shared / "images" / "labels.csv").open(newline="") as file:
        known = {row["file"]: row for row in csv.DictReader(file)}
    model = models.load_model("squeezenet1_0", shared / "models" / "squeezenet1_0_imagenet.safetensors")
    x, names = images.load_images(shared / "images", model=model, size=227)
    assert set(names) == set(known)
    assert len(names) == 63
    with torch.inference_mode():
        probabilities = torch.cat([model(batch).softmax(1) for batch in x.split(16)])
    classes = models.class_names(model)
    for name, probability in zip(names, probabilities, strict=True):
        assert classes[int(probability.argmax())] == known[name]["squeezenet1_0_top1"]
        true = float(probability[int(known[name]["class_index"])])
        assert true == pytest.approx(float(known[name]["squeezenet1_0_p_true"]), abs=1e-4)
