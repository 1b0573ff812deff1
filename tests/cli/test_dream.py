"""``fastviz dream``: what it prints and writes, Ctrl-C, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastviz import images, methods, models
from fastviz.cli import app
from fastviz.cli import dream as command

PHOTO = Path(__file__).parents[2] / "fastviz/models/data/photos/tabby_cat.jpg"
QUICK = ("--size", 72, "--octaves", 1, "--steps", 1)


def run(*args: object, status: int = 0) -> str:
    """What the command prints: on standard output, or, if it fails, on standard error."""
    result = CliRunner().invoke(app, ["dream", *(str(arg) for arg in args)])
    assert result.exit_code == status, result.output
    return result.stderr if status else result.stdout


def prepared(network, photo, size):
    return command._prepared(network, photo, size, torch.device("cpu"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs of 60x90 and 90x60 pixels, the second in a folder of its own."""
    (tmp_path / "photos/more").mkdir(parents=True)
    with Image.open(PHOTO) as photo:
        photo.resize((90, 60)).save(tmp_path / "photos/a.png")
        photo.resize((60, 90)).save(tmp_path / "photos/more/b.png")
    return tmp_path / "photos"


def test_a_picture(photos, tmp_path):
    printed = run(photos / "a.png", "--out", tmp_path / "d.png", "--layer", "relu4_1", "--size", 120, "--steps", 2)
    assert printed.startswith("dreamt at 41x61, 57x86, 80x120 pixels in ")
    assert printed.endswith(f"s\npicture: {tmp_path / 'd.png'}\n")
    network = models.load_model("demo")
    made = methods.deep_dream(network, prepared(network, photos / "a.png", 120), layer="relu4_1", steps=2)
    written = images.read_image(tmp_path / "d.png")
    torch.testing.assert_close(written, made.pictures[0], atol=0.51 / 255, rtol=0)


def test_pictures_are_resized_to_the_longer_side(photos):
    network = models.load_model("demo")
    x = prepared(network, photos / "more/b.png", 180)
    assert x.shape == (1, 3, 180, 120)
    shown = images.restore(x[0], models.preprocessing(network))
    with Image.open(photos / "more/b.png") as photo:
        expected = photo.resize((120, 180), Image.Resampling.BILINEAR)
    torch.testing.assert_close(shown, images.pillow.decoded(expected), atol=1e-5, rtol=0)
    assert prepared(network, photos / "more/b.png", None).shape == (1, 3, 64, 64)


def test_what_is_dreamt_of(photos, tmp_path, monkeypatch):
    given = []
    original = methods.deep_dream

    def watched(network, x, target, **options):
        given.append((target, {key: value for key, value in options.items() if key != "progress"}))
        return original(network, x, target, **options)

    monkeypatch.setattr(methods, "deep_dream", watched)
    out = ("--out", tmp_path / "d.png")
    run(photos / "a.png", *out, *QUICK, "--octave-scale", 1.3, "--strength", 0.03, "--tile", 36, "--seed", 4)
    run(photos / "a.png", *out, *QUICK, "--layer", "relu3_1", "--channel", 7)
    run(photos / "a.png", *out, *QUICK, "--layer", "relu3_1", "--guide", photos / "more/b.png")
    common = {"octaves": 1, "steps": 1, "octave_scale": 1.4, "tile": None, "seed": 0, "guide": None, "layer": None}
    assert given[0] == (None, common | {"octave_scale": 1.3, "strength": 0.03, "tile": 36, "seed": 4})
    assert given[1][0].layers == ("relu3_1",)
    assert given[1][0].k == 7
    assert given[1][1]["layer"] is None
    assert (given[2][0], given[2][1]["layer"]) == (None, "relu3_1")
    assert given[2][1]["guide"].shape == (1, 3, 64, 64)


