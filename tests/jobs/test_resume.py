"""Going on: new inputs, changed ones, gone ones; kill -9 at any moment; damaged folders; two runs at once."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastviz import jobs, models
from fastviz.jobs.tables import folder, writer
from fastviz.jobs.tables.results import map_at
from tests.jobs.common import photograph, tiny

ROOT = Path(__file__).parents[2]
FAST = {"methods": ["saliency", "grad_cam"]}


def rows(out: Path) -> list[dict[str, object]]:
    return list(jobs.open(out).rows())


def ids(out: Path) -> list[str]:
    return [str(row["id"]) for row in rows(out) if row["method"] == "saliency"]


def maps(out: Path) -> dict[str, dict[str, np.ndarray]]:
    """Of all images from one reading: ``Results.maps`` reads the tables anew for each."""
    table = jobs.open(out).table(["id", "method", "map", "map_shape", "map_scale", "map_zero"])
    found: dict[str, dict[str, np.ndarray]] = {}
    for at, (name, method) in enumerate(zip(*(table[each].to_pylist() for each in ("id", "method")), strict=True)):
        one = map_at(table, at)
        if one is not None:
            found.setdefault(name, {})[method] = one
    return found


def check_equal(out: Path, whole: Path) -> None:
    """The same rows, each once, with the same bits; nothing else lies about."""
    keys = [sorted((row["id"], row["method"], row["status"]) for row in rows(each)) for each in (out, whole)]
    assert keys[0] == keys[1]
    expected = maps(whole)
    assert expected
    for name, found in maps(out).items():
        for method, values in found.items():
            np.testing.assert_array_equal(values, expected[name][method])
    assert {path.name for path in out.iterdir()} == {"job.json", "stats.json", *(p.name for p in folder.parts(out))}


class Counted:
    """How many images a model saw."""

    def __init__(self, model: nn.Module) -> None:
        self.images = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.images += len(args[0])


def test_a_second_run_does_only_what_is_new(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.run([photos], out, model=network, limit=3, **FAST)
    first = (out / "part-00000.parquet").read_bytes()
    counted = Counted(network)
    summary = jobs.run([photos], out, model=network, **FAST)
    assert (summary.done, summary.skipped) == (2, 3)
    # the class names are known, the options are checked on no images, and Grad-CAM looks for its layer on one image
    assert counted.images <= 2 * 2 + 2 + 1
    assert (out / "part-00000.parquet").read_bytes() == first
    assert ids(out) == ["0.png", "1.png", "2.png", "3.png", "4.png"]


def test_inputs_may_be_added(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.run([photos], out, model=network, **FAST)
    for name in ("0.png", "new.png"):
        photograph(tmp_path / "more" / name, 50)
    summary = jobs.run([photos, tmp_path / "more"], out, model=network, **FAST)
    assert (summary.done, summary.skipped) == (2, 5)
    assert ids(out)[5:] == ["more/0.png", "new.png"]


def test_other_settings_are_refused_with_the_difference(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.run([photos], out, model=network, **FAST)
    before = {path: path.read_bytes() for path in out.iterdir()}
    other = copy.deepcopy(network)
    models.describe(other, preprocessing=models.preprocessing(network), class_names=["cat", "dog", "bird"])
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    for options, words in (
        ({"target": "cat"}, "target: 'predicted' before, 'cat' now"),
        ({"methods": "saliency"}, "methods.grad_cam: no options before, 'none' now"),
        ({"methods": {"saliency": {}, "grad_cam": {"layer": "0"}}}, "methods.grad_cam.layer: 'none' before, '0' now"),
        ({"model": other}, "weights: 'sha256:"),
        ({"maps": "uint8"}, "maps: 'float32' before, 'uint8' now"),
    ):
        with pytest.raises(ValueError, match=r"other settings.*--overwrite") as error:
            jobs.run([photos], out, **({"model": network} | FAST | options))
        assert words in str(error.value)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_overwrite_replaces(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.run([photos], out, model=network, **FAST)
    summary = jobs.run([photos / "3.png"], out, model=network, methods="saliency", target="cat", overwrite=True)
    assert (summary.done, summary.skipped) == (1, 0)
    assert [(row["id"], row["method"]) for row in rows(out)] == [("3.png", "saliency")]


def test_the_content_of_an_image_counts(network, photos, tmp_path):
    """Another picture of the same size and time is not done; the same one with another time, or copied, is."""
    out = tmp_path / "out"
    photograph(photos / "one.bmp", 70).replace(photos / "1.png")  # the content says what it is
    jobs.run([photos], out, model=network, **FAST)
    old = maps(out)
    status = (photos / "1.png").stat()
    photograph(photos / "one.bmp", 71).replace(photos / "1.png")
    assert (photos / "1.png").stat().st_size == status.st_size
    os.utime(photos / "1.png", ns=(status.st_mtime_ns, status.st_mtime_ns))
    os.utime(photos / "2.png", ns=(1, 1))
    shutil.copy(photos / "3.png", photos / "copy")
    (photos / "copy").replace(photos / "3.png")
    summary = jobs.run([photos], out, model=network, **FAST)
    assert (summary.done, summary.skipped) == (1, 4)
    assert sorted(ids(out)) == [f"{number}.png" for number in range(5)]
    now = maps(out)
    assert [name for name in now if not np.array_equal(now[name]["saliency"], old[name]["saliency"])] == ["1.png"]


def test_rows_of_removed_images_go_and_those_of_absent_disks_stay(network, photos, tmp_path):
    out = tmp_path / "out"
    for name in ("x.png", "y.png"):
        photograph(tmp_path / "disk" / name)
    jobs.run([photos, tmp_path / "disk"], out, model=network, **FAST)
    (photos / "1.png").unlink()
    shutil.rmtree(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    summary = jobs.run([photos / "0.png"], out, model=network, **FAST)
    assert (summary.skipped, summary.removed) == (1, 1)
    assert ids(out) == ["0.png", "2.png", "3.png", "4.png", "x.png", "y.png"]  # not asked for, but there


def test_what_is_done_survives_files_that_cannot_be_read(network, photos, tmp_path):
    """A list names a file that is gone today: its rows stay as they are."""
    out, table = tmp_path / "out", photos / "list.txt"
    table.write_text("0.png\n1.png\n")
    jobs.run(table, out, model=network, **FAST)
    (photos / "1.png").rename(photos / "away")
    assert jobs.run(table, out, model=network, **FAST).skipped == 2
    assert ids(out) == ["0.png", "1.png"]


def test_an_id_that_is_given_twice_is_done_once(network, photos, tmp_path):
    (photos / "list.txt").write_text("0.png\n1.png\n0.png\n")
    summary = jobs.run(photos / "list.txt", tmp_path / "out", model=network, **FAST)
    assert (summary.done, summary.doubled) == (2, ["0.png"])
    assert ids(tmp_path / "out") == ["0.png", "1.png"]


# ---------------------------------------------------------------------------------------------------------- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def test_a_damaged_part_is_done_again(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.run([photos], tmp_path / "whole", model=network, **FAST)
    jobs.run([photos], out, model=network, limit=2, **FAST)
    jobs.run([photos], out, model=network, **FAST)
    cut(out / "part-00000.parquet")
    with pytest.warns(UserWarning, match=r"part-00000.parquet is damaged and is done again"):
        summary = jobs.run([photos], out, model=network, **FAST)
    assert (summary.done, summary.skipped) == (2, 3)
    assert sorted(ids(out)) == ids(tmp_path / "whole")


@pytest.mark.parametrize("harm", ["missing", "half", "folder", "older"])
def test_a_damaged_description_is_refused_unless_overwritten(network, photos, tmp_path, harm):
    out = tmp_path / "out"
    jobs.run([photos], out, model=network, **FAST)
    path = out / "job.json"
    if harm == "half":
        cut(path)
    elif harm == "older":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fastviz_job": 0}))
    else:
        path.unlink()
    if harm == "folder":
        (path / "inside").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"job.json is missing, damaged or of another version.*--overwrite"):
        jobs.run([photos], out, model=network, **FAST)
    assert jobs.run([photos], out, model=network, overwrite=True, **FAST).done == 5


def test_files_of_somebody_else_are_refused_and_kept(network, photos, tmp_path):
    for name in ("job.json", "part-00000.parquet"):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=f"has {name} that fastviz did not make"):
                jobs.run([photos], out, model=network, overwrite=overwrite, **FAST)
        assert (out / name).read_text() == "mine"


def test_two_runs_at_once(network, photos, tmp_path):
    """The second is refused in a sentence, whatever settings it has, and the first goes on."""
    out = tmp_path / "out"
    other = tiny()
    tried = []

    def run_another(module, args):
        if tried or not len(args[0]) or not out.exists():
            return
        for options in ({}, {"overwrite": True}):
            with pytest.raises(ValueError, match=r"out: another run of fastviz \(process \d+\) is writing into"):
                jobs.run([photos], out, model=other, **FAST, **options)
        tried.append(1)

    network.register_forward_pre_hook(run_another)
    assert jobs.run([photos], out, model=network, batch_size=5, **FAST).done == 5
    assert tried
    assert ids(out) == [f"{number}.png" for number in range(5)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(network, photos, tmp_path, monkeypatch):
    """Not an exception of our own making, but what the system says of a write to a full device."""
    out = tmp_path / "out"
    jobs.run([photos], out, model=network, limit=2, **FAST)
    opened = Path.open
    writing = lambda self: self.name.endswith(".part")  # noqa: E731

    def full(self, *args, **options):
        return opened(Path("/dev/full") if writing(self) else self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space left on device"):
            jobs.run([photos], out, model=network, **FAST)
    assert ids(out) == ["0.png", "1.png"]
    assert jobs.run([photos], out, model=network, **FAST).skipped == 2
    assert ids(out) == [f"{number}.png" for number in range(5)]


def test_a_folder_that_vanishes_while_it_is_read(network, photos, tmp_path):
    out = tmp_path / "out"

    def vanish(module, args):
        if len(args[0]) and out.exists():
            shutil.rmtree(photos, ignore_errors=True)

    network.register_forward_pre_hook(vanish)
    summary = jobs.run([photos], out, model=network, batch_size=1, **FAST)
    assert (summary.done, summary.failed) == (1, 4)
    with pytest.raises(ValueError, match="paths should exist"):
        jobs.run([photos], out, model=network, **FAST)
    for number in range(5):
        photograph(photos / f"{number}.png", number)
    network._forward_pre_hooks.clear()
    summary = jobs.run([photos], out, model=network, batch_size=1, **FAST)
    assert (summary.done, summary.skipped) == (4, 1)
    jobs.run([photos], tmp_path / "whole", model=network, batch_size=1, **FAST)
    check_equal(out, tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------- kill -9

KILLED = """
import os, signal, sys, threading, time
import numpy as np
import torch
from fastviz import jobs
from fastviz.jobs.tables import writer
from tests.jobs.common import tiny

