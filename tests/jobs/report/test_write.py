"""The report of a job as files: its lines, its sheets, its numbers, and that all text is escaped."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastviz import jobs
from fastviz.images import drawing, tensors
from fastviz.jobs import report
from fastviz.jobs.report.distributions import Distributions
from fastviz.jobs.report.lines import lines_of
from fastviz.jobs.report.pictures import ACROSS, PER_SHEET, Sheets
from tests.jobs.common import photograph

METHODS = ["saliency", "grad_cam"]


def job(out: Path, network, photos: Path, **options) -> Path:
    jobs.run([photos], out, model=network, methods=METHODS, **options)
    return out


def settings(page: Path) -> dict:
    """What the page's script is told."""
    text = page.read_text()
    start = text.index('id="page">') + len('id="page">')
    return json.loads(text[start : text.index("</script>", start)])


def blocks(page: Path) -> list[dict]:
    found = []
    for path in sorted((page.parent / "report_files").glob("lines-*.js")):
        content = path.read_text()
        assert content.startswith("fastviz.add(")
        assert content.endswith(");\n")
        found.append(json.loads(content[len("fastviz.add(") : -3]))
    return found


def cell(sheet: bytes, spot: int, size: tuple[int, int]) -> np.ndarray:
    """The picture with this number in a sheet."""
    pixels = np.asarray(Image.open(io.BytesIO(sheet)))
    row, column = divmod(spot, ACROSS)
    return pixels[row * size[0] : (row + 1) * size[0], column * size[1] : (column + 1) * size[1]]


def test_lines_are_those_of_the_tables(network, photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"")
    out = job(tmp_path / "out", network, photos, thumbnails=True)
    (block,) = blocks(report.write(out))
    rows = {row["id"]: row for row in jobs.open(out).rows() if row["method"] == "grad_cam"}
    assert sorted(block["id"]) == ["0.png", "1.png", "2.png", "3.png", "4.png", "bad.jpg"]
    for at, name in enumerate(block["id"]):
        if name == "bad.jpg":
            assert "is empty" in block["error"][str(at)]
            assert block["missing"][str(at)] == [0, 1]
            assert block["target"][at] == -1
            assert block["probability"][at] is None
            continue
        assert block["names"][block["target"][at]] == rows[name]["target_name"]
        assert block["probability"][at] == pytest.approx(rows[name]["probability"], abs=1e-5)
        assert block["names"][block["predicted"][at]] == rows[name]["predicted_name"]
    assert set(block["missing"]) == set(block["error"])


@pytest.mark.filterwarnings("ignore:the target has a gradient of zero")
def test_maps_of_zeros(network, photos, tmp_path):
    """pytorch-grad-cam #214, #108; torch-cam #186, #152: dead rectifiers; no NaN in tables, lines or pictures."""
    with torch.no_grad():
        network[3].weight.zero_()
        network[3].bias.fill_(-1)
    out = job(tmp_path / "out", network, photos)
    found = jobs.open(out)
    maps = [each for number in range(5) for each in found.maps(f"{number}.png").values()]
    assert len(maps) == 10
    assert not any(each.any() for each in maps)
    page = report.write(out)
    for path in (page, *(page.parent / "report_files").glob("lines-*.js")):
        assert "NaN" not in path.read_text(), path
    assert all(len(block["id"]) == 5 for block in blocks(page))


def test_an_image_and_target_is_a_line(network, photos, tmp_path):
    out = job(tmp_path / "out", network, photos, top_k=2)
    (block,) = blocks(report.write(out))
    assert block["id"] == [name for number in range(5) for name in [f"{number}.png"] * 2]
    (part,) = jobs.open(out).parts
    for at, line in enumerate(lines_of(part)):
        assert line.rows == {"saliency": 2 * at, "grad_cam": 2 * at + 1}
        assert line.first == at // 2 * 4  # the thumbnail stands in the first row of an image


def test_sheets_hold_the_pictures_of_their_lines(network, photos, tmp_path):
    out = job(tmp_path / "out", network, photos, thumbnails=True)
    page = report.write(out)
    told = settings(page)
    assert (told["photos"], told["maps"], told["methods"], told["lines_per_sheet"]) == (True, True, METHODS, 32)
    files = page.parent / "report_files"
    rows = list(jobs.open(out).images(jobs.open(out).schema.names))
    size = tuple(told["cell"])
    for at, of_image in enumerate(rows):
        thumbnail = of_image[0]["thumbnail"]
        expected = Image.open(io.BytesIO(thumbnail)).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
        shown = cell((files / "photos-000000.jpg").read_bytes(), at, size)
        assert np.abs(shown.astype(float) - np.asarray(expected)).mean() < 4
        photo = torch.from_numpy(np.array(expected)).permute(2, 0, 1) / 255
        for number, row in enumerate(of_image):
            found = torch.from_numpy(jobs.open(out).maps(row["id"])[row["method"]])
            whole = tensors.eight_bits(drawing.draw("heat", found, photo)).permute(1, 2, 0).numpy()
            shown = cell((files / "maps-000000.jpg").read_bytes(), at * len(METHODS) + number, size)
            assert np.abs(shown.astype(float) - whole).mean() < 6


