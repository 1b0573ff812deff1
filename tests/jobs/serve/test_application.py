"""The server's addresses: rows as they appear, photographs within limits, nothing outside of its own files."""

from __future__ import annotations

import io
import json
import struct
import zlib

import pytest
import torch
from PIL import Image

from fastviz import images
from fastviz.jobs.serve import uploads
from fastviz.jobs.serve.live_report import LiveReport
from tests.jobs.common import photograph
from tests.jobs.serve.conftest import as_known


def png(size=(24, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def looked(client, photo, **options) -> list[dict]:
    settings = {"page": "p", "photo": photo, "layer": "1", "methods": ["saliency"], "pictures": []} | options
    answer = client.post("/see", content=json.dumps(settings))
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


# ----------------------------------------------------------------------------------------------------------- report


def test_the_report_follows_the_job(growing):
    photos, run, app = growing
    with as_known(app) as client:
        assert '"live": true' in client.get("/").text
        first = client.get("/lines").json()
        assert len(first["block"]["id"]) == 5
        assert not client.get("/lines", params={"version": first["version"], "start": 5}).json()["block"]["id"]
        for number in range(5, 8):
            photograph(photos / f"{number}.png", number)
        run()
        news = client.get("/lines", params={"version": first["version"], "start": 5}).json()
        assert news["version"] == first["version"]
        assert news["block"]["id"] == ["5.png", "6.png", "7.png"]
        assert news["block"]["start"] == 5
        assert news["distributions"]["lines"] == 8


def test_what_was_done_again_is_sent_again(growing):
    photos, run, app = growing
    (photos / "bad.png").write_bytes(b"")
    run()
    with as_known(app) as client:
        first = client.get("/lines").json()
        assert len(first["block"]["error"]) == 1
        photograph(photos / "bad.png", 9)
        run()
        news = client.get("/lines", params={"version": first["version"], "start": 6}).json()
    assert news["version"] != first["version"]
    assert len(news["block"]["id"]) == 6
    assert not news["block"]["error"]
    assert news["distributions"]["failed"] == 0


def test_a_damaged_part_and_photographs_that_are_gone(growing):
    photos, _, app = growing
    (photos.parent / "out" / "part-00099.parquet").write_bytes(b"PAR1 and no more")
    with as_known(app) as client:
        assert len(client.get("/lines").json()["block"]["id"]) == 5
        (photos / "3.png").unlink()  # then the thumbnail
        assert looked(client, client.post("/photo/line/3").json()["photo"])[-1] == {"end": True}


def test_blocks_are_given_piece_by_piece(client, monkeypatch):
    monkeypatch.setitem(LiveReport.lines.__globals__, "PER_BLOCK", 2)
    found, version, more = [], "", True
    while more:
        told = client.get("/lines", params={"version": version, "start": len(found)}).json()
        found, version, more = found + told["block"]["id"], told["version"], told["more"]
    assert found == [f"{number}.png" for number in range(5)]


def test_sheets(client):
    client.get("/lines")
    for name, count in (("photos-000000.jpg", 5), ("maps-000000.jpg", 10)):
        answer = client.get(f"/report_files/{name}")
        assert answer.headers["content-type"] == "image/jpeg"
        width, height = Image.open(io.BytesIO(answer.content)).size
        assert width == 8 * 112
        assert height == -(-count // 8) * 112
    for name in (
        "photos-000001.jpg",
        "photos--1.jpg",
        "maps-x.jpg",
        "photos-²2.jpg",
        "photos-99999999999999999999.jpg",
    ):
        assert client.get(f"/report_files/{name}").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["../job.json", "..%2fjob.json", "%2e%2e/job.json", "job.json", "..%2f..%2f..%2fetc%2fpasswd", "style.css",
     "report.html",     "%2fetc%2fpasswd", "part-00000.parquet"],
)  # fmt: skip
def test_no_other_file_is_given(client, path):
    for folder in ("report_files", "known", "photo"):
        answer = client.get(f"/{folder}/{path}")
        assert answer.status_code in (404, 405, 422), path
        assert "fastviz_job" not in answer.text
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404


# ------------------------------------------------------------------------------------------------------ photographs


def test_a_photograph_is_kept_in_memory_and_not_written(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    told = client.post("/photo", content=png()).json()
    assert looked(client, told["photo"])[-1] == {"end": True}
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty"), (b"no picture", "is not an image"), (png()[:60], "broken or cut off")]
)
def test_bad_files_are_refused_in_a_sentence(client, content, words):
    answer = client.post("/photo", content=content)
    assert answer.status_code == 422
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_a_bomb_is_refused_before_it_is_decoded(client):
    """A PNG that says 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    answer = client.post("/photo", content=bomb)
    assert answer.status_code == 422
    assert "pixels" in answer.json()["error"]


def test_more_bytes_than_allowed_are_refused(client, monkeypatch):
    monkeypatch.setitem(uploads.body_of.__globals__, "LIMIT_BYTES", 1 << 20)
    from fastviz.jobs.serve import application

    monkeypatch.setattr(application, "LIMIT_BYTES", 1 << 20)
    assert client.post("/photo", content=bytes((1 << 20) + 1)).status_code == 413
    taken = []

    def pieces():
        for _ in range(64):
            taken.append(1)
            yield bytes(1 << 18)

    answer = client.post("/photo", content=pieces())  # says no length before
    assert answer.status_code == 413
    assert "1 MB" in answer.json()["error"]
    assert client.post("/see", content=b"{" + bytes(1 << 17)).status_code == 413


def test_only_the_last_photographs_are_kept(client):
    keys = [client.post("/photo", content=png()).json()["photo"] for _ in range(6)]
    assert len(set(keys)) == 6
    settings = {"page": "p", "photo": keys[0], "layer": "1"}
    answer = client.post("/see", content=json.dumps(settings))
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        "This photograph is no longer in memory: choose it again.",
    )


def test_known_photographs_and_those_of_the_job(client):
    assert Image.open(io.BytesIO(client.get("/known/2.jpg").content)).size == (96, 96)
    assert client.get("/known/5.jpg").status_code == 404
    client.get("/lines")
    told = client.post("/photo/line/3").json()
    assert told["name"] == "3.png"
    assert client.post("/photo/line/99").status_code == 404
    assert client.post("/photo/other/0").status_code == 422


# ------------------------------------------------------------------------------------------------------------- looks


def test_what_is_no_setting_is_refused(client):
    photo = client.post("/photo", content=png()).json()["photo"]
    good = {"page": "p", "photo": photo, "layer": "1"}
    for bad, words in (
        ({"layer": "nothing"}, "has no layer"), ({"methods": ["wrong"]}, "no method"), ({"network": 4}, "no such"),
        ({"unit": -1}, "unit"), ({"unit": "3"}, "unit"), ({"explain": "all"}, "explain"), ({"further": 1}, "further"),
        ({"methods": ["saliency"] * 99}, "methods"),
    ):  # fmt: skip
        answer = client.post("/see", content=json.dumps(good | bad))
        assert answer.status_code in (404, 422)
        assert words in answer.json()["error"]
    assert client.post("/see", content=b"{").status_code == 422
    assert client.post("/see", content=json.dumps(good | {"photo": "unknown"})).status_code == 404


def test_every_card_comes_as_it_is_ready(client):
    told = client.post("/photo/known/0").json()
    events = looked(
        client, told["photo"], unit=2, methods=["saliency", "occlusion", "guided_backprop", "grad_cam", "segment"],
        pictures=["unit", "class", "patches"],
    )  # fmt: skip
    last = {event["card"]: event for event in events if "card" in event}
    order = list(dict.fromkeys(event["card"] for event in events if "card" in event))
    assert order[:3] == ["guesses", "activations", "unit"]
    assert order.index("map-occlusion") > order.index("map-grad_cam")  # what takes longer comes later
    assert {"image-unit", "image-class", "patches"} <= set(order)
    for card, event in last.items():
        assert event["state"] == "done" or event["error"], card
        if event["state"] == "done" and card != "guesses":
            assert event["picture"].startswith("data:image/png;base64,")
            assert event["alt"]
    assert last["activations"]["unit"] == 2
    steps = [event for event in events if event.get("card") == "image-class" and event["state"] == "working"]
    assert len(steps) > 2  # also on its way
    assert len(last["guesses"]["guesses"]) == 3


def test_guesses_are_those_of_the_network(client, shown, finished):
    events = looked(client, client.post("/photo/known/1").json()["photo"])
    x = images.read_prepared(finished[0] / "1.png", shown.seen)
    with torch.no_grad():
        best = shown.model(x[None])[0].softmax(0).max(0)
    first = events[0]["guesses"][0]
    assert first["name"] == ["cat", "dog", "bird"][int(best.indices)]
    assert first["probability"] == pytest.approx(float(best.values), abs=1e-4)


def test_what_does_not_fit_is_said_on_its_card(client):
    photo = client.post("/photo", content=png()).json()["photo"]
    events = looked(client, photo, target="unicorn", methods=["saliency", "cam"])
    assert "unicorn" in events[0]["error"]
    failed = {event["card"]: event["error"] for event in events if event.get("state") == "failed"}
    assert "no class to explain" in failed["map-saliency"]
    assert events[-1] == {"end": True}
    events = looked(client, photo, explain="unit", unit=1, methods=["saliency"])
    assert [event for event in events if event.get("card") == "map-saliency"][-1]["state"] == "done"
