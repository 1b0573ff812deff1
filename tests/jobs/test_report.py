"""The pages of a job and of the demo."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from fastviz import jobs
from fastviz.jobs import report
from fastviz.methods.registry import EXPLAINERS
from tests.jobs.common import photograph


def job(out: Path, network, photos: Path, **options) -> Path:
    jobs.run([photos], out, model=network, methods=["saliency", "grad_cam"], **options)
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


def test_a_page_holds_its_pictures_and_escapes_names(network, photos, tmp_path):
    for name in ("a b#c.png", "<b>x.png", "sub/d.png", "new\nline.png"):
        photograph(photos / name)
    (photos / "bad<.jpg").write_bytes(b"")
    out = job(tmp_path / "out", network, photos, thumbnails=True, overlays=True)
    (path,) = report.pages(out)
    page = Page(path)
    assert path == out / "report.html"
    assert len([each for each in page.references if each.startswith("data:image/jpeg;base64,")]) == 9 * 3
    for words in (
        "a b#c.png",
        "<b>x.png",
        "sub/d.png",
        r"new\nline.png",
        "bad<.jpg",
        "is empty",
        "Network",
        "saliency",
    ):
        assert words in page.text


def test_maps_without_overlays_are_drawn(network, photos, tmp_path):
    (path,) = report.pages(job(tmp_path / "one", network, photos))
    assert path.read_text().count("data:image/jpeg") == 5 * 2
    (path,) = report.pages(job(tmp_path / "two", network, photos, thumbnails=True))
    assert path.read_text().count("data:image/jpeg") == 5 * 3


def test_a_page_says_what_is_predicted_if_that_is_another_class(network, photos, tmp_path):
    first, second = (job(tmp_path / name, network, photos, target=name) for name in ("cat", "predicted"))
    classes = {row["predicted_name"] for row in jobs.open(first).rows()}
    for name in classes - {"cat"}:
        assert f"predicted: {name}" in Page(report.pages(first)[0]).text
    assert "predicted:" not in Page(report.pages(second)[0]).text


def test_pages_refer_to_each_other_and_those_of_an_earlier_time_go(network, photos, tmp_path):
    out = job(tmp_path / "out", network, photos)
    paths = report.pages(out, per_page=2)
    assert [path.name for path in paths] == ["report.html", "report_2.html", "report_3.html"]
    assert {"report_2.html", "report_3.html"} <= set(Page(paths[0]).references)
    assert "4.png" in Page(paths[2]).text
    assert "4.png" not in Page(paths[1]).text
    report.pages(out)
    assert [path.name for path in out.glob("*.html")] == ["report.html"]


def test_a_page_without_results_says_so(network, photos, tmp_path):
    for path in photos.iterdir():
        path.write_bytes(b"")
    (path,) = report.pages(job(tmp_path / "out", network, photos))
    assert "There are no results." in Page(path).text
    assert "0.png" in Page(path).text


def test_the_demo_page_is_one_file(network, photos, tmp_path):
    out = job(tmp_path / "out", network, photos, overlays=True)
    scenes = []
    for rows in jobs.open(out).images(["method", "overlay"]):
        overlays = {row["method"]: row["overlay"] for row in rows}
        scenes.append(
            report.Scene(rows[0]["id"], torch.rand(3, 20, 20), overlays, [("tabby cat", 0.9), ("lion", 0.001)])
        )
    unfit = {name: "no <average>" for name in EXPLAINERS if name not in ("saliency", "grad_cam")}
    sections = [report.Section("Filters", "edges & blobs", [("first", torch.rand(3, 20, 30))], paper="Zeiler 2014")]
    path = report.demo_page(tmp_path, scenes[:2], unfit=unfit, sections=sections, facts={"Time": "3 s"})
    page = Page(path)
    embedded = [reference for reference in page.references if reference.startswith("data:image/")]
    others = set(page.references) - set(embedded)
    assert all(reference.startswith("https://arxiv.org/") for reference in others), others
    assert len(embedded) == 2 * 3 + 1
    words = ("tabby cat", "90 %", "lion", "< 1 %", "no <average>", "saliency", "grad cam", "edges & blobs", "first")
    for word in (*words, "Zeiler 2014", "3 s"):
        assert word in page.text
    assert re.search(r"width: 90\.0%", path.read_text())


@pytest.mark.parametrize(
    ("probability", "words"), [(0.0, "< 1 %"), (0.0099, "< 1 %"), (0.01, "1 %"), (0.126, "13 %"), (1.0, "100 %")]
)
def test_percent(probability, words):
    assert report.percent(probability) == words
