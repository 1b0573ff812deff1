"""The Ray engine on a real cluster of this machine: equal tables, killed actors, and jobs that change engines."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastviz import images, jobs, models
from fastviz.jobs.engines import ray
from fastviz.jobs.tables import folder
from tests.jobs.common import photograph, tiny

ROOT = Path(__file__).parents[3]
FAST = {"methods": ["saliency", "grad_cam"], "batch_size": 4}

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")


@pytest.fixture(scope="module")
def cluster():
    """One for all tests of this file: to start it takes seconds."""
    ray = pytest.importorskip("ray")
    before = {name: os.environ.get(name) for name in ("RAY_USAGE_STATS_ENABLED", "PYTHONPATH")}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)  # where the actors find the network's class
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 << 20,
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})


@pytest.fixture
def many(tmp_path) -> Path:
    for number in range(22):
        photograph(tmp_path / "many" / f"{number:02d}.png", number)
    (tmp_path / "many" / "07.png").write_bytes(b"no picture")
    return tmp_path / "many"


def rows(out: Path) -> dict[tuple[str, ...], dict[str, object]]:
    """The rows by image, method and target, without what no two runs have in common."""
    found = {}
    for row in jobs.open(out).rows():
        key = (str(row["id"]), str(row["method"]), str(row["target"]))
        assert key not in found, f"{key} is there twice"
        found[key] = {name: value for name, value in row.items() if name != "seconds"}
    return found


def check_equal(out: Path, whole: Path) -> None:
    found, expected = rows(out), rows(whole)
    assert found == expected
    results = jobs.open(out), jobs.open(whole)
    for name in {name for name, method, _ in expected if method != "None"}:
        maps = [each.maps(name) for each in results]
        assert maps[0].keys() == maps[1].keys()
        for method, values in maps[1].items():
            np.testing.assert_array_equal(maps[0][method], values)
    assert {path.name for path in out.iterdir()} == {"job.json", "stats.json", *(p.name for p in folder.parts(out))}


def local(many: Path, out: Path, **options: object) -> jobs.Summary:
    return jobs.run([many], out, **({"model": tiny()} | FAST | options))


@needs_ray
def test_tables_are_those_of_the_local_engine(cluster, many, tmp_path):
    """Failures too; with two actors of one core each."""
    options = {"thumbnails": True, "top_k": 2, "maps": "uint8"}
    summary = local(many, tmp_path / "ray", engine="ray", workers=2, **options)
    expected = local(many, tmp_path / "local", **options)
    assert (summary.done, summary.failed) == (expected.done, expected.failed) == (21, 1)
    assert [name for name, _ in summary.failures] == ["07.png"]
    assert 0 <= summary.utilisation <= 1
    check_equal(tmp_path / "ray", tmp_path / "local")


@needs_ray
def test_the_built_in_network_and_a_dataset_in_python(cluster, tmp_path):
    pictures = torch.rand(6, 3, 64, 64)
    for engine in ("ray", "local"):
        jobs.run(pictures, tmp_path / engine, engine=engine, methods="saliency", batch_size=2, device="cpu")
    check_equal(tmp_path / "ray", tmp_path / "local")


@needs_ray
@pytest.mark.parametrize(("first", "second"), [("ray", "local"), ("local", "ray")])
def test_a_job_that_one_engine_begins_and_the_other_ends(cluster, many, tmp_path, first, second):
    begun = local(many, tmp_path / "out", engine=first, limit=10)
    assert begun.done + begun.failed == 10
    ended = local(many, tmp_path / "out", engine=second)
    assert (ended.done, ended.skipped, ended.failed) == (12, 9, 1)
    local(many, tmp_path / "whole")
    check_equal(tmp_path / "out", tmp_path / "whole")
    again = local(many, tmp_path / "out", engine="ray", retry_failed=False)
    assert (again.done, again.skipped, again.failed) == (0, 21, 1)


class _Kills:
    """Ends the process of an actor with SIGKILL; nothing where the network is asked what it is."""

    def __init__(self, driver: int, mark: Path, poison: float | None = None) -> None:
        self._driver, self._mark, self._poison = driver, mark, poison

    def __call__(self, module: object, args: tuple[torch.Tensor, ...]) -> None:
        if os.getpid() == self._driver or not len(args[0]):
            return
        if self._poison is not None:
            if bool((args[0].amax((1, 2, 3)) == self._poison).any()):
                os.kill(os.getpid(), signal.SIGKILL)
            return
        calls = len(list(self._mark.parent.glob("call-*")))
        (self._mark.parent / f"call-{time.monotonic_ns()}").touch()
        if calls >= 6 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@needs_ray
def test_an_actor_that_is_killed_in_the_middle_loses_and_doubles_nothing(cluster, many, tmp_path):
    (tmp_path / "marks").mkdir()
    network = tiny()
    network.register_forward_pre_hook(_Kills(os.getpid(), tmp_path / "marks" / "killed"))
    summary = local(many, tmp_path / "out", model=network, engine="ray", workers=2)
    assert (tmp_path / "marks" / "killed").exists()
    assert (summary.done, summary.failed) == (21, 1)
    local(many, tmp_path / "whole")
    check_equal(tmp_path / "out", tmp_path / "whole")


@needs_ray
def test_an_image_that_kills_its_actor_is_one_that_failed(cluster, many, tmp_path, monkeypatch):
    """The others of its batch are done all the same."""
    monkeypatch.setattr(ray, "_TRIES", 1)  # each try starts a process
    network = tiny()
    poison = float(images.read_prepared(many / "05.png", models.preprocessing(network)).max())
    network.register_forward_pre_hook(_Kills(os.getpid(), tmp_path / "mark", poison))
    others = [float(images.read_prepared(path, models.preprocessing(network)).max()) for path in many.iterdir()
              if path.name not in ("05.png", "07.png")]  # fmt: skip
    assert poison not in others
    summary = local(many, tmp_path / "out", model=network, engine="ray", workers=1)
    assert (summary.done, summary.failed) == (20, 2)
    assert dict(summary.failures)["05.png"] == "the process that decoded or explained it was killed"
    assert local(many, tmp_path / "out", engine="ray").done == 1


@needs_ray
def test_the_impossible_is_refused_in_words(cluster, many, tmp_path):
    for options, words in (
        ({"workers": 0}, "workers should be at least 1 with engine 'ray', got 0"),
        ({"model": "demo", "device": "cuda:7"}, "device"),
    ):
        with pytest.raises(ValueError, match=words):
            local(many, tmp_path / "out", engine="ray", **options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("part-*"))


def test_without_ray_a_sentence_says_how_to_get_it(many, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'engine "ray" needs Ray: pip install "fastviz\[ray\]"'):
        local(many, tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()


def test_each_actor_has_a_gpu_or_a_share_of_the_cores():
    cpu = [{"CPU": 16.0}, {"CPU": 6.0}]
    gpu = [{"CPU": 32.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 8.0}]
    job = lambda **options: jobs.Job(["x"], "out", engine="ray", **options)  # noqa: E731
    resources = lambda nodes, **options: ray._Resources.of(job(**options), nodes)  # noqa: E731
    assert resources(cpu) == ray._Resources(5, 4, 0)
    assert resources([{"CPU": 2.0}]) == ray._Resources(1, 2, 0)
    assert resources([{"CPU": 2.0}], workers=2) == ray._Resources(2, 1, 0)
    assert resources(gpu) == ray._Resources(16, 4, 1)
    assert resources(gpu, workers=4) == ray._Resources(4, 16, 1)
    assert resources(gpu, device="cpu") == ray._Resources(16, 4, 0)
    with pytest.raises(ValueError, match="device 'cuda' is not available: the Ray cluster has no GPU"):
        resources(cpu, device="cuda")


INTERRUPTED = """
import signal, sys
from pathlib import Path
from fastviz.cli import main
from fastviz.jobs.tables import writer

