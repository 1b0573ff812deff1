"""A sweep: a network evaluated on images with many windows covered, one at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz import ops
from fastviz._util import checks
from fastviz._util.memory import keep_small_blocks
from fastviz.engine.incremental import worth
from fastviz.engine.incremental.agreement import StaleError, UnusableError, compare
from fastviz.engine.incremental.execute import Clean, Covered, Runner, clean_bytes, clean_pass
from fastviz.engine.incremental.job import Evaluate, Job, in_batches, new_job, whole_passes
from fastviz.engine.incremental.limits import free_memory, windows_at_once
from fastviz.engine.incremental.network import Network, kept, network
from fastviz.engine.incremental.plan import Group, predicted
from fastviz.engine.incremental.plan_cache import kept_groups
from fastviz.engine.incremental.tail import Tail
from fastviz.engine.incremental.work import counted, known
from fastviz.execution import cuda_graphs
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.full_precision import full_float32
from fastviz.execution.inputs import output_of
from fastviz.execution.precision import Precision, checked_precision
from fastviz.graph.model_graph import NotTraceable

__all__ = ["Sweep", "sweep"]

Tracing = Literal["auto", "always", "never"]


@dataclass(frozen=True, eq=False)
class Sweep:
    """The result of :func:`sweep`.

    Attributes:
        values: [P, ...], the result of ``evaluate`` for each window.
        stats: how it was computed: ``path`` (``"incremental"`` or ``"dense"``), ``reason`` (why it is dense; else
            empty), ``alone`` (why each window went through the model alone, regardless of ``batch_size``; else empty),
            ``windows``, ``batch_size``, ``batches``, ``retries`` (batches halved because memory ran out), ``flops`` and
            ``dense_flops`` (per window, counted), ``predicted_gain`` (of work, counted), ``seconds`` (in total),
            ``prepare_seconds`` (tracing and planning, once per model), ``dense_seconds`` (the model's fastest measured
            time for an image; None if not measured), ``measured_gain`` (``dense_seconds`` divided by the seconds per
            window without preparation) and, in approximate modes, ``error`` (see :func:`sweep`).
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
    trace: Tracing = "auto",
    clean: Any = None,
    begun: Tensor | None = None,
    batches: Batches | None = None,
    advance: Callable[[int], object] = lambda windows: None,
) -> Sweep:
    """The output of ``model`` with each of ``boxes`` covered, computed only where a box changes something.

    Equal to ``evaluate(model(ops.occlude(images, boxes, image_index, fill)))`` up to rounding, unless ``precision`` or
    ``growth_cap`` allow more. Nakandala, Kumar, Papakonstantinou 2019, "Incremental and Approximate Inference for
    Faster Occlusion-based Deep CNN Explanations", https://doi.org/10.1145/3299869.3319874; here the exact mode also
    shares the work of all windows of one size, and switches to whole maps where that is cheaper.

    A model that cannot be exported to a graph, that has forward hooks, or whose graph gives other results than the
    model itself, runs unchanged on batches of covered images; so do images and fills with values that are not finite,
    or that lead to such values in the network. A model that may mix the images of a batch, or draws random numbers,
    gets one image at a time (:mod:`fastviz.execution.batches`). ``stats`` reports this. The graph is kept until the
    model changes or is deleted. To detect changes that are not visible from outside, each sweep compares the steps with
    the model itself on the unchanged images and on one window; if they differ, the graph is rebuilt.

    A model is only traced if that is worthwhile (:mod:`fastviz.engine.incremental.worth`): in this sweep, or because
    earlier sweeps of the same model have taken much longer than tracing would. Otherwise full passes run, and
    ``reason`` says so.

    Args:
        model: maps images [N, C, H, W] to an output with the images in dimension 0; used in evaluation mode.
        images: [N, C, H, W], floating-point, as the model takes them; or signals [N, C, L], or volumes [N, C, D, H, W].
        boxes: [P, 4], integers: top, left, bottom, right in pixels, half-open; cropped at the image's border. For
            signals [P, 2]: start, stop; for volumes [P, 6]: front, top, left, back, bottom, right.
        image_index: [P], integers, the image of each box; optional for one image.
        fill: the replacement values: a number, a value for each channel [C], or images [1 or N, C, H, W].
        evaluate: maps the output for a batch of windows and their numbers, int64 [B], to the values to keep, [B, ...];
            None keeps the output. Batches come in any order.
        outputs: the entries of the output [N, K] that ``evaluate`` reads; the others may be NaN. None is all.
        memory: the maximum bytes that the sweep may hold, not counting the model's own needs for a batch; None is 1 GiB
            on the CPU and half of the free memory on a GPU.
        batch_size: windows in a pass, if they fit into ``memory``; None is as many as fit the caches of a CPU, and 512
            on a GPU.
        precision: ``"model"``, or ``"bfloat16"``: compute in bfloat16; approximate.
        growth_cap: None, or the maximum side of a changed rectangle, as a fraction of its map: Krypton's
            projective-field threshold; approximate, since changes beyond it are ignored.
        check: whether approximate modes measure their error.
        trace: ``"auto"``: see above; ``"always"``: trace even for few windows; ``"never"``: full passes.
        clean: the model's output for ``images``, if known; None runs the model.
        begun: its output for the first windows, if known, so that full passes need not repeat them; None is for none.
        batches: knowledge about the model and batches of images from this call, or None.
        advance: called with the number of finished windows.

    In approximate modes ``stats["error"]`` holds ``windows`` (their number), ``largest`` and ``mean`` absolute
    difference of the values for 16 random windows (with a fixed seed) recomputed by the model itself.

    Raises:
        TypeError, ValueError: a wrong type, shape, device or range; the message names the argument.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    >>> sweep(model, torch.ones(1, 1, 8, 8), torch.tensor([[0, 0, 2, 2], [6, 6, 8, 8]])).values.shape
    torch.Size([2, 3])
    """
    job = new_job(model, images, boxes, image_index, fill, evaluate, advance, batches)
    checked_precision(precision)
    checks.one_of(trace, "trace", ("auto", "always", "never"))
    _check_limits(growth_cap, memory, batch_size)
    device = job.images.device
    started = time.perf_counter()
    approximate = precision != "model" or growth_cap is not None
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    with frozen_model(job.model), torch.no_grad(), full_float32(device):
        job.clean = clean
        try:
            done = 0 if begun is None else len(begun)
            made = _prepared(job, dtype, done, trace if not approximate or trace != "auto" else "always")
            made = made if outputs is None else made.only(outputs)
        except NotTraceable as error:
            job.stats.update(path="dense", reason=str(error), prepare_seconds=time.perf_counter() - started)
            if begun is not None:
                job.begin(begun)
            job.run_model(job.windows, batch_size or whole_passes(job.model, job.images))
            worth.spend(known(job.model, job.images), len(job.boxes))
        else:
            job.stats["prepare_seconds"] = time.perf_counter() - started
            if job.clean is None and len(job.boxes):
                job.clean = _clean_outputs(job)
            images_run = job.images if dtype is None else job.images.to(dtype)
            settings = growth_cap, memory or free_memory(device), batch_size
            try:
                _Engine(job, made, images_run, *settings).run()
            except StaleError:
                made = network(job.model, job.images, dtype, rebuild=True)
                made = made if outputs is None else made.only(outputs)
                job.stats["prepare_seconds"] = time.perf_counter() - started
                _Engine(job, made, images_run, *settings).run()
        values = job.all_values()
        if check and approximate:
            job.stats["error"] = job.error(values)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # otherwise the time would only cover queueing the work
    _note_seconds(job, time.perf_counter() - started, approximate)
    return Sweep(values, job.stats)


