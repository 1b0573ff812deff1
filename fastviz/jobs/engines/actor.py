"""What runs in a process of a Ray cluster: the network and the methods of a job, which take a batch and give its rows.

Nothing here needs Ray: the process could be any other.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from fastviz import models
from fastviz._util import checks
from fastviz.jobs.engines.decoding import Decoded, Decoder
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.inputs import Item
from fastviz.jobs.job import Job

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Actor", "Shipped", "decoded_here", "shipped"]


@dataclass(frozen=True)
class Shipped:
    """All that a process needs to know of a job.

    The network itself goes there, not its name: no node needs the file of the weights, and none can have another one.

    Attributes:
        job: without its inputs and its network.
        model: the network, as ``torch.save`` writes it.
        preprocessing, class_names: what is known of it; the description of a network does not go with it.
        shown: how inputs are prepared to look at.
    """

    job: Job
    model: bytes
    preprocessing: models.Preprocessing
    class_names: Sequence[str] | None
    shown: models.Preprocessing | None


def shipped(job: Job, explainer: Explainer, pickle: Any) -> Shipped:
    """``job`` for other processes; ``pickle`` is a module that also takes classes made in a notebook."""
    buffer = io.BytesIO()
    torch.save(explainer.model, buffer, pickle_module=pickle)
    small = replace(job, inputs=(), model="demo", weights=None)
    return Shipped(small, buffer.getvalue(), explainer.seen, explainer.names, explainer.shown)


class Actor:
    """Holds the network once and explains batches; made empty, so that what :meth:`start` raises comes back whole."""

    def start(self, shipped: Shipped, device: str, cores: int) -> str:
        """Load the network to ``device`` and use so many ``cores``.

        Returns:
            The hash of the weights, as the explainer has it.

        Raises:
            TypeError, ValueError: what the explainer raises.
        """
        torch.set_num_threads(cores)
        place = checks.device(device)
        model = torch.load(io.BytesIO(shipped.model), map_location=place, weights_only=False)
        models.describe(model, preprocessing=shipped.preprocessing, class_names=shipped.class_names)
        self._explainer = Explainer(replace(shipped.job, model=model))
        self._decoder = Decoder(shipped.preprocessing, shipped.shown)
        self._threads = ThreadPoolExecutor(cores)
        self._at_the_device = threading.Lock()
        return self._explainer.weights

    def rows(self, batch: Sequence[Item | Decoded]) -> tuple[list[pa.RecordBatch], float]:
        """The rows of a batch, and for how many seconds the device was busy with it.

        Two threads may call this: while one has the device the other reads and decodes.
        """
        decoded = list(self._threads.map(self._decoded, batch))
        with self._at_the_device:
            began = time.perf_counter()
            found = list(self._explainer.rows(decoded))
            return found, time.perf_counter() - began

    def _decoded(self, one: Item | Decoded) -> Decoded:
        return one if isinstance(one, Decoded) else self._decoder[one]


@dataclass(frozen=True)
class _Elsewhere:
    """Where an input came from that was read in another process."""

    source: str

    def read(self) -> Any:
        """As :class:`fastviz.jobs.inputs.items.Place` says."""
        raise OSError(f"{self.source} is in another process")


def decoded_here(item: Item, decoder: Decoder) -> Decoded:
    """An item of a dataset in Python, read in this process: the dataset does not go to the others."""
    found = decoder[item]
    return replace(found, item=replace(item, place=_Elsewhere(item.place.source)))
