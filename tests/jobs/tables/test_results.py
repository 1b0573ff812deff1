"""The tables as users read them: by fastviz, by SQL, and without fastviz."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fastviz import jobs


@pytest.fixture
def out(network, photos, tmp_path):
    (photos / "4.png").write_bytes(b"")
    jobs.run([photos], tmp_path / "out", model=network, methods=["saliency", "grad_cam"], thumbnails=True, limit=3)
    jobs.run([photos], tmp_path / "out", model=network, methods=["saliency", "grad_cam"], thumbnails=True)
    return tmp_path / "out"


def test_tables_and_frames(out):
    results = jobs.open(out)
    assert len(results) == 2 * 4 + 1
    assert (results.count(ok=True), results.count(ok=False)) == (4, 1)
    assert "9 rows in 3 parts" in repr(results)
    assert results.job["versions"]["fastviz"]
    table = results.table(["id", "method"], pc.field("status") == "ok")
    assert table.num_rows == 8
    frame = results.to_pandas(["method", "probability", "seconds"])
    assert frame.groupby("method").probability.mean().between(0, 1).all()
    assert results.table().num_rows == 9
    assert dict(results.failures()) == {"4.png": "image '4.png': is empty"}
    groups = list(results.images(["method"]))
    methods = sorted([row["method"] for row in group] for group in groups if group[0]["method"])
    assert methods == [["saliency", "grad_cam"]] * 4
    assert "map" not in next(results.rows())


def test_pandas_is_asked_for_in_words(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'data frames need pandas: pip install "fastviz\[jobs\]"'):
        jobs.open(out).to_pandas()


def test_sql(out):
    results = jobs.open(out)
    table = results.query("SELECT method, count(*) AS n, avg(probability) AS p FROM results GROUP BY ALL ORDER BY 1")
    assert table["n"].to_pylist() == [4, 4, 1]
    one = results.query("SELECT map, map_shape FROM results WHERE id = '2.png' AND method = 'saliency'")
    found = np.array(one["map"][0].as_py()).reshape(one["map_shape"][0].as_py())
    np.testing.assert_allclose(found, results.maps("2.png")["saliency"])
    mine = pa.table({"id": ["0.png", "2.png"]})
    joined = results.query("SELECT count(*) AS n FROM results JOIN mine USING (id)", mine=mine)
    assert joined["n"].to_pylist() == [4]
    with pytest.raises(ValueError, match=r"sql: .*nothing"):
        results.query("SELECT nothing FROM results")


def test_readers_that_know_nothing_of_fastviz(out, tmp_path, network, photos):
    duckdb, pandas, polars = (pytest.importorskip(name) for name in ("duckdb", "pandas", "polars"))
    expected = jobs.open(out).maps("0.png")["saliency"]
    files = f"{out}/part-*.parquet"
    (row,) = duckdb.sql(f"SELECT map FROM '{files}' WHERE id = '0.png' AND method = 'saliency'").fetchall()
    np.testing.assert_allclose(np.array(row[0]).reshape(16, 16), expected)
    frame = pandas.read_parquet(out / "part-00000.parquet")
    found = frame[(frame.id == "0.png") & (frame.method == "saliency")]["map"].iloc[0]
    np.testing.assert_allclose(np.asarray(found).reshape(16, 16), expected)
    frame = polars.scan_parquet(files).filter(polars.col("id") == "0.png", polars.col("method") == "saliency").collect()
    np.testing.assert_allclose(np.asarray(frame["map"][0]).reshape(16, 16), expected)
    # a column of fixed-shape tensors
    jobs.run([photos / "0.png"], tmp_path / "one", model=network, methods="saliency", maps="uint8")
    path = tmp_path / "one/part-00000.parquet"
    (row,) = duckdb.sql(f"SELECT map, map_scale FROM '{path}'").fetchall()
    assert np.abs(np.array(row[0]).reshape(16, 16) * row[1] - expected).max() <= row[1]
    assert polars.read_parquet(path)["map"].len() == 1
    assert len(np.ravel(np.asarray(pandas.read_parquet(path)["map"].iloc[0]))) == 256


def test_what_is_not_there(out, tmp_path):
    results = jobs.open(out)
    with pytest.raises(ValueError, match=r"id '00\.png' is not known; nearest: 0\.png"):
        results.maps("00.png")
    with pytest.raises(ValueError, match="columns 'mehod' is not known; nearest: method"):
        results.table(["mehod"])
    with pytest.raises(ValueError, match=r"holds no job \(there is no job.json\)"):
        jobs.open(tmp_path)
    assert results.maps("4.png") == {}
