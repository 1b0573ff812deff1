"""Networks by name: names, weights from files of every kind, descriptions, and what is refused."""

from __future__ import annotations

import argparse
import collections
import copy
import csv
import gc
import os
import pickle
import sys
import urllib.error
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastviz import images, models
from fastviz.models import weight_files
from fastviz.models.demo_network import CLASS_NAMES, DemoNetwork
from fastviz.models.loading import ModelInfo, Preprocessing

vision = pytest.importorskip("torchvision.models")

SMALL = "squeezenet1_1"


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """The smallest of torchvision's networks with weights that are not its random ones."""
    torch.manual_seed(3)
    network: nn.Module = vision.get_model(SMALL, weights=None).eval()
    return network


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ------------------------------------------------------------------------------------------------------ names


def test_names_are_the_classification_networks() -> None:
    names = models.model_names()
    assert names[0] == "demo"
    assert names[1:] == sorted(names[1:])
    assert {"alexnet", "vgg16", "googlenet", "inception_v3", "resnet50", "densenet121"} <= set(names)
    assert not [name for name in names if "rcnn" in name or "deeplab" in name or "raft" in name or "r3d" in name]


def test_an_unknown_name_is_told_its_neighbours() -> None:
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


# ------------------------------------------------------------------------------------------------------ files


def wrapped(network: nn.Module, how: str) -> dict[str, Any]:
    state = network.state_dict()
    return {
        "plain": state,
        "state_dict": {"epoch": 3, "state_dict": state},
        "model": {"model": state, "optimizer": {"lr": 0.1}},
        "data parallel": {f"module.{key}": tensor for key, tensor in state.items()},
    }[how]


@pytest.mark.parametrize("how", ["plain", "state_dict", "model", "data parallel"])
@pytest.mark.parametrize("ending", [".pth", ".pt", ".PT"])
def test_torch_files(trained: nn.Module, tmp_path: Path, how: str, ending: str) -> None:
    file = tmp_path / f"weights{ending}"
    torch.save(wrapped(trained, how), file)
    model = models.load_model(SMALL, file)
    assert same_weights(model, trained)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert models.model_info(model) == ModelInfo(SMALL, str(file))


