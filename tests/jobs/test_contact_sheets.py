"""Contact sheets of a job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastviz.jobs import contact_sheets
from fastviz.jobs.results import Result

METHODS = ("saliency", "grad_cam")

COLOURS = {"input": (200, 40, 40), "saliency": (40, 200, 40), "grad_cam": (40, 40, 200)}


def job(out: Path, names: Sequence[str], *, target: int = 0) -> Path:
    """The folder of a job whose pictures have one colour each."""
    lines = []
    for name in names:
        paths = {"input": f"inputs/{name}.png"} | {method: f"overlays/{name}.{method}.png" for method in METHODS}
        for kind, path in paths.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (384, 384), COLOURS[kind]).save(out / path)
        for method in METHODS:
            lines.append(
                Result(
                    file=f"{name}.jpg",
                    method=method,
                    target=target,
                    class_name="tabby <cat>",
                    probability=0.25,
                    predicted=0,
                    predicted_class_name="espresso",
                    predicted_probability=0.5,
                    seconds=0.1,
                    overlay=paths[method],
                    arrays=f"arrays/{name}.npz",
                    photo=paths["input"],
                    source=f"/photos/{name}.jpg",
                    bytes=1,
                    modified=1,
                )
            )
    out.mkdir(exist_ok=True)
    (out / "results.jsonl").write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))
    return out


def test_a_sheet_has_a_row_a_photograph_with_the_photograph_first(tmp_path):
    (path,) = contact_sheets.contact_sheets(job(tmp_path, ["a", "b", "c"]))
    assert path == tmp_path / "contact_sheet.png"
    with Image.open(path) as sheet:
        step, row = contact_sheets.CELL + 6, contact_sheets.CELL + 26 + 6
        assert sheet.size == (6 + 3 * step, 34 + 3 * row + 6)
        for line in range(3):
            for column, colour in enumerate(COLOURS.values()):
                middle = (6 + column * step + contact_sheets.CELL // 2, 34 + line * row + 26 + contact_sheets.CELL // 2)
                assert sheet.getpixel(middle) == colour
        # something is written in the header and in each caption
        for top, bottom in ((0, 34), (34 + 2, 34 + 26), (34 + row + 2, 34 + row + 26)):
            assert min(sheet.convert("L").crop((0, top, step, bottom)).tobytes()) < 100


def test_sheets_are_paged_and_those_of_an_earlier_run_go(tmp_path):
    job(tmp_path, [f"{number}" for number in range(5)])
    names = [path.name for path in contact_sheets.contact_sheets(tmp_path, rows=2)]
    assert names == ["contact_sheet.png", "contact_sheet_2.png", "contact_sheet_3.png"]
    contact_sheets.contact_sheets(tmp_path, rows=4)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["contact_sheet.png", "contact_sheet_2.png"]


def test_a_sheet_is_drawn_again_only_if_it_shows_other_results(tmp_path, monkeypatch):
    out = job(tmp_path / "job", ["a", "b", "c", "d"])
    drawn = []
    draw = contact_sheets._sheet
    monkeypatch.setattr(contact_sheets, "_sheet", lambda out, page: (drawn.append(page[0][0].file), draw(out, page))[1])
    contact_sheets.contact_sheets(out, rows=2)
    contact_sheets.contact_sheets(out, rows=2)
    assert drawn == ["a.jpg", "c.jpg"]
    job(out, ["a", "b", "c", "e"])
    contact_sheets.contact_sheets(out, rows=2)
    assert drawn == ["a.jpg", "c.jpg", "c.jpg"]
    (out / "contact_sheet_2.png").unlink()
    (out / "contact_sheet_2.png").mkdir()
    contact_sheets.contact_sheets(out, rows=2)
    assert drawn == ["a.jpg", "c.jpg", "c.jpg", "c.jpg"]


def test_a_picture_that_is_gone_leaves_its_place_and_the_sheet_is_drawn_again(tmp_path):
    out = job(tmp_path / "job", ["a", "b"])
    (out / "overlays/b.saliency.png").unlink()
    (sheet,) = contact_sheets.contact_sheets(out)
    before = sheet.read_bytes()
    job(out, ["a", "b"])
    contact_sheets.contact_sheets(out)
    assert sheet.read_bytes() != before


def test_a_long_name_is_cut_instead_of_running_over_the_class(tmp_path):
    (path,) = contact_sheets.contact_sheets(job(tmp_path, ["long" * 40]))
    with Image.open(path) as sheet:
        right = sheet.convert("L").crop((sheet.width - 6, 36, sheet.width, 58))
        assert min(right.tobytes()) > 200


def test_no_results_no_sheets(tmp_path):
    assert contact_sheets.contact_sheets(tmp_path) == []


@pytest.mark.parametrize(
    ("probability", "words"), [(0.0, "< 1 %"), (0.0099, "< 1 %"), (0.01, "1 %"), (0.126, "13 %"), (1.0, "100 %")]
)
def test_percent(probability, words):
    assert contact_sheets.percent(probability) == words


@pytest.fixture
def photo() -> torch.Tensor:
    return torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
