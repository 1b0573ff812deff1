"""The lock of a job in S3: one run at a time, and none that a dead run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from fastviz import jobs
from fastviz.jobs.tables import lease
from fastviz.jobs.tables.lease import leased


def names(bucket) -> list[str]:
    return [entry.base_name for entry in bucket.entries()]


def other(bucket, name: str, **words: object) -> None:
    """What another run has written."""
    (bucket / f".fastviz-lock-{name}").write_bytes(json.dumps(words).encode())


def test_it_is_there_while_it_is_held_and_then_gone(bucket):
    with leased(bucket / "out") as check:
        check()
        assert len(names(bucket / "out")) == 1
    assert names(bucket / "out") == []


def test_a_second_run_is_refused_by_name(bucket):
    words = rf"another run of fastviz \(process {os.getpid()} on .*is writing into"
    with leased(bucket):
        with pytest.raises(ValueError, match=words), leased(bucket):
            pass
        assert len(names(bucket)) == 1


def test_a_run_elsewhere_that_renews_its_lock_is_alive(bucket, monkeypatch):
    """Nothing of its process can be seen from here."""
    monkeypatch.setattr(lease, "BEAT", 0.2)
    ended = threading.Event()

    def beat(number: int) -> None:
        other(bucket, "far", process=1, host="far", place="another boot", holds=True, beats=number)

    def beats() -> None:
        for number in range(1, 10_000):
            if ended.wait(0.1):
                return
            beat(number)

    beat(0)  # before the thread, which may start late on a busy machine
    thread = threading.Thread(target=beats)
    thread.start()
    try:
        with pytest.raises(ValueError, match=r"\(process 1 on far\)"), leased(bucket):
            pass
    finally:
        ended.set()
        thread.join()
    assert names(bucket) == [".fastviz-lock-far"]


def test_a_dead_run_elsewhere_is_waited_for_and_then_forgotten(bucket, monkeypatch):
    monkeypatch.setattr(lease, "LEASE", 1.0)
    other(bucket, "far", process=1, host="far", place="another boot", holds=True, beats=7)
    began = time.monotonic()
    with leased(bucket):
        assert time.monotonic() - began >= 1.0
        assert ".fastviz-lock-far" not in names(bucket)


def test_a_dead_run_of_this_machine_is_not_waited_for(bucket):
    code = (
        "import os, sys\nfrom fastviz.jobs.s3 import S3Path\nfrom fastviz.jobs.tables.lease import leased\n"
        "with leased(S3Path(sys.argv[1])):\n    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(bucket)], check=False)
    assert len(names(bucket)) == 1
    with leased(bucket):  # the test would take a minute else, and not fail
        assert len(names(bucket)) == 1
    assert names(bucket) == []


def test_of_many_that_come_at_once_one_goes_in(bucket, monkeypatch):
    """In turns or refused, but never two at a time."""
    monkeypatch.setattr(lease, "BEAT", 0.2)
    inside, most, entered = 0, 0, 0
    refused: list[str] = []
    counting = threading.Lock()
    begin = threading.Barrier(4)

    def tries() -> None:
        nonlocal inside, most, entered
        begin.wait()
        try:
            with leased(bucket):
                with counting:
                    inside, entered = inside + 1, entered + 1
                    most = max(most, inside)
                time.sleep(0.3)
                with counting:
                    inside -= 1
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=tries) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == 1
    assert entered >= 1
    assert entered + len(refused) == 4
    assert all("another run of fastviz" in words for words in refused)
    assert names(bucket) == []


def test_a_run_that_was_taken_for_dead_writes_nothing_more(network, bucket, photos, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 600.0)
    out = bucket / "out"

    def lose(module, args):
        for entry in out.entries():
            if entry.base_name.startswith(".fastviz-lock-"):
                (out / entry.base_name).unlink()

    network.register_forward_pre_hook(lose)
    with pytest.raises(OSError, match="another run of fastviz has taken over"):
        jobs.run([photos], out, model=network, methods="saliency")
    assert not [name for name in names(out) if name.startswith("part-")]