begun = Path(sys.argv.pop(1))
write = writer.Writer.write

def write_once(self, batch):
    write(self, batch)
    begun.touch()
    signal.pause()

writer.Writer.write = write_once
main()
"""


@needs_ray
def test_ctrl_c_keeps_what_is_done_and_ends_the_cluster(many, tmp_path):
    """The command starts a cluster of its own, which goes with it; another engine ends the job."""
    home = Path(tempfile.mkdtemp(dir="/tmp"))  # sockets have short names
    mark, out = tmp_path / "begun", tmp_path / "out"
    words = ["run", str(many), "--out", str(out), "--methods", "saliency", "--engine", "ray", "--batch-size", "2"]
    started = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(mark), *words, "--workers", "2", "--device", "cpu"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not mark.exists() and started.poll() is None:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    said, _ = started.communicate()
    assert started.returncode == 130, said
    assert "and the same command continues from there" in said
    assert not list(home.glob("fastviz-ray-*"))
    assert not _processes_that_name(str(home))
    shutil.rmtree(home)
    begun = len({name for name, *_ in rows(out)})
    assert 0 < begun < 22
    ended = jobs.run([many], out, methods="saliency", batch_size=2, device="cpu")
    assert ended.done + ended.skipped == 21
    jobs.run([many], tmp_path / "whole", methods="saliency", batch_size=2, device="cpu")
    check_equal(out, tmp_path / "whole")


def _processes_that_name(words: str) -> list[str]:
    """The command lines of the processes that work in a folder, in which Ray keeps its sockets."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line:
            found.append(line)
    return found
