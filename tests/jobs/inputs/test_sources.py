"""Every kind of input: what is in it, what it is called, where it lies."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fastviz import images, jobs
from fastviz.jobs.inputs import Inputs
from tests.jobs.common import photograph


def listed(given, **options):
    """All inputs, made."""
    return [
        shard.make(at) for shard in Inputs(given, Path("nowhere"), **options).shards(2) for at in range(len(shard.ids))
    ]


def explained(given, network, out, **options):
    """The maps of a job over ``given``, by id, and its labels."""
    summary = jobs.run(given, out, model=network, methods="saliency", **options)
    assert summary.failed == 0, summary.failures
    results = jobs.open(out)
    rows = list(results.rows())
    return {row["id"]: results.maps(row["id"])["saliency"] for row in rows}, {row["id"]: row["label"] for row in rows}


@pytest.fixture
def expected(network, photos, tmp_path):
    found, _ = explained([photos], network, tmp_path / "expected", batch_size=1)
    return list(found.values())


def check(found, expected):
    for one, other in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_names_stay_when_folders_are_added(tmp_path):
    for name in ("a/1.png", "a/sub/2.png", "b/1.png", "c/b/1.png"):
        photograph(tmp_path / name)
    folders = [tmp_path / name for name in "abc"]
    assert [item.id for item in listed(folders[:1])] == ["1.png", "sub/2.png"]
    assert [item.id for item in listed(folders[:2])] == ["1.png", "sub/2.png", "b/1.png"]
    found = listed(folders)
    assert [item.id for item in found] == ["1.png", "sub/2.png", "b/1.png", "c/b/1.png"]
    assert [item.uri for item in found] == ["1.png", "sub/2.png", "1.png", "b/1.png"]
    assert [item.position for item in found] == [0, 1, 2, 3]
    assert len(listed([tmp_path / "a", tmp_path / "a" / "1.png"])) == 2  # a file given twice is one input


def test_files_named_one_by_one_share_their_shards(photos):
    """As a shell gives them for a pattern; a shard each would make batches of one image."""
    named = sorted(photos.iterdir())
    assert [len(shard.ids) for shard in Inputs(named, Path("nowhere")).shards(2)] == [5]


def test_folders_are_walked_in_the_order_of_find_images(tmp_path):
    for name in ("10.png", "2.png", "a/3.png", "a.png", "B/1.jpg", "a/b/c.gif", "a10/x.png", "a9/x.png", ".h/x.png"):
        photograph(tmp_path / "photos" / name)
    (tmp_path / "photos/a/loop").symlink_to(tmp_path / "photos")
    photograph(tmp_path / "elsewhere/y.png")
    (tmp_path / "photos/b").symlink_to(tmp_path / "elsewhere")
    found = [item.place.path for item in listed([tmp_path / "photos"])]
    expected = [str(path) for path in images.find_images(tmp_path / "photos")]
    assert found == [path for path in expected if "/b/y" not in path] + [str(tmp_path / "photos/b/y.png")]


def test_pictures_of_the_job_itself_are_no_inputs(tmp_path):
    photograph(tmp_path / "photos/1.png")
    out = tmp_path / "photos/out"
    for name in ("contact_sheet.png", "report_files/a.png"):
        photograph(out / name)
    found = [shard.ids for shard in Inputs([tmp_path / "photos"], out).shards(2)]
    assert found == [["1.png"]]
    with pytest.raises(ValueError, match="only pictures that fastviz wrote"):
        list(Inputs([out], out).shards(2))


NAMES = [
    *(b"new\nline.png", b"caf\xe9.png", b"caf\\xe9.png", b"q'\"<b>&amp;.png", b"tab\t.png", b"-dash.png", b"A.png"),
    *(b"a.png", b"back\\slash.png", b"%41?#.png", b"x.png/y.png", b"\x1b[31m.png", "é😀.png".encode(), b"a..png"),
    *("e\u0301😀.png".encode(), b" .png", b"a" * 251 + b".png", b"'; DROP TABLE results; --.png"),
]


def test_file_names_of_any_kind(network, tmp_path):
    """All are explained, told apart, found again by the next run, and by SQL."""
    import os

    for number, name in enumerate(NAMES):
        photograph(tmp_path / "photos" / os.fsdecode(name), number)
    out = tmp_path / "out"
    summary = jobs.run([tmp_path / "photos"], out, model=network, methods="saliency")
    assert (summary.done, summary.failures) == (len(NAMES), [])
    rows = list(jobs.open(out).rows())
    paths = {unquote_to_bytes(row["source"].removeprefix("file://")) for row in rows}
    assert paths == {os.fsencode(tmp_path / "photos") + b"/" + name for name in NAMES}
    assert len({row["id"] for row in rows}) == len(NAMES)
    assert {"new\nline.png", "é😀.png", "A.png", "a.png", r"caf\xe9.png"} <= {row["id"] for row in rows}
    assert jobs.run([tmp_path / "photos"], out, model=network, methods="saliency").skipped == len(NAMES)
    for row in rows:
        assert jobs.open(out).maps(row["id"])["saliency"].shape == (16, 16)


def test_a_list(network, photos, tmp_path, expected):
    (photos / "list.txt").write_text("".join(f"{number}.png\n\n" for number in range(5)))
    found, _ = explained(photos / "list.txt", network, tmp_path / "out")
    assert list(found) == [f"{number}.png" for number in range(5)]
    check(found, expected)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_table_of_paths(network, photos, tmp_path, expected, ending):
    comma = "," if ending == "csv" else "\t"
    lines = ["file", "label", "id"], *([f"{number}.png", "cat", f"n{number}"] for number in range(5))
    (photos / f"table.{ending}").write_text("\n".join(comma.join(line) for line in lines))
    found, labels = explained([photos / f"table.{ending}"], network, tmp_path / "out")
    check(found, expected)
    assert labels == {f"n{number}": "cat" for number in range(5)}
    jobs.run([photos / f"table.{ending}"], tmp_path / "label", model=network, methods="saliency", target="label")
    assert {row["target_name"] for row in jobs.open(tmp_path / "label").rows()} == {"cat"}


def test_a_label_that_is_no_class_fails_its_image(network, photos, tmp_path):
    (photos / "table.csv").write_text("image,class\n0.png,dog\n1.png,dok\n2.png,7\n3.png,2\n")
    summary = jobs.run([photos / "table.csv"], tmp_path / "out", model=network, methods="saliency", target="label")
    reasons = dict(summary.failures)
    assert "'dok' is not known; nearest: dog" in reasons["1.png"]
    assert "should be a class from 0 to 2" in reasons["2.png"]
    assert summary.done == 2
    summary = jobs.run([photos / "0.png"], tmp_path / "none", model=network, methods="saliency", target="label")
    assert "the input has none" in summary.failures[0][1]


@pytest.mark.parametrize("kind", ["bytes", "hugging face", "paths"])
def test_parquet(network, photos, tmp_path, expected, kind):
    contents = [(photos / f"{number}.png").read_bytes() for number in range(5)]
    column = {
        "bytes": pa.array(contents),
        "hugging face": pa.array([{"bytes": content, "path": None} for content in contents]),
        "paths": pa.array([f"{number}.png" for number in range(5)]),
    }[kind]
    table = pa.table({"label": [0, 1, 2, 0, 1], "image": column})
    parquet.write_table(table, photos / "table.parquet", row_group_size=3)
    found, labels = explained([photos / "table.parquet"], network, tmp_path / "out", batch_size=2)
    check(found, expected)
    assert list(labels.values()) == ["0", "1", "2", "0", "1"]
    assert jobs.run([photos / "table.parquet"], tmp_path / "out", model=network, methods="saliency").skipped == 5
    # rewritten with one other picture: that one is done again
    if kind == "bytes":
        photograph(photos / "other.png", 99)
        contents[3] = (photos / "other.png").read_bytes()
        table = table.set_column(1, "image", pa.array(contents))
        parquet.write_table(table, photos / "table.parquet", row_group_size=3)
        summary = jobs.run([photos / "table.parquet"], tmp_path / "out", model=network, methods="saliency")
        assert (summary.done, summary.skipped) == (1, 4)


def test_tar_shards(network, photos, tmp_path, expected):
    for shard, numbers in (("s-0.tar", (0, 1, 2)), ("s-1.tar", (3, 4))):
        with tarfile.open(tmp_path / shard, "w") as tar:
            for number in numbers:
                tar.add(photos / f"{number}.png", f"d/{number}.png")
                info = tarfile.TarInfo(f"d/{number}.cls")
                info.size = 1
                tar.addfile(info, io.BytesIO(b"1"))
    found, labels = explained([str(tmp_path / "s-*.tar")], network, tmp_path / "out", batch_size=2)
    check(found, expected)
    assert list(found) == [f"s-{number // 3}.tar/d/{number}.png" for number in range(5)]
    assert set(labels.values()) == {"1"}
    braces = str(tmp_path / "s-{0..1}.tar")
    assert jobs.run(braces, tmp_path / "out", model=network, methods="saliency").skipped == 5
    (tmp_path / "s-1.tar").write_bytes((tmp_path / "s-1.tar").read_bytes()[:1500])
    assert jobs.run(tmp_path / "s-0.tar", tmp_path / "out", model=network, methods="saliency").skipped == 3
    with pytest.raises(ValueError, match=r"s-1.tar cannot be read as a tar archive"):
        jobs.run(tmp_path / "s-1.tar", tmp_path / "cut", model=network, methods="saliency")


class Pictures(Dataset):
    def __init__(self, photos: Path) -> None:
        self.paths = sorted(photos.glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at):
        return {"image": (255 * images.read_image(self.paths[at])).round().byte(), "label": at % 3}


class Stream(IterableDataset):
    def __init__(self, photos: Path) -> None:
        self.items = Pictures(photos)

    def __iter__(self):
        return (self.items[at] for at in range(len(self.items)))


def test_objects_in_python(network, photos, tmp_path, expected):
    prepared, _ = images.load_images(photos, model=network)
    for name, given in {
        "dataset": Pictures(photos),
        "stream": Stream(photos),
        "list": [Pictures(photos)[at]["image"] for at in range(5)],
        "tensor": prepared,
        "loader": DataLoader(Pictures(photos), batch_size=2),
    }.items():
        found, labels = explained(given, network, tmp_path / name)
        check(found, expected)
        assert list(found) == ["0", "1", "2", "3", "4"]
        if name in ("dataset", "stream"):
            assert list(labels.values()) == ["0", "1", "2", "0", "1"]
        assert jobs.run(given, tmp_path / name, model=network, methods="saliency").skipped == 5
    found, _ = explained(Pictures(photos), network, tmp_path / "workers", workers=2)
    check(found, expected)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ([], ValueError, "inputs should name at least one image"),
        ("missing.jpg", ValueError, "paths should exist, got 'missing.jpg'"),
        ("missing/*.tar", ValueError, "paths should exist"),
        ("missing.csv", ValueError, "paths should exist"),
        (3, TypeError, "inputs should be paths, .* got int"),
        (torch.zeros(0, 3, 8, 8), ValueError, "at least one image"),
    ],
)
def test_no_inputs(network, tmp_path, given, error, match):
    with pytest.raises(error, match=match):
        jobs.run(given, tmp_path / "out", model=network)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("", {}, "table.csv is empty"),
        ("a,b\n1,2\n", {}, "image_column should name the column of images in .*table.csv, which has a, b"),
        ("image,b\nx\n", {}, "line 2 of .*table.csv has fewer cells"),
        ("image,b\nx,y\n", {"label_column": "c"}, "label_column should be a column of .*table.csv, got 'c'"),
    ],
)
def test_bad_tables(network, tmp_path, text, options, match):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=match):
        jobs.run(tmp_path / "table.csv", tmp_path / "out", model=network, **options)
    assert not (tmp_path / "out").exists()
