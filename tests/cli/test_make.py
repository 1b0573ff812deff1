"""``fastviz maximize`` and ``fastviz invert``: what they print and write, Ctrl-C, and what they refuse."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fastviz as fv
from fastviz import images, methods
from fastviz.cli import app, invert, maximize
from fastviz.models.demo_network import DemoNetwork

PHOTO = Path(__file__).parents[2] / "fastviz/models/data/photos/tabby_cat.jpg"
ROW = 2 * 8 + 26 + 224
"""Height of a row of pictures with captions."""
COLUMN = 224 + 8


def run(*args: object, status: int = 0) -> str:
    """What the command prints: on standard output, or, if it fails, its one line on standard error."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == status, result.output
    return result.stderr if status else result.stdout


def lines(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


@pytest.fixture
def ctrl_c(monkeypatch):
    """Ctrl-C comes while the first preview is written."""
    save, calls = images.save_image, []

    def interrupted(picture: Tensor, path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        save(picture, path)

    monkeypatch.setattr(images, "save_image", interrupted)


# ---------------------------------------------------------------------------------------------------------- maximize


def test_classes_by_name_and_index(tmp_path):
    out = tmp_path / "made.png"
    printed = run("maximize", "demo", "--class", "King Penguin, 5", "--steps", 12, "--out", out)
    table = lines(printed)
    assert table[0] == ["target", "value", "probability"]
    assert table[1][:2] == ["king", "penguin"]
    assert table[1][-3:] == ["%", "12", "steps"]
    assert table[2][0] == "goldfish"
    assert table[3] == ["picture:", str(out)]
    assert images.read_image(out).shape == (3, ROW, 2 * COLUMN + 8)
    made = fv.maximize(fv.load_model("demo"), torch.tensor([8, 5]), steps=12)
    assert float(table[1][2]) == pytest.approx(float(made.values[0]), rel=1e-3)
    assert float(table[2][2]) == pytest.approx(100 * float(made.probability[1]), abs=0.01)


def test_all_classes_in_rows_of_five(tmp_path):
    out = tmp_path / "made.webp"
    printed = run("maximize", "demo", "--class", "all", "--steps", 1, "--canvas", "pixels", "--out", out)
    assert len(lines(printed)) == 22
    assert images.read_image(out).shape == (3, 4 * ROW, 5 * COLUMN + 8)


def test_a_goal_ends_a_picture(tmp_path):
    options = ("--goal", 0.5, "--canvas", "pixels", "--steps", 90, "--out", tmp_path / "a.png")
    (_, row, _) = lines(run("maximize", "demo", "--class", "koala", *options))
    assert row[-4] == "goal"
    assert int(row[-2]) < 90
    assert float(row[2]) >= 50


def test_channels_and_units(tmp_path):
    out = tmp_path / "made.png"
    printed = run("maximize", "demo", "--layer", "conv2_1", "--channel", "3,7-9", "--steps", 2, "--out", out)
    assert [row[:2] for row in lines(printed)[1:5]] == [["conv2_1", number] for number in "3789"]
    options = ("--unit", "--channel", 4, "--starts", 2, "--start", "noise", "--seed", 3)
    printed = run("maximize", "demo", "--layer", "conv2_1", *options, "--steps", 2, "--out", out)
    table = lines(printed)
    made = fv.maximize(
        fv.load_model("demo"),
        fv.neuron("conv2_1", 4),
        starts=2,
        seed=3,
        steps=2,
        optimization=fv.Optimization(start="noise"),
    )
    assert [float(row[2]) for row in table[1:3]] == pytest.approx(made.values.tolist(), rel=1e-3)
    assert images.read_image(out).shape == (3, ROW, 2 * COLUMN + 8)


def test_the_first_channels_where_none_are_named(tmp_path):
    printed = run("maximize", "demo", "--layer", "conv1", "--steps", 1, "--size", 16, "--out", tmp_path / "made.png")
    assert [row[1] for row in lines(printed)[1:-1]] == [str(number) for number in range(10)]


def test_through_a_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "maximize_code", partial(methods.maximize_code, decoding={"steps": 3}))
    out = tmp_path / "made.png"
    printed = run("maximize", "demo", "--class", "lion", "--code", "relu4_2", "--steps", 4, "--out", out)
    assert lines(printed)[1][0] == "lion"
    made = fv.maximize_code(fv.load_model("demo"), 12, "relu4_2", steps=4, decoding={"steps": 3})
    assert float(lines(printed)[1][1]) == pytest.approx(float(made.values), rel=1e-3)
    assert out.exists()


def test_previews_are_written_on_the_way(tmp_path, monkeypatch):
    written, save = [], images.save_image
    monkeypatch.setattr(images, "save_image", lambda picture, path: (written.append(picture), save(picture, path)))
    run("maximize", "demo", "--class", 1, "--steps", 5, "--preview-every", 2, "--out", tmp_path / "made.png")
    assert [picture.shape for picture in written] == [(3, ROW, COLUMN + 8)] * 3
    assert not torch.equal(written[0], written[1])


def test_a_checkpoint_goes_on(tmp_path):
    kept, first, second = tmp_path / "kept.pt", tmp_path / "first.png", tmp_path / "second.png"
    command = ("maximize", "demo", "--class", "orange", "--checkpoint", kept)
    run(*command, "--steps", 3, "--out", first)
    assert "6 steps" in run(*command, "--steps", 6, "--out", first)
    run("maximize", "demo", "--class", "orange", "--steps", 6, "--out", second)
    assert torch.equal(images.read_image(first), images.read_image(second))
    before = first.read_bytes()
    assert "belongs to other settings" in run(*command, "--seed", 1, "--steps", 6, "--out", first, status=2)
    assert first.read_bytes() == before
    kept.write_bytes(b"nothing")
    assert "is damaged or no checkpoint" in run(*command, "--steps", 6, "--out", first, status=2)


def test_ctrl_c_keeps_what_there_is(tmp_path, ctrl_c):
    out, kept = tmp_path / "made.png", tmp_path / "kept.pt"
    options = ("--steps", 50, "--preview-every", 4, "--checkpoint", kept, "--out", out)
    said = run("maximize", "demo", "--class", "koala", *options, status=130)
    assert said == f"fastviz: stopped; {out} has what was made so far, and the same command continues from {kept}\n"
    assert out.exists()
    assert torch.load(kept, weights_only=True)["values"]["step"] == 4


def test_ctrl_c_before_there_is_a_picture(tmp_path, monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DemoNetwork, "forward", interrupted)
    options = ("--class", "lion", "--code", "relu4_2", "--out", tmp_path / "made.png")
    assert run("maximize", "demo", *options, status=130) == "fastviz: stopped\n"
    assert not list(tmp_path.iterdir())


def test_a_picture_that_was_there_is_replaced_or_kept(tmp_path):
    out = tmp_path / "made.png"
    out.write_bytes(b"older")
    run("maximize", "demo", "--class", "goose", "--seed", -1, "--out", out, status=2)
    assert out.read_bytes() == b"older"
    run("maximize", "demo", "--class", "goose", "--steps", 1, "--out", out)
    assert images.read_image(out).shape == (3, ROW, COLUMN + 8)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("demo",), "give one of: --class, --layer"),
        (("demo", "--class", 1, "--layer", "conv1"), "give one of: --class, --layer"),
        (("demo", "--class", "koalla"), "nearest: koala"),
        (("demo", "--class", "predicted"), 'names or indices of classes, got "predicted"'),
        (("demo", "--class", "1,20"), "target should be a class from 0 to 19 for this model, got 20"),
        (("demo", "--layer", "conv11"), "nearest: conv1"),
        (("demo", "--layer", "conv1", "--channel", 32), "channel should be a channel of layer 'conv1' from 0 to 31"),
        (("demo", "--layer", "conv1", "--channel", "3-1"), "--channel should be numbers and ranges such as 3,7,16-31"),
        (("demo", "--layer", "conv1", "--channel", 99, "--unit"), "should be a channel of layer 'conv1' from 0 to 31"),
        (("demo", "--class", 1, "--channel", 3), "--channel and --unit go with --layer only"),
        (("demo", "--class", 1, "--size", 0), "size should be at least 1, got 0"),
        (("demo", "--class", 1, "--size", 7), "[N, 3, 64, 64] for the built-in network, got [1, 3, 7, 7]"),
        (("demo", "--class", 1, "--steps", -1), "steps should be at least 0, got -1"),
        (("demo", "--class", 1, "--starts", 0), "starts should be at least 1, got 0"),
        (("demo", "--class", 1, "--start", "black"), "start should be one of 'zeros', 'grey', 'noise', got 'black'"),
        (("demo", "--class", 1, "--canvas", "oil"), "canvas should be one of 'fourier', 'pixels', got 'oil'"),
        (("demo", "--class", 1, "--batch-size", 0), "batch_size should be at least 1, got 0"),
        (("demo", "--class", 1, "--code", "nothing"), "layer 'nothing' is not known"),
        (("demo", "--class", 1, "--code", "fc6", "--goal", 0.5), "--code goes with"),
        (("demo", "--class", 1, "--checkpoint", "no/file.pt"), "the folder of the checkpoint does not exist: no"),
        (("demo", "--class", 1, "--out", "made.gif"), "--out should end in .png, .jpg"),
        (("demo", "--class", 1, "--out", "nowhere/made.png"), "nowhere/made.png: No such file or directory"),
        (("resnet18", "--class", 1), "--weights is needed for resnet18"),
        (("squeezenet9", "--class", 1, "--weights", "x.pth"), "squeezenet1_0"),
        (("resnet18", "--class", 1, "--weights", "x.pth"), "x.pth"),
    ],
)
def test_what_maximize_refuses(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    said = run("maximize", "--out", "made.png", *options, status=2)
    assert said.startswith("fastviz: error: ")
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------ invert


def test_layers_of_a_photograph(tmp_path):
    out = tmp_path / "made.png"
    printed = run("invert", PHOTO, "--layers", "relu1, relu4_2", "--starts", 2, "--steps", 4, "--out", out)
    table = lines(printed)
    assert table[0] == ["layer", "error", "PSNR", "steps"]
    assert [row[0] for row in table[1:5]] == ["relu1", "relu1", "relu4_2", "relu4_2"]
    model = fv.load_model("demo")
    x, _ = fv.load_images(PHOTO, model=model)
    made = fv.invert(model, x, "relu4_2", starts=2, steps=4)
    assert [float(row[1]) for row in table[3:5]] == pytest.approx((100 * made.error).tolist(), abs=0.01)
    assert [float(row[3]) for row in table[3:5]] == pytest.approx(made.psnr.tolist(), abs=0.1)
    assert table[5] == ["picture:", str(out)]
    assert images.read_image(out).shape == (3, ROW, 5 * COLUMN + 8)


def test_every_layer(tmp_path):
    out = tmp_path / "made.png"
    printed = run("invert", PHOTO, "--all", "--steps", 1, "--canvas", "pixels", "--seed", 2, "--out", out)
    assert [row[0] for row in lines(printed)[1:-1]] == methods.invertible_layers(fv.load_model("demo"))


def test_ctrl_c_keeps_the_layers_so_far(tmp_path, monkeypatch):
    calls, forward = [], nn.Conv2d.forward

    def interrupted(self: nn.Conv2d, x: Tensor) -> Tensor:
        if self.in_channels == 3:
            calls.append(1)
        # One look for the features of each layer, some for its steps, one for its error: this is the second layer's.
        if len(calls) == 14:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", interrupted)
    out = tmp_path / "made.png"
    said = run("invert", PHOTO, "--layers", "conv1,relu1,pool1", "--steps", 6, "--out", out, status=130)
    assert said == f"fastviz: stopped; {out} has the layers up to relu1\n"
    assert images.read_image(out).shape == (3, ROW, 3 * COLUMN + 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((PHOTO,), "give one of: --layers, --all"),
        ((PHOTO, "--layers", "conv1", "--all"), "give one of: --layers, --all"),
        ((PHOTO, "--layers", "conv1,conv11"), "nearest: conv1"),
        ((PHOTO, "--layers", "conv1", "--starts", 0), "starts should be at least 1, got 0"),
        ((PHOTO, "--layers", "conv1", "--steps", -2), "steps should be at least 0, got -2"),
        ((PHOTO, "--layers", "conv1", "--canvas", "oil"), "canvas should be one of"),
        ((PHOTO, "--layers", "conv1", "--out", "made.tiff"), "--out should end in .png"),
        ((PHOTO, "--layers", "conv1", "--device", "cuda:99"), "cuda"),
        (("nothing.jpg", "--layers", "conv1"), "image 'nothing.jpg': there is no such file"),
        ((Path(__file__), "--layers", "conv1"), "test_make.py"),
        ((PHOTO, "--layers", "conv1", "--model", "resnet18"), "--weights is needed for resnet18"),
    ],
)
def test_what_invert_refuses(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    said = run("invert", "--out", "made.png", *options, status=2)
    assert said.startswith("fastviz: error: ")
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- the demo


def test_sections_of_the_demo_page(monkeypatch):
    model = fv.load_model("demo")
    monkeypatch.setattr(methods, "maximize", lambda *args, **options: fv.maximize(*args, **options | {"steps": 2}))
    monkeypatch.setattr(methods, "invert_all", lambda *args, **options: fv.invert_all(*args, **options | {"steps": 1}))
    made, kept = maximize.demo_section(model), invert.demo_section(model, PHOTO.parent)
    assert len(made.pictures) == 8
    assert {caption for caption, _ in made.pictures} <= set(fv.class_names(model))
    assert {picture.shape for _, picture in made.pictures} == {(3, 128, 128)}
    assert kept.pictures[0][0] == "photograph"
    assert {picture.shape for _, picture in kept.pictures} == {(3, 3 * 128, 128)}
