"""The pages of a job and of the demo."""

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

from fastviz.jobs import report
from fastviz.jobs.results import Result, read_results

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


@pytest.fixture
def photo() -> torch.Tensor:
    return torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
