"""Contact sheets, pages and drawings: what a person looks at."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from PIL import Image

from fastviz.images import drawing
from fastviz.jobs import report
from fastviz.jobs.folder import Result, read_results

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


class Page(HTMLParser):
    """The text and the references of a page; complains about tags that do not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# ------------------------------------------------------------------------------------------------- contact sheets


def test_a_sheet_has_a_row_a_photograph_with_the_photograph_first(tmp_path):
    (path,) = report.contact_sheets(job(tmp_path, ["a", "b", "c"]))
    assert path == tmp_path / "contact_sheet.png"
    with Image.open(path) as sheet:
        step, row = report.CELL + 6, report.CELL + 26 + 6
        assert sheet.size == (6 + 3 * step, 34 + 3 * row + 6)
        for line in range(3):
            for column, colour in enumerate(COLOURS.values()):
                middle = (6 + column * step + report.CELL // 2, 34 + line * row + 26 + report.CELL // 2)
                assert sheet.getpixel(middle) == colour
        # something is written in the header and in each caption
        for top, bottom in ((0, 34), (34 + 2, 34 + 26), (34 + row + 2, 34 + row + 26)):
            assert min(sheet.convert("L").crop((0, top, step, bottom)).tobytes()) < 100


def test_sheets_are_paged_and_those_of_an_earlier_run_go(tmp_path):
    job(tmp_path, [f"{number}" for number in range(5)])
    names = [path.name for path in report.contact_sheets(tmp_path, rows=2)]
    assert names == ["contact_sheet.png", "contact_sheet_2.png", "contact_sheet_3.png"]
    report.contact_sheets(tmp_path, rows=4)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["contact_sheet.png", "contact_sheet_2.png"]


def test_a_sheet_is_drawn_again_only_if_it_shows_other_results(tmp_path, monkeypatch):
    out = job(tmp_path / "job", ["a", "b", "c", "d"])
    drawn = []
    draw = report._sheet
    monkeypatch.setattr(report, "_sheet", lambda out, page: (drawn.append(page[0][0].file), draw(out, page))[1])
    report.contact_sheets(out, rows=2)
    report.contact_sheets(out, rows=2)
    assert drawn == ["a.jpg", "c.jpg"]
    job(out, ["a", "b", "c", "e"])
    report.contact_sheets(out, rows=2)
    assert drawn == ["a.jpg", "c.jpg", "c.jpg"]
    (out / "contact_sheet_2.png").unlink()
    (out / "contact_sheet_2.png").mkdir()
    report.contact_sheets(out, rows=2)
    assert drawn == ["a.jpg", "c.jpg", "c.jpg", "c.jpg"]


def test_a_picture_that_is_gone_leaves_its_place_and_the_sheet_is_drawn_again(tmp_path):
    out = job(tmp_path / "job", ["a", "b"])
    (out / "overlays/b.saliency.png").unlink()
    (sheet,) = report.contact_sheets(out)
    before = sheet.read_bytes()
    job(out, ["a", "b"])
    report.contact_sheets(out)
    assert sheet.read_bytes() != before


def test_a_long_name_is_cut_instead_of_running_over_the_class(tmp_path):
    (path,) = report.contact_sheets(job(tmp_path, ["long" * 40]))
    with Image.open(path) as sheet:
        right = sheet.convert("L").crop((sheet.width - 6, 36, sheet.width, 58))
        assert min(right.tobytes()) > 200


def test_no_results_no_sheets(tmp_path):
    assert report.contact_sheets(tmp_path) == []


@pytest.mark.parametrize(
    ("probability", "words"), [(0.0, "< 1 %"), (0.0099, "< 1 %"), (0.01, "1 %"), (0.126, "13 %"), (1.0, "100 %")]
)
def test_percent(probability, words):
    assert report.percent(probability) == words


# ---------------------------------------------------------------------------------------------------------- pages


def test_a_page_refers_to_files_that_are_there_and_escapes_names(tmp_path):
    job(tmp_path, ["a b#c", "<b>x", "sub/d"])
    (path,) = report.pages(tmp_path, title="Two & two", facts={"Network": "demo"}, failures=[("bad<.jpg", "is empty")])
    page = Page(path)
    pictures = [reference for reference in page.references if reference.endswith(".png")]
    assert len(pictures) == 3 * 3 * 2  # a link and an image for each picture
    assert not any(" " in reference or "#" in reference for reference in pictures)
    assert all((tmp_path / unquote(reference)).is_file() for reference in pictures)
    for words in (
        "Two & two",
        "tabby <cat>",
        "25 %",
        "<b>x.jpg",
        "a b#c.jpg",
        "bad<.jpg",
        "is empty",
        "Network",
        "demo",
    ):
        assert words in page.text


def test_a_page_says_what_is_predicted_if_that_is_another_class(tmp_path):
    (path,) = report.pages(job(tmp_path / "other", ["a"], target=3), title="t", facts={})
    assert "predicted: espresso 50 %" in Page(path).text
    (path,) = report.pages(job(tmp_path / "same", ["a"]), title="t", facts={})
    assert "predicted:" not in Page(path).text


def test_pages_refer_to_each_other_and_those_of_an_earlier_run_go(tmp_path):
    job(tmp_path, [f"{number}" for number in range(5)])
    paths = report.pages(tmp_path, title="t", facts={}, per_page=2)
    assert [path.name for path in paths] == ["report.html", "report_2.html", "report_3.html"]
    assert {"report_2.html", "report_3.html"} <= set(Page(paths[0]).references)
    assert "4.jpg" in Page(paths[2]).text
    assert "4.jpg" not in Page(paths[1]).text
    report.pages(tmp_path, title="t", facts={})
    assert [path.name for path in tmp_path.glob("*.html")] == ["report.html"]


def test_a_page_without_results_says_so(tmp_path):
    (path,) = report.pages(tmp_path, title="t", facts={}, failures=[("a.jpg", "is empty")])
    assert "There are no results." in Page(path).text
    assert "a.jpg" in Page(path).text


def test_the_demo_page_is_one_file(tmp_path):
    job(tmp_path, ["a", "b"])
    scenes = [report.Scene(results, [("tabby cat", 0.9), ("lion", 0.001)]) for results in read_results(tmp_path)]
    sections = [report.Section("Filters", "edges & blobs", [("first", torch.rand(3, 20, 30))], paper="Zeiler 2014")]
    path = report.demo_page(tmp_path, scenes, unfit={"cam": "no <average>"}, sections=sections, facts={"Time": "3 s"})
    page = Page(path)
    embedded = [reference for reference in page.references if reference.startswith("data:image/")]
    others = set(page.references) - set(embedded)
    assert all(reference.startswith("https://arxiv.org/") for reference in others), others
    assert len(embedded) == 2 * 3 + 1
    for words in (
        "tabby cat",
        "90 %",
        "lion",
        "< 1 %",
        "no <average>",
        "saliency",
        "grad cam",
        "edges & blobs",
        "first",
        "Zeiler 2014",
        "3 s",
    ):
        assert words in page.text
    assert re.search(r"width: 90\.0%", path.read_text())


# -------------------------------------------------------------------------------------------------------- drawings


@pytest.fixture
def photo() -> torch.Tensor:
    return torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("draws", ["heat", "signed", "gradient"])
@pytest.mark.parametrize("channels", [1, 3])
def test_drawings_are_pictures_of_the_size_of_the_photograph(photo, draws, channels):
    shape = (channels, 10, 15) if draws == "gradient" else (10, 15)
    attribution = torch.randn(shape)
    for coarse in (False, True):
        picture = drawing.draw(draws, attribution, photo, coarse=coarse)
        assert picture.shape == photo.shape
        assert picture.min() >= 0
        assert picture.max() <= 1
        zero = drawing.draw(draws, torch.zeros(shape), photo, coarse=coarse)
        assert zero.isfinite().all()


def test_a_signed_map_is_red_above_zero_and_blue_below(photo):
    attribution = torch.zeros(8, 12)
    attribution[:, :4], attribution[:, 8:] = 1.0, -1.0
    red, _, blue = drawing.draw("signed", attribution, photo).mean(1)
    assert (red[:12] > blue[:12] + 0.2).all()
    assert (blue[48:] > red[48:] + 0.2).all()
    torch.testing.assert_close(red[25:35], blue[25:35])


def test_a_heat_map_is_bright_where_it_is_large(photo):
    attribution = torch.zeros(8, 12)
    attribution[:, 9:] = 1.0
    fine = drawing.draw("heat", attribution, photo)
    assert fine[0, :, 50:].mean() > 0.9
    assert fine[:, :, :35].mean() < 0.2
    red, _, blue = drawing.draw("heat", attribution, photo, coarse=True).mean(1)
    assert (red[52:] > blue[52:] + 0.1).all()
    assert (blue[:35] > red[:35] + 0.1).all()


def test_a_gradient_is_drawn_about_grey_and_one_outlier_does_not_hide_the_rest(photo):
    attribution = torch.zeros(3, 20, 20)
    attribution[0, :, :10] = 1.0
    attribution[1, :, :10] = -1.0
    attribution[0, 0, 0] = 1e6
    picture = drawing.draw("gradient", attribution, photo)
    torch.testing.assert_close(picture[:, 20, 50], torch.tensor([0.5, 0.5, 0.5]))
    torch.testing.assert_close(picture[:, 20, 10], torch.tensor([1.0, 0.0, 0.5]))
