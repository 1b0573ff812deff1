"""``fastviz texture``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from fastviz import images, methods
from fastviz.cli import app, texture


def run(*args: object, status: int = 0) -> str:
    """What the command prints: on standard output, or, if it fails, its one line on standard error."""
    result = CliRunner().invoke(app, ["texture", *(str(arg) for arg in args)])
    assert result.exit_code == status, result.output
    return result.stderr if status else result.stdout


@pytest.fixture
def stripes(tmp_path):
    """A picture of red and blue stripes, 16x20."""
    bars = (torch.arange(20) % 4 < 2).float().expand(16, 20)
    picture = torch.stack([bars, torch.zeros(16, 20), 1 - bars])
    images.save_image(picture, tmp_path / "stripes.png")
    return tmp_path / "stripes.png", picture


def test_a_texture_of_any_size(stripes, tmp_path):
    file, _ = stripes
    printed = run(file, "--size", "9x13", "--window", 5, "--seed", 3, "--out", tmp_path / "grown.png")
    assert printed.startswith("9x13 pixels from 16x20 in ")
    assert f"picture: {tmp_path / 'grown.png'}" in printed
    grown = images.read_image(tmp_path / "grown.png")
    assert grown.shape == (3, 9, 13)
    assert (grown[..., 4:] == grown[..., :-4]).all()
    assert (grown[0] + grown[2] == 1).all()


@pytest.mark.parametrize("name", ["brick", "grass", "gravel"])
def test_the_samples_inside_the_package(name, tmp_path):
    run(name, "--size", 6, "--sample-size", 24, "--window", 7, "--out", tmp_path / "a.png")
    grown = images.read_image(tmp_path / "a.png")
    assert (grown == grown[:1]).all()
    assert grown.std() > 0.01


def test_a_large_sample_is_shrunk(stripes, tmp_path):
    assert "from 8x10 in" in run(stripes[0], "--sample-size", 10, "--window", 3, "--out", tmp_path / "a.png")


def test_a_hole_is_filled(stripes, tmp_path):
    file, picture = stripes
    hole = torch.zeros(3, 16, 20)
    hole[:, 5:9, 6:9] = 1
    images.save_image(hole, tmp_path / "hole.png")
    images.save_image(torch.where(hole > 0, 0.3, picture), file)
    assert run(file, "--hole", tmp_path / "hole.png", "--window", 5, "--out", file).startswith("12 pixels filled in ")
    assert torch.equal(images.read_image(file), picture)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["nowhere.png"], "image 'nowhere.png': there is no such file"),
        (["brick", "--window", 8], "window should be odd, so that it has a middle pixel, got 8"),
        (["brick", "--sample-size", 9], "sample should have a channel and at least 11x11 pixels"),
        (["brick", "--size", "12x"], "--size should be a number of pixels or HEIGHTxWIDTH, got '12x'"),
        (["brick", "--size", "0"], "size should be at least 1, got 0"),
        (["brick", "--epsilon", "-1"], "epsilon should be finite and at least 0, got -1"),
        (["brick", "--hole", "brick.png"], "image 'brick.png': there is no such file"),
    ],
)
def test_what_is_refused(change, message, tmp_path):
    error = run(*change, "--out", tmp_path / "a.png", status=2)
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_output_is_looked_at_first(tmp_path):
    assert "--out should end in .png" in run("brick", "--size", 10_000, "--out", tmp_path / "a.gif", status=2)
    assert "No such file" in run("brick", "--size", 10_000, "--out", tmp_path / "no/a.png", status=2)


def test_a_hole_of_another_size(stripes, tmp_path):
    error = run("brick", "--hole", stripes[0], "--out", tmp_path / "a.png", status=2)
    assert "hole should have the shape [96, 96] of image, got [16, 20]" in error


def test_ctrl_c_says_what_is_kept(monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(methods, "synthesize_texture", interrupted)
    error = run("brick", "--out", tmp_path / "a.png", status=130)
    assert error == f"fastviz: stopped; nothing written to {tmp_path / 'a.png'}\n"
    assert not list(tmp_path.iterdir())


def test_the_demo_shows_samples_and_what_grew_from_them(monkeypatch):
    monkeypatch.setattr(methods, "synthesize_texture", lambda sample, size, window: sample.new_ones(1, size, size))
    section = texture.demo_section()
    assert [caption for caption, _ in section.pictures[::2]] == [
        f"{name}: the sample" for name in ("brick", "grass", "gravel")
    ]
    assert [picture.shape for _, picture in section.pictures] == [(3, 128, 128), (3, 192, 192)] * 3
