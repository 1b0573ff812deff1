"""Files of weights of every kind, and those that are refused."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastviz import models
from fastviz.models.descriptions import ModelInfo

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
    words = r"those that begin with 'model.' are taken; left out: criterion.weight, ema_model.features.0.weight"
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
