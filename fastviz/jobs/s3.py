"""Objects in S3 and in what speaks like it, by pyarrow: ``s3://BUCKET/KEY``, with as much of a path as jobs need.

Credentials, region and endpoint are found as every AWS tool finds them (``AWS_ACCESS_KEY_ID``, ``~/.aws``, the role of
a node; ``AWS_REGION``; ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``). What one place needs apart from the rest is
behind it as pyarrow writes it: ``s3://photos/2024?endpoint_override=localhost:9000&scheme=http&region=eu-west-1``.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import parse_qsl, urlencode

__all__ = ["S3Path", "in_use", "is_s3", "matching", "stamps_of", "whole_object"]

Stamp = tuple[int, int, int]

# `Path` makes one slash of two.
_ADDRESS = re.compile(
    r"s3:/{1,2}(?=[^/])(?P<path>[^?]*(?:\?(?![a-z_]+=)[^?]*)*)(?:\?(?P<options>[a-z_]+=.*))?", re.DOTALL
)

_OPTIONS = ("endpoint_override", "scheme", "region", "anonymous")

_PATIENCE, _TRIES = 60.0, 8
"""Seconds for which a server may say nothing, and how often a request is made: a busy store is no reason to give up."""

_PIECE = 8 << 20
"""Bytes that are uploaded at a time."""


def is_s3(place: object) -> bool:
    """Whether a place is an address in S3."""
    return isinstance(place, S3Path) or (isinstance(place, (str, Path)) and str(place).startswith("s3:/"))


class S3Path:
    """An object, or what would be a folder, in a bucket. Nothing is asked of the server before a method needs it.

    Args:
        address: ``s3://BUCKET/KEY``, with options behind ``?`` (see the module).

    Raises:
        ValueError: there is no bucket in it, or an option that is not known.

    >>> place = S3Path("s3://photos/2024?region=eu-west-1") / "a.jpg"
    >>> place.url, place.name, str(place.parent)
    ('s3://photos/2024/a.jpg', 'a.jpg', 's3://photos/2024')
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        found = _ADDRESS.fullmatch(os.fspath(address))
        if found is None or not found["path"].strip("/"):
            raise ValueError(f"a place in S3 should be s3://BUCKET/KEY, got {os.fspath(address)!r}")
        self.path = found["path"].rstrip("/")
        self.options = tuple(parse_qsl(found["options"] or ""))
        for name, _ in self.options:
            if name not in _OPTIONS:
                raise ValueError(f"options of a place in S3 are {', '.join(_OPTIONS)}, got {name!r}")

    @property
    def url(self) -> str:
        """The address without its options."""
        return f"s3://{self.path}"

    @property
    def bucket(self) -> str:
        """The name of the bucket."""
        return self.path.partition("/")[0]

    @property
    def root(self) -> S3Path:
        """The bucket as a place."""
        return self._at(self.bucket)

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> S3Path:
        """The place before the last part; the bucket stays."""
        return self._at(self.path.rpartition("/")[0] or self.path)

    @property
    def filesystem(self) -> Any:
        """The ``pyarrow.fs.S3FileSystem``, one a process."""
        return _filesystem(os.getpid(), self.bucket, self.options)

    def _at(self, path: str) -> S3Path:
        made = object.__new__(S3Path)
        made.path, made.options = path, self.options
        return made

    def __truediv__(self, name: str) -> S3Path:
        return self._at(f"{self.path}/{name}")

    def __fspath__(self) -> str:
        return self.url + (f"?{urlencode(self.options)}" if self.options else "")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"S3Path({os.fspath(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Path) and os.fspath(other) == os.fspath(self)

    def __hash__(self) -> int:
        return hash(os.fspath(self))

    # --------------------------------------------------------------------------------------------------- what is there

    def info(self) -> Any:
        """pyarrow's ``FileInfo``.

        Raises:
            OSError: the server cannot be reached or refuses.
        """
        return self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        """Whether there is an object, or one below it."""
        return bool(self.info().type)

    def is_file(self) -> bool:
        """Whether there is an object."""
        return bool(self.info().is_file)

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        from pyarrow import fs

        return bool(self.info().type == fs.FileType.Directory)

    def entries(self) -> list[Any]:
        """pyarrow's ``FileInfo`` of everything just below it, by name; nothing where there is nothing."""
        from pyarrow import fs

        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(found, key=lambda each: each.base_name)

    def walk(self) -> Iterator[tuple[S3Path, str, Stamp]]:
        """Everything below it: place, name relative to it, and stamp. The names of one folder are in memory."""

        def inside(place: S3Path, relative: str) -> Iterator[tuple[S3Path, str, Stamp]]:
            for entry in place.entries():
                if entry.base_name.startswith("."):
                    continue
                if entry.is_file:
                    yield self._at(entry.path), relative + entry.base_name, _stamp(entry)
                else:
                    yield from inside(self._at(entry.path), f"{relative}{entry.base_name}/")

        yield from inside(self, "")

    # ------------------------------------------------------------------------------------------------ reading, writing

    def open(self) -> Any:
        """The object to read, as a ``pyarrow.NativeFile`` that can go to any place.

        Raises:
            FileNotFoundError, OSError: it is not there, or cannot be read.
        """
        return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        """All of the object. Raises what :meth:`open` does."""
        with self.open() as file:
            return bytes(file.read())

    def write_bytes(self, content: bytes) -> None:
        """Make the object, in place of an older one."""
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(content)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise


