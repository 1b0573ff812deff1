"""Inputs and results in S3, against a server on this machine."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fastviz import jobs
from fastviz.jobs import s3
from fastviz.jobs.inputs.items import FilePlace
from fastviz.jobs.s3 import S3Path
from fastviz.jobs.tables import folder

# one image at a time: the last bits of a result depend on how many are computed together
FAST = {"methods": ["saliency", "grad_cam"], "batch_size": 1}


def put(photos: Path, place: S3Path) -> None:
    for path in sorted(photos.iterdir()):
        (place / path.name).write_bytes(path.read_bytes())


def ids(out: object) -> list[str]:
    return [str(row["id"]) for row in jobs.open(out).rows() if row["method"] in ("saliency", None)]


def check_equal(out: object, whole: object) -> None:
    assert sorted(ids(out)) == sorted(ids(whole))
    for name in ids(whole):
        found, expected = jobs.open(out).maps(name), jobs.open(whole).maps(name)
        assert found.keys() == expected.keys()
        for method, values in expected.items():
            np.testing.assert_array_equal(found[method], values)


# ---------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "path", "options"),
    [
        ("s3://b/a/c.jpg", "b/a/c.jpg", ()),
        ("s3:/b/a/", "b/a", ()),  # as Path writes it
        ("s3://b/a?.jpg", "b/a?.jpg", ()),
        ("s3://b/a?.jpg?region=eu-west-1&scheme=http", "b/a?.jpg", (("region", "eu-west-1"), ("scheme", "http"))),
        ("s3://b?endpoint_override=localhost:9000", "b", (("endpoint_override", "localhost:9000"),)),
    ],
)
def test_an_address_is_a_bucket_a_key_and_options(address, path, options):
    found = S3Path(address)
    assert (found.path, found.options) == (path, options)
    assert S3Path(os.fspath(found)) == found
    assert (found / "x").options == options


@pytest.mark.parametrize(("address", "words"), [("s3://", "s3://BUCKET/KEY"), ("s3://b?speed=9", "got 'speed'")])
def test_other_addresses_are_refused(address, words):
    with pytest.raises(ValueError, match=words):
        S3Path(address)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["c.jpg"]),
        ("*/*.jpg", ["a/1.jpg", "b/2.jpg"]),
        ("**/*.jpg", ["a/1.jpg", "b/2.jpg", "b/d/3.jpg", "c.jpg"]),
        ("[!b]/*", ["a/1.jpg", "a/1.txt"]),
        ("b/**", ["b/2.jpg", "b/d/3.jpg"]),
        ("?.jpg", ["c.jpg"]),
        ("x*", []),
    ],
)
def test_patterns(bucket, pattern, expected):
    for name in ("a/1.jpg", "a/1.txt", "b/2.jpg", "b/d/3.jpg", "c.jpg"):
        (bucket / "in" / name).write_bytes(b"x")
    found = [place.path.removeprefix(f"{bucket.path}/in/") for place, _ in s3.matching(bucket / "in" / pattern)]
    assert sorted(found) == expected


def fails_in_the_middle(place: S3Path) -> None:
    with s3.whole_object(place) as file:
        file.write(b"half")
        raise RuntimeError("in the middle")


def test_an_object_is_there_whole_or_not_at_all(bucket):
    with pytest.raises(RuntimeError, match="in the middle"):
        fails_in_the_middle(bucket / "x")
    assert not (bucket / "x").exists()
    with s3.whole_object(bucket / "x") as file:
        file.write(b"whole")
    assert (bucket / "x").read_bytes() == b"whole"


# ------------------------------------------------------------------------------------------------------------- inputs


def test_folders_patterns_objects_and_tables_in_s3(network, bucket, photos, tmp_path):
    """Each gives what the same files on disk give."""
    put(photos, bucket / "photos")
    put(photos, bucket / "deep" / "a")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for path in sorted(photos.iterdir()):
            archive.add(path, path.name)
    (bucket / "shards" / "s-000.tar").write_bytes(tar.getvalue())
    names = [f"{number}.png" for number in range(5)]
    sink = io.BytesIO()
    parquet.write_table(pa.table({"id": names, "image": [(photos / name).read_bytes() for name in names]}), sink)
    (bucket / "table.parquet").write_bytes(sink.getvalue())
    (bucket / "photos" / "list.csv").write_bytes(b"path,label\n0.png,cat\n1.png,dog\n")
    jobs.run([photos], tmp_path / "whole", model=network, **FAST)
    for number, (given, expected) in enumerate(
        (
            (f"{bucket}/photos", names),
            (f"{bucket}/photos/*.png", names),
            (f"{bucket}/deep", [f"a/{name}" for name in names]),
            (f"{bucket}/photos/3.png", ["3.png"]),
            (f"{bucket}/shards/s-*.tar", [f"s-000.tar/{name}" for name in names]),
            (f"{bucket}/shards/s-{{000..000}}.tar", [f"s-000.tar/{name}" for name in names]),
            (f"{bucket}/table.parquet", names),
            (f"{bucket}/photos/list.csv", ["0.png", "1.png"]),
        )
    ):
        out = tmp_path / f"out-{number}"
        summary = jobs.run(given, out, model=network, **FAST)
        assert (summary.done, summary.failed) == (len(expected), 0), given
        assert ids(out) == expected, given
        for name in expected:
            own = jobs.open(tmp_path / "whole").maps(name.rpartition("/")[2])
            np.testing.assert_array_equal(jobs.open(out).maps(name)["saliency"], own["saliency"])
        row = next(jobs.open(out).rows(["source", "bytes", "modified"]))
        assert row["source"].startswith(f"{bucket}/")
        assert row["bytes"] > 0
        assert row["modified"] > 0
        assert jobs.run(given, out, model=network, **FAST).skipped == len(expected), given


def test_an_endpoint_behind_the_address(network, bucket, photos, tmp_path, monkeypatch, s3_server):
    """No setting of this process says where it is."""
    put(photos, bucket / "photos")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = f"?endpoint_override={s3_server.removeprefix('http://')}&scheme=http&region=us-east-1"
    summary = jobs.run(f"{bucket}/photos{options}", f"{bucket}/out{options}", model=network, **FAST)
    assert summary.done == 5
    jobs.run([photos], tmp_path / "whole", model=network, **FAST)
    check_equal(f"{bucket}/out{options}", tmp_path / "whole")


def test_workers_read_objects_too(network, bucket, photos, tmp_path):
    put(photos, bucket / "photos")
    summary = jobs.run(f"{bucket}/photos", tmp_path / "out", model=network, workers=1, **FAST)
    assert (summary.done, summary.failed) == (5, 0)


def test_changed_and_removed_objects(network, bucket, photos, tmp_path):
    put(photos, bucket / "photos")
    out = tmp_path / "out"
    jobs.run(f"{bucket}/photos", out, model=network, **FAST)
    time.sleep(1.1)  # S3 tells times to the second, and the other picture may have as many bytes
    (bucket / "photos" / "1.png").write_bytes((photos / "2.png").read_bytes())
    (bucket / "photos" / "4.png").unlink()
    summary = jobs.run(f"{bucket}/photos", out, model=network, **FAST)
    assert (summary.done, summary.skipped, summary.removed) == (1, 3, 1)
    assert sorted(ids(out)) == ["0.png", "1.png", "2.png", "3.png"]
    found = jobs.open(out)
    np.testing.assert_array_equal(found.maps("1.png")["saliency"], found.maps("2.png")["saliency"])


def test_what_does_not_exist_is_named(network, bucket, tmp_path):
    for given, words in (
        (f"{bucket}/none", "paths should exist"),
        (f"{bucket}/none-*.tar", "paths should exist"),
        (f"{bucket}/*.png", "at least one image"),
    ):
        with pytest.raises(ValueError, match=words):
            jobs.run(given, tmp_path / "out", model=network, **FAST)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="there is no such object"):
        FilePlace(f"{bucket}/gone.png").read()


# ------------------------------------------------------------------------------------------------------------ results


def test_results_in_s3_are_those_on_disk(network, bucket, photos, tmp_path):
    """All that reads them does, and the job goes on."""
    (photos / "3.png").write_bytes(b"no picture")
    out = bucket / "results" / "first"
    begun = jobs.run([photos], out, model=network, limit=2, **FAST)
    assert begun.done == 2
    summary = jobs.run([photos], str(out), model=network, **FAST)
    assert (summary.done, summary.skipped, summary.failed) == (2, 2, 1)
    jobs.run([photos], tmp_path / "whole", model=network, **FAST)
    good = [name for name in ids(tmp_path / "whole") if name != "3.png"]
    results, whole = jobs.open(str(out)), jobs.open(tmp_path / "whole")
    assert len(results) == len(whole) == 9
    assert (results.count(ok=True), results.count(ok=False)) == (4, 1)
    for name in good:
        for method, values in whole.maps(name).items():
            np.testing.assert_array_equal(results.maps(name)[method], values)
    assert dict(results.failures()) == dict(whole.failures())
    sql = "SELECT id, method, target, probability FROM results ORDER BY id, method"
    assert results.query(sql).to_pylist() == whole.query(sql).to_pylist()
    assert results.to_pandas(["id"]).id.nunique() == 5
    names = {entry.base_name for entry in out.entries()}
    assert names == {"job.json", "stats.json", *(path.name for path in folder.parts(out))}
    with pytest.raises(ValueError, match="holds results made with other settings"):
        jobs.run([photos], out, model=network, methods="saliency")
    (photos / "3.png").write_bytes((photos / "2.png").read_bytes())
    assert jobs.run([photos], out, model=network, **FAST).done == 1
    assert sorted(ids(out)) == [f"{number}.png" for number in range(5)]
    assert jobs.run([photos / "0.png"], out, model=network, methods="saliency", overwrite=True).done == 1
    assert ids(out) == ["0.png"]


def test_a_bucket_that_is_not_there(network, bucket, photos):
    with pytest.raises(FileNotFoundError, match="out: bucket 'no-such-bucket' does not exist"):
        jobs.run([photos], "s3://no-such-bucket/out", model=network, **FAST)


def test_a_part_is_not_taken_for_damaged_because_the_server_fails(network, bucket, photos, monkeypatch):
    out = bucket / "out"
    jobs.run([photos], out, model=network, **FAST)

    def fails(self):
        raise OSError("the server does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(S3Path, "open", fails)
        with pytest.raises(OSError, match="the server does not answer"):
            jobs.run([photos], out, model=network, **FAST)
    assert jobs.run([photos], out, model=network, **FAST).skipped == 5


def test_a_truncated_part_is_done_again(network, bucket, photos):
    out = bucket / "out"
    jobs.run([photos], out, model=network, **FAST)
    part = folder.parts(out)[0]
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="is damaged and is done again"):
        assert jobs.run([photos], out, model=network, **FAST).done == 5
    assert ids(out) == [f"{number}.png" for number in range(5)]