def checkpoints(state: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Files as people have them: what they are → name and content."""

    def before(prefix: str) -> dict[str, Any]:
        return {prefix + key: tensor for key, tensor in state.items()}

    return {
        "PyTorch's imagenet example": ("best.pth.tar", {"epoch": 1, "arch": "x", "state_dict": before("module.")}),
        "tutorial": ("a.pth", {"epoch": 1, "model_state_dict": state, "optimizer_state_dict": {"state": {}}}),
        "Lightning": ("b.ckpt", {"state_dict": before("model."), "hyper_parameters": {"path": Path("x")}}),
        "Lightning and compile": ("c.ckpt", {"state_dict": before("model._orig_mod.")}),
        "compile": ("d.pth", before("_orig_mod.")),
        "data parallel and compile": ("e.pth", before("_orig_mod.module.")),
        "compiled blocks": (
            "f.pth",
            {key.replace("features.3.", "features.3._orig_mod."): v for key, v in state.items()},
        ),
        "averaged": ("g.pth", {"n_averaged": torch.tensor(5), **before("module.")}),
        "torchvision's references": ("h.pth", {"model": state, "args": argparse.Namespace(lr=0.1, out=Path("a"))}),
        "NumPy beside it": (
            "i.pth",
            {"state_dict": state, "best": np.float64(0.7), "curve": np.arange(3.0), "n": np.int32(1)},
        ),
        "counters beside it": ("j.pth", {"net": state, "acc": 1.0, "seen": collections.Counter("aab"), "d": {1, 2}}),
        "transformers": ("pytorch_model.bin", state),
        "no ending": ("weights", state),
        "deep": ("k.pth", {"checkpoint": 1, "model": {"state_dict": before("net.")}}),
        "a key of its own": (
            "l.pth",
            {"classifier": state, "epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(1)}}}},
        ),
    }


@pytest.mark.parametrize("what", checkpoints({}))
def test_checkpoints_as_people_have_them(trained: nn.Module, tmp_path: Path, what: str) -> None:
    name, content = checkpoints(trained.state_dict())[what]
    torch.save(content, tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_weights(models.load_model(SMALL, tmp_path / name), trained)


def test_the_content_of_a_file_decides_not_its_name(trained: nn.Module, tmp_path: Path) -> None:
    save_file(trained.state_dict(), tmp_path / "a.bin")
    torch.save(trained.state_dict(), tmp_path / "b.safetensors")
    save_file(trained.state_dict(), tmp_path / "c")
    os.rename(tmp_path / "c", tmp_path / os.fsdecode(b"caf\xe9.safetensors"))
    torch.save(trained.state_dict(), tmp_path / "d.ckpt", _use_new_zipfile_serialization=False)
    for file in tmp_path.iterdir():
        assert same_weights(models.load_model(SMALL, file), trained), file


@pytest.mark.parametrize("averaged", ["model_ema", "state_dict_ema", "ema"])
@pytest.mark.parametrize("plain", ["model", "state_dict"])
def test_of_two_sets_the_plain_one_is_taken_and_both_are_named(
    trained: nn.Module, tmp_path: Path, plain: str, averaged: str
) -> None:
    other = {key: tensor + 1 for key, tensor in trained.state_dict().items()}
    torch.save({averaged: other, plain: trained.state_dict()}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=rf"w.pth': those under '{plain}' are taken; '{averaged}', their running mean"):
        assert same_weights(models.load_model(SMALL, tmp_path / "w.pth"), trained)
    torch.save({averaged: {"decay": 0.9, "module": trained.state_dict()}, plain: {}}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=rf"those under '{averaged}.module', a running mean, are taken"):
        assert same_weights(models.load_model(SMALL, tmp_path / "w.pth"), trained)


def test_what_a_trainer_keeps_beside_the_network_is_left_and_named(trained: nn.Module, tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in trained.state_dict().items()}
    state |= {f"ema_model.{key}": value + 1 for key, value in trained.state_dict().items()}
    torch.save({"state_dict": {"criterion.weight": torch.ones(3), **state}}, tmp_path / "w.ckpt")
    words = r"those that begin with 'model.' are taken, left are criterion.weight, ema_model.features.0.weight"
    with pytest.warns(UserWarning, match=words):
        assert same_weights(models.load_model(SMALL, tmp_path / "w.ckpt"), trained)


def test_several_sets_of_equal_rank_are_named(trained: nn.Module, tmp_path: Path) -> None:
    torch.save({"student": trained.state_dict(), "teacher": trained.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"save one of student, teacher by itself: torch.save\(checkpoint\['student'\]"
    ):
        models.load_model(SMALL, tmp_path / "w.pth")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(trained: nn.Module, tmp_path: Path, value: float) -> None:
    state = dict(trained.state_dict())
    state["features.0.bias"] = torch.full_like(state["features.0.bias"], value)
    torch.save(state, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"w.pth' hold NaN or infinite values: features.0.bias"):
        models.load_model(SMALL, tmp_path / "w.pth")
    demo = dict(models.load_model("demo").state_dict())
    demo["conv1.weight"] = demo["conv1.weight"] * value
    save_file(demo, tmp_path / "demo.safetensors")
    with pytest.warns(UserWarning, match=r"demo.safetensors' hold NaN or infinite values: conv1.weight"):
        models.load_model("demo", tmp_path / "demo.safetensors")


def test_programs_given_as_weights_say_what_they_are(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    torch.jit.trace(network, torch.zeros(1, 2)).save(tmp_path / "script.pt")
    torch.export.save(torch.export.export(network, (torch.zeros(1, 2),)), tmp_path / "program.pt2")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(2))
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>not found</html>")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    for name, words in (
        ("script.pt", r"it is a TorchScript program .*torch.jit.load\(FILE\).state_dict"),
        ("program.pt2", r"it is an exported program .*torch.export.load\(FILE\).state_dict"),
        ("arrays.npz", "it is a ZIP archive without weights of torch"),
        ("page.pth", "it is a web page"),
        ("pointer.safetensors", "it is a pointer of Git LFS"),
    ):
        with pytest.raises(ValueError, match=rf"{name}' cannot be read: {words}"):
            models.load_model(SMALL, tmp_path / name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_file_of_another_dtype_gives_float32(trained: nn.Module, tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({key: tensor.to(dtype) for key, tensor in trained.state_dict().items()}, tmp_path / "w.safetensors")
    model = models.load_model(SMALL, tmp_path / "w.safetensors")
    for key, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, trained.get_parameter(key).to(dtype).float())


def test_a_path_may_begin_in_the_home_folder(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    assert same_weights(models.load_model(SMALL, "~/w.pth"), trained)


def test_loading_draws_no_random_numbers(trained: nn.Module, tmp_path: Path) -> None:
    """Networks are built before their weights come; their random start would change the caller's results."""
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    before = torch.get_rng_state()
    models.load_model(SMALL, tmp_path / "w.pth")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["mnasnet0_5", "shufflenet_v2_x0_5", "regnet_y_400mf", "mobilenet_v3_small"])
