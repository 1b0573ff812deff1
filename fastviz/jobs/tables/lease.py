"""A lease on a folder in S3, where no operating system releases a lock when a process ends.

Each run writes a lock object of its own beside the results and renews it regularly. A run may write when it sees no
other lock object; if two runs start at once, the one whose name sorts first wins. This is safe because S3 is strongly
consistent: of two runs that each write and then list, at least one sees the other.

A lock object that has not been renewed for :data:`LEASE` seconds belongs to a dead run. On the same machine and in the
same container a dead run is recognised immediately. A run that was suspended for longer finds that its lock object is
gone, and stops writing.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastviz.jobs.s3 import S3Path

__all__ = ["BEAT", "LEASE", "leased"]

BEAT = 10.0
"""Seconds between renewals."""

LEASE = 60.0
"""Seconds without renewal after which a run counts as dead."""

_NAME = ".fastviz-lock-"


@contextmanager
def leased(out: S3Path) -> Iterator[Callable[[], None]]:
    """Lock ``out`` for this run; yields a function that must be called before each write.

    Raises:
        ValueError: another run is writing into it.
        OSError: the server cannot be reached or refuses. The yielded function raises it too, if the lease was lost.
    """
    lease = _Lease(out)
    try:
        lease.take()
        yield lease.check
    finally:
        lease.give_back()


class _Lease:
    """A run's lock object."""

    def __init__(self, out: S3Path) -> None:
        self._out = out
        self._mine = out / f"{_NAME}{uuid.uuid4().hex}"
        self._holds = False
        self._beats = 0
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="fastviz-lease", daemon=True)

    def take(self) -> None:
        """Wait until no other run holds a lease."""
        self._renew()
        self._thread.start()
        watched: dict[str, tuple[bytes, float]] = {}
        while others := self._others():
            for place in others:
                with suppress(FileNotFoundError):
                    self._look_at(place, watched)
            self._ended.wait(min(1.0, BEAT / 4))
        self._holds = True
        self._renew()
        if self._others(holding=True):  # a run that seemed dead has continued
            raise self._refusal({})

    def give_back(self) -> None:
        """Remove the lock object."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(OSError):
            self._mine.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise if the lock object is gone, because another run considered this one dead."""
        if not self._mine.is_file():
            raise OSError(f"out: another run of fastviz has taken over {self._out}, because this one was paused")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # retried at the next beat; check() runs before each write
                if self._mine.is_file():  # if it is gone, another run has taken over
                    self._renew()

    def _renew(self) -> None:
        with self._writing:
            self._beats += 1
            words = _identity() | {"holds": self._holds, "beats": self._beats}
            self._mine.write_bytes(json.dumps(words).encode())

    def _others(self, *, holding: bool = False) -> list[S3Path]:
        places = [self._out / entry.base_name for entry in self._out.entries() if entry.base_name.startswith(_NAME)]
        others = [place for place in places if place.name != self._mine.name]
        return [place for place in others if not holding or _read(place).get("holds")]

    def _look_at(self, place: S3Path, watched: dict[str, tuple[bytes, float]]) -> None:
        """Remove another run's lock object if it is dead; raise if it is alive and has precedence."""
        content = _content(place)
        words = _parsed(content)
        before, since = watched.setdefault(place.name, (content, time.monotonic()))
        if _is_gone(words) or (content == before and time.monotonic() - since >= LEASE):
            place.unlink(missing_ok=True)
        elif (content != before or _is_here(words)) and (words.get("holds") or place.name < self._mine.name):
            raise self._refusal(words)

    def _refusal(self, words: dict[str, Any]) -> ValueError:
        who = f" (process {words['process']} on {words['host']})" if "process" in words else ""
        return ValueError(
            f"out: another run of fastviz{who} is writing into {self._out}; wait for its end, or give another folder"
        )


def _identity() -> dict[str, Any]:
    """This process: its number, which is valid in one boot of a machine and one container, and where it runs."""
    return {"process": os.getpid(), "began": _began(os.getpid()), "host": socket.gethostname(), "place": _machine()}


def _began(process: int) -> str:
    """The start time of a process on this machine, to detect reused process numbers; empty if it is gone."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_here(words: dict[str, Any]) -> bool:
    """Whether the other run's process would be visible from here."""
    return bool(words.get("place")) and bool(words.get("began")) and words["place"] == _machine()


def _is_gone(words: dict[str, Any]) -> bool:
    """Whether the other run's process has definitely ended."""
    return _is_here(words) and _began(int(words["process"])) != words["began"]


def _content(place: S3Path) -> bytes:
    """The content of an object. Retries, because some servers abort reads of an object that is being replaced."""
    for pause in (0.05, 0.2, 0.5):
        try:
            return place.read_bytes()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(pause)
    return place.read_bytes()


def _read(place: S3Path) -> dict[str, Any]:
    try:
        return _parsed(_content(place))
    except FileNotFoundError:
        return {}


def _parsed(content: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(content)
        if isinstance(found, dict):
            return found
    return {}