torch.set_num_threads(1)
photos, out, delays = sys.argv[1], sys.argv[2], [float(each) for each in sys.argv[3:]]
network = tiny()
writer.SECONDS = 0.01  # a part every few images, so that a kill meets every stage of writing
for number, delay in enumerate(delays):
    child = os.fork()
    if not child:
        threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        jobs.run([photos], out, model=network, methods=["saliency", "grad_cam"], batch_size=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
"""


def test_fifty_kills_lose_and_double_nothing(tmp_path):
    """Each run is killed at a random moment and the next goes on; the end equals a run that was left alone."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    for number in range(240):
        photograph(photos / f"{number // 20}" / f"{number}.png", number)
    (photos / "0" / "3.png").write_bytes(b"")
    delays = np.random.default_rng(0).uniform(0.02, 0.16, 60)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(photos), str(out), *(f"{delay:.4f}" for delay in delays)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    killed = ended.stdout.split().count(str(int(signal.SIGKILL)))
    assert killed >= 50, ended.stdout
    network = tiny()
    options = {"model": network, "batch_size": 2} | FAST
    last = jobs.run([photos], out, **options)
    assert last.failed == 1
    jobs.run([photos], tmp_path / "whole", **options)
    check_equal(out, tmp_path / "whole")
    assert len(rows(out)) == 2 * 239 + 1
    assert jobs.run([photos], out, **options).skipped == 239


def test_a_part_is_written_when_its_first_row_is_old(network, photos, tmp_path, monkeypatch):
    """Also while nothing comes: what is done is on disk a minute later, however long the next image takes."""
    monkeypatch.setattr(writer, "SECONDS", 0.05)
    out = tmp_path / "out"
    seen: list[int] = []

    def wait(module, args):
        if len(args[0]) and out.exists():
            end = time.monotonic() + 20
            while seen and len(folder.parts(out)) < len(seen) and time.monotonic() < end:
                time.sleep(0.01)
            seen.append(1)

    network.register_forward_pre_hook(wait)
    jobs.run([photos], out, model=network, methods="saliency", batch_size=1)
    assert len(folder.parts(out)) == 5
