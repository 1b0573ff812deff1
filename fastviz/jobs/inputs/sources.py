"""Turns each kind of source that was given to a job into shards of inputs."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from fastviz.images import paths
from fastviz.jobs.inputs.datasets import LABELS, check_object, shards_of
from fastviz.jobs.inputs.files import Naming, count_files
from fastviz.jobs.inputs.items import (
    FilePlace,
    Item,
    RowPlace,
    Shard,
    Stamp,
    TarPlace,
    stamp_of,
    stamp_of_file,
    text,
)
from fastviz.jobs.inputs.objects import images_in, objects_of, stamps_in
from fastviz.jobs.places import Place, beside, open_file, open_parquet
from fastviz.jobs.s3 import S3Path, is_s3

__all__ = ["SHARD", "Inputs"]

SHARD = 256
"""Approximate number of inputs in a shard, which is a multiple of the batch size."""

_TABLES = (".csv", ".tsv", ".parquet", ".txt", ".tar")

_PATHS = ("image", "path", "file", "filename", "file_name", "image_path", "filepath", "uri", "url", "key")
_BYTES = ("image", "bytes", "image_bytes", "content", "jpg", "png", "data")
_IDS = ("id", "image_id", "__key__", "uid")

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

# Extensions that WebDataset's readers take as pictures and as labels.
_PICTURES = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "gif", "tif", "tiff", "avif", "jp2", "img", "image")
_TARLABELS = ("cls", "cls2", "index", "label", "txt.cls")


@dataclass(frozen=True)
class Inputs:
    """All inputs of a job, in order; they can be iterated repeatedly.

    Attributes:
        given: paths, folders, patterns, tables (.csv, .tsv, .parquet, .txt) and shards (.tar), or one dataset, list of
            images, tensor or DataLoader.
        out: the job's folder; pictures that fastviz wrote there are not inputs.
        image_column, label_column, id_column: column names in tables; None finds common names.
        limit: the maximum number of inputs.
    """

    given: Any
    out: Place
    image_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    limit: int | None = None

    @property
    def is_python(self) -> bool:
        """Whether the inputs are objects in this process and not files."""
        return not self.paths()

    def shards(self, batch_size: int) -> Iterator[Shard]:
        """The inputs in shards of about :data:`SHARD`; the same inputs always form a shard.

        Raises:
            TypeError, ValueError: a source does not exist or holds no images; the message names it.
        """
        size = batch_size * max(1, SHARD // batch_size)
        left = self.limit
        for shard in self._all(size):
            if left is not None:
                if left <= 0:
                    return
                shard = Shard(shard.ids[:left], shard.stamps[:left], shard.make)
                left -= len(shard.ids)
            yield shard

    def count(self) -> int | None:
        """The number of inputs, or None if it is unknown without reading all. The first call walks through folders."""
        return self._count

    @cached_property
    def _count(self) -> int | None:
        total = 0
        for kind, source in self._sources:
            if kind == "files":
                count = count_files(source)
                if count is None:
                    return self.limit
                total += count
            elif kind == ".parquet":
                with open_parquet(source) as file:
                    total += file.metadata.num_rows
            elif kind == "python" and hasattr(source, "__len__") and not isinstance(source, DataLoader):
                total += len(source)
            else:
                return self.limit
        return total if self.limit is None else min(total, self.limit)

    # ------------------------------------------------------------------------------------------------- by kind

    def paths(self) -> list[str]:
        """The given paths; empty if something else was given."""
        if isinstance(self.given, (str, os.PathLike)):
            return [os.path.expanduser(os.fspath(self.given))]
        if isinstance(self.given, (list, tuple)) and all(isinstance(one, (str, os.PathLike)) for one in self.given):
            return [os.path.expanduser(os.fspath(one)) for one in self.given]
        return []

    @cached_property
    def _sources(self) -> list[tuple[str, Any]]:
        """The given sources in order: ("files", path, folder or pattern), (a table's extension, path) or ("python",
        object)."""
        given = self.paths()
        if not given:
            if isinstance(self.given, (list, tuple)) and not self.given:
                raise ValueError("inputs should name at least one image, got none")
            check_object(self.given)
            return [("python", self.given)]
        found: list[tuple[str, Any]] = []
        for place in (place for one in given for place in _expanded(one)):
            ending = _ending(place)
            if is_s3(place):
                if ending not in _TABLES and next(images_in(place), None) is None:
                    raise ValueError(f"inputs: paths should hold at least one image, got none in {place!r}")
                found.append((ending if ending in _TABLES else "files", place))
            elif ending not in _TABLES and os.path.isfile(place):
                found.append(("files", place))
            elif ending not in _TABLES or os.path.isdir(place):
                if os.path.isdir(place) and next(paths.walk(place), None) is None:
                    raise ValueError(f"inputs: paths should hold at least one image, got none in {place!r}")
                if not os.path.isdir(place):
                    paths.find_relative(place)  # raises if nothing matches
                found.append(("files", place))
            elif os.path.exists(place):
                found.append((ending, place))
            else:
                raise ValueError(f"inputs: paths should exist, got {place!r}")
        naming = Naming(self.out)
        if all(kind == "files" and next(naming.of(place), None) is None for kind, place in found):
            raise ValueError(
                f"inputs should name at least one image, got only pictures that fastviz wrote to {self.out}"
            )
        return found

    def _all(self, size: int) -> Iterator[Shard]:
        start = 0
        naming = Naming(self.out)
        for kind, group in groupby(self._sources, key=lambda each: each[0]):
            sources = [source for _, source in group]
            if kind == "files":  # single files share shards
                sources = [chain.from_iterable(map(naming.of, sources))]
            for source in sources:
                for shard in self._of_kind(kind, source, size, start):
                    start += len(shard.ids)
                    yield shard

    def _of_kind(self, kind: str, source: Any, size: int, start: int) -> Iterator[Shard]:
        if kind == "files":
            return _of_files(source, size, start)
        if kind == ".tar":
            return _of_tar(source, size, start)
        if kind == ".parquet":
            return self._of_parquet(source, size, start)
        if kind == "python":
            return shards_of(source, size)
        return self._of_text(source, kind, size, start)

    def _of_text(self, table: str, kind: str, size: int, start: int) -> Iterator[Shard]:
        """The files named in a list (.txt), .csv or .tsv, relative to its folder."""
        opened = open_file(table)
        with io.TextIOWrapper(opened, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            if kind == ".txt":
                rows: Iterator[tuple[str, str | None, str | None]] = (
                    (line.rstrip("\r\n"), None, None) for line in file if line.strip()
                )
            else:
                rows = self._csv_rows(csv.reader(file, delimiter="\t" if kind == ".tsv" else ","), table)
            while chunk := list(islice(rows, size)):
                yield _shard_of_paths(chunk, table, start)
                start += len(chunk)

    def _csv_rows(self, lines: Iterator[list[str]], table: str) -> Iterator[tuple[str, str | None, str | None]]:
        header = next(lines, None)
        if not header:
            raise ValueError(f"inputs: {table} is empty")
        image = self._pick(header, self.image_column, _PATHS, "image_column", table)
        label = self._pick(header, self.label_column, LABELS, "label_column", table, needed=False)
        ident = self._pick(header, self.id_column, _IDS, "id_column", table, needed=False)
        at = [None if name is None else header.index(name) for name in (image, label, ident)]
        for number, line in enumerate(lines, start=2):
            if not any(cell.strip() for cell in line):
                continue
            if len(line) < len(header):
                raise ValueError(f"inputs: line {number} of {table} has fewer cells than the header")
            path, one, two = (None if place is None else line[place] for place in at)
            yield str(path), one, two

    def _of_parquet(self, table: str, size: int, start: int) -> Iterator[Shard]:
        """The rows of a Parquet file with a column of paths or of image bytes."""
        import pyarrow as pa

        try:
            with open_parquet(table) as file:
                schema, groups = file.schema_arrow, file.num_row_groups
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"inputs: {table} cannot be read as Parquet: {error}") from None
        columns = schema.names
        image = self._pick(columns, self.image_column, (*_BYTES, *_PATHS), "image_column", table)
        label = self._pick(columns, self.label_column, LABELS, "label_column", table, needed=False)
        ident = self._pick(columns, self.id_column, _IDS, "id_column", table, needed=False)
        kind = schema.field(image).type
        named = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (named or pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ValueError(f"inputs: column {image!r} of {table} should hold paths or bytes, got {kind}")
        wanted = [name for name in dict.fromkeys((image if named else None, label, ident)) if name is not None]
        stamp = stamp_of(table)
        name = _name(table)
        for group in range(groups):
            with open_parquet(table) as file:
                count = file.metadata.row_group(group).num_rows
                rows: Any = file.read_row_group(group, columns=wanted) if wanted else None
            for first in range(0, count, size):
                last = min(first + size, count)
                parts = [
                    [None] * (last - first)
                    if column is None
                    else ["" if each is None else str(each) for each in rows[column][first:last].to_pylist()]
                    for column in (image if named else None, label, ident)
                ]
                if named:
                    yield _shard_of_paths(list(zip(*parts, strict=True)), table, start)
                else:
                    ids = [f"{name}/{group}.{row}" for row in range(first, last)] if ident is None else parts[2]
                    yield _shard_of_rows(table, str(image), group, first, ids, parts[1], stamp, start)
                start += last - first

    def _pick(
        self,
        columns: Sequence[str],
        asked: str | None,
        usual: Sequence[str],
        argument: str,
        table: str,
        *,
        needed: bool = True,
    ) -> Any:
        """The requested column, else the first with a common name, else None."""
        if asked is not None:
            if asked not in columns:
                raise ValueError(
                    f"{argument} should be a column of {table}, got {asked!r}; it has {', '.join(columns)}"
                )
            return asked
        small = {name.strip().lower(): name for name in reversed(columns)}
        found = next((small[name] for name in usual if name in small), None)
        if found is None and needed:
            raise ValueError(f"{argument} should name the column of images in {table}, which has {', '.join(columns)}")
        return found


# ---------------------------------------------------------------------------------------------------- shards of inputs


def _expanded(given: str) -> list[str]:
    """The tables and shards that match a pattern, in order; anything else is returned unchanged."""
    if _ending(given) not in _TABLES or (not is_s3(given) and os.path.exists(given)):
        return [given]
    if braces := _RANGE.search(given):  # WebDataset's notation for shards: {0000..0099}
        first, last = braces[1], braces[2]
        numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
        return [place for number in numbers for place in _expanded(given.replace(braces[0], number, 1))]
    if is_s3(given):
        return objects_of(given)
    if not glob.has_magic(given):
        return [given]
    found = sorted(glob.glob(given, recursive=True))
    if not found:
        raise ValueError(f"inputs: paths should exist, got {given!r}")
    return found


def _ending(place: str) -> str:
    """The file extension, in lower case."""
    return os.path.splitext(S3Path(place).name if is_s3(place) else place)[1].lower()


def _name(place: str) -> str:
    """The name of a file, as text."""
    return text(S3Path(place).name if is_s3(place) else os.path.basename(place))


def _of_files(files: Iterator[tuple[str, str, str, Stamp | None]], size: int, start: int) -> Iterator[Shard]:
    while chunk := list(islice(files, size)):
        places, ids, uris, stamps = (list(each) for each in zip(*chunk, strict=True))
        yield _file_shard(places, ids, uris, None, start, stamps)
        start += len(chunk)


def _shard_of_paths(rows: Sequence[tuple[Any, Any, Any]], table: str, start: int) -> Shard:
    """Rows (path, label, id) of a ``table``; paths are relative to its folder."""
    files = [beside(table, path) for path, _, _ in rows]
    uris = [text(path) for path, _, _ in rows]
    ids = [uri if ident is None else text(ident) for uri, (_, _, ident) in zip(uris, rows, strict=True)]
    return _file_shard(files, ids, uris, [label for _, label, _ in rows], start)


def _file_shard(
    files: Sequence[str],
    ids: Sequence[str],
    uris: Sequence[str],
    labels: Sequence[str | None] | None,
    start: int,
    known: Sequence[Stamp | None] | None = None,
) -> Shard:
    noted = known or [None] * len(files)
    far = stamps_in([path for path, stamp in zip(files, noted, strict=True) if stamp is None])
    stamps = [stamp or far.get(path) or stamp_of_file(path) for path, stamp in zip(files, noted, strict=True)]

    def make(at: int) -> Item:
        label = None if labels is None else labels[at]
        return Item(ids[at], uris[at], start + at, FilePlace(files[at]), label, stamps[at])

    return Shard(ids, np.array(stamps, dtype=np.int64).reshape(-1, 3), make)


def _shard_of_rows(
    table: str,
    column: str,
    group: int,
    first: int,
    ids: Sequence[Any],
    labels: Sequence[str | None],
    stamp: tuple[int, int, int],
    start: int,
) -> Shard:
    def make(at: int) -> Item:
        return Item(ids[at], ids[at], start + at, RowPlace(table, column, group, first + at), labels[at], stamp)

    return Shard(ids, np.tile(np.array(stamp, dtype=np.int64), (len(ids), 1)), make)


def _of_tar(archive: str, size: int, start: int) -> Iterator[Shard]:
    """The pictures in a tar archive, with the labels that WebDataset keeps beside them."""
    stamp = stamp_of(archive)
    name = _name(archive)
    try:
        with open_file(archive) as file, tarfile.open(fileobj=_in_pieces(file, archive), mode="r:") as tar:
            samples = _samples(tar)
            while chunk := list(islice(samples, size)):
                ids = [f"{name}/{text(place.member)}" for place, _ in chunk]
                yield _tar_shard(TarFiles(archive, stamp, ids, chunk), start)
                start += len(chunk)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"inputs: {archive} cannot be read as a tar archive (uncompressed): {error}") from None


def _in_pieces(file: Any, archive: str) -> Any:
    """``file``, buffered if it is in S3, so that one request reads many small members instead of one header."""
    return io.BufferedReader(file, 1 << 20) if is_s3(archive) else file


@dataclass(frozen=True)
class TarFiles:
    """Some pictures of one archive, with their labels."""

    archive: str
    stamp: tuple[int, int, int]
    ids: Sequence[str]
    found: Sequence[tuple[Any, str | None]]


def _tar_shard(files: TarFiles, start: int) -> Shard:
    def make(at: int) -> Item:
        member, label = files.found[at]
        place = TarPlace(files.archive, member.member, member.offset, member.size)
        return Item(files.ids[at], files.ids[at], start + at, place, label, files.stamp)

    return Shard(files.ids, np.tile(np.array(files.stamp, dtype=np.int64), (len(files.ids), 1)), make)


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[TarPlace, str | None]]:
    """Each picture of an archive with its label. Files with the same key are adjacent, as WebDataset writes them."""
    key, places, label = None, list[TarPlace](), None
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all members in memory
        if not member.isfile():
            continue
        folder, _, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        if (folder, stem) != key:
            yield from ((place, label) for place in places)
            key, places, label = (folder, stem), [], None
        if ending.lower().rpartition(".")[2] in _PICTURES:
            places.append(TarPlace("", member.name, member.offset_data, member.size))
        elif ending.lower() in _TARLABELS and member.size < 1000:
            content = tar.extractfile(member)
            label = None if content is None else content.read().decode("utf-8", "replace").strip()
    yield from ((place, label) for place in places)
