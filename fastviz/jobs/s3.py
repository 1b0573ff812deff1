"""Objects in S3 and compatible stores, through pyarrow: a path class for ``s3://BUCKET/KEY`` with what jobs need.

Credentials, region and endpoint are found as in every AWS tool (``AWS_ACCESS_KEY_ID``, ``~/.aws``, the node's role;
``AWS_REGION``; ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``). Options for one address follow it in pyarrow's
notation: ``s3://photos/2024?endpoint_override=localhost:9000&scheme=http&region=eu-west-1``.
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

# One slash is allowed, because `Path` turns two slashes into one.
_ADDRESS = re.compile(
    r"s3:/{1,2}(?=[^/])(?P<path>[^?]*(?:\?(?![a-z_]+=)[^?]*)*)(?:\?(?P<options>[a-z_]+=.*))?", re.DOTALL
)

_OPTIONS = ("endpoint_override", "scheme", "region", "anonymous")

_PATIENCE, _TRIES = 60.0, 8
"""Timeout of a request in seconds, and number of attempts; generous, because a store may be busy."""

_PIECE = 8 << 20
"""Bytes per write while uploading."""


def is_s3(place: object) -> bool:
    """Whether a place is an S3 address."""
    return isinstance(place, S3Path) or (isinstance(place, (str, Path)) and str(place).startswith("s3:/"))


class S3Path:
    """An object or a folder (key prefix) in a bucket. The constructor makes no request.

    Args:
        address: ``s3://BUCKET/KEY``, with options after ``?`` (see the module).

    Raises:
        ValueError: the address has no bucket, or an unknown option.

    >>> place = S3Path("s3://photos/2024?region=eu-west-1") / "a.jpg"
    >>> place.url, place.name, str(place.parent)
    ('s3://photos/2024/a.jpg', 'a.jpg', 's3://photos/2024')
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        found = _ADDRESS.fullmatch(os.fspath(address))
        if found is None or not found["path"].strip("/"):
            raise ValueError(f"an S3 address should be s3://BUCKET/KEY, got {os.fspath(address)!r}")
        self.path = found["path"].rstrip("/")
        self.options = tuple(parse_qsl(found["options"] or ""))
        for name, _ in self.options:
            if name not in _OPTIONS:
                raise ValueError(f"options of an S3 address should be {', '.join(_OPTIONS)}, got {name!r}")

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
        """The bucket."""
        return self._at(self.bucket)

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its extension."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> S3Path:
        """The address without its last part; a bucket is its own parent."""
        return self._at(self.path.rpartition("/")[0] or self.path)

    @property
    def filesystem(self) -> Any:
        """The ``pyarrow.fs.S3FileSystem``, one per process."""
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

    # --------------------------------------------------------------------------------------------------------- listing

    def info(self) -> Any:
        """pyarrow's ``FileInfo``.

        Raises:
            OSError: the server cannot be reached or refuses.
        """
        return self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        """Whether this is an object or a folder."""
        return bool(self.info().type)

    def is_file(self) -> bool:
        """Whether this is an object."""
        return bool(self.info().is_file)

    def is_dir(self) -> bool:
        """Whether this is a folder."""
        from pyarrow import fs

        return bool(self.info().type == fs.FileType.Directory)

    def entries(self) -> list[Any]:
        """pyarrow's ``FileInfo`` of everything directly in the folder, sorted by name; empty if it does not exist."""
        from pyarrow import fs

        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(found, key=lambda each: each.base_name)

    def walk(self) -> Iterator[tuple[S3Path, str, Stamp]]:
        """All objects in the folder and its subfolders: address, relative name and stamp. Only the names of one folder
        at a time are in memory."""

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
        """Open the object for reading, as a seekable ``pyarrow.NativeFile``.

        Raises:
            FileNotFoundError, OSError: it does not exist, or cannot be read.
        """
        return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        """The content of the object. Raises the same errors as :meth:`open`."""
        with self.open() as file:
            return bytes(file.read())

    def write_bytes(self, content: bytes) -> None:
        """Write the object, replacing an older one."""
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
    """A file to write bytes to, which becomes an object only if the ``with`` block ends without an error.

    S3 cannot rename, but an object appears atomically when its upload is complete. So the file is written to the local
    disk first.
    """
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with place.filesystem.open_output_stream(place.path) as stream:
            while piece := file.read(_PIECE):
                stream.write(piece)


def matching(pattern: S3Path) -> Iterator[tuple[S3Path, Stamp]]:
    """The objects that match a pattern (``*``, ``?``, ``[…]``; ``**`` also matches subfolders), in order."""
    parts = pattern.path.split("/")
    fixed = next(at for at, part in enumerate([*parts, "*"]) if re.search(r"[*?[]", part))
    if fixed == 0:
        raise ValueError(f"the bucket of a pattern should have no wildcards, got {pattern}")
    whole = re.compile(_expression("/".join(parts[fixed:])))
    home = pattern._at("/".join(parts[:fixed]))
    if "**" in parts:
        yield from ((place, stamp) for place, name, stamp in home.walk() if whole.fullmatch(name))
        return
    folders = [(home, "")]
    for depth, part in enumerate(parts[fixed:], start=1):  # lists only folders that match the pattern
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
    """The stamps of objects, from one request; zeros for objects that do not exist."""
    if not places:
        return []
    found = places[0].filesystem.get_file_info([place.path for place in places])
    return [_stamp(each) if each.is_file else (0, 0, 0) for each in found]


def _stamp(info: Any) -> Stamp:
    """Size and modification time of an object; objects cannot change without a new time."""
    return int(info.size), int(info.mtime_ns or 0), 0


def in_use() -> bool:
    """Whether this process has connections to S3."""
    return _filesystem.cache_info().currsize > 0


@lru_cache(maxsize=64)
def _filesystem(process: int, bucket: str, options: tuple[tuple[str, str], ...]) -> Any:
    """The connection of this ``process``; after a fork the parent's must not be used."""
    from pyarrow import fs

    given = dict(options)
    endpoint = given.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    region = given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        try:
            region = fs.resolve_s3_region(bucket)
        except OSError:  # no permission or no such bucket; the first request gives a better error
            region = None
    wanted: dict[str, Any] = {"endpoint_override": endpoint, "region": region, "scheme": given.get("scheme")}
    wanted |= {"connect_timeout": _PATIENCE, "request_timeout": _PATIENCE}
    wanted["retry_strategy"] = fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES)
    if given.get("anonymous", "false").lower() in ("1", "true"):
        wanted["anonymous"] = True
    return fs.S3FileSystem(**{name: value for name, value in wanted.items() if value is not None})
