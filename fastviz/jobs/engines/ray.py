"""The Ray engine: actors anywhere in a cluster, each with the network; this process gives batches and takes rows.

Plain actors and not Ray Data, for three reasons. A batch has to begin at a multiple of the batch size whatever is done
before, so that a job which goes on gives the same bits (:func:`fastviz.jobs.engines.local.batches_of`); Ray Data forms
its own. An image that kills its process has to become a row with a reason; Ray Data tries its batch again and again, or
ends the job. And the inputs stay a stream of which a few batches are in memory; Ray Data wants to know all of them when
it plans.
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

from fastviz.jobs.engines.actor import Actor, decoded_here, shipped
from fastviz.jobs.engines.decoding import Decoded, Decoder
from fastviz.jobs.engines.local import batches_of, cores
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.inputs import Item
from fastviz.jobs.job import Job

if TYPE_CHECKING:
    import pyarrow as pa

    Rows = Generator[pa.RecordBatch, None, None]

__all__ = ["need_ray", "run"]

_AHEAD = 2
"""Batches that an actor has at a time: one that it explains, and the next."""

_CORES = 4
"""Of each actor without a GPU, where a node has so many: more make one batch hardly faster."""

_TRIES = 2
"""So often a batch may lose its actor before its images go one by one, and an image before it counts as failed."""


def need_ray() -> None:
    """Refuse to begin without Ray.

    Raises:
        ImportError: it is not installed; says how.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ImportError('engine "ray" needs Ray: pip install "fastviz[ray]"') from None


def run(job: Job, explainer: Explainer, shards: Iterator[list[Item]], expected: int | None) -> Rows:
    """Finished rows of all inputs in ``shards``; ``expected`` is about how many there are.

    The cluster is the one that this process is connected to, else the one that ``RAY_ADDRESS`` names, else one of this
    machine's own cores and GPUs, which ends with the run.

    Raises:
        ValueError: a device or a number of workers that Ray cannot give.
        RuntimeError: the actors die before they explain anything.
    """
    batches = batches_of(shards, explainer.batch_size)
    first = next(batches, None)
    if first is None:
        return
    with _cluster() as ray:
        crew = _Crew(ray, job, explainer, expected)
        try:
            yield from crew.work(chain([first], batches))
        finally:
            crew.dismiss()