def _note_seconds(job: Job, seconds: float, approximate: bool) -> None:
    """Record the time of the sweep in its ``stats`` and, if exact, for later decisions."""
    each = (seconds - job.stats["prepare_seconds"]) / max(1, len(job.windows))
    dense = job.stats["dense_seconds"]
    job.stats.update(seconds=seconds, measured_gain=None if dense is None else dense / each)
    if not approximate:
        on_rectangles = job.stats["path"] == "incremental"
        if not on_rectangles or dense is not None:
            boxes = job.boxes[job.done :]
            worth.timed(known(job.model, job.images), boxes, each, dense if on_rectangles else None)


def _check_limits(growth_cap: float | None, memory: int | None, batch_size: int | None) -> None:
    if growth_cap is not None and checks.positive(growth_cap, "growth_cap") > 1:
        raise ValueError(f"growth_cap should be above 0 and at most 1, got {growth_cap}")
    for value, argument in ((memory, "memory"), (batch_size, "batch_size")):
        if value is not None:
            checks.whole_number(value, argument, minimum=1)


def _clean_outputs(job: Job) -> Any:
    """The model's output for the unchanged images; None if there are several and it is not a tensor."""
    found = []

    def run(images: Tensor) -> Any:
        with counted(job.model, images):
            return output_of(job.model, images)

    for part in job.images.split(whole_passes(job.model, job.images)):
        found += job.batches(lambda images: job.batches.watched(run, images.clone()), part)
    if len(found) == 1:
        return found[0]
    return torch.cat(found) if all(isinstance(each, Tensor) for each in found) else None


