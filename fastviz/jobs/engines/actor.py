"""The part of a job that runs in a Ray actor: it holds the network and turns batches into rows.

Nothing here needs Ray; it would run in any process.
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
from fastviz._util.memory import keep_freed_memory
from fastviz.jobs.engines.decoding import Decoded, Decoder
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.inputs import Item
from fastviz.jobs.job import Job

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Actor", "RemoteJob", "decode_locally", "remote_job"]


@dataclass(frozen=True)
class RemoteJob:
    """Everything that another process needs to run a job.

    It contains the network itself, not its name, so no node needs the weight file, and all have the same weights.

    Attributes:
        job: the job without its inputs and its network.
        model: the network, as ``torch.save`` writes it.
        preprocessing, class_names: the network's description, which ``torch.save`` does not include.
        shown: the preprocessing of pictures for people.
    """

    job: Job
    model: bytes
    preprocessing: models.Preprocessing
    class_names: Sequence[str] | None
    shown: models.Preprocessing | None


def remote_job(job: Job, explainer: Explainer, pickle: Any) -> RemoteJob:
    """``job`` for other processes; ``pickle`` is a module that can also pickle classes defined in a notebook."""
    buffer = io.BytesIO()
    torch.save(explainer.model, buffer, pickle_module=pickle)
    small = replace(job, inputs=(), model="demo", weights=None)
    return RemoteJob(small, buffer.getvalue(), explainer.seen, explainer.names, explainer.shown)


class Actor:
    """Holds the network and explains batches. The constructor does nothing, so that errors in :meth:`start` reach the
    caller unchanged."""

    def start(self, remote_job: RemoteJob, device: str, cores: int) -> str:
        """Load the network onto ``device`` and use this number of ``cores``.

        Returns:
            The explainer's hash of the weights.

        Raises:
            TypeError, ValueError: as the explainer raises them.
        """
        torch.set_num_threads(cores)
        keep_freed_memory()  # the process belongs to the job
        place = checks.device(device)
        model = torch.load(io.BytesIO(remote_job.model), map_location=place, weights_only=False)
        models.describe(model, preprocessing=remote_job.preprocessing, class_names=remote_job.class_names)
        self._explainer = Explainer(replace(remote_job.job, model=model))
        self._decoder = Decoder(remote_job.preprocessing, remote_job.shown)
        self._threads = ThreadPoolExecutor(cores)
        self._device_lock = threading.Lock()
        return self._explainer.weights

    def rows(self, batch: Sequence[Item | Decoded]) -> tuple[list[pa.RecordBatch], float]:
        """The rows of a batch, and the seconds that the device was busy with it.

        Two threads may call this: one uses the device while the other reads and decodes.
        """
        decoded = list(self._threads.map(self._decoded, batch))
        with self._device_lock:
            began = time.perf_counter()
            found = list(self._explainer.rows(decoded))
            return found, time.perf_counter() - began

    def _decoded(self, one: Item | Decoded) -> Decoded:
        return one if isinstance(one, Decoded) else self._decoder[one]


@dataclass(frozen=True)
class _RemotePlace:
    """The place of an input that was read in another process."""

    source: str

    def read(self) -> Any:
        """As :class:`fastviz.jobs.inputs.items.Place` says."""
        raise OSError(f"{self.source} is in another process")


def decode_locally(item: Item, decoder: Decoder) -> Decoded:
    """Read an item of a Python dataset in this process, because the dataset is not sent to the actors."""
    found = decoder[item]
    return replace(found, item=replace(item, place=_RemotePlace(item.place.source)))