def test_classes(photos, tmp_path):
    network = models.load_model("demo")
    score = command._target(network, None, None, "koala")
    assert score.k == command._target(network, None, None, "9").k == 9
    run(photos / "a.png", "--out", tmp_path / "d.png", "--class", "koala", "--size", 72, status=2)
    with Image.open(PHOTO) as photo:
        photo.resize((64, 64)).save(photos / "square.png")
    run(photos / "square.png", "--out", tmp_path / "d.png", "--class", "koala", *QUICK[2:], "--size", 64)


def test_a_folder_of_photographs(photos, tmp_path):
    (photos / "c.png").write_bytes(b"no picture")
    with Image.open(PHOTO) as photo:
        photo.resize((900, 4)).save(photos / "d.png")
    out = tmp_path / "out"
    error = run(photos, "--out", out, *QUICK, status=1)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == ["a.png.png", "more/b.png.png"]
    assert images.read_image(out / "more/b.png.png").shape == (3, 72, 48)
    broken, narrow = error.splitlines()
    assert broken.startswith("fastviz: failed: image '")
    assert "c.png': is not an image that can be read" in broken
    assert narrow.startswith("fastviz: failed: d.png: x should have shape [N, 3, 64, 64]")
    assert narrow.endswith("got [1, 3, 1, 72]")


def test_a_flight(photos, tmp_path):
    out = tmp_path / "flight"
    printed = run(photos / "a.png", "--out", out, *QUICK, "--frames", 3, "--zoom", 1.2)
    assert printed.startswith("3 frames in ")
    assert printed.endswith(f"film: {out / 'zoom.gif'}\n")
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"frame_{number:04d}.png" for number in (1, 2, 3)), "zoom.gif",
    ]  # fmt: skip
    network = models.load_model("demo")
    x = prepared(network, photos / "a.png", 72)
    expected = list(methods.dream_zoom(network, x, frames=3, zoom=1.2, octaves=1, steps=1))
    for number, frame in enumerate(expected, start=1):
        written = images.read_image(out / f"frame_{number:04d}.png")
        torch.testing.assert_close(written, frame[0], atol=0.51 / 255, rtol=0)
    with Image.open(out / "zoom.gif") as film:
        assert (film.n_frames, film.size) == (3, (72, 48))
    assert "--out holds frames already" in run(photos / "a.png", "--out", out, *QUICK, "--frames", 1, status=2)
    (out / "mine.png").touch()
    run(photos / "a.png", "--out", out, *QUICK, "--frames", 1, "--overwrite")
    assert sorted(path.name for path in out.iterdir()) == ["frame_0001.png", "mine.png", "zoom.gif"]


# --------------------------------------------------------------------------------------------------------- Ctrl-C


