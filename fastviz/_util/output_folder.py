"""Folders that a run writes into: one run at a time, leftovers of killed runs removed, safe file names."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fastviz._util.files import remove_unfinished

__all__ = ["clear_way", "locked", "printable", "remove", "replace_stale", "unique_names"]

_LOCK = ".fastviz.lock"

# Most file systems allow 255 bytes. This leaves room for what is added to a name: a number, a method, an ending.
_LONGEST = 150

# The errors of file systems without locks; the run continues without one.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(folder: Path, parts: Sequence[str] = ()) -> Iterator[None]:
    """Lock the folder for this run. It is created if needed, and removed again if it stays empty.

    The operating system releases the lock when the process ends, however it ends. Half-written files that a killed run
    left in ``folder`` and in its folders ``parts`` are removed first.

    Raises:
        ValueError: another run is writing into it.
        OSError: it cannot be made or written.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    descriptor = _lock(path)
    try:
        for place in (folder, *(folder / part for part in parts)):
            remove_unfinished(place, deep=place != folder)
        yield
    finally:
        path.unlink(missing_ok=True)  # removed while still locked, so that no other run can hold it
        os.close(descriptor)
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _lock(path: Path) -> int:
    """An open descriptor of the lock's file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise ValueError(
                f"out: another run of fastviz (process {owner}) is writing into {path.parent}; wait for its end, or "
                "give another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                with suppress(OSError):  # the run may write nothing, so a full disk does not stop it
                    os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # The run that held it has removed the file; open the new one.


def clear_way(folder: Path, name: str) -> None:
    """Make the folders that the file ``name`` inside ``folder`` needs, and remove whatever blocks them.

    A job's folder may have been damaged: a file where a folder should be, or a folder where a file should be.
    """
    place = folder
    for part in Path(name).parts[:-1]:
        place = place / part
        try:
            place.mkdir(exist_ok=True)
        except FileExistsError:
            # Another writing thread may have created the folder by now.
            with suppress(IsADirectoryError, PermissionError, FileNotFoundError):
                place.unlink()
            place.mkdir(exist_ok=True)
    if (folder / name).is_dir():
        remove(folder / name)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_stale(out: Path, written: Sequence[Path], stale: str) -> list[Path]:
    """``written``, after removing older files of the pattern ``stale`` that are not among them."""
    for old in set(out.glob(stale)) - set(written):
        remove(old)
    return list(written)


# ----------------------------------------------------------------------------------------------------------- names


def printable(name: str) -> str:
    """A file name as text in one line: characters that cannot be shown, and bytes that are not UTF-8, are escaped.

    >>> print(printable("new\\nline \\udce9"))
    new\\nline \\xe9
    """
    return "".join(character if _shows(character) else _escape(character) for character in name)


def _shows(character: str) -> bool:
    # Unusual spaces are common in file names, and emoji contain joiners.
    return character.isprintable() or character == "\u200d" or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that it cannot decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def unique_names(names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """A name of a file to write for each of the ``names`` (paths with "/"), no two the same nor any in ``taken``.

    Letters in lower and upper case, and accents written in two ways, count as the same, as they do on macOS. Characters
    that cannot be shown become "_", and long parts are cut. Other names stay as they are.

    >>> unique_names(["a", "A", "a/b\\n"])
    ['a', 'A-2', 'a/b_']
    """
    found = []
    seen = {_folded(name) for name in taken}
    for name in names:
        *folders, last = name.split("/")
        # A folder "a.png" would clash with the picture of a photograph called "a".
        parents = [part + "_" * part.lower().endswith((".png", ".npz")) for part in map(_plain, folders)]
        first = chosen = "/".join([*parents, _plain(last)])
        number = 1
        while _folded(chosen) in seen:
            number += 1
            chosen = f"{first}-{number}"
        seen.add(_folded(chosen))
        found.append(chosen)
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _plain(part: str) -> str:
    shown = "".join(character if _shows(character) else "_" for character in part)
    if shown in ("", ".", ".."):
        return shown.replace(".", "_") or "_"
    if len(shown.encode()) <= _LONGEST:
        return shown
    mark = hashlib.sha256(os.fsencode(part)).hexdigest()[:8]
    return f"{shown.encode()[: _LONGEST - 9].decode(errors='ignore')}~{mark}"