def test_the_loaded_network_computes_what_torchvisions_does(name: str, tmp_path: Path) -> None:
    """MNASNet insists on a version in its state dict; RegNet computes with tensors while it is built."""
    expected = vision.get_model(name, weights=None).eval()
    save_file(expected.state_dict(), tmp_path / "w.safetensors")
    model = models.load_model(name, tmp_path / "w.safetensors")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)


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


# -------------------------------------------------------------------------------------------------- downloads


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


def test_unknown_weights_are_told_the_choices() -> None:
    with pytest.raises(ValueError, match=r"weights of resnet50 should be 'IMAGENET1K_V1', 'IMAGENET1K_V2', 'DEFAULT'"):
        models.load_model("resnet50", "IMAGENET")
    with pytest.raises(TypeError, match=r"weights should be the name .* got int"):
        models.load_model("resnet50", 1)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- wrong files


def test_weights_of_another_network_are_recognised(trained: nn.Module, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="do not fit") as caught:
        models.load_model("resnet18", tmp_path / "w.pth")
    message = str(caught.value)
    assert f"do not fit resnet18: they are weights of {SMALL}; missing conv1.weight, bn1.weight, bn1.bias, " in message
    names = {name for name, _ in trained.named_parameters()}
    assert names <= set(message.rpartition("unexpected ")[2].split(", "))
    assert "\n" not in message


def test_tensors_of_another_shape_or_kind_are_named(trained: nn.Module, tmp_path: Path) -> None:
    state = trained.state_dict()
    state["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    state["features.0.bias"] = torch.zeros(64, dtype=torch.int8)
    torch.save(state, tmp_path / "w.pth")
    shape = r"features.0.weight is float32 \[64, 1, 3, 3\] instead of float32 \[64, 3, 3, 3\]"
    with pytest.raises(ValueError, match=rf"{shape}, features.0.bias is int8 \[64\] instead of float32 \[64\]"):
        models.load_model(SMALL, tmp_path / "w.pth")


class _Wicked:
    """A pickle of it creates a file when it is loaded carelessly."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_code_does_not(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "trace"
    torch.save({"conv1.weight": _Wicked(trace)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"w.pth' refused: it wants to run (_?io|builtins)\.open"):
        models.load_model(SMALL, tmp_path / "w.pth")
    assert not trace.exists()


def test_a_bare_pickle_does_not_run_either(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(_Wicked(tmp_path / "trace"), protocol=2))
    with pytest.raises(ValueError, match=r"w.pt' (refused|cannot be read)"):
        models.load_model(SMALL, tmp_path / "w.pt")
    assert not (tmp_path / "trace").exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"it wants to run torch.nn.modules.linear.Linear.*weights_only=False.*model.state_dict"
    ):
        models.load_model(SMALL, tmp_path / "w.pth")


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"hello\n" * 40, bytes(range(256)) * 4])
def test_broken_files(tmp_path: Path, ending: str, content: bytes) -> None:
    (tmp_path / f"w{ending}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights '.*w\{ending}' cannot be read: .+") as caught:
        models.load_model(SMALL, tmp_path / f"w{ending}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_cut_off_files(trained: nn.Module, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"w{ending}"
    (save_file if ending == ".safetensors" else torch.save)(trained.state_dict(), file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"w\{ending}' cannot be read"):
        models.load_model(SMALL, file)


@pytest.mark.parametrize(
    ("content", "found"),
    [({"epoch": 3}, "got epoch"), ([1, 2], "got a list"), ({}, "got nothing"), (torch.zeros(3), "got a Tensor")],
)
def test_files_without_a_state_dict(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w.pth' should hold a state dict.*{found}"):
        models.load_model(SMALL, tmp_path / "w.pth")


def test_paths_that_are_no_weight_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.pth' cannot be read: there is no such file"):
        models.load_model(SMALL, tmp_path / "none.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(ValueError, match=r"folder.pth' cannot be read: it is a folder"):
        models.load_model(SMALL, tmp_path / "folder.pth")
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"w.bin' cannot be read: broken, or not a file of tensors"):
        models.load_model(SMALL, str(tmp_path / "w.bin"))


# ----------------------------------------------------------------------------------------- without torchvision


def test_without_torchvision_there_is_the_built_in_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(DemoNetwork().state_dict(), tmp_path / "w.safetensors")
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert models.model_names() == ["demo"]
    assert len(models.class_names(models.load_model("demo", tmp_path / "w.safetensors"))) == 20
    with pytest.raises(ModuleNotFoundError, match=r"model 'resnet18' needs torchvision: pip install torchvision"):
        models.load_model("resnet18")


# ------------------------------------------------------------------------------------------ the built-in network


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


# -------------------------------------------------------------------------------------------------- describing


def test_a_users_model_is_described_beside_it() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    before = {key: copy.copy(value) for key, value in vars(model).items()}
    assert models.preprocessing(model) == Preprocessing((224, 224), 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(ValueError, match=r"class names of this Sequential are not known"):
        models.class_names(model)
    settings = Preprocessing((8, 8), 10, (0.5,), (0.25,))
    models.describe(model, preprocessing=settings)
    models.describe(model, class_names=["cat", "dog"])
    assert models.preprocessing(model) == settings
    assert models.class_names(model) == ["cat", "dog"]
    assert models.model_info(model) == ModelInfo("Sequential", None)
    assert vars(model) == before
    assert models.preprocessing(copy.deepcopy(model)).size == (224, 224)


@pytest.mark.parametrize("channels", [1, 5])
def test_the_first_convolution_tells_the_channels_of_a_model_that_nobody_has_described(channels: int) -> None:
    """maximize, invert and others drew three channels for a grey network and ended in torch's words."""
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 8, 3, padding=1)), nn.Conv2d(8, 4, 3))
    for module in (model, torch.jit.script(model), torch.compile(model)):
        assert models.guess_channels(module) == channels
        found = models.preprocessing(module)
        assert (found.size, found.mean, found.std) == ((224, 224), (0.449,) * channels, (0.226,) * channels)
    settings = Preprocessing((8, 8), 10, (0.5,), (0.25,))
    models.describe(model, preprocessing=settings)
    assert models.preprocessing(model) == settings


