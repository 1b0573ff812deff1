"""``fastviz fool``: what it prints and writes, that the file fools too, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import fastviz as fv
from fastviz import images, methods, models
from fastviz.cli import app

PHOTO = Path(__file__).parents[2] / "fastviz/models/data/photos/rocket.jpg"


def run(*args: object, status: int = 0) -> str:
    """What the command prints: on standard output, or, if it fails, its one line on standard error."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == status, result.output
    return result.stderr if status else result.stdout


def seen_in(path: Path) -> tuple[str, float]:
    """Class and probability, the file prepared as any photograph is."""
    model = fv.load_model("demo")
    x, _ = fv.load_images(path, model=model)
    with torch.no_grad():
        probability, index = model(x).softmax(1).max(1)
    return fv.class_names(model)[int(index)], float(probability)


@pytest.mark.parametrize("options", [(), ("--method", "sign", "--radius", 8), ("--method", "gradient", "--goal", 0.8)])
def test_the_saved_photograph_fools(tmp_path, options):
    out = tmp_path / "fooled.png"
    printed = run("fool", PHOTO, "--target", "koala", "--out", out, *options)
    name, probability = seen_in(out)
    assert name == "koala"
    assert probability >= (0.8 if "--goal" in options else 0.99) - 1e-4
    assert f"the saved file, read as any photograph: koala, {100 * probability:.2f} %" in printed
    assert "missile: " in printed
    assert f"picture: {out}" in printed
    # three pictures side by side, 320 pixels high, with captions
    assert images.read_image(tmp_path / "fooled-comparison.png").shape == (3, 2 * 8 + 26 + 320, 3 * 328 + 8)
    # beside the crop that the network sees the photograph is as it was
    seen = models.preprocessing(fv.load_model("demo"))
    photo = images.read_image(PHOTO)
    height, width = (side * 64 // min(photo.shape[1:]) for side in photo.shape[1:])
    whole = images.preprocess(photo, models.Preprocessing((height, width), None, seen.mean, seen.std))
    saved = images.read_image(out)
    assert saved.shape == whole.shape
    before = images.restore(whole, seen)
    assert (saved - before).abs().amax() < 0.3
    rest = torch.ones(saved.shape, dtype=torch.bool)
    top, left = round((height - 64) / 2), round((width - 64) / 2)
    rest[:, top : top + 64, left : left + 64] = False
    assert (saved - before).abs()[rest].sum() < 1e-3


def test_noise_and_evolution(tmp_path):
    out = tmp_path / "made.png"
    assert "jellyfish: " in run("fool", "--noise", "--target", "jellyfish", "--out", out)
    name, probability = seen_in(out)
    assert name == "jellyfish"
    assert probability >= 0.996 - 1e-4
    printed = run("fool", "--evolve", "--goal", 0.7, "--steps", 60, "--out", out)
    assert " generations" in printed
    assert seen_in(out)[1] >= 0.7 - 1e-4


def test_a_goal_that_is_not_reached_gives_the_picture_and_status_1(tmp_path):
    for options in ((PHOTO, "--method", "sign", "--steps", 1), ("--evolve", "--encoding", "direct", "--steps", 1)):
        said = run("fool", *options, "--target", "koala", "--out", tmp_path / "made.png", status=1)
        assert said.startswith("fastviz: the goal was not reached")
        assert (tmp_path / "made.png").exists()


def test_ctrl_c_keeps_what_there_is(tmp_path, monkeypatch):
    whole = methods.fool

    def stopped(*args: object, **options: object) -> fv.Fooled:
        return dataclasses.replace(whole(*args, **options | {"steps": 1}), interrupted=True)

    monkeypatch.setattr(methods, "fool", stopped)
    out = tmp_path / "fooled.png"
    assert run("fool", PHOTO, "--target", "koala", "--out", out, status=130) == (
        f"fastviz: stopped; {out} has what was made so far\n"
    )
    assert out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((PHOTO, "--target", "missile"), "target should not be the class that the model sees already"),
        ((PHOTO, "--target", "koalla"), "nearest: koala"),
        ((PHOTO, "--target", "predicted"), "target should be the class to be seen instead"),
        ((PHOTO, "--target", 20), "target should be a class from 0 to 19"),
        ((PHOTO,), "--target is needed"),
        ((PHOTO, "--target", 1, "--noise"), "give one of: a photograph, --noise, --evolve"),
        (("--target", 1), "give one of: a photograph, --noise, --evolve"),
        ((PHOTO, "--target", 1, "--method", "sign", "--radius", 0), "radius should be finite and above 0"),
        ((PHOTO, "--target", 1, "--method", "magic"), "method should be one of"),
        ((PHOTO, "--target", 1, "--encoding", "a"), "--encoding should be one of 'cppn', 'direct', got 'a'"),
        ((PHOTO, "--target", 1, "--seed", -1), "--seed should be at least 0, got -1"),
        ((PHOTO, "--target", 1, "--out", "map.jpg"), "--out should end in .png"),
        ((PHOTO, "--target", 1, "--out", "nowhere/map.png"), "nowhere/map.png: No such file or directory"),
        (("nothing.jpg", "--target", 1), "there is no such file"),
        ((PHOTO, "--target", 1, "--model", "resnet18"), "--weights is needed for resnet18"),
    ],
)
def test_errors_say_what_is_wrong_in_a_line(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    said = run("fool", "--out", "map.png", *options, status=2)
    assert said.startswith("fastviz: error: ")
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_section_of_the_demo() -> None:
    from fastviz.cli import fool

    captions = [caption for caption, _ in fool.demo_section(fv.load_model("demo"), PHOTO).pictures]
    assert captions[-2].startswith("noise, ")
    assert captions[-1].startswith("evolved, ")
