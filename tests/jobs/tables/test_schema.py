"""Maps as they are stored, and as tables hold them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from fastviz.jobs.tables.schema import batch_of, decode_map, encode_map, schema_of


def test_eight_bits_by_hand():
    stored, scale, zero = encode_map(np.array([[-2.0, 0.0, 3.1]], dtype=np.float32), "uint8")
    assert scale == pytest.approx(5.1 / 255)
    assert zero == 100
    assert stored.tolist() == [[0, 100, 255]]
    np.testing.assert_allclose(decode_map(stored, (1, 3), scale, zero), [[-2, 0, 3.1]], atol=1e-6)


@pytest.mark.parametrize("maps", ["float32", "float16", "uint8", "uint6"])
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 1e38])
@pytest.mark.parametrize("sign", [1, 0, -1])
def test_what_comes_back_is_near(maps, scale, sign):
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    values = (np.abs(values) * sign if sign else values) * np.float32(scale / 4)
    values[0, 0] = 0
    stored, *code = encode_map(values, maps)
    found = decode_map(stored, values.shape, *code)
    step = {"float32": 0, "float16": 2**-10, "uint8": 1 / 255, "uint6": 1 / 63}[maps]
    span = float(max(values.max(), 0)) - float(min(values.min(), 0))
    assert found.dtype == np.float32
    assert np.abs(found.astype(np.float64) - values).max() <= step * span * (1 + 1e-5) + 1e-44
    assert found[0, 0] == 0


@pytest.mark.parametrize("maps", ["float16", "uint8", "uint6"])
def test_maps_of_nothing(maps):
    stored, *code = encode_map(np.zeros((3, 3), dtype=np.float32), maps)
    assert (decode_map(stored, (3, 3), *code) == 0).all()


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (4,)], [None]])
def test_a_missing_map_is_null(shapes):
    schema = schema_of("float32", shapes, {})
    same = {"id": "a", "uri": "a", "source": "a", "bytes": 0, "modified": 0, "changed": 0, "status": "ok"}
    maps = [np.arange(6, dtype=np.float32).reshape(2, 3), None, np.ones((2, 3), dtype=np.float32)]
    batch = batch_of([same | {"map": each} for each in maps], schema)
    assert batch.column("map").null_count == 1
    table = pa.Table.from_batches([batch])
    assert np.asarray(table["map"].to_pylist()[0]).reshape(2, 3).tolist() == maps[0].tolist()
