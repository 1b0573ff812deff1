"""The columns of a job's tables, and the encoding of maps: a value is ``(stored - map_zero) * map_scale``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastviz._util import checks

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAPS", "MapKind", "batch_of", "decode_map", "encode_map", "need_pyarrow", "schema_of"]

MapKind = Literal["float32", "float16", "uint8", "uint6", "none"]
"""How maps are stored: unchanged, in 16 bits, in 256 steps, in 64 steps, or not at all."""

MAPS = ("float32", "float16", "uint8", "uint6", "none")

_STEPS = {"uint8": 255, "uint6": 63}

Array = np.ndarray[Any, Any]


def need_pyarrow() -> None:
    """Raise if pyarrow is not installed.

    Raises:
        ImportError: pyarrow is not installed; the message says how to install it.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ImportError('jobs need pyarrow: pip install "fastviz[jobs]"') from None


def schema_of(maps: MapKind, shapes: Sequence[tuple[int, ...] | None], metadata: Mapping[str, str]) -> pa.Schema:
    """The schema of a job whose methods give maps of these ``shapes`` (None: different for each image).

    If all maps have the same shape, the column is a fixed-shape tensor, otherwise a list with the shape in another
    column.
    """
    import pyarrow as pa

    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("hash", pa.string()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("modified", pa.int64(), nullable=False),
        pa.field("changed", pa.int64(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("target", pa.int32()),
        pa.field("target_name", pa.string()),
        pa.field("probability", pa.float64()),
        pa.field("predicted", pa.int32()),
        pa.field("predicted_name", pa.string()),
        pa.field("predicted_probability", pa.float64()),
        pa.field("method", pa.string()),
        pa.field("parameters", pa.string()),
        pa.field("seconds", pa.float32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
    if maps != "none":
        value = {"float32": pa.float32(), "float16": pa.float16(), "uint8": pa.uint8(), "uint6": pa.uint8()}[maps]
        one = shapes[0] if shapes and len(set(shapes)) == 1 else None
        kind = pa.list_(value) if one is None else pa.fixed_shape_tensor(value, one)
        fields += [
            pa.field("map", kind),
            pa.field("map_shape", pa.list_(pa.int32())),
            pa.field("map_scale", pa.float32()),
            pa.field("map_zero", pa.int16()),
        ]
    fields += [pa.field("thumbnail", pa.binary()), pa.field("overlay", pa.binary())]
    return pa.schema(fields, metadata=dict(metadata))


def encode_map(found: Array, maps: MapKind) -> tuple[Array, float, int]:
    """Encode a float32 map for storage; returns it with its scale and zero point.

    8 bits: 256 equal steps from the smallest to the largest value; zero is a step, so it is exact. The error is at most
    half a step, or one step at the ends. 6 bits: the same with 64 steps, also stored in bytes. 16 bits: divided by a
    power of two, so that the largest magnitude is below 2 and small maps do not underflow in float16.

    >>> encode_map(np.array([0.0, 51.0, 255.0], dtype=np.float32), "uint8")
    (array([  0,  51, 255], dtype=uint8), 1.0, 0)
    """
    checks.one_of(maps, "maps", MAPS)
    if maps == "float32":
        return found, 1.0, 0
    if maps == "float16":
        most = float(np.abs(found).max(initial=0.0))
        power = 2.0 ** min(127, max(-126, math.floor(math.log2(most)))) if most > 0 else 1.0
        return (found.astype(np.float64) / power).astype(np.float16), power, 0
    low, high = min(float(found.min(initial=0.0)), 0.0), max(float(found.max(initial=0.0)), 0.0)
    # float32, because that is how the scale is stored
    scale = float(np.float32((high - low) / _STEPS[maps]))
    if scale <= 0 or not math.isfinite(scale):
        scale = 1.0
    zero = round(-low / scale)
    steps = np.rint(found.astype(np.float64) / scale) + zero
    return steps.clip(0, _STEPS[maps]).astype(np.uint8), scale, zero


def decode_map(stored: Any, shape: Sequence[int], scale: float, zero: int) -> Array:
    """Decode a stored map into float32 of ``shape``.

    Args:
        stored: the values of the column ``map``, in any shape.
        shape: ``map_shape``.
        scale: ``map_scale``.
        zero: ``map_zero``.

    >>> decode_map([0, 51, 255], [3], 2.0, 51)
    array([-102.,    0.,  408.], dtype=float32)
    """
    values = np.asarray(stored)
    if values.dtype == np.float32 and scale == 1.0:
        return values.reshape(shape).copy()  # arrays from tables are read-only
    return ((values.astype(np.float32) - np.float32(zero)) * np.float32(scale)).reshape(shape)


def batch_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows as a batch with this schema; ``map`` in a row is the encoded array, a missing key is null."""
    import pyarrow as pa

    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        columns.append(_maps(values, field.type) if field.name == "map" else pa.array(values, field.type))
    return pa.record_batch(columns, schema=schema)


def _maps(values: Sequence[Array | None], kind: Any) -> pa.Array:
    import pyarrow as pa

    missing = np.array([value is None for value in values], dtype=bool)
    element = np.dtype(kind.value_type.to_pandas_dtype())
    if isinstance(kind, pa.FixedShapeTensorType):
        size = math.prod(kind.shape)
        flat = [np.zeros(size, element) if value is None else value.reshape(-1) for value in values]
        joined = pa.array(np.concatenate(flat) if flat else np.zeros(0, element))
        storage = pa.FixedSizeListArray.from_arrays(joined, size, mask=pa.array(missing) if missing.any() else None)
        return pa.ExtensionArray.from_storage(kind, storage)
    flat = [np.zeros(0, element) if value is None else value.reshape(-1) for value in values]
    offsets = np.cumsum([0, *map(len, flat)]).astype(np.int32)
    joined = pa.array(np.concatenate(flat) if flat else np.zeros(0, element))
    return pa.ListArray.from_arrays(pa.array(offsets), joined, mask=pa.array(missing) if missing.any() else None)