def _prepared(job: Job, dtype: torch.dtype | None, begun: int, trace: Tracing) -> Network:
    """The steps of the job's model, from an earlier call or because they are worthwhile with some windows ``begun``.

    Raises:
        NotTraceable: there are none, or they are not worthwhile.
    """
    if trace == "never":
        raise NotTraceable("no trace was wanted")
    if trace == "always":
        return network(job.model, job.images, dtype)
    if len(job.images) and known(job.model, job.images) is None and job.clean is None:
        job.clean = _clean_outputs(job)
    work = known(job.model, job.images)
    found = kept(job.model, job.images, dtype)
    if found is None:
        reason = worth.refusal(job.model, job.images, job.boxes, begun)
    else:
        reason = worth.slower(work, job.boxes)
    if reason:
        raise NotTraceable(reason)
    if found is None and work is not None:
        work.spent = 0.0
    return found or network(job.model, job.images, dtype)


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
        self.growth_cap = growth_cap
        self.batch_size = batch_size
        device, value_bytes = images.device, images.element_size()
        self.groups = kept_groups(made, job.boxes, value_bytes, growth_cap, device.type)
        self.tail = Tail(made, job.put, job.images.dtype)
        self.runners = [Runner(self.tail.head, group.schedule, device) for group in self.groups]
        self.clean_bytes = clean_bytes(made.steps, self.groups, value_bytes)
        job.stats.update(predicted(made.steps, self.groups, value_bytes))
        if self.groups and not any(group.schedule.window_inputs for group in self.groups):
            job.stats.update(path="dense", reason="windows soon change whole maps, so that rectangles save nothing")
        job.stats["prepare_seconds"] += time.perf_counter() - begun

    def run(self) -> None:
        if not self.images.is_cuda:
            keep_small_blocks()
        chunk = max(1, min(len(self.images), int(self.memory / 2 / max(1.0, self.clean_bytes))))
        for first in range(0, len(self.images), chunk):
            inside = (self.job.image >= first) & (self.job.image < first + chunk)
            if not bool(inside.any()):
                continue
            try:
                self._run_chunk(first, chunk, inside)
            except UnusableError as error:  # raised before any window was done
                self.job.stats.update(path="dense", reason=str(error))
                self.job.run_model(
                    inside.nonzero().flatten(), self.batch_size or whole_passes(self.job.model, self.job.images)
                )
        self.tail.flush()

    def _run_chunk(self, first: int, chunk: int, inside: Tensor) -> None:
        """The windows of some images, which are ``inside``, bool [P]."""
        clean = self._clean(first, chunk)
        covered = self._covered(first, chunk)
        replays = None
        if cuda_graphs.recordings(self.images) is not None:
            # separate for this chunk, because they read its clean maps
            replays = cuda_graphs.CapturedPasses(shared_memory=True)
        pairs = sorted(zip(self.groups, self.runners, strict=True), key=lambda pair: -len(pair[0].windows))
        compared = bool(self.growth_cap) or self.job.stats["dense_seconds"] is not None
        for group, runner in pairs:
            at = inside[group.windows.to(inside.device)].nonzero().flatten()
            if not len(at):
                continue
            expected = None
            if not compared:
                # Steps and model may differ only if something is covered. A window in the middle runs first, to compare
                # it before others are done.
                at, compared = at.roll(-(len(at) // 2)), True
                expected = self._model_on(group.windows[at[:1].cpu()])
            self._run_group(clean, covered, group, runner, at, expected, replays)

    def _clean(self, first: int, chunk: int) -> Clean:
        """The clean pass, checked to be finite and equal to the model."""
        clean = clean_pass(self.made.steps, self.images[first : first + chunk], self.groups)
        fill = self.job.fill
        finite = math.isfinite(fill) if isinstance(fill, float) else bool(torch.isfinite(fill).all())
        if not clean.is_finite or not finite:
            raise UnusableError("the images, the fill or the network's values are not finite")
        expected = self.job.clean
        if not isinstance(expected, Tensor):
            raise UnusableError("the model gives something other than one tensor")
        compare(
            self.made, "clean", self.tail.all_entries(clean.output), expected[first : first + chunk], self.images.dtype
        )
        return clean

    def _model_on(self, window: Tensor) -> Tensor | None:
        """The model's output for one window, timed; None if it is not finite, since then only the kind of value that is
        not differs."""
        job, window = self.job, window.to(self.images.device)
        images = ops.occlude(job.images, job.boxes_by_images[window], job.image[window], job.fill)
        begun = time.perf_counter()
        expected: Tensor = job.model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        taken = time.perf_counter() - begun
        if not bool(torch.isfinite(expected).all()):
            return None
        self.made.facts["dense_seconds"] = min(taken, self.made.facts.get("dense_seconds", math.inf))
        job.stats["dense_seconds"] = self.made.facts["dense_seconds"]
        return expected

    def _covered(self, first: int, chunk: int) -> Covered:
        fill = self.job.fill
        if isinstance(fill, Tensor):
            fill = fill.to(self.images.dtype)
            if fill.dim() > 1 and len(fill) > 1:
                fill = fill[first : first + chunk]
        images = self.images[first : first + chunk]
        return Covered(images, self.job.boxes_by_images, self.job.image - first, fill)

    def _run_group(
        self,
        clean: Clean,
        covered: Covered,
        group: Group,
        runner: Runner,
        at: Tensor,
        expected: Tensor | None,
        replays: cuda_graphs.CapturedPasses | None,
    ) -> None:
        """The windows ``at`` these positions of a group, int64 [B], of which the first should give ``expected``."""
        windows, members = group.windows.to(at.device), group.members.to(at.device)
        unchecked = [] if expected is None else [expected]

        def outputs(*of: Tensor) -> cuda_graphs.Outputs:
            return (runner.run(clean, covered, *of),)

        def run(at: Tensor) -> None:
            of = windows[at], members[at]
            (output,) = outputs(*of) if replays is None else replays.replayed(runner, outputs, *of)
            while unchecked:
                compare(self.made, "covered", self.tail.output(output[:1]), unchecked[0], self.images.dtype)
                unchecked.pop()
            self.tail.add(output, windows[at])
            self.job.advance(len(at))

        size = windows_at_once(group.schedule.peak, self.memory, self.batch_size, self.images.device)
        in_batches(at, size, self.job.stats, run)
