"""The Ray engine: actors in a cluster each hold the network; this process sends them batches and collects rows.

It uses plain actors and not Ray Data, for three reasons. Batches have to start at multiples of the batch size, so that
a resumed job gives the same bits (:func:`fastviz.jobs.engines.local.batches_of`); Ray Data forms its own batches. An
image that kills its process has to become a row with a reason; Ray Data retries its batch repeatedly or ends the job.
And the inputs are a stream with only a few batches in memory; Ray Data needs to know all of them when it plans.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import nn

from fastviz.jobs.engines.actor import Actor, decode_locally, remote_job
from fastviz.jobs.engines.decoding import Decoded, Decoder
from fastviz.jobs.engines.local import batches_of, cores
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.inputs import Item
from fastviz.jobs.job import Job

if TYPE_CHECKING:
    import pyarrow as pa

    Rows = Generator[pa.RecordBatch, None, None]

__all__ = ["need_ray", "run"]

_BATCHES_PER_ACTOR = 2
"""Batches that an actor has at a time: the current one and the next."""

_CORES_PER_ACTOR = 4
"""Cores of each actor without a GPU, if a node has that many; more would make a batch hardly faster."""

_TRIES = 2
"""How often a batch may lose its actor before its images are tried one by one, and an image before it counts as failed.
"""


def need_ray() -> None:
    """Raise if Ray is not installed.

    Raises:
        ImportError: Ray is not installed; the message says how to install it.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ImportError('engine "ray" needs Ray: pip install "fastviz[ray]"') from None


def run(job: Job, explainer: Explainer, shards: Iterator[list[Item]], expected: int | None) -> Rows:
    """Finished rows of all inputs in ``shards``; ``expected`` is about how many there are.

    The cluster is the one that this process is connected to, else the one that ``RAY_ADDRESS`` names, else a local
    cluster on this machine that ends with the run.

    Raises:
        ValueError: Ray cannot provide the device or the number of workers.
        RuntimeError: the actors die before they explain anything.
    """
    batches = batches_of(shards, explainer.batch_size)
    first = next(batches, None)
    if first is None:
        return
    with _cluster() as ray:
        pool = _ActorPool(ray, job, explainer, expected)
        try:
            yield from pool.work(chain([first], batches))
        finally:
            pool.shut_down()