def test_overlays_are_shown_as_they_were_kept(network, photos, tmp_path):
    out = job(tmp_path / "out", network, photos, maps="none", overlays=True)
    page = report.write(out)
    told = settings(page)
    assert (told["photos"], told["maps"]) == (False, True)
    assert not list((page.parent / "report_files").glob("photos-*"))
    row = next(jobs.open(out).rows(["overlay"]))
    size = tuple(told["cell"])
    expected = Image.open(io.BytesIO(row["overlay"])).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
    shown = cell((page.parent / "report_files/maps-000000.jpg").read_bytes(), 0, size)
    assert np.abs(shown.astype(float) - np.asarray(expected)).mean() < 4


def test_more_lines_than_a_sheet_or_a_block(network, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(report.write.__globals__, "PER_BLOCK", 64)
    for number in range(70):
        photograph(photos / f"more/{number:02d}.png", number)
    out = job(tmp_path / "out", network, photos, thumbnails=True)
    page = report.write(out)
    found = blocks(page)
    assert [(block["start"], len(block["id"])) for block in found] == [(0, 64), (64, 11)]
    assert settings(page)["blocks"] == 2
    names = {path.name for path in (page.parent / "report_files").glob("*.jpg")}
    assert names == {f"photos-{n:06d}.jpg" for n in range(2)} | {f"maps-{n:06d}.jpg" for n in range(3)}
    assert PER_SHEET < 75


def test_text_is_escaped_and_no_host_is_named(network, photos, tmp_path):
    for name in ("<script><b>x.png", "a b#c.png", "sub/d.png", "new\nline.png"):
        photograph(photos / name)
    (photos / "bad<img src=x>.jpg").write_bytes(b"")
    page = report.write(job(tmp_path / "out", network, photos))
    text = page.read_text()
    assert "<b>" not in text.replace("<b>saliency</b>", "").replace("<b>grad cam</b>", "")
    assert "<img" not in text
    assert r"new\nline.png" in blocks(page)[0]["id"]
    assert "default-src 'none'" in text
    for path in [page, *(page.parent / "report_files").glob("*.[jc]s*")]:
        assert "http:" not in path.read_text()
        assert "https:" not in path.read_text()


def test_a_report_of_an_earlier_time_goes(network, photos, tmp_path):
    out = job(tmp_path / "out", network, photos, thumbnails=True)
    (out / "report_2.html").touch()
    (out / "report_files").mkdir()
    (out / "report_files/maps-000099.jpg").touch()
    report.write(out)
    assert [path.name for path in out.glob("*.html")] == ["report.html"]
    names = {path.name for path in (out / "report_files").iterdir()}
    assert names == {"maps-000000.jpg", "photos-000000.jpg", "lines-00000.js", "report.js", "report.css"}


def test_a_job_whose_images_all_failed(network, photos, tmp_path):
    for path in photos.iterdir():
        path.write_bytes(b"")
    page = report.write(job(tmp_path / "out", network, photos))
    told = settings(page)["distributions"]
    assert (told["lines"], told["failed"], told["classes"]) == (5, 5, [])
    assert told["reasons"] == [["image …: is empty", 5]]
    with pytest.raises(ValueError, match="holds no job"):
        report.write(photos)


def test_distributions(network, photos, tmp_path):
    out = job(tmp_path / "out", network, photos)
    told = settings(report.write(out))["distributions"]
    rows = [row for row in jobs.open(out).rows() if row["method"] == "saliency"]
    assert told["probability"] == np.histogram([row["probability"] for row in rows], 20, (0, 1))[0].tolist()
    counts = {one["name"]: (one["count"], one["mean"]) for one in told["classes"]}
    for name in counts:
        own = [row["probability"] for row in rows if row["target_name"] == name]
        assert counts[name] == (len(own), pytest.approx(np.mean(own), abs=1e-4))
    for one in told["seconds"]:
        assert sum(one["bins"]) == 5
        taken = np.median([row["seconds"] for row in jobs.open(out).rows() if row["method"] == one["method"]])
        assert 0.5 < one["median"] / taken < 2  # bins are a fifth of a factor of ten


def test_no_seconds_have_no_median():
    assert Distributions(["saliency"]).values()["seconds"][0]["median"] is None


def test_pictures_of_another_shape_are_fitted_into_the_cell():
    sheets = Sheets(["saliency"], (32, 64))
    buffer = io.BytesIO()
    Image.fromarray(tensors.eight_bits(torch.ones(3, 40, 40)).permute(1, 2, 0).numpy()).save(buffer, "JPEG")
    assert sheets._fitted(buffer.getvalue()).size == (32, 32)
    white = cell(sheets._sheet([sheets._fitted(buffer.getvalue())]), 0, (32, 64))
    assert white[:, 20:44].min() > 240  # in the middle
    assert abs(int(white[0, 4].mean()) - 128) < 6
