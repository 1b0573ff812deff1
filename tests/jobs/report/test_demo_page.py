"""The page of the demo, and words for people."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from fastviz import jobs
from fastviz.jobs import report
from fastviz.methods.registry import EXPLAINERS


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