# ------------------------------------------------------------------------------------------------------- the cluster


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected to a cluster."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    before = signal.getsignal(signal.SIGTERM)
    # Paths of sockets are limited to about a hundred characters, and Ray adds fifty.
    place = tempfile.gettempdir()
    home = tempfile.mkdtemp(prefix="fastviz-ray-", dir=place if len(place) < 20 else "/tmp")
    try:
        with _quiet():
            if os.environ.get("RAY_ADDRESS"):
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(
                    address="local",
                    num_cpus=cores(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",  # found without a network
                    _temp_dir=home,
                )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has replaced the handler
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off Ray's usage statistics and warnings, unless the environment sets them."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@dataclass(frozen=True)
class _Resources:
    """The number of actors, and the resources of each.

    Attributes:
        actors: number of actors.
        cores: CPU cores of each actor.
        gpus: GPUs of each actor, 0 or 1.
    """

    actors: int
    cores: int
    gpus: int

    @staticmethod
    def of(job: Job, nodes: Sequence[dict[str, float]]) -> _Resources:
        """One actor for each GPU, or for every few cores without GPUs; ``job.workers`` overrides the number."""
        if job.workers == 0:
            raise ValueError("workers should be at least 1 with engine 'ray', got 0")
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if not _wants_gpu(job, gpus):
            gpus = 0
        all_cores = [int(node.get("CPU", 0)) for node in nodes]
        most = max([1, *all_cores])
        if job.workers is not None:
            return _Resources(job.workers, max(1, min(most, sum(all_cores) // job.workers)), min(1, gpus))
        if gpus:
            return _Resources(gpus, max(1, min(most, sum(all_cores) // gpus)), 1)
        each = min(_CORES_PER_ACTOR, most)
        return _Resources(max(1, sum(count // each for count in all_cores)), each, 0)


def _wants_gpu(job: Job, gpus: int) -> bool:
    """Whether actors request GPUs. For a module its device decides, otherwise ``job.device``."""
    device = job.device
    if isinstance(job.model, nn.Module):
        device = next((parameter.device.type for parameter in job.model.parameters()), "cpu")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device should be auto, cpu or cuda with engine 'ray', which chooses the GPU, got {device!r}")
    if device == "cuda" and not gpus:
        raise ValueError("device 'cuda' is not available: the Ray cluster has no GPU")
    return device != "cpu" and gpus > 0


# ---------------------------------------------------------------------------------------------------------- the actors


@dataclass
class _Task:
    """Inputs that are sent to an actor together."""

    batch: Sequence[Item | Decoded]
    tries: int = 0


@dataclass(eq=False)
class _ActorState:
    """An actor and its tasks, oldest first."""

    handle: Any
    ready: bool = False
    tasks: dict[Any, _Task] = field(default_factory=dict)


class _ActorPool:
    """The actors of a run. If one dies, it is replaced and its tasks are done again."""

    def __init__(self, ray: Any, job: Job, explainer: Explainer, expected: int | None) -> None:
        self._ray, self._explainer = ray, explainer
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._resources = _Resources.of(job, nodes)
        batches = self._resources.actors if expected is None else -(-expected // explainer.batch_size)
        self._actor_count = max(1, min(self._resources.actors, batches))
        self._decoder = Decoder(explainer.seen, explainer.shown) if job.source.is_python else None
        self._remote_job = ray.put(remote_job(job, explainer, ray.cloudpickle))
        self._actors: list[_ActorState] = []
        self._starts: dict[Any, _ActorState] = {}
        self._retries: deque[_Task] = deque()
        self._deaths = 0  # since the last finished task
        self._busy = 0.0

    def work(self, batches: Iterator[Sequence[Item]]) -> Iterator[pa.RecordBatch]:
        """The rows of all ``batches``, in the order in which they finish."""
        began = time.perf_counter()
        left = True
        while True:
            while len(self._actors) < self._actor_count:
                self._start_actor()
            left = left and self._submit(batches)
            running = {ref: actor for actor in self._actors for ref in actor.tasks}
            if not left and not running and not self._retries:
                return
            (done,), _ = self._ray.wait([*running, *self._starts])
            if done in self._starts:
                self._mark_ready(done)
            else:
                yield from self._finished(running[done], done)
            idle = time.perf_counter() - began - self._busy / self._actor_count
            self._explainer.waited = max(0.0, idle)

    def shut_down(self) -> None:
        """End all actors."""
        for actor in self._actors:
            self._ray.kill(actor.handle)

    def _start_actor(self) -> None:
        ask = {"num_cpus": self._resources.cores, "num_gpus": self._resources.gpus}
        # With a GPU, one batch is decoded while another is explained; on a CPU both would compete for the same cores.
        handle = self._ray.remote(Actor).options(**ask, max_concurrency=1 + self._resources.gpus).remote()
        actor = _ActorState(handle)
        device = "cuda" if self._resources.gpus else "cpu"
        self._actors.append(actor)
        self._starts[handle.start.remote(self._remote_job, device, self._resources.cores)] = actor

    def _mark_ready(self, ref: Any) -> None:
        """Mark an actor as ready for batches once it has started."""
        actor = self._starts.pop(ref)
        try:
            weights = self._get(ref)
        except self._ray.exceptions.RayError:
            self._replace(actor)
            return
        if weights != self._explainer.weights:
            raise RuntimeError(f"the actor's weights should be {self._explainer.weights}, as in the job, got {weights}")
        actor.ready = True

    def _submit(self, batches: Iterator[Sequence[Item]]) -> bool:
        """Give every actor as many batches as it may have; returns whether there may be more batches."""
        for _ in range(_BATCHES_PER_ACTOR):
            for actor in sorted((each for each in self._actors if each.ready), key=lambda each: len(each.tasks)):
                if len(actor.tasks) >= _BATCHES_PER_ACTOR:
                    continue
                task = self._retries.popleft() if self._retries else self._next(batches)
                if task is None:
                    return False
                actor.tasks[actor.handle.rows.remote(task.batch)] = task
        return True

    def _next(self, batches: Iterator[Sequence[Item]]) -> _Task | None:
        batch = next(batches, None)
        if batch is None:
            return None
        if self._decoder is None:
            return _Task(batch)
        return _Task([decode_locally(item, self._decoder) for item in batch])

    def _finished(self, actor: _ActorState, ref: Any) -> Iterator[pa.RecordBatch]:
        try:
            found, seconds = self._get(ref)
        except self._ray.exceptions.RayError:
            yield from self._actor_died(actor)
            return
        del actor.tasks[ref]
        self._busy += seconds
        self._deaths = 0
        yield from found

    def _get(self, ref: Any) -> Any:
        """An actor's result; an error that it raised is raised as it was, without Ray's wrapper."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def _actor_died(self, actor: _ActorState) -> Iterator[pa.RecordBatch]:
        """Do a dead actor's tasks again; the task that probably killed it is retried, then split into single images."""
        tasks = list(actor.tasks.values())
        self._replace(actor)
        suspect, others = tasks[0], tasks[1:]  # the oldest task was running
        suspect.tries += 1
        if suspect.tries < _TRIES:
            others.insert(0, suspect)
        elif len(suspect.batch) > 1:
            others += [_Task([one]) for one in suspect.batch]
        else:
            yield from self._killed_row(suspect.batch[0])
            self._deaths = 0
        self._retries.extend(others)

    def _killed_row(self, one: Item | Decoded) -> Iterator[pa.RecordBatch]:
        """The row of an input that killed its actors."""
        item = one.item if isinstance(one, Decoded) else one
        error = "the process that decoded or explained it was killed"
        yield from self._explainer.rows([Decoded(item, label=item.label, error=error)])

    def _replace(self, actor: _ActorState) -> None:
        """Remove an actor that died or cannot be reached."""
        self._actors.remove(actor)
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor.handle)
        self._deaths += 1
        if self._deaths > 4 * self._actor_count + _TRIES:
            raise RuntimeError(f"engine 'ray': {self._deaths} actors died in a row without finishing a batch")
