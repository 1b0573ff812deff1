"""The size of a map on disk: ``python -m benchmarks.jobs.sizes IMAGES WEIGHTS``.

Saliency and Grad-CAM maps of photographs by SqueezeNet, resized to 224x224, stored as each kind of map in the tables of
real jobs. For comparison, two entropies of the same 8-bit maps: that of single values, which is a lower bound for a
coder without context, and that of the values given the sum of three neighbours in twelve classes, which is about what a
context-based coder for grey-scale pictures reaches.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

import fastviz as fv
from benchmarks.common import parse, parser, write
from fastviz import images, jobs
from fastviz.jobs.tables.schema import encode_map

METHODS = ("saliency", "grad_cam")
KINDS = ("float32", "float16", "uint8", "uint6")


def bytes_of_maps(out: Path) -> int:
    """The size of the column of maps in the parts."""
    total = 0
    for path in jobs.open(out).parts:
        found = parquet.read_metadata(path)
        for group in range(found.num_row_groups):
            columns = [found.row_group(group).column(at) for at in range(found.num_columns)]
            total += sum(each.total_compressed_size for each in columns if each.path_in_schema.startswith("map.list"))
    return total


def entropy(values: Any) -> float:
    """The minimum number of bytes for a coder without context."""
    share = np.bincount(values.reshape(-1), minlength=256) / max(1, values.size)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() * values.size / 8)


def entropy_beside_neighbours(values: Any) -> float:
    """The same, given the class, one of twelve, of the sum of the left, upper and upper right neighbours."""
    wide = np.pad(values.astype(np.int64), ((1, 0), (1, 1)))
    around = wide[1:, :-2] + wide[:-1, 1:-1] + wide[:-1, 2:]
    place = np.digitize(around, np.quantile(around, np.linspace(0, 1, 13)[1:-1]))
    return sum(entropy(values[place == each]) for each in range(12))


def main() -> None:
    arguments = parser(__doc__, "jobs/sizes")
    arguments.add_argument("images", type=Path)
    arguments.add_argument("weights", type=Path)
    arguments.add_argument("--count", type=int, default=63)
    given = parse(arguments, "jobs/sizes")
    model = fv.load_model("squeezenet1_0", given.weights)
    files = images.find_images(given.images)[: given.count]
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        sizes: dict[str, int] = {}
        with tempfile.TemporaryDirectory() as home:
            for kind in KINDS:
                out = Path(home) / kind
                jobs.run(files, out, model=model, methods=method, maps=kind, map_size=224)
                sizes[kind] = round(bytes_of_maps(out) / len(files))
            whole = jobs.open(Path(home) / "float32")
            maps = [encode_map(whole.maps(name)[method], "uint8")[0] for name in names(whole)]
        rows.append(
            {
                "what": f"{method}, 224x224, SqueezeNet, {len(files)} photographs",
                "bytes_a_map": sizes,
                "entropy_of_uint8": round(float(np.mean([entropy(each) for each in maps]))),
                "entropy_beside_neighbours": round(float(np.mean([entropy_beside_neighbours(each) for each in maps]))),
                "targets": {"bytes_a_map": 25_000},
            }
        )
    print(json.dumps(rows, indent=2))
    write(given.out, rows, given.device)


def names(results: jobs.Results) -> list[str]:
    """The ids of a job's images."""
    return list(results.table(["id"])["id"].unique().to_pylist())


if __name__ == "__main__":
    main()
