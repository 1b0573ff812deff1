"""``fastviz style`` and ``fastviz texture --model``: what they print and write, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from fastviz import images, methods, models
from fastviz.cli import app, style, texture


def run(*args: object, status: int = 0) -> str:
    """What the command prints: on standard output, or, if it fails, its one line on standard error."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == status, result.output
    return result.stderr if status else result.stdout


@pytest.fixture
def photo(tmp_path):
    """A smooth picture, 70x90."""
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 6), (70, 90), mode="bicubic")[0].clamp(0, 1)
    images.save_image(picture, tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_photograph_in_the_style_of_a_texture(photo, tmp_path):
    printed = run("style", photo, "gravel", "--steps", 2, "--out", tmp_path / "a.png")
    assert " before, " in printed
    assert "after 2 steps" in printed
    assert f"picture: {tmp_path / 'a.png'}" in printed
    before, after = images.read_image(photo), images.read_image(tmp_path / "a.png")
    assert after.shape == before.shape
    assert float((after - before).abs().mean()) > 0.01


def test_every_option(photo, tmp_path, monkeypatch):
    seen = {}
    transfer = methods.style_transfer

    def watched(network, content, drawn, **options):
        seen.update(options, content=content, drawn=drawn)
        return transfer(network, content, drawn, **options)

    monkeypatch.setattr(methods, "style_transfer", watched)
    half = torch.zeros(3, 35, 45)
    half[:, :, :20] = 1
    images.save_image(half, tmp_path / "left.png")
    images.save_image(1 - half, tmp_path / "right.png")
    run(
        *(
            "style",
            photo,
            "brick",
            photo,
            "--size",
            72,
            "--style-size",
            48,
            "--style-weights",
            "3,1",
            "--style-weight",
            7,
        ),
        *("--mask", tmp_path / "left.png", "--mask", tmp_path / "right.png", "--variation-weight", 0.5, "--seed", 4),
        *("--layers", "relu1,relu2_1", "--content-layers", "relu3_1", "--preserve-colours", "--start", "noise"),
        *("--levels", 1, "--steps", 2, "--optimizer", "adam", "--preview-every", 1, "--out", tmp_path / "a.png"),
    )
    assert seen["content"].shape == (1, 3, 56, 72)
    first, second = seen["drawn"]
    assert (first.images.shape, second.images.shape) == ((1, 3, 48, 48), (1, 3, 37, 48))
    assert (first.weight, second.weight) == (3.0, 1.0)
    torch.testing.assert_close(first.mask + second.mask, torch.ones(56, 72))
    assert bool((first.mask > second.mask)[:, :20].all())
    assert seen["layers"] == ["relu1", "relu2_1"]
    assert seen["content_layers"] == ["relu3_1"]
    loop = seen["optimization"]
    assert (seen["style_weight"], seen["variation_weight"], loop.start) == (7.0, 0.5, "noise")
    assert (seen["levels"], seen["steps"], loop.optimizer, seen["seed"]) == (1, 2, "adam", 4)
    assert loop.preview_every == 1
    assert seen["preserve_colours"]
    assert images.read_image(tmp_path / "a.png").shape == (3, 56, 72)


def test_grey_and_transparent_pictures(photo, tmp_path):
    from PIL import Image

    Image.new("L", (80, 66), 90).save(tmp_path / "grey.png")
    Image.new("RGBA", (30, 40), (200, 10, 10, 128)).save(tmp_path / "glass.png")
    run("style", tmp_path / "grey.png", tmp_path / "glass.png", "--steps", 1, "--out", tmp_path / "a.png")
    assert images.read_image(tmp_path / "a.png").shape == (3, 66, 80)


def test_previews_appear_under_the_name(photo, tmp_path, monkeypatch):
    written = []
    save = images.save_image
    monkeypatch.setattr(
        images, "save_image", lambda picture, path: (written.append(picture.shape), save(picture, path))
    )
    run("style", photo, "brick", "--steps", 4, "--preview-every", 2, "--out", tmp_path / "a.png")
    assert len(written) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["nowhere.png"], "image 'nowhere.png': there is no such file"),
        (["brick", "--mask", "nowhere.png"], "image 'nowhere.png': there is no such file"),
        (["brick", "--style-weights", "1,2"], "--style-weights should have one number per style, 1, got 2"),
        (["brick", "--style-weights", "a"], "--style-weights should be numbers separated by commas, got 'a'"),
        (["brick", "--size", 0], "--size should be at least 1, got 0"),
        (["brick", "--size", 6], "for the built-in network, got [1, 3, 6, 6]"),
        (["brick", "--style-size", 2], "for the built-in network, got [1, 3, 2, 2]"),
        (["brick", "--layers", "relu9"], "layer 'relu9' is not known; nearest: relu"),
        (["brick", "--layers", "relu6"], "for the built-in network"),
        (["brick", "--start", "grey"], "start should be one of 'content', 'style', 'noise', got 'grey'"),
        (["brick", "--style-weight", -1], "style_weight should be finite and at least 0, got -1"),
        (["brick", "--model", "squeezenet1_0"], "--weights is needed for squeezenet1_0"),
        (["brick", "--model", "vit_b_16"], "--weights is needed for vit_b_16"),
    ],
)
def test_what_is_refused(change, message, photo, tmp_path):
    error = run("style", photo, *change, "--out", tmp_path / "a.png", status=2)
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_the_output_is_looked_at_first(photo, tmp_path):
    assert "--out should end in .png" in run("style", photo, "brick", "--out", tmp_path / "a.gif", status=2)
    assert "No such file" in run("style", photo, "brick", "--out", tmp_path / "no/a.png", status=2)


