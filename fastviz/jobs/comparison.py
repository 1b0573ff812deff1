"""Methods compared by measures on photographs: a table, curves with bands, and a page that ranks the methods."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastviz import models
from fastviz._util import checks
from fastviz._util.output_folder import locked
from fastviz.evaluation import Row, statistics
from fastviz.evaluation.evaluate import Options, row_batches
from fastviz.evaluation.measures import RANDOM
from fastviz.evaluation.statistics import Standings
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.images.streams import Stream, batches
from fastviz.jobs import charts
from fastviz.jobs.annotations import read_labels, read_objects
from fastviz.jobs.comparison_journal import Journal
from fastviz.jobs.comparison_output import Output, number
from fastviz.jobs.weights_hash import weights_hash

__all__ = ["MEASURED", "METHODS", "QUICK", "Compared", "compare", "number"]

METHODS = ("saliency", "smooth_grad", "guided_backprop", "grad_cam", "guided_grad_cam", "occlusion")
"""The methods that are compared by default."""

MEASURED = ("deletion", "insertion", "road", "average_drop", "max_sensitivity", "parameter_randomisation")
"""The default measures; they need no object annotations."""

QUICK: Options = {
    "deletion": {"step": 1 / 16},
    "insertion": {"step": 1 / 16},
    "morf": {"steps": 40},
    "lerf": {"steps": 40},
    "road": {"removed": (10, 30, 50, 70, 90)},
    "max_sensitivity": {"samples": 2},
    "parameter_randomisation": {"steps": 3},
    "smooth_grad": {"samples": 8},
}
"""Options that take minutes for a few dozen photographs, where the papers' settings take an hour."""

_FILES = ("table.csv", "table.parquet", "ranking.csv", "comparison.html", "charts", "pictures")


@dataclass
class Compared:
    """The results of :func:`compare`.

    Attributes:
        rows: every value, see :data:`fastviz.evaluation.Row`.
        standings: the ranking of the methods.
        page: path of the page.
        files: paths of all files that were written.
        failures: photographs that could not be read, with the reason.
        seconds: total time.
        notes: sentences about what was left out.
    """

    rows: list[Row]
    standings: Standings
    page: Path
    files: list[Path]
    failures: list[tuple[str, str]]
    seconds: float
    notes: list[str] = field(default_factory=list)