def test_a_batch_is_believed_before_the_first_convolution_but_not_before_a_description() -> None:
    model = nn.Sequential(nn.Conv2d(16, 4, 1), nn.Conv2d(1, 16, 3))  # registered in another order than called
    assert models.preprocessing_of(model, 1).mean == (0.449,)
    assert models.preprocessing_of(model, 3).mean == (0.485, 0.456, 0.406)
    models.describe(model, preprocessing=Preprocessing((8, 8), 10, (0.5,), (0.25,)))
    with pytest.raises(ValueError, match="x should have the 1 channels of the model's preprocessing, got 3"):
        models.preprocessing_of(model, 3)


def test_without_a_convolution_pictures_have_colours() -> None:
    assert models.guess_channels(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))) is None
    assert len(models.preprocessing(nn.LazyConv2d(4, 3)).mean) == 3


def test_a_compiled_model_is_described_as_the_model_inside() -> None:
    model = nn.Linear(3, 2)
    models.describe(model, class_names=["cat", "dog"])
    compiled = torch.compile(model)
    assert models.class_names(compiled) == ["cat", "dog"]


def test_a_description_keeps_no_model_alive() -> None:
    model = nn.Linear(3, 2)
    models.describe(model, class_names=["cat", "dog"])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_copy_of_the_built_in_network_stays_described() -> None:
    model = copy.deepcopy(DemoNetwork())
    assert models.class_names(model)[-1] == "tabby cat"
    assert models.preprocessing(model).size == (64, 64)


def test_wrong_descriptions() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(TypeError, match=r"model should be a torch.nn.Module, got str"):
        models.describe("demo", class_names=["cat"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="class_names should be a list of strings, got 'cat'"):
        models.describe(model, class_names="cat")
    with pytest.raises(ValueError, match="class_names should have one name a class, got none"):
        models.describe(model, class_names=[])
    with pytest.raises(TypeError, match="preprocessing should be a Preprocessing, got dict"):
        models.describe(model, preprocessing={"size": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": (0, 8)}, "size should be at least 1, got 0"),
        ({"size": 8}, r"size should be \(height, width\) or None, got 8"),
        ({"resize": 7}, "resize should be at least the larger side of size, 8, got 7"),
        ({"mean": (0.5, 0.5)}, "mean and std should have one number a channel each, got 2 and 1"),
        ({"mean": (), "std": ()}, "one number a channel each, got 0 and 0"),
        ({"mean": (float("nan"),)}, "mean should be finite"),
        ({"std": (0.0,)}, "std should be above 0"),
        ({"interpolation": "nearest"}, "interpolation should be one of 'bilinear', 'bicubic', got 'nearest'"),
    ],
)
def test_wrong_preprocessing(changed: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"size": (8, 6), "resize": 10, "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(ValueError, match=message):
        Preprocessing(**(settings | changed))


def test_preprocessing_takes_lists() -> None:
    settings = Preprocessing([8, 6], 10, [0.5], [1])  # type: ignore[arg-type]
    assert settings == Preprocessing((8, 6), 10, (0.5,), (1.0,))
    assert hash(settings) == hash(Preprocessing((8, 6), 10, (0.5,), (1.0,)))


# ------------------------------------------------------------------------------------------------ real weights


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
