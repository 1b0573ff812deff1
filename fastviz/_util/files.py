"""Files that are written completely or not at all: under another name, flushed, then renamed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

__all__ = ["remove_unfinished", "whole_file"]

# The name holds the number of the process, so that a later run can tell whether the writer is still alive.
_UNFINISHED = re.compile(r"\.fastviz-(\d+)-\d+\.part")
_numbers = count()


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write bytes to, which appears under its name only if the ``with`` block ends without an error.

    Written under another name beside ``path``, flushed to the disk, then renamed; an older file stays until then.

    Raises:
        OSError: the path cannot be written or the disk is full; it names ``path``.
    """
    target = Path(path)
    part = target.with_name(f".fastviz-{os.getpid()}-{next(_numbers)}.part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(target)) from error
        raise


def remove_unfinished(folder: Path, *, deep: bool) -> None:
    """Remove half-written files that dead processes left in a folder, and with ``deep`` in its subfolders."""
    for place, folders, files in os.walk(folder):
        for name in files:
            match = _UNFINISHED.fullmatch(name)
            if match and not _lives(int(match[1])):
                with suppress(OSError):
                    os.unlink(os.path.join(place, name))
        if not deep:
            folders.clear()


def _lives(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # the process belongs to another user
        return True
    return True
