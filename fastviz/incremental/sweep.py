"""A sweep: one network, images, and many windows of them covered one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz import capture, checks, replay
from fastviz.graph import NotTraceable
from fastviz.incremental.execute import Clean, Covered, Runner, clean_bytes, clean_pass, run_whole
from fastviz.incremental.job import Evaluate, Job, in_batches, new_job
from fastviz.incremental.network import Network, network
from fastviz.incremental.plan import Group, group_windows, predicted

__all__ = ["Sweep", "sweep"]

Precision = Literal["model", "bfloat16"]

_MEMORY = 1 << 30
"""Bytes that a sweep may hold on the CPU if nothing else is said."""

_CACHE = 48 << 20
"""Bytes that a batch may hold on the CPU if nothing else is said: maps that stay in the last cache are read faster, but
each batch reads all the weights again."""

_BATCH = {"cpu": 8, "cuda": 256}
"""Images that a model that runs as it is sees at once, if nothing else is said."""

_TAIL = 256
"""Windows that linear layers at the end of a network work on at once."""

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far, as a fraction of the largest output, the steps may be from the model before they are not used."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """What :func:`sweep` found.

    Attributes:
        values: [P, ...], what ``evaluate`` made of the output under each window.
        stats: how: ``path`` (``"incremental"`` or ``"dense"``), ``reason`` (why it is dense; else empty), ``windows``,
            ``batch_size``, ``batches``, ``retries`` (batches halved because memory ran out), ``flops`` and
            ``dense_flops`` (a window, counted), ``predicted_gain`` (of work, counted), ``seconds`` (of all),
            ``prepare_seconds`` (export and planning, once for a model), ``dense_seconds`` (the model on an image as it
            is, measured once; None where it was not), ``measured_gain`` (that against ``seconds`` without preparation,
            a window) and, in approximate modes, ``error`` (see :func:`sweep`).
    """

    values: Tensor
    stats: dict[str, Any]


def sweep(
    model: nn.Module,
    images: Tensor,
    boxes: Tensor,
    image_index: Tensor | None = None,
    fill: float | Tensor = 0.0,
    evaluate: Evaluate | None = None,
    *,
    outputs: Sequence[int] | None = None,
    memory: int | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
    growth_cap: float | None = None,
    check: bool = True,
    advance: Callable[[int], object] = lambda windows: None,
) -> Sweep:
    """The output of ``model`` with each of ``boxes`` covered, computed only where a box changes something.

    Equal to ``evaluate(model(ops.occlude(images, boxes, image_index, fill)))`` to rounding, unless ``precision`` or
    ``growth_cap`` allow more. Nakandala, Kumar, Papakonstantinou 2019, "Incremental and Approximate Inference for
    Faster Occlusion-based Deep CNN Explanations", https://doi.org/10.1145/3299869.3319874; here the exact mode also
    shares the work of all windows of a size, and their growth is cut by what the whole network costs.

    A model that does not export to a graph, that has forward hooks, or whose graph gives other numbers than itself runs
    as it is, on batches of covered images; so do images with values that are not finite, or that make such values in
    the network. ``stats`` says so. The graph is kept until the model changes or is gone.

    Args:
        model: maps images [N, C, H, W] to an output with the images in dimension 0; used in evaluation mode.
        images: [N, C, H, W], floating-point, as the model takes them.
        boxes: [P, 4], integers: top, left, bottom, right in pixels, half open; cut off at the image's border.
        image_index: [P], integers: which image each box covers a part of; may be left out for one image.
        fill: what covers: a number, a value for each channel [C], or images [1 or N, C, H, W].
        evaluate: gets the output for a batch of windows and their numbers, int64 [B], and gives what is kept of it,
            [B, ...]; None keeps the output. Batches come in any order.
        outputs: the entries of the output [N, K] that ``evaluate`` reads; the others may be NaN. None is all.
        memory: bytes that the sweep may hold at once, what the model itself needs for a batch left out; None is 1 GiB
            on the CPU and half of the free memory on a GPU.
        batch_size: windows at once, if they fit into ``memory``; None is as many as stay in the caches of a CPU, and
            512 on a GPU.
        precision: ``"model"``, or ``"bfloat16"``: compute in bfloat16; approximate.
        growth_cap: None, or the longest side that a changed rectangle may have, as a fraction of its map: Krypton's
            projective-field threshold; approximate, as the influence beyond is left out.
        check: whether approximate modes measure their error.
        advance: is called with the number of windows that are done.

    In approximate modes ``stats["error"]`` holds, for 16 windows chosen at random (always the same ones) and recomputed
    by the model itself, ``windows`` (their number), ``largest`` and ``mean`` absolute difference of the values.

    Raises:
        TypeError, ValueError: a wrong type, shape, device or range; the message names the argument.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    >>> sweep(model, torch.ones(1, 1, 8, 8), torch.tensor([[0, 0, 2, 2], [6, 6, 8, 8]])).values.shape
    torch.Size([2, 3])
    """
    job = new_job(model, images, boxes, image_index, fill, evaluate, advance)
    checks.one_of(precision, "precision", ("model", "bfloat16"))
    if growth_cap is not None and checks.positive(growth_cap, "growth_cap") > 1:
        raise ValueError(f"growth_cap should be above 0 and at most 1, got {growth_cap}")
    for value, argument in ((memory, "memory"), (batch_size, "batch_size")):
        if value is not None:
            checks.whole_number(value, argument, minimum=1)
    device = job.images.device
    started = time.perf_counter()
    with capture.frozen_model(job.model), torch.no_grad(), _plain_float32(device):
        try:
            made = network(job.model, job.images, torch.bfloat16 if precision == "bfloat16" else None)
            made = made if outputs is None else made.only(outputs)
        except NotTraceable as error:
            job.stats.update(path="dense", reason=str(error), prepare_seconds=time.perf_counter() - started)
            job.run_model(job.windows, batch_size or _BATCH[device.type])
        else:
            job.stats["prepare_seconds"] = time.perf_counter() - started
            images_run = job.images.to(torch.bfloat16) if precision == "bfloat16" else job.images
            _Engine(job, made, images_run, growth_cap, memory or _free_memory(device), batch_size).run()
        values = job.all_values()
        if check and (precision != "model" or growth_cap is not None):
            job.stats["error"] = job.error(values)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # else the seconds would be those of queueing the work
    seconds = time.perf_counter() - started
    each = (seconds - job.stats["prepare_seconds"]) / max(1, len(job.boxes))
    dense = job.stats["dense_seconds"]
    job.stats.update(seconds=seconds, measured_gain=None if dense is None else dense / each)
    return Sweep(values, job.stats)


class _UnusableError(ValueError):
    """The steps cannot be used for some images; the message says why."""


class _Engine:
    """Runs a job through the steps, the images in chunks whose clean maps fit into half of the memory."""

    def __init__(
        self, job: Job, made: Network, images: Tensor, growth_cap: float | None, memory: int, batch_size: int | None
    ) -> None:
        begun = time.perf_counter()
        self.job = job
        self.made = made
        self.images = images
        self.memory = memory
        self.batch_size = batch_size
        device, value_bytes = images.device, images.element_size()
        self.groups = group_windows(made.steps, job.boxes, value_bytes, cap=growth_cap, device=device.type)
        split = len(made.steps) - made.tail
        self.head, self.tail = made.steps[:split], made.steps[split:]
        self.runners = [Runner(self.head, group.schedule, device) for group in self.groups]
        self.waiting: list[tuple[Tensor, Tensor]] = []  # what the head gave, and the numbers of its windows
        self.clean_bytes = clean_bytes(made.steps, self.groups, value_bytes)
        job.stats.update(predicted(made.steps, self.groups, value_bytes))
        if self.groups and not any(group.schedule.ways for group in self.groups):
            job.stats.update(path="dense", reason="windows soon change whole maps, so that rectangles save nothing")
        job.stats["prepare_seconds"] += time.perf_counter() - begun

    def run(self) -> None:
        chunk = max(1, min(len(self.images), int(self.memory / 2 / max(1.0, self.clean_bytes))))
        for first in range(0, len(self.images), chunk):
            inside = (self.job.image >= first) & (self.job.image < first + chunk)
            if not bool(inside.any()):
                continue
            try:
                clean = self._clean(first, chunk)
            except _UnusableError as error:
                self.job.stats.update(path="dense", reason=str(error))
                self.job.run_model(inside.nonzero().flatten(), self.batch_size or _BATCH[inside.device.type])
                continue
            covered = self._covered(first, chunk)
            replays = None
            if replay.recordings(self.images) is not None:
                # Their own, for this chunk: they read its clean maps.
                replays = replay.Recordings(shared_memory=True)
            for group, runner in zip(self.groups, self.runners, strict=True):
                self._run_group(clean, covered, group, runner, inside, replays)
        self._run_tail(least=1)

    def _clean(self, first: int, chunk: int) -> Clean:
        """The clean pass, if it is finite and gives what the model gives."""
        clean = clean_pass(self.made.steps, self.images[first : first + chunk], self.groups)
        fill = self.job.fill
        if not clean.is_finite or (isinstance(fill, Tensor) and not bool(torch.isfinite(fill).all())):
            raise _UnusableError("the images, the fill or the network's values are not finite")
        if "dense_seconds" not in self.made.facts:
            self._compare(clean.output, self.job.images[first : first + chunk])
        self.job.stats["dense_seconds"] = self.made.facts["dense_seconds"]
        return clean

    def _compare(self, output: Tensor, images: Tensor) -> None:
        """The steps against the model, once for all sweeps."""
        begun = time.perf_counter()
        expected = self.job.model(images.clone())
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        taken = (time.perf_counter() - begun) / len(images)
        if self.made.outputs is not None:
            expected = expected[:, list(self.made.outputs)]
        difference = float((output.double() - expected.double()).abs().max())
        if not difference <= _TOLERANCE.get(output.dtype, 1e-2) * float(expected.abs().max()):
            raise _UnusableError(f"the exported graph gives other numbers than the model, {difference:.2g} apart")
        self.made.facts["dense_seconds"] = taken

    def _covered(self, first: int, chunk: int) -> Covered:
        fill = self.job.fill
        if isinstance(fill, Tensor):
            fill = fill.to(self.images.dtype)
            if fill.dim() == 4 and len(fill) > 1:
                fill = fill[first : first + chunk]
        images = self.images[first : first + chunk]
        return Covered(images, self.job.boxes.to(images.device), self.job.image - first, fill)

    def _run_group(
        self,
        clean: Clean,
        covered: Covered,
        group: Group,
        runner: Runner,
        inside: Tensor,
        replays: replay.Recordings | None,
    ) -> None:
        """The windows of a group that are ``inside`` the chunk, bool [P]."""
        windows, row, column = (each.to(inside.device) for each in (group.windows, group.row, group.column))

        def outputs(*of: Tensor) -> replay.Outputs:
            return (runner.run(clean, covered, *of),)

        def run(at: Tensor) -> None:
            self._run_tail(least=_TAIL)
            of = windows[at], row[at], column[at]
            (output,) = outputs(*of) if replays is None else replays.replayed(runner, outputs, *of)
            self.waiting.append((output, windows[at]))
            self.job.advance(len(at))

        in_batches(inside[windows].nonzero().flatten(), self._batch_size(group), self.job.stats, run)

    def _batch_size(self, group: Group) -> int:
        peak = max(1.0, group.schedule.peak)
        # half is for the clean maps, and a third of the rest for what single operations need for themselves
        fits = int(self.memory / 3 / peak)
        if self.batch_size is not None:
            wanted = self.batch_size
        elif self.images.is_cuda:
            wanted = 512
        else:
            wanted = max(4, torch.get_num_threads(), min(32, int(_CACHE / peak)))
        return max(1, min(wanted, fits))

    def _run_tail(self, least: int) -> None:
        """The last steps for all windows that wait for them, if there are at least that many."""
        if sum(len(windows) for _, windows in self.waiting) < (least if self.tail else 1):
            return
        output = torch.cat([value for value, _ in self.waiting])
        windows = torch.cat([windows for _, windows in self.waiting])
        if self.tail:
            output, _ = run_whole(self.tail, {self.head[-1]: output})
        self.waiting = []
        self.job.put(self._all_entries(output.to(self.job.images.dtype)), windows)

    def _all_entries(self, output: Tensor) -> Tensor:
        if self.made.outputs is None:
            return output
        whole = output.new_full((len(output), *self.made.shape), torch.nan)
        whole[:, list(self.made.outputs)] = output
        return whole


def _free_memory(device: torch.device) -> int:
    """Bytes for a sweep: on a GPU half of what is free, to which belongs what torch holds without using it."""
    if device.type != "cuda":
        return _MEMORY
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + unused) // 2


@contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    """Convolutions on a GPU in float32 as it is, not in TF32, whose 10 bits are too few for "the same numbers"."""
    if device.type != "cuda":
        yield
        return
    settings: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before