# ------------------------------------------------------------------------------------------------------- the cluster


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected to a cluster."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    before = signal.getsignal(signal.SIGTERM)
    # sockets have names of a hundred letters at most, and Ray makes fifty of them
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
            signal.signal(signal.SIGTERM, before)  # Ray has put its own in place
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """No statistics to Ray's makers and no advice, unless the environment asks for them."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@dataclass(frozen=True)
class _Share:
    """What each actor gets.

    Attributes:
        actors: how many there are.
        cores: of the CPU.
        gpus: 0 or 1.
    """

    actors: int
    cores: int
    gpus: int

    @staticmethod
    def of(job: Job, nodes: Sequence[dict[str, float]]) -> _Share:
        """One actor a GPU of the cluster, without GPUs one every few cores; ``job.workers`` of them if it says so."""
        if job.workers == 0:
            raise ValueError("workers should be at least 1 with engine 'ray', got 0")
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if not _wants_gpu(job, gpus):
            gpus = 0
        all_cores = [int(node.get("CPU", 0)) for node in nodes]
        most = max([1, *all_cores])
        if job.workers is not None:
            return _Share(job.workers, max(1, min(most, sum(all_cores) // job.workers)), min(1, gpus))
        if gpus:
            return _Share(gpus, max(1, min(most, sum(all_cores) // gpus)), 1)
        each = min(_CORES, most)
        return _Share(max(1, sum(count // each for count in all_cores)), each, 0)


def _wants_gpu(job: Job, gpus: int) -> bool:
    """Whether actors ask for GPUs: where the network is, for a module; else as ``job.device`` says."""
    device = job.device
    if isinstance(job.model, nn.Module):
        device = next((parameter.device.type for parameter in job.model.parameters()), "cpu")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device should be auto, cpu or cuda with engine 'ray', which chooses the GPU, got {device!r}")
    if device == "cuda" and not gpus:
        raise ValueError("device 'cuda' is not there: the Ray cluster has no GPU")
    return device != "cpu" and gpus > 0


# ---------------------------------------------------------------------------------------------------------- the actors


@dataclass
class _Task:
    """Inputs that go to an actor together."""

    batch: Sequence[Item | Decoded]
    tries: int = 0


@dataclass(eq=False)
class _Member:
    """An actor, and what it was given: oldest first."""

    handle: Any
    ready: bool = False
    tasks: dict[Any, _Task] = field(default_factory=dict)


class _Crew:
    """The actors of a run. One that dies is replaced, and what it had is done again."""

    def __init__(self, ray: Any, job: Job, explainer: Explainer, expected: int | None) -> None:
        self._ray, self._explainer = ray, explainer
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._share = _Share.of(job, nodes)
        batches = self._share.actors if expected is None else -(-expected // explainer.batch_size)
        self._wanted = max(1, min(self._share.actors, batches))
        self._decoder = Decoder(explainer.seen, explainer.shown) if job.source.is_python else None
        self._shipped = ray.put(shipped(job, explainer, ray.cloudpickle))
        self._members: list[_Member] = []
        self._starts: dict[Any, _Member] = {}
        self._again: deque[_Task] = deque()
        self._deaths = 0  # since something was last explained
        self._busy = 0.0

    def work(self, batches: Iterator[Sequence[Item]]) -> Iterator[pa.RecordBatch]:
        """The rows of all ``batches``, as they are finished."""
        began = time.perf_counter()
        left = True
        while True:
            while len(self._members) < self._wanted:
                self._engage()
            left = left and self._hand_out(batches)
            running = {ref: member for member in self._members for ref in member.tasks}
            if not left and not running and not self._again:
                return
            (done,), _ = self._ray.wait([*running, *self._starts])
            if done in self._starts:
                self._begin(done)
            else:
                yield from self._finished(running[done], done)
            idle = time.perf_counter() - began - self._busy / self._wanted
            self._explainer.waited = max(0.0, idle)

    def dismiss(self) -> None:
        """End all actors."""
        for member in self._members:
            self._ray.kill(member.handle)

    def _engage(self) -> None:
        ask = {"num_cpus": self._share.cores, "num_gpus": self._share.gpus}
        # on a GPU one batch is decoded while another is explained; on a CPU both would want the same cores
        handle = self._ray.remote(Actor).options(**ask, max_concurrency=1 + self._share.gpus).remote()
        member = _Member(handle)
        device = "cuda" if self._share.gpus else "cpu"
        self._members.append(member)
        self._starts[handle.start.remote(self._shipped, device, self._share.cores)] = member

    def _begin(self, ref: Any) -> None:
        """An actor that was started can be given batches."""
        member = self._starts.pop(ref)
        try:
            weights = self._get(ref)
        except self._ray.exceptions.RayError:
            self._replace(member)
            return
        if weights != self._explainer.weights:
            raise RuntimeError(f"the weights of an actor are {weights}, those of the job {self._explainer.weights}")
        member.ready = True

    def _hand_out(self, batches: Iterator[Sequence[Item]]) -> bool:
        """Give every actor as much as it may have; whether there may be more batches."""
        for _ in range(_AHEAD):
            for member in sorted((each for each in self._members if each.ready), key=lambda each: len(each.tasks)):
                if len(member.tasks) >= _AHEAD:
                    continue
                task = self._again.popleft() if self._again else self._next(batches)
                if task is None:
                    return False
                member.tasks[member.handle.rows.remote(task.batch)] = task
        return True

    def _next(self, batches: Iterator[Sequence[Item]]) -> _Task | None:
        batch = next(batches, None)
        if batch is None:
            return None
        if self._decoder is None:
            return _Task(batch)
        return _Task([decoded_here(item, self._decoder) for item in batch])

    def _finished(self, member: _Member, ref: Any) -> Iterator[pa.RecordBatch]:
        try:
            found, seconds = self._get(ref)
        except self._ray.exceptions.RayError:
            yield from self._lost(member)
            return
        del member.tasks[ref]
        self._busy += seconds
        self._deaths = 0
        yield from found

    def _get(self, ref: Any) -> Any:
        """What an actor gave; what it raised as it was raised there, and not as Ray wraps it."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def _lost(self, member: _Member) -> Iterator[pa.RecordBatch]:
        """An actor died. What it had is done again; what it died of, as far as one can see, in smaller pieces."""
        tasks = list(member.tasks.values())
        self._replace(member)
        guilty, others = tasks[0], tasks[1:]  # the oldest was at work
        guilty.tries += 1
        if guilty.tries < _TRIES:
            others.insert(0, guilty)
        elif len(guilty.batch) > 1:
            others += [_Task([one]) for one in guilty.batch]
        else:
            yield from self._killed(guilty.batch[0])
            self._deaths = 0
        self._again.extend(others)

    def _killed(self, one: Item | Decoded) -> Iterator[pa.RecordBatch]:
        """The row of an input that took its actors with it."""
        item = one.item if isinstance(one, Decoded) else one
        error = "the process that decoded or explained it was killed"
        yield from self._explainer.rows([Decoded(item, label=item.label, error=error)])

    def _replace(self, member: _Member) -> None:
        """Let go of an actor that died or cannot be reached."""
        self._members.remove(member)
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.handle)
        self._deaths += 1
        if self._deaths > 4 * self._wanted + _TRIES:
            raise RuntimeError(f"engine 'ray': {self._deaths} actors died one after the other, and explained nothing")
