"""The image files that a path, a folder or a pattern names."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

__all__ = [
    "Identity",
    "ImageError",
    "Paths",
    "digest",
    "find_images",
    "find_named",
    "find_relative",
    "looks_like_image",
    "walk",
]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

# What counts as an image in a folder or behind a pattern; a file given by name may be called anything.
_IMAGE_FILES = frozenset(
    {".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
    | {".qoi", ".tif", ".tiff", ".webp"}
)


class ImageError(ValueError):
    """A file is not a picture that can be read; the message names the file and the reason."""


@dataclass(frozen=True)
class Identity:
    """What shows whether a file is still the same: its content, and metadata that may make reading it unnecessary.

    Attributes:
        bytes: its size.
        modified: when it was modified (ns since 1970): programs can set that freely.
        changed: when anything of it, its name too, was changed (ns since 1970): only the operating system sets it.
        digest: SHA-256 of its content; empty where it is not known; then no file counts as the same.
    """

    bytes: int
    modified: int
    changed: int
    digest: str = ""

    @staticmethod
    def of(path: Path) -> Identity:
        """That of a file now.

        Take it before the file is used, so that a change during the use is seen.

        Raises:
            OSError: it cannot be read.
        """
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return Identity(status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest(path))

    def still(self, path: Path) -> Identity | None:
        """The file's current identity, if its content is unchanged. The file is read only if the metadata leave
        doubt."""
        try:
            status = path.stat()
            if not self.digest or status.st_size != self.bytes:
                return None
            if (status.st_mtime_ns, status.st_ctime_ns) == (self.modified, self.changed):
                return self
            now = Identity.of(path)
        except OSError:
            return None
        return now if now.digest == self.digest else None


def digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def find_images(paths: Paths) -> list[Path]:
    """The image files that ``paths`` name, each once.

    Args:
        paths: a file, a folder (searched with its subfolders; names that start with a dot are passed over), a pattern
            (``"photos/*.jpg"``, ``"**"`` goes into subfolders), or several of them. ``~`` is the home folder. In
            folders and behind patterns only files named like images count.

    The order is that of ``paths``; within a folder or pattern by name, numbers by value (``2.png`` before ``10.png``).
    A path in a folder begins with the folder as it was given.

    Returns:
        The paths of the files; nothing is read.

    Raises:
        TypeError: a path of another type.
        ValueError: a path that does not exist, or no image at all.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("10.png", "2.png", "notes.txt"):
    ...     (folder / name).touch()
    >>> [path.name for path in find_images(folder)]
    ['2.png', '10.png']
    """
    return [path for path, _ in find_relative(paths)]


def find_relative(paths: Paths) -> list[tuple[Path, str]]:
    """The image files that ``paths`` name, with their names: relative to the folder given, else the file's own.

    Two may have one name. Arguments and errors as in :func:`find_images`.
    """
    if not isinstance(paths, (str, os.PathLike, Iterable)):
        raise TypeError(f"paths should be a path or several, got {type(paths).__name__}")
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: dict[str, tuple[Path, str]] = {}
    for one in given:
        if not isinstance(one, (str, os.PathLike)):
            raise TypeError(f"paths should be a path or several, got {type(one).__name__}")
        text = os.path.expanduser(os.fspath(one))
        if not text:
            raise ValueError("paths should not hold an empty path")
        path = Path(text)
        if path.is_dir():
            matches = [(file, file.relative_to(path).as_posix()) for file in _walk(path)]
        elif path.is_file():
            matches = [(path, path.name)]
        elif glob.has_magic(text):
            matches = _match(text)
        else:
            raise ValueError(f"paths should exist, got {text!r}")
        for file, name in matches:
            found.setdefault(os.path.abspath(file), (file, name))
    if not found:
        listed = ", ".join(repr(os.fspath(one)) for one in given[:3]) + (", ..." if len(given) > 3 else "")
        raise ValueError(f"paths should hold at least one image, got none in {listed or 'no paths'}")
    return list(found.values())


def find_named(paths: Paths) -> tuple[list[Path], list[str]]:
    """The files of :func:`find_images`, and a name for each, no two the same, as :func:`load_images` has them.

    Args:
        paths: as in :func:`find_images`.

    Returns:
        Paths and names, in one order.

    Raises:
        TypeError, ValueError: as :func:`find_images`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "a.png").touch()
    >>> find_named(folder)[1]
    ['a.png']
    """
    files, names = zip(*find_relative(paths), strict=True)
    if len(set(names)) < len(names):
        together = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
        names = tuple(Path(os.path.relpath(file, together)).as_posix() for file in files)
    return list(files), list(names)


def walk(folder: str, *, ordered: bool = True) -> Iterator[tuple[str, str]]:
    """The image files in a folder, its subfolders and, entered last, linked folders: paths, and paths relative to it.

    In the order of :func:`find_images`, or with ``ordered=False`` as the disk has them; the names of one folder are in
    memory at a time. No folder is entered twice.

    Raises:
        ImageError: a folder cannot be read.
    """
    entered: set[str] = set()
    links: list[tuple[str, str]] = []

    def inside(place: str, relative: str) -> Iterator[tuple[str, str]]:
        real = os.path.realpath(place)
        if real in entered:
            return
        entered.add(real)
        try:
            with os.scandir(place) as found:
                entries = [each for each in found if not each.name.startswith(".")]
        except OSError as error:
            _raise(error)
        if ordered:
            entries.sort(key=_natural_name)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from inside(entry.path, f"{relative}{entry.name}/")
            elif entry.is_symlink() and entry.is_dir():
                links.append((entry.path, f"{relative}{entry.name}/"))
            elif looks_like_image(entry.name):
                yield entry.path, relative + entry.name

    yield from inside(folder, "")
    for place, relative in links:  # grows by the links that are met
        yield from inside(place, relative)


def _natural_name(entry: os.DirEntry[str]) -> tuple[list[str | int], str]:
    return _runs(entry.name), entry.name


def _walk(folder: Path) -> list[Path]:
    """The image files in a folder, its subfolders and, entered last, linked folders; no folder is entered twice."""
    found: list[Path] = []
    entered: set[str] = set()
    starts = [folder]
    for start in starts:  # grows by the links that are met
        for parent, folders, files in os.walk(start, onerror=_raise):
            place = os.path.realpath(parent)
            if place in entered:
                folders.clear()
                continue
            entered.add(place)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += [Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))]
            found += [Path(parent, name) for name in files if looks_like_image(name)]
    return sorted(found, key=_natural)


def _match(pattern: str) -> list[tuple[Path, str]]:
    """The image files that a pattern names, and those in the folders that it names."""
    found: list[tuple[Path, str]] = []
    for path in sorted(map(Path, glob.glob(pattern, recursive=True)), key=_natural):
        if path.is_dir() and "**" not in pattern:
            found += [(file, file.relative_to(path.parent).as_posix()) for file in _walk(path)]
        elif path.is_file() and looks_like_image(path.name):
            found.append((path, path.name))
    return found


def _raise(error: OSError) -> NoReturn:
    raise ImageError(f"folder {error.filename!r} cannot be read: {error.strerror}") from error


def looks_like_image(name: str) -> bool:
    """Whether a file in a folder counts as an image by its name."""
    return not name.startswith(".") and name[name.rfind(".") :].lower() in _IMAGE_FILES


def _natural(path: Path) -> list[tuple[list[str | int], str]]:
    """A sort key: folder by folder, runs of digits by value, capital letters as small ones, else as they are."""
    return [(_runs(part), part) for part in path.parts]


_DIGITS = re.compile(r"(\d+)")


def _runs(part: str) -> list[str | int]:
    return [int(run) if run.isdecimal() else run for run in _DIGITS.split(part.lower())]
