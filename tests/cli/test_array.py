"""``fastviz array``: pictures of signals and volumes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fastviz as fv
from fastviz.cli import app, array


def network(axes: int) -> nn.Sequential:
    torch.manual_seed(0)
    convolution, pool = getattr(nn, f"Conv{axes}d"), getattr(nn, f"AdaptiveAvgPool{axes}d")
    return nn.Sequential(convolution(1, 4, 3), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.fixture(params=[1, 3], ids=["signal", "volume"])
def given(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[nn.Module, Path]:
    model = network(request.param)
    monkeypatch.setattr(array, "load_network", lambda *names: (model, torch.device("cpu")))
    values = np.random.default_rng(0).normal(size=(50,) if request.param == 1 else (6, 12, 10)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    return model, tmp_path / "x.npy"


@pytest.mark.parametrize("method", ["grad_cam", "saliency", "guided_backprop"])
def test_a_map_and_its_picture(given: tuple[nn.Module, Path], method: str) -> None:
    model, file = given
    out, kept = file.with_name("picture.png"), file.with_name("map.npy")
    line = [
        "array",
        str(file),
        "--model",
        "mine",
        "--method",
        method,
        "--target",
        "1",
        "--out",
        str(out),
        "--map",
        str(kept),
    ]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    x = torch.from_numpy(np.load(file))[None, None]
    expected = fv.METHODS[method].function(model, x, 1)[0]
    expected = expected.mean(0) if expected.dim() == x.dim() - 1 else expected
    np.testing.assert_allclose(np.load(kept), expected.numpy(), rtol=1e-5, atol=1e-7)
    assert fv.images.read_image(out).shape[0] == 3
    assert "of 1 channels" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "grad-cam"], "--method"),
        (["--method", "saliency", "--layer", "0"], "--layer is for grad_cam and guided_grad_cam"),
        (["--out", "picture.txt"], "--out"),
        (["--map", "map.txt"], "--map should end in .npy"),
    ],
)
def test_what_it_refuses(given: tuple[nn.Module, Path], arguments: list[str], message: str) -> None:
    _, file = given
    out = [] if "--out" in arguments else ["--out", str(file.with_name("p.png"))]
    result = CliRunner().invoke(app, ["array", str(file), "--model", "mine", *out, *arguments])
    assert result.exit_code != 0
    assert message in str(result.exception) or message in result.output
    assert not file.with_name("p.png").exists()


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    (tmp_path / "words.npy").write_text("words")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros((2, 2, 2, 2, 2)))
    for name, message in (
        ("words.npy", "cannot be read"),
        ("pickled.npy", "cannot be read"),
        ("none.npy", "no such"),
        ("flat.npy", r"should hold numbers \[L\], \[C, L\]"),
    ):
        with pytest.raises(ValueError, match=message):
            array._read(tmp_path / name)