class Stops(torch.nn.Module):
    """The built-in network, interrupted once ``left`` passes are made."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.left = models.load_model("demo"), 0

    def forward(self, x):
        if x.shape[0] == 1:  # traces have another batch
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.network(x)


@pytest.fixture
def stops(monkeypatch):
    """A function after which the network is interrupted at its pass of this number."""

    network = Stops()
    models.describe(network, preprocessing=models.preprocessing(network.network))
    monkeypatch.setattr(models, "load_model", lambda *_: network)
    return lambda at: setattr(network, "left", at)


LAYER = ("--layer", "network.relu3_1")


def test_ctrl_c_in_a_dream(photos, tmp_path, stops):
    stops(8)
    error = run(photos / "a.png", "--out", tmp_path / "d.png", *LAYER, "--size", 100, "--steps", 20, status=130)
    assert error == f"fastviz: stopped; {tmp_path / 'd.png'} has what was made so far\n"
    assert images.read_image(tmp_path / "d.png").shape == (3, 67, 100)


def test_ctrl_c_among_photographs(photos, tmp_path, stops):
    stops(8)
    error = run(photos, "--out", tmp_path / "out", *LAYER, "--size", 72, "--octaves", 1, "--steps", 4, status=130)
    assert error == f"fastviz: stopped; 1 of 2 dreams are in {tmp_path / 'out'}\n"
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["a.png.png"]


def test_ctrl_c_keeps_the_frames_that_are_made(photos, tmp_path, stops):
    stops(12)
    out = tmp_path / "flight"
    error = run(photos / "a.png", "--out", out, *LAYER, *QUICK, "--frames", 90, status=130)
    count = len(list(out.glob("frame_*.png")))
    assert 1 < count < 12
    assert error == f"fastviz: stopped; {out} has the first {count} of 90 frames\n"
    with Image.open(out / "zoom.gif") as film:
        assert film.n_frames == count
    stops(2)
    assert run(photos / "a.png", "--out", tmp_path / "no", *LAYER, *QUICK, "--frames", 9, status=130) == (
        "fastviz: stopped; no frame was made\n"
    )
    assert not (tmp_path / "no").exists()


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["nowhere.png"], "paths should exist, got 'nowhere.png'"),
        ([PHOTO, "--layer", "relu9"], "layer 'relu9' is not known; nearest: relu"),
        (
            [PHOTO, "--layer", "relu4_1", "--channel", 999],
            "channel should be a channel of layer 'relu4_1' from 0 to 143",
        ),
        ([PHOTO, "--channel", 3], "give one of: --layer, --layer with --channel, --class"),
        ([PHOTO, "--layer", "relu1", "--class", "koala"], "give one of: --layer, --layer with --channel, --class"),
        ([PHOTO, "--class", "koalas"], "'koalas'"),
        ([PHOTO, "--class", "predicted"], '--class should be the name or index of a class, got "predicted"'),
        ([PHOTO, "--class", "koala"], "x should have shape [N, 3, 64, 64] for the built-in network"),
        ([PHOTO, "--guide", "nowhere.png"], "image 'nowhere.png': there is no such file"),
        ([PHOTO, "--guide", PHOTO, "--class", "koala"], "guide should be None with a target"),
        ([PHOTO, "--size", 0], "--size should be at least 1, got 0"),
        ([PHOTO, "--size", 9], "for the built-in network, got [1, 3, 9, 9]"),
        ([PHOTO, "--octaves", 0], "octaves should be at least 1, got 0"),
        ([PHOTO, "--tile", 3], "tile should be at least 32, got 3"),
        ([PHOTO, "--model", "squeezenet1_0"], "--weights is needed for squeezenet1_0"),
        ([PHOTO.parent], "--out should be a folder for 3 photographs"),
        ([PHOTO, "--frames", 3], "--out should be a folder for --frames"),
    ],
)
def test_what_is_refused(change, message, tmp_path):
    error = run(*change, "--out", tmp_path / "a.png", status=2)
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_outputs_are_looked_at_first(tmp_path):
    assert "--out should end in .png" in run(PHOTO, "--out", tmp_path / "a.gif", status=2)
    assert "No such file" in run(PHOTO, "--out", tmp_path / "no/a.png", status=2)
    assert "--frames needs one photograph, got 3" in run(PHOTO.parent, "--frames", 2, "--out", tmp_path, status=2)
    assert "zoom should be at least 1" in run(PHOTO, "--frames", 2, "--zoom", 0.5, "--out", tmp_path, status=2)
    assert not list(tmp_path.iterdir())


def test_the_demo_shows_a_photograph_and_dreams_of_it(monkeypatch):
    network = models.load_model("demo")
    original = methods.deep_dream
    monkeypatch.setattr(methods, "deep_dream", lambda *args, **options: original(*args, **options | {"steps": 0}))
    section = command.demo_section(network, PHOTO)
    assert [caption for caption, _ in section.pictures] == ["photograph", "dreamt by relu4_1", "dreamt by relu5_1"]
    first, *others = (picture for _, picture in section.pictures)
    assert max(first.shape) == 192
    for other in others:
        torch.testing.assert_close(other, first, atol=2e-3, rtol=0)
    assert "Mordvintsev" in section.paper