def test_ctrl_c_keeps_the_picture_so_far(photo, tmp_path, monkeypatch):
    save, calls = images.save_image, []

    def interrupting(picture, path):
        save(picture, path)
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(images, "save_image", interrupting)
    for command in (("style", photo, "brick"), ("texture", "brick", "--model", "demo")):
        calls.clear()
        out = tmp_path / f"{command[0]}.png"
        error = run(*command, "--preview-every", 1, "--steps", 9, "--out", out, status=130)
        assert error == f"fastviz: stopped; {out} has what was made so far\n"
        assert len(calls) == 2


# ------------------------------------------------------------------------------------------------------ textures


def test_a_texture_as_a_network_sees_it(tmp_path):
    printed = run("texture", "brick", "--model", "demo", "--size", "64x80", "--steps", 2, "--out", tmp_path / "a.png")
    assert "after 2 steps" in printed
    assert images.read_image(tmp_path / "a.png").shape == (3, 64, 80)


def test_options_of_textures_as_networks_see_them(tmp_path, monkeypatch):
    seen = {}

    def watched(network, sample, size, **options):
        seen.update(options, sample=sample, size=size)
        raise KeyboardInterrupt

    monkeypatch.setattr(methods, "neural_texture", watched)
    run(
        *("texture", "brick", "--model", "demo", "--sample-size", 40, "--layers", "relu1, relu3_1", "--levels", 2),
        *("--steps", 7, "--seed", 3, "--out", tmp_path / "a.png"),
        status=130,
    )
    assert seen.pop("optimization").preview is None
    assert seen.pop("sample").shape == (1, 3, 40, 40)
    assert seen == {
        "size": (256, 256), "layers": ["relu1", "relu3_1"], "levels": 2, "steps": 7, "seed": 3, "progress": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "demo", "--window", 5], "--window goes without --model only"),
        (["--model", "demo", "--hole", "a.png"], "--hole goes without --model only"),
        (["--preview-every", 5], "--preview-every goes with --model only"),
        (["--weights", "a.pth"], "--weights goes with --model only"),
        (["--model", "demo", "--sample-size", 0], "--sample-size should be at least 3, got 0"),
        (["--model", "demo", "--layers", "fc8"], "for the built-in network"),
        (["--model", "demo", "--size", 4], "for the built-in network, got [1, 3, 4, 4]"),
        (["--model", "alexnet"], "--weights is needed for alexnet"),
    ],
)
def test_what_textures_refuse(options, message, tmp_path):
    error = run("texture", "brick", *options, "--out", tmp_path / "a.png", status=2)
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- the demo page


def test_sections_of_the_demo(monkeypatch, photo):
    made = type("Made", (), {"pictures": torch.zeros(1, 3, 8, 8)})
    monkeypatch.setattr(methods, "style_transfer", lambda *_, **__: made)
    monkeypatch.setattr(methods, "neural_texture", lambda *_, **__: made)
    network = models.load_model("demo")
    assert [caption for caption, _ in style.demo_section(network, photo).pictures] == [
        "photograph", *(f"in the style of {name}" for name in ("brick", "gravel")),
    ]  # fmt: skip
    assert len(texture.neural_section(network).pictures) == 4
