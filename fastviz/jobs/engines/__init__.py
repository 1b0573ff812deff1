"""Engines, which run jobs. An engine is a function from a job, its explainer and its inputs to finished rows.

``(job, explainer, shards, expected) -> batches``: ``shards`` is an iterator over lists of
:class:`~fastviz.jobs.inputs.Item`, all inputs that are still to do, and ``expected`` is about how many there are (None
if unknown). Each of the batches is a ``pyarrow.RecordBatch`` with the explainer's schema that holds all rows of one or
more inputs, including failed ones. Every engine forms batches with :func:`fastviz.jobs.engines.local.batches_of`, so
that all engines give the same numbers. An engine does not know where the rows go or which inputs are done.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from fastviz._util import checks

__all__ = ["Engine", "engine"]

Engine = Callable[..., Generator[Any, None, None]]


def engine(name: str) -> Engine:
    """The engine with this name.

    Raises:
        ValueError: there is no such engine; the message lists them.
        ImportError: the engine needs a package that is not installed; the message says how to install it.
    """
    from fastviz.jobs.engines import local, ray

    engines: dict[str, Engine] = {"local": local.run, "ray": ray.run}
    found = engines[checks.nearest(name, "engine", engines)]
    if found is ray.run:
        ray.need_ray()
    return found
