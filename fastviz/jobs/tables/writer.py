"""Writes finished rows into parts, in a background thread. A part is written atomically, every so many images or
seconds."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fastviz.jobs.places import Place, open_parquet, remove, whole_file
from fastviz.jobs.tables import folder

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["IMAGES", "SECONDS", "Writer", "drop"]

IMAGES, SECONDS = 10_000, 60.0
"""A part ends when it holds this many images (or gets very large), or when its first row is this many seconds old."""

_GROUP_BYTES = 16 << 20
"""A row group ends when its rows take this much memory."""

_PART_BYTES = 1 << 30
"""A part ends when its rows take this much memory."""

_QUEUE = 8


class Writer:
    """Writes batches of rows into the parts of a job's folder, in a background thread.

    The rows of one image come in one batch and go into one part. Failed images get separate parts, so that the next run
    can replace them without touching the others. A context manager: its end writes what is left, even if the body
    raises.

    Args:
        out: the folder.
        schema: the schema of the rows.
        replaces: id → part with older rows of the image, which are removed just before the new ones are published.
        published: called in the thread with the number of images of each published part.
        check: called in the thread before parts are published; raises to prevent it.
    """

    def __init__(
        self,
        out: Place,
        schema: pa.Schema,
        *,
        replaces: dict[str, Place] | None = None,
        published: Callable[[int], None] = lambda images: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._out, self._schema, self._published, self._check = out, schema, published, check
        self._replaces = {} if replaces is None else replaces
        self._queue: queue.Queue[Any] = queue.Queue(_QUEUE)
        self._error: BaseException | None = None
        self._good = _Part(schema)
        self._bad = _Part(schema)
        self._thread = threading.Thread(target=self._run, name="fastviz-write", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows of whole images.

        Raises:
            OSError: earlier rows could not be written.
        """
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put(batch, timeout=0.5)
                return
            except queue.Full:
                continue

    # -------------------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                if batch is not _NOTHING:
                    self._add(batch)
                if self._oldest() <= time.monotonic() - SECONDS or self._is_full():
                    self._publish()
            self._publish()
        except BaseException as error:
            self._error = error
            for part in (self._good, self._bad):
                self._error = part.abandon(self._error)

    def _next(self) -> Any:
        """The next batch; None at the end; :data:`_NOTHING` if a part must be published before a batch arrives."""
        wait = self._oldest() + SECONDS - time.monotonic()
        try:
            return self._queue.get(timeout=None if wait == float("inf") else max(0.0, wait))
        except queue.Empty:
            return _NOTHING

    def _oldest(self) -> float:
        return min(self._good.began, self._bad.began)

    def _is_full(self) -> bool:
        return len(self._good.ids) + len(self._bad.ids) >= IMAGES or self._good.bytes >= _PART_BYTES

    def _add(self, batch: pa.RecordBatch) -> None:
        import pyarrow as pa

        ids = batch.column("id").to_pylist()
        failed = {name for name, status in zip(ids, batch.column("status").to_pylist(), strict=True) if status != "ok"}
        if failed:
            apart = pa.array([name in failed for name in ids])
            self._bad.add(batch.filter(apart), failed, self._path)
            batch = batch.filter(pa.array([name not in failed for name in ids]))
        if batch.num_rows:
            self._good.add(batch, set(ids) - failed, self._path)

    def _path(self) -> Place:
        used = {part.path for part in (self._good, self._bad)}
        number = folder.next_number(self._out)
        while folder.part_path(self._out, number) in used:
            number += 1
        return folder.part_path(self._out, number)

    def _publish(self) -> None:
        """Publish the written parts under their names, after removing older rows of the same images.

        In this order no row ever exists twice; if the run is killed in between, it does these images again.
        """
        if self._good.ids or self._bad.ids:
            self._check()
        for part in (self._good, self._bad):
            older: dict[Place, set[str]] = defaultdict(set)
            for name in part.ids & self._replaces.keys():
                older[self._replaces.pop(name)].add(name)
            for path, names in older.items():
                drop(path, names)
            count = len(part.ids)
            part.finish()
            if count:
                self._published(count)


_NOTHING = object()


class _Part:
    """A part that is being written."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._stack = ExitStack()
        self._writer: Any = None
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0
        self.bytes = 0
        self.ids: set[str] = set()
        self.path: Place | None = None
        self.began = float("inf")

    def add(self, batch: pa.RecordBatch, ids: Collection[str], path: Callable[[], Place]) -> None:
        if self._writer is None:
            self.path = path()
            self.began = time.monotonic()
            file = self._stack.enter_context(whole_file(self.path))
            self._writer = new_file(file, self._schema)
        self._waiting.append(batch)
        self._bytes += batch.nbytes
        self.bytes += batch.nbytes
        self.ids.update(ids)
        if self._bytes >= _GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa

        if self._waiting:
            table = pa.Table.from_batches(self._waiting, self._schema)
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._waiting, self._bytes = [], 0

    def finish(self) -> None:
        if self._writer is not None:
            try:
                self._write_group()
                self._writer.close()
            except BaseException as error:
                raise self.abandon(error) from error
            self._stack.close()
        self._forget()

    def abandon(self, error: BaseException) -> BaseException:
        """Remove what was written; returns the error, with the file's name if the file caused it."""
        try:
            self._stack.__exit__(type(error), error, error.__traceback__)
        except BaseException as named:
            error = named
        self._forget()
        return error

    def _forget(self) -> None:
        self._writer, self._stack, self._waiting, self._bytes = None, ExitStack(), [], 0
        self.ids, self.path, self.began, self.bytes = set(), None, float("inf"), 0


def new_file(file: Any, schema: pa.Schema) -> Any:
    """A Parquet writer with the settings of jobs: zstd, and the smallest encoding for maps."""
    import pyarrow as pa
    from pyarrow import parquet

    packed: dict[str, Any] = {}
    if "map" in schema.names:
        # Dictionary indices are not byte-aligned, so zstd compresses them less.
        packed["use_dictionary"] = [name for name in schema.names if name not in ("map", "thumbnail", "overlay")]
        if pa.types.is_float32(schema.field("map").type.value_type):
            packed["column_encoding"] = {"map.list.element": "BYTE_STREAM_SPLIT"}
    return parquet.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True, **packed)


def drop(path: Place, ids: Collection[str]) -> None:
    """Remove the rows of these images from a part, and the part itself if nothing is left."""
    import pyarrow as pa

    if not path.exists():
        return
    kept = 0
    with open_parquet(path) as old:
        schema = old.schema_arrow
        groups = range(old.num_row_groups)
        for group in groups:
            kept += sum(name not in ids for name in old.read_row_group(group, columns=["id"])["id"].to_pylist())
        if kept:
            with whole_file(path) as file, new_file(file, schema) as writer:
                for group in groups:
                    table = old.read_row_group(group)
                    keep = pa.array([name not in ids for name in table["id"].to_pylist()])
                    table = table.filter(keep)
                    if table.num_rows:
                        writer.write_table(table, row_group_size=table.num_rows)
    if not kept:
        remove(path)
