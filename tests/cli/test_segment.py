"""``fastviz segment``: what it writes and prints, Ctrl-C, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastviz import images, jobs, methods
from fastviz import models as fastviz_models
from fastviz.cli import app
from fastviz.images import drawing, streams

pytest.importorskip("cv2")

PHOTOS = Path(__file__).parents[2] / "fastviz/models/data/photos"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos/more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "more/a.png")):
        with Image.open(sorted(PHOTOS.glob("*.jpg"))[number % 2]) as photo:
            photo.resize((80, 70)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def run(*args: object, status: int = 0) -> str:
    """What the command prints: on standard output, or, if it fails, on standard error."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == status, result.output
    return result.stderr if status else result.stdout


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "boxes.jsonl").read_text().splitlines()]


def test_masks_overlays_boxes_and_a_contact_sheet(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = run("segment", photos, "--out", out, "--batch-size", 2)
    assert printed == (
        f"3 photographs cut in {out}: masks, overlays, boxes.jsonl\npictures: {out / 'contact_sheet.png'}\n"
    )
    assert [line["file"] for line in lines(out)] == ["a.png", "b.png", "more/a.png"]
    network = fastviz_models.load_model("demo")
    stream = streams.batches(photos, model=network)
    (batch,) = stream
    shown = stream.pictures(batch)
    expected = methods.segment(network, batch.images, images=shown)
    assert expected.mask.any()
    for at, line in enumerate(lines(out)):
        mask = images.read_image(out / line["mask"])
        assert torch.equal(mask > 0.5, expected.mask[at].expand(3, -1, -1))
        assert list(line["box"].values()) == expected.boxes[at].tolist()
        assert line["size"] == [64, 64]
        assert line["area"] == pytest.approx(float(expected.mask[at].float().mean()), abs=1e-6)
        assert line["found"] is True
        assert images.read_image(out / line["overlay"]).shape == (3, 384, 384)
    # a row of three overlays of 192 pixels with captions
    assert images.read_image(out / "contact_sheet.png").shape == (3, 2 * 8 + 26 + 192, 8 + 3 * 200)


def test_options_reach_the_method(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    original = methods.segment

    def watched(*args: Any, **options: Any) -> Any:
        given.append({"target": args[2].tolist(), **{key: options[key] for key in options if key != "images"}})
        return original(*args, **options)

    monkeypatch.setattr(methods, "segment", watched)
    options = ("--saliency", "saliency", "--smoothing", 0, "--iterations", 0, "--no-largest", "--target", 3)
    run("segment", photos, "--out", tmp_path / "out", "--limit", 1, *options, "--foreground", 0.9, "--probable", 0.7)
    assert given == [
        {
            "target": [3],
            "saliency": "saliency",
            "foreground": 0.9,
            "background": 0.3,
            "probable": 0.7,
            "smoothing": 0,
            "iterations": 0,
            "largest": False,
        }
    ]


def test_existing_results_and_broken_files(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("segment", photos, "--out", out)
    said = run("segment", photos, "--out", out, status=2)
    assert "--out holds boxes already" in said
    (photos / "b.png").write_bytes(b"no picture")
    said = run("segment", photos, "--out", out, "--overwrite", status=1)
    assert said.startswith("fastviz: failed: ")
    assert "b.png" in said
    assert [line["file"] for line in lines(out)] == ["a.png", "more/a.png"]
    assert not (out / "masks/b.png.png").exists()


def test_ctrl_c_keeps_what_is_done(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = methods.segment

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(methods, "segment", interrupted)
    said = run("segment", photos, "--out", tmp_path / "out", "--batch-size", 2, status=130)
    assert said == f"fastviz: stopped; 2 photographs done in {tmp_path / 'out'}\n"
    assert len(lines(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--foreground", 0.2), "should be quantiles from 0 to 1 in this order"),
        (("--saliency", "gradcam"), "saliency should be one of 'guided_backprop', 'saliency', got 'gradcam'"),
        (("--target", "lion king"), "target 'lion king' is not known"),
        (("--model", "resnet18"), "--weights is needed for resnet18"),
        (("--batch-size", 0), "batch_size should be at least 1, got 0"),
    ],
)
def test_errors_say_what_is_wrong_in_a_line(photos: Path, tmp_path: Path, options: tuple[Any, ...], words: str) -> None:
    said = run("segment", photos, "--out", tmp_path / "out", *options, status=2)
    assert said.startswith("fastviz: error: ")
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_photographs(tmp_path: Path) -> None:
    assert "nowhere" in run("segment", tmp_path / "nowhere", "--out", tmp_path / "out", status=2)


def test_outline_and_box_worked_by_hand() -> None:
    """A mask of 2x3 in a picture of 8x9: an outline of one pixel around it, which hides the box of the same size."""
    mask = torch.zeros(8, 9, dtype=torch.bool)
    mask[3:5, 2:5] = True
    picture = drawing.outlined(torch.full((3, 8, 9), 0.6), mask)
    around = torch.zeros(8, 9, dtype=torch.bool)
    around[2:6, 1:6] = True
    assert torch.equal((picture[0] == 1.0), around & ~mask)
    assert (picture[:, mask] == 0.6).all()
    torch.testing.assert_close(picture[:, ~around], torch.full((3, 52), 0.21))
    # where the mask is not a rectangle its box can be seen
    mask[3, 2] = False
    yellow = (drawing.outlined(torch.full((3, 8, 9), 0.6), mask) == torch.tensor([1.0, 0.9, 0.2]).view(3, 1, 1)).all(0)
    assert yellow.nonzero().tolist() == [[2, 1]]
    nothing = drawing.outlined(torch.full((3, 8, 9), 0.6), torch.zeros(8, 9, dtype=torch.bool))
    torch.testing.assert_close(nothing, torch.full((3, 8, 9), 0.21))


def test_run_takes_it_too(photos: Path, tmp_path: Path) -> None:
    run("run", photos, "--out", tmp_path / "out", "--methods", "segment", "--limit", 1)
    assert set(np.unique(jobs.open(tmp_path / "out").maps("a.png")["segment"])) == {0.0, 1.0}
