"""The local engine: memory, threads, waiting."""

from __future__ import annotations

import gc
import os
import time

import pytest
import torch

from fastviz import jobs
from fastviz.jobs.engines import local
from fastviz.jobs.inputs.items import FilePlace
from fastviz.jobs.tables import writer


def memory() -> int:
    """Bytes of this process that are not pages of files."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_memory_is_flat_over_ten_thousand_images(network, photos, tmp_path, monkeypatch):
    """Ids of their own for the same five pictures; a part a second."""
    monkeypatch.setattr(writer, "SECONDS", 1.0)
    lines = [f"{number % 5}.png,image-{number:05d}" for number in range(10_000)]
    (photos / "table.csv").write_text("path,id\n" + "\n".join(lines))
    after: list[int] = []
    seen = 0

    def watch(module, args):
        nonlocal seen
        seen += len(args[0])
        if seen // 1000 > len(after):
            gc.collect()
            after.append(memory())

    network.register_forward_pre_hook(watch)
    summary = jobs.run(photos / "table.csv", tmp_path / "out", model=network, methods="saliency", batch_size=64)
    assert summary.done == 10_000
    assert len(after) >= 9
    assert after[-1] - after[2] < 12_000_000, after  # 7,000 images and their maps are 28 MB


def test_threads_and_workers_are_no_more_than_the_cores(monkeypatch):
    job = jobs.Job(["x"], "out")
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    before = torch.get_num_threads()
    for cores, on_cpu, on_gpu in ((1, 0, 1), (2, 0, 1), (4, 1, 3), (16, 4, 15), (64, 16, 16)):
        monkeypatch.setattr(local, "cores", lambda cores=cores: cores)
        assert local._workers(job, cpu, 10_000) == local._workers(job, cpu, None) == on_cpu
        assert local._workers(job, gpu, 10_000) == on_gpu
        assert local._workers(job, gpu, 10) == 0
        with local._threads(on_cpu):
            assert torch.get_num_threads() + on_cpu <= cores
    assert torch.get_num_threads() == before


def test_what_the_device_waits_for_is_measured(network, photos, tmp_path, monkeypatch):
    read = FilePlace.read
    monkeypatch.setattr(FilePlace, "read", lambda self: (time.sleep(0.05), read(self))[1])
    summary = jobs.run([photos], tmp_path / "out", model=network, methods="saliency")
    assert summary.waited >= 5 * 0.05
    assert 0 <= summary.utilisation < 1
