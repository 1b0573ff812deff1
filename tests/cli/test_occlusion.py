"""``fastviz occlusion`` and ``fastviz plan``: what they print and write, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastviz import images
from fastviz.cli import app
from fastviz.images import captions

PHOTO = Path(__file__).parents[2] / "fastviz/models/data/photos/rocket.jpg"


def run(*args: object, status: int = 0) -> str:
    """What the command prints: on standard output, or, if it fails, its one line on standard error."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == status, result.output
    return result.stderr if status else result.stdout


@pytest.mark.usefixtures("traced")
def test_one_photograph_under_windows(tmp_path):
    printed = run("occlusion", PHOTO, "--window", 16, "--stride", 8, "--out", tmp_path / "map.png", "--plan")
    assert "49 windows in" in printed
    assert "gain over whole forward passes: " in printed
    assert "conv2_1  conv2d+relu   64x32x32" in printed
    # four pictures side by side, 320 pixels high, with captions and a legend of the classes that win
    assert images.read_image(tmp_path / "map.png").shape == (3, 2 * 8 + 26 + 320 + 26, 4 * 328 + 8)


def test_every_fill_and_the_approximate_modes(tmp_path):
    common = ("occlusion", PHOTO, "--window", 16, "--out", tmp_path / "map.png")
    for options in (("--fill", "mean"), ("--fill", "blur", "--centred"), ("--fill", "-1.5", "--target", "missile")):
        assert "approximate" not in run(*common, *options)
    for options in (("--precision", "bfloat16"), ("--growth-cap", 0.6), ("--drill-down", 0.3, "--stride", 4)):
        assert "in 16 windows recomputed" in run(*common, *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--window", 80), "window should be at most the image, H = 64 pixels, got 80"),
        (("--fill", "grey"), "fill should be one of 'mean', 'blur', got 'grey'"),
        (("--target", "lion king"), "target"),
        (("--precision", "half"), "precision should be one of"),
        (("--model", "resnet18"), "--weights is needed for resnet18"),
        (("--out", "map.gif"), "--out should end in .png"),
        (("--out", "nowhere/map.png"), "nowhere/map.png: No such file or directory"),
    ],
)
def test_errors_say_what_is_wrong_in_a_line(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    said = run("occlusion", PHOTO, "--out", "map.png", *options, status=2)
    assert said.startswith("fastviz: error: ")
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_plan_prints_every_layer_and_the_gain():
    pytest.importorskip("torchvision")
    printed = run("plan", "alexnet", "--window", 16, "--stride", 16)
    assert "features.0" in printed
    assert "196 windows in " in printed
    assert "gain in all work, bytes included: " in printed
    assert "size should be at least 1, got 0" in run("plan", "alexnet", "--size", 0, status=2)


def test_plan_of_signals_and_volumes(tmp_path, monkeypatch):
    """One number is the side along each axis of the network; several are one per axis."""
    (tmp_path / "networks_of_axes.py").write_text(
        "from torch import nn\n"
        "def signals():\n"
        "    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.AdaptiveAvgPool1d(1))\n"
        "def volumes():\n"
        "    return nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 3), nn.AdaptiveAvgPool3d(1))\n"
    )
    monkeypatch.chdir(tmp_path)
    signals = run("plan", "networks_of_axes:signals", "--size", 500, "--window", 50, "--stride", 50)
    assert "conv1d+relu" in signals
    assert "10 windows in " in signals
    volumes = run("plan", "networks_of_axes:volumes", "--size", "8x16x16", "--window", "4x8x8", "--stride", "4x8x8")
    assert "conv3d+relu" in volumes
    assert "8 windows in " in volumes
    assert "27 windows in " in run("plan", "networks_of_axes:volumes", "--size", 12, "--window", 4, "--stride", 4)
    said = run("plan", "networks_of_axes:volumes", "--size", "8 by 8", status=2)
    assert "size should be a number, or two or three with x between them, got '8 by 8'" in said


def test_panels_put_captions_above_and_the_legend_below():
    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 4, 4)
    plain = captions.panels([("", red)], height=20)
    assert plain.shape == (3, 8 + 26 + 20 + 8, 8 + 20 + 8)
    assert torch.equal(plain[:, 34:54, 8:28], red[:, :1, :1].expand(3, 20, 20))
    assert bool((plain[:, :34] == 1).all())  # no caption, white
    assert not bool((captions.panels([("word", red)], height=20)[:, :34] == 1).all())
    entries = [("00ff00", "grass"), ("0000ff", "sky")]
    legend = captions.panels([("", red), ("", red)], height=20, legend=entries)
    below = legend[:, 54:].flatten(1).T
    for colour in ([0.0, 1, 0], [0.0, 0, 1]):
        assert bool((below == torch.tensor(colour)).all(1).any())


def test_a_region_of_a_segmentation_network_in_words(tmp_path, monkeypatch):
    """The score of a mask, from a module of one's own and a file: nothing of it has classes with names."""
    (tmp_path / "nets_in_words.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))\n"
        "    def forward(self, x):\n"
        "        return {'out': self.body(x)}\n"
    )
    mask = torch.zeros(3, 64, 64)
    mask[:, 16:32, 16:32] = 1
    images.save_image(mask, tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    net = ("--model", "nets_in_words:Net", "--size", 64, "--window", 16, "--stride", 16)
    words = "region_score(1, 'mask.png') - 0.5 * pixel(2, 3, 3)"
    assert "16 windows in" in run("occlusion", PHOTO, *net, "--target", words, "--out", "map.png")
    # three pictures: there is no class that wins
    assert images.read_image(tmp_path / "map.png").shape == (3, 2 * 8 + 26 + 320, 3 * 328 + 8)
    said = run("occlusion", PHOTO, *net, "--target", "region_score(1, 'mask.pgn')", "--out", "map.png", status=2)
    assert "mask.pgn" in said
    said = run("occlusion", PHOTO, *net, "--out", "map.png", status=2)
    assert "model should return scores [N, K] for a class target" in said