def compare(
    photos: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    model: nn.Module | str = "demo",
    weights: str | None = None,
    methods: Sequence[str] = METHODS,
    measures: Sequence[str] = MEASURED,
    labels: str = "predicted",
    objects: str | os.PathLike[str] | None = None,
    thorough: bool = False,
    options: Options | None = None,
    control: bool = True,
    device: str = "auto",
    batch_size: int = 8,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Compared:
    """Measure methods on photographs and write the results into the folder ``out``.

    The folder gets ``table.csv`` (a line for each photograph, method and measure), ``table.parquet`` (the same with the
    curves, if pyarrow is installed), ``ranking.csv`` (means with bands, and ranks), ``charts/`` (curves and ranks, SVG
    and PNG), ``pictures/``, and ``comparison.html``, which shows everything.

    Until the comparison is complete, the values are saved batch by batch in ``unfinished.jsonl``. An interrupted run
    resumes when it is started again with the same arguments, and gives the same numbers.

    Args:
        photos: files, folders and patterns, see :func:`fastviz.images.find_images`.
        out: the output folder, created if needed.
        model: a network, or the name of one to load with ``weights``, see :func:`fastviz.load_model`.
        methods: names of attribution methods, see ``fastviz methods``.
        measures: names of ``fastviz.evaluation.MEASURES``.
        labels: the class to explain for each photograph, see :func:`fastviz.jobs.annotations.read_labels`.
        objects: the objects in the photographs, see :func:`fastviz.jobs.annotations.read_objects`.
        thorough: use the papers' numbers of steps and samples instead of :data:`QUICK`.
        options: name of a method or measure → further arguments, which override the defaults.
        control: also measure a random map, as a baseline for chance.
        device: where a loaded network runs.
        batch_size: photographs in a batch, and perturbed images in one forward pass.
        limit: use only the first ``limit`` photographs.
        seed: seed of all random numbers.
        overwrite: replace a comparison in the folder, or an unfinished one with other arguments.
        progress: show a progress bar on a terminal.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: a method, measure or option is unknown; a method does not work for the network; labels or
            objects are missing; the folder holds a comparison, or an unfinished one with other arguments, or another
            run is writing into it. Nothing is written in these cases.
        OSError: ``out`` cannot be written, or a file cannot be read.
    """
    began = time.perf_counter()
    charts.check_installed()
    folder = Path(out).expanduser()
    _check_folder(folder, overwrite)
    network = models.load_model(model, weights).to(checks.device(device)) if isinstance(model, str) else model
    stream = batches(list(photos), model=network, batch_size=batch_size, limit=limit)
    assert stream.files is not None
    assert stream.names is not None
    classes = _class_names(network, stream)
    targets = read_labels(labels, stream.names, stream.files, classes)
    where = None if objects is None else read_objects(objects, stream.names, stream.files, stream.preprocessing)
    names = [*dict.fromkeys(methods), *([RANDOM] if control and RANDOM not in methods else [])]
    asked = list(dict.fromkeys([*measures, "agreement"]))
    chosen = _options({} if thorough else _quick(stream), options or {}, [*names, *asked])
    settings = _settings(network, names, asked, chosen, targets, objects) | {"batch_size": batch_size, "seed": seed}
    with locked(folder):
        journal = Journal(folder, settings, stream.files, overwrite=overwrite)
        batch_rows = row_batches(
            *(network, stream, names, asked), target=targets, objects=where, options=chosen, batch_size=batch_size,
            seed=seed, progress=progress, done=journal.done,
        )  # fmt: skip
        found = journal.keep(batch_rows)
        found.sort(key=lambda row: row["index"])  # so that the order does not depend on the batches
        if not found:
            journal.remove()
            raise ValueError(_no_photograph(stream))
        standing = statistics.standings(found, seed=seed)
        work = Output(folder, network, stream, names, asked, chosen, found, classes, standing)
        facts = _facts(model, weights, labels, objects, len({row["index"] for row in found}), thorough, seed)
        work.write(facts, time.perf_counter() - began)
        journal.remove()
    return Compared(
        *(found, work.standings, folder / "comparison.html", work.files, list(stream.failures)),
        seconds=time.perf_counter() - began,
        notes=work.notes,
    )


def _settings(
    network: nn.Module,
    methods: list[str],
    measures: list[str],
    options: Options,
    labels: object,
    objects: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """The settings that must be the same to resume an interrupted comparison."""
    return {
        "network": f"{type(network).__name__} {weights_hash(network)}",
        "methods": methods, "measures": measures, "options": options, "labels": labels,
        "objects": None if objects is None else Path(objects).read_text(errors="replace"),
    }  # fmt: skip


def _no_photograph(stream: Stream) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in stream.failures[:3])
    return f"photos should hold at least one photograph that can be read, got none ({reasons})"


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"out: {folder} is not a folder")
    occupied = [name for name in _FILES if (folder / name).exists()]
    if occupied and not overwrite:
        raise ValueError(f"out: {folder} holds {' and '.join(occupied)}; give another folder, or --overwrite")


def _class_names(network: nn.Module, stream: Stream) -> list[str]:
    try:
        return models.class_names(network)
    except ValueError:
        first = next(iter(stream))
        with frozen_model(network), torch.no_grad():
            return [f"class {index}" for index in range(network(first.images[:1].clone()).shape[1])]


def _quick(stream: Stream) -> Options:
    """:data:`QUICK` with non-overlapping occlusion windows, because sweeps take most of the time of two measures."""
    size = stream.preprocessing.size
    if size is None:
        return QUICK
    side = max(1, min(size) // 7)
    return {**QUICK, "occlusion": {"window": side, "stride": side}}


def _options(defaults: Options, given: Options, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of these methods and measures: ``given`` overrides ``defaults``."""
    found = {name: dict(values) for name, values in defaults.items() if name in names}
    for name, values in given.items():
        found[name] = found.get(name, {}) | dict(values)
    return found


def _facts(
    model: nn.Module | str,
    weights: str | None,
    labels: str,
    objects: str | os.PathLike[str] | None,
    count: int,
    thorough: bool,
    seed: int,
) -> dict[str, str]:
    return {
        "Network": model if isinstance(model, str) else type(model).__name__,
        "Weights": Path(weights).name if weights else "built-in",
        "Photographs": str(count),
        "Classes": labels if labels in ("predicted", "folders") else Path(labels).name,
        **({} if objects is None else {"Objects": Path(objects).name}),
        "Steps and samples": "as in the papers" if thorough else "few (as in the papers with --thorough)",
        "Seed": str(seed),
    }
