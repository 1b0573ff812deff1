"""The results of a job, read lazily: as tables, as maps of an image, or with SQL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from fastviz._util import checks
from fastviz.jobs.places import Place, open_parquet, place_of
from fastviz.jobs.s3 import S3Path
from fastviz.jobs.tables import folder
from fastviz.jobs.tables.schema import decode_map, need_pyarrow

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyarrow import dataset

__all__ = ["Results", "open"]

_SMALL = ("map", "thumbnail", "overlay")
"""Large columns, which rows leave out unless they are requested."""


def open(out: str | os.PathLike[str]) -> Results:
    """Open the results in a job's folder, even while the job is running. Only the job's description is read at first.

    Args:
        out: the folder of a job.

    Returns:
        A reader of the results.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the folder holds no job.

    >>> open("no such folder")
    Traceback (most recent call last):
    ...
    ValueError: out: no such folder holds no job (there is no job.json)
    """
    need_pyarrow()
    return Results(place_of(out))


class Results:
    """The rows of a job: one for each image, target and method.

    Attributes:
        out: the folder.
        job: the content of its ``job.json``.

    >>> import tempfile, torch, fastviz as fv
    >>> images = torch.rand(2, 3, 96, 96)
    >>> summary = fv.jobs.run(images, out := tempfile.mkdtemp() + "/out", methods=["saliency"])
    >>> results = fv.jobs.open(out)
    >>> len(results), results.table().num_rows
    (2, 2)
    """

    def __init__(self, out: Place) -> None:
        self.out = out
        self.job = folder.read_job(out)

    def __repr__(self) -> str:
        return f"Results({str(self.out)!r}, {len(self)} rows in {len(self.parts)} parts)"

    def __len__(self) -> int:
        """The number of rows."""
        return sum(_metadata(path).num_rows for path in self.parts)

    def count(self, *, ok: bool) -> int:
        """The number of images that are done, or, with ``ok=False``, that failed."""
        images = 0
        for path in self.parts:
            with open_parquet(path) as file:
                table = file.read(["id", "status"])
            ids = set(table["id"].to_pylist())
            bad = {
                name
                for name, status in zip(*(table[c].to_pylist() for c in ("id", "status")), strict=True)
                if status != "ok"
            }
            images += len(ids - bad) if ok else len(bad)
        return images

    @property
    def parts(self) -> list[Any]:
        """The current files of the tables."""
        return folder.parts(self.out)

    @property
    def schema(self) -> pa.Schema:
        """The columns, see :mod:`fastviz.jobs.tables.schema`."""
        if not self.parts:
            raise ValueError(f"out: {self.out} holds no rows yet")
        with open_parquet(self.parts[0]) as file:
            return file.schema_arrow

    def dataset(self) -> dataset.Dataset:
        """The parts as a pyarrow dataset, which reads only the requested columns and rows."""
        from pyarrow import dataset

        if isinstance(self.out, S3Path):
            where: dict[str, Any] = {"filesystem": self.out.filesystem}
            return dataset.dataset([path.path for path in self.parts], schema=self.schema, format="parquet", **where)
        return dataset.dataset([str(path) for path in self.parts], schema=self.schema, format="parquet")

    def table(self, columns: Sequence[str] | None = None, filter: Any = None) -> pa.Table:
        """Rows as a pyarrow table.

        Args:
            columns: names of columns; None is all of them.
            filter: an expression that selects rows, such as ``pyarrow.compute.field("status") == "ok"``.

        Returns:
            The table, in the order in which the job ran.
        """
        if not self.parts:
            import pyarrow as pa

            return pa.table({})
        return self.dataset().to_table(self._known(columns), filter=filter)

    def to_pandas(self, columns: Sequence[str] | None = None, filter: Any = None) -> pd.DataFrame:
        """:meth:`table` as a pandas data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise ImportError('data frames need pandas: pip install "fastviz[jobs]"')
        return self.table(columns, filter).to_pandas()

    def query(self, sql: str, **tables: Any) -> pa.Table:
        """Run an SQL query with DuckDB; the table ``results`` holds the rows of the job.

        Args:
            sql: a query such as ``"SELECT method, avg(seconds) FROM results GROUP BY method"``.
            tables: further tables (pyarrow, pandas, polars), by their names in ``sql``.

        Returns:
            A pyarrow table.

        Raises:
            ImportError: DuckDB is not installed.
            ValueError: DuckDB rejects the query; the message says why.
        """
        try:
            import duckdb
        except ImportError:
            raise ImportError('queries need DuckDB: pip install "fastviz[jobs]"') from None
        if not self.parts:
            raise ValueError(f"out: {self.out} holds no rows yet")
        with duckdb.connect() as connection:
            if isinstance(self.out, S3Path):  # DuckDB would have to download its S3 extension
                connection.register("results", self.dataset())
            else:
                connection.read_parquet([str(path) for path in self.parts]).create_view("results")
            for name, value in tables.items():
                connection.register(name, value)
            try:
                return connection.sql(sql).to_arrow_table()
            except (duckdb.Error, AttributeError) as error:
                raise ValueError(f"sql: {' '.join(str(error).split())}") from None

    def rows(self, columns: Sequence[str] | None = None, filter: Any = None) -> Iterator[dict[str, Any]]:
        """The rows as dictionaries, with few in memory at a time; ``columns=None`` leaves out maps and pictures."""
        if not self.parts:
            return
        wanted = columns or [name for name in self.schema.names if name not in _SMALL]
        for batch in self.dataset().to_batches(self._known(wanted), filter=filter, batch_size=1024):
            yield from batch.to_pylist()

    def images(self, columns: Sequence[str] | None = None) -> Iterator[list[dict[str, Any]]]:
        """The rows of each image, one image at a time, in the order in which the job ran."""
        group: list[dict[str, Any]] = []
        wanted = None if columns is None else list(dict.fromkeys(["id", *columns]))
        for row in self.rows(wanted):
            if group and row["id"] != group[0]["id"]:
                yield group
                group = []
            group.append(row)
        if group:
            yield group

    def failures(self) -> Iterator[tuple[str, str]]:
        """Name and reason of each image that failed, with the method if only a method failed."""
        import pyarrow.compute as pc

        for row in self.rows(["id", "method", "error"], pc.field("status") != "ok"):
            words = row["error"] or "unknown"
            yield row["id"], words if row["method"] is None else f"{row['method']}: {words}"

    def maps(self, id: str) -> dict[str, Any]:
        """The maps of one image: method → float32 array, with the shape that the method gave.

        If the image has several targets, the arrays have an additional first dimension, in the order of rank.

        Args:
            id: id of the image.

        Raises:
            ValueError: there is no such image (the nearest are listed), or the job has no maps.
        """
        import pyarrow.compute as pc

        if not self.parts or "map" not in self.schema.names:
            raise ValueError(f"out: {self.out} holds no maps")
        columns = ["method", "map", "map_shape", "map_scale", "map_zero"]
        table = self.table(["id", *columns], pc.field("id") == id)
        if not table.num_rows:
            checks.nearest(id, "id", self.table(["id"])["id"].unique().to_pylist())
        found: dict[str, list[Any]] = {}
        for at, method in enumerate(table["method"].to_pylist()):
            one = map_at(table, at)
            if one is not None:
                found.setdefault(method, []).append(one)
        return {method: each[0] if len(each) == 1 else np.stack(each) for method, each in found.items()}

    def _known(self, columns: Sequence[str] | None) -> list[str] | None:
        if columns is None:
            return None
        return [checks.nearest(name, "columns", self.schema.names) for name in columns]


def _metadata(path: Place) -> Any:
    with open_parquet(path) as file:
        return file.metadata


def map_at(table: Any, at: int) -> Any:
    """The map in a row of a table or batch with the map columns, float32; None if there is none."""
    shape = table["map_shape"][at].as_py()
    if shape is None:
        return None
    stored = table["map"].slice(at, 1)
    stored = stored.combine_chunks() if hasattr(stored, "combine_chunks") else stored
    stored = getattr(stored, "storage", stored)
    return decode_map(stored.flatten().to_numpy(), shape, table["map_scale"][at].as_py(), table["map_zero"][at].as_py())
