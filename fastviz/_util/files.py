"""Files that are never half there: written under another name, flushed, then renamed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

__all__ = ["remove_unfinished", "whole_file"]

# The process is part of the name: a later run sees by it whether the writer still lives.
_UNFINISHED = re.compile(r"\.fastviz-(\d+)-\d+\.part")
_numbers = count()


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write bytes to, which appears under its name when the ``with`` ends well, and else not at all.

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
    """Remove what processes that are gone left half-written in a folder, and with ``deep`` in those inside it."""
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
    except PermissionError:  # somebody else's
        return True
    return True