@contextmanager
def whole_object(place: S3Path) -> Iterator[IO[bytes]]:
    """A file to write bytes to, which is an object when the ``with`` ends well, and else nothing.

    S3 has no renaming, but an object appears whole when its upload is complete, in place of an older one. So the file
    is made on this machine's disk first.
    """
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with place.filesystem.open_output_stream(place.path) as stream:
            while piece := file.read(_PIECE):
                stream.write(piece)


def matching(pattern: S3Path) -> Iterator[tuple[S3Path, Stamp]]:
    """The objects of a pattern (``*``, ``?``, ``[…]``; ``**`` goes into folders), in order."""
    parts = pattern.path.split("/")
    fixed = next(at for at, part in enumerate([*parts, "*"]) if re.search(r"[*?[]", part))
    if fixed == 0:
        raise ValueError(f"the bucket of a pattern should be plain, got {pattern}")
    whole = re.compile(_expression("/".join(parts[fixed:])))
    home = pattern._at("/".join(parts[:fixed]))
    if "**" in parts:
        yield from ((place, stamp) for place, name, stamp in home.walk() if whole.fullmatch(name))
        return
    folders = [(home, "")]
    for depth, part in enumerate(parts[fixed:], start=1):  # only into folders that the pattern names
        one = re.compile(_expression(part))
        found = [(place, entry) for place, _ in folders for entry in place.entries() if one.fullmatch(entry.base_name)]
        if fixed + depth == len(parts):
            yield from ((home._at(entry.path), _stamp(entry)) for _, entry in found if entry.is_file)
        folders = [(home._at(entry.path), "") for _, entry in found if not entry.is_file]


def _expression(pattern: str) -> str:
    """A pattern as a regular expression."""
    words = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    return "".join(
        words.get(each) or (each.replace("[!", "[^", 1) if each.startswith("[") else re.escape(each)) for each in pieces
    )


def stamps_of(places: Sequence[S3Path]) -> list[Stamp]:
    """The stamps of objects, asked for together; zeros for those that are not there."""
    if not places:
        return []
    found = places[0].filesystem.get_file_info([place.path for place in places])
    return [_stamp(each) if each.is_file else (0, 0, 0) for each in found]


def _stamp(info: Any) -> Stamp:
    """Size and time of an object: it is only ever replaced, which sets its time."""
    return int(info.size), int(info.mtime_ns or 0), 0


def in_use() -> bool:
    """Whether this process has connections to S3."""
    return _filesystem.cache_info().currsize > 0


@lru_cache(maxsize=64)
def _filesystem(process: int, bucket: str, options: tuple[tuple[str, str], ...]) -> Any:
    """A connection of this ``process``: after a fork the parent's must not be used."""
    from pyarrow import fs

    given = dict(options)
    endpoint = given.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    region = given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        try:
            region = fs.resolve_s3_region(bucket)
        except OSError:  # not allowed to ask, or no such bucket: which the first request says better
            region = None
    wanted: dict[str, Any] = {"endpoint_override": endpoint, "region": region, "scheme": given.get("scheme")}
    wanted |= {"connect_timeout": _PATIENCE, "request_timeout": _PATIENCE}
    wanted["retry_strategy"] = fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES)
    if given.get("anonymous", "false").lower() in ("1", "true"):
        wanted["anonymous"] = True
    return fs.S3FileSystem(**{name: value for name, value in wanted.items() if value is not None})
