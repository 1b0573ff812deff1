"""Folders that runs write into: the lock, what killed runs left, and names of files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastviz._util import output_folder

HOLD = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from fastviz._util import files, output_folder
with output_folder.locked(Path(sys.argv[1]), ("a",)):
    Path(sys.argv[1], "a").mkdir()
    with files.whole_file(Path(sys.argv[1], "a", "half")) as file:
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes into tmp_path/out."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_a_killed_one_leaves_nothing_behind(holder, tmp_path):
    out = tmp_path / "out"
    with (
        pytest.raises(
            ValueError, match=rf"out: another run of fastviz \(process {holder.pid}\) is writing into .*out;"
        ),
        output_folder.locked(out),
    ):
        pass
    assert len(list((out / "a").glob("*.part"))) == 1
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    (out / "a" / "b").mkdir()
    (out / "a" / "b" / f".fastviz-{holder.pid}-3.part").touch()
    (out / f".fastviz-{os.getpid()}-99.part").touch()  # of a process that lives
    with output_folder.locked(out, ("a",)):
        assert not list((out / "a").rglob("*.part"))
    assert sorted(os.listdir(out)) == [f".fastviz-{os.getpid()}-99.part", "a"]


def test_the_lock_holds_within_a_process_and_ends_with_the_run(tmp_path):
    out = tmp_path / "deep" / "out"
    with output_folder.locked(out):
        with pytest.raises(ValueError, match="another run of fastviz"), output_folder.locked(out):
            pass
        assert out.is_dir()
    assert not (tmp_path / "deep").exists()  # nothing was written
    with output_folder.locked(out):
        (out / "file").touch()
    assert os.listdir(out) == ["file"]


def test_many_runs_at_once_hold_it_one_after_the_other(tmp_path):
    """The file of the lock goes with each run: no two may hold two files of that name."""
    script = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from fastviz._util import output_folder
out = Path(sys.argv[1])
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        with output_folder.locked(out):
            (out / "inside").mkdir()  # fails where another is inside
            (out / "inside").rmdir()
    except ValueError:
        pass
"""
    (tmp_path / "keep").touch()
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


def test_printable():
    name = os.fsdecode(b"caf\xe9\n\t\x1b[31m") + "ü 日本\u3000語 👨\u200d👩 \u202e"
    assert output_folder.printable(name) == r"caf\xe9\n\t\x1b[31mü 日本" + "\u3000語 👨\u200d👩 " + r"\u202e"


def test_unique_names():
    names = ["a", "A", "a\n", "a_", "é", "e\u0301", "x" * 300, "x" * 301, "..", "p.png/q", "p", os.fsdecode(b"\xe9")]
    found = output_folder.unique_names(names, taken=["a-2"])
    assert found[:6] == ["a", "A-3", "a_", "a_-2", "é", "e\u0301-2"]
    assert found[8:] == ["__", "p.png_/q", "p", "_"]
    assert len({name.casefold() for name in found}) == len(found)
    assert all(len(part.encode()) <= 160 for name in found for part in name.split("/"))


def test_a_way_that_is_blocked_is_cleared(tmp_path):
    (tmp_path / "a").write_text("a file where a folder should be")
    (tmp_path / "b" / "c.png" / "d").mkdir(parents=True)
    output_folder.clear_way(tmp_path, "a/b/c.png")
    output_folder.clear_way(tmp_path, "b/c.png")
    for name in ("a/b/c.png", "b/c.png"):
        (tmp_path / name).touch()


def test_a_killed_command_leaves_no_half_files_to_the_next(tmp_path):
    """kill -9 in the middle of a job; the next run goes on, and nothing half-written is left."""
    from PIL import Image

    from fastviz import jobs

    (tmp_path / "in").mkdir()
    for number in range(12):
        Image.effect_noise((70, 70), 60 + number).convert("RGB").save(tmp_path / "in" / f"{number}.png")
    command = [sys.executable, "-m", "fastviz", "run", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    command += ["--methods", "saliency", "--batch-size", "1"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(600):
        if (tmp_path / "out" / "job.json").exists():
            break
        time.sleep(0.05)
    running.kill()
    running.wait()
    (tmp_path / "out" / f".fastviz-{running.pid}-99.part").touch()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(jobs.open(tmp_path / "out")) == 12
    left = [path.name for path in Path(tmp_path / "out").rglob(".*")]
    assert left == []


def test_threads_clear_one_way(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(60):
            folder = tmp_path / str(round_)
            folder.mkdir()
            if round_ % 2:
                (folder / "a").touch()
            list(pool.map(output_folder.clear_way, [folder] * 8, [f"a/b/{number}.png" for number in range(8)]))
            assert (folder / "a" / "b").is_dir()
