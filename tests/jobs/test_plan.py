"""What a job would do."""

from __future__ import annotations

import pytest

from fastviz import jobs
from fastviz.jobs.plan import plan


def test_a_plan_counts_and_measures_and_writes_nothing(network, photos, tmp_path):
    (photos / "4.png").write_bytes(b"")
    job = jobs.Job([photos], tmp_path / "out", model=network, methods=["saliency", "grad_cam"], batch_size=2)
    found = plan(job)
    assert (found.todo, found.done, found.rows, found.measured, found.batch_size) == (5, 0, 2, 2, 2)
    assert found.seconds > 0
    assert found.bytes > 1000
    assert not (tmp_path / "out").exists()
    jobs.run(job)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    found = plan(job)
    assert (found.todo, found.done, found.measured, found.failed) == (1, 4, 1, 1)
    assert plan(job, retry_failed=False).todo == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    other = jobs.Job([photos], tmp_path / "out", model=network, methods="saliency")
    with pytest.raises(ValueError, match="other settings"):
        plan(other)


def test_the_size_is_that_of_the_tables(network, photos, tmp_path):
    job = jobs.Job([photos], tmp_path / "out", model=network, methods="saliency")
    found = plan(job)
    jobs.run(job)
    size = sum(path.stat().st_size for path in jobs.open(tmp_path / "out").parts) / 5
    assert found.bytes == pytest.approx(size, rel=0.5)  # a part has a fixed cost beside
    words = found.words()
    assert words["to do"] == "5 images, 1 row each"
    assert "ms per image" in words["time"]
    assert "kB per image" in words["size"]
