"""Who runs a job. An engine is a function of a job, its explainer and its inputs that gives finished rows.

``(job, explainer, shards, expected) -> batches``: ``shards`` is an iterator of lists of
:class:`~fastviz.jobs.inputs.Item`, all that are still to do, and ``expected`` about how many these are (None: not
known). Each of the batches is a ``pyarrow.RecordBatch`` of the explainer's schema that holds all rows of one or more
inputs, also of those that failed. An engine forms batches by :func:`fastviz.jobs.engines.local.batches_of`, so that all
give the same numbers. Where the rows go, and which inputs are done, is no matter of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from fastviz._util import checks

__all__ = ["Engine", "engine"]

Engine = Callable[..., Generator[Any, None, None]]


def engine(name: str) -> Engine:
    """The engine that a job names.

    Raises:
        ValueError: there is no such engine; lists them.
        ImportError: it needs a package that is not installed; says how.
    """
    from fastviz.jobs.engines import local, ray

    engines: dict[str, Engine] = {"local": local.run, "ray": ray.run}
    found = engines[checks.nearest(name, "engine", engines)]
    if found is ray.run:
        ray.need_ray()
    return found
