"""Decides which calls of captum's perturbation classes fastviz computes itself, and prepares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastviz import ops
from fastviz.compat.captum import _bases
from fastviz.compat.captum._forward import select, target_of
from fastviz.engine import incremental
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.hooks import has_hooks

__all__ = ["Call", "Job", "LeftToCaptum", "accepted"]

MIN_WORK = 2e10
"""Minimum number of floating-point operations of a call's full forward passes. Smaller calls are left to captum,
because preparing a model takes about a second, once."""

_OTHER_IN_TRAINING = (
    nn.modules.dropout._DropoutNd,
    nn.modules.batchnorm._NormBase,
    nn.RReLU,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
)
"""Modules that behave differently in training mode."""


class LeftToCaptum(Exception):  # noqa: N818 - no error: it says why the call takes captum's own path
    """Raised for calls that fastviz does not compute itself; the message says why."""


@dataclass(frozen=True)
class Call:
    """A call that fastviz may compute itself, before the model has run.

    Attributes:
        model: the model.
        images: [N, C, H, W], or signals or volumes.
        fill: the values of covered pixels: a number, or [1 or N, C, H, W].
    """

    model: nn.Module
    images: Tensor
    fill: float | Tensor

    def job(self, target: object, box: Tensor, windows: int) -> Job:
        """Run the model on the unchanged images and check that fastviz can compute the call.

        Args:
            target: captum's target.
            box: one of the windows, [1, 2 · axes].
            windows: number of windows per image.

        Raises:
            LeftToCaptum: captum has to compute the call.
            AssertionError, IndexError, RuntimeError: the target does not fit the output.
        """
        evaluations = windows * len(self.images)
        self._require_work(evaluations)
        batches = Batches(self.model)
        with self._without_side_effects(), incremental.counted(self.model, self.images):
            output = self._checked_output(batches, self.images)
        self._require_work(evaluations)
        count = self.images.shape[:1]
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != count:
            raise LeftToCaptum("the output is not a floating-point tensor with one entry per image")
        clean = select(output, target)
        if clean.shape[:1] != count or not clean.numel():
            raise LeftToCaptum("the target does not select one or several values per image")
        self._require_same_in_evaluation(output)
        if len(self.images) == 1:
            fill = self.fill[:1] if isinstance(self.fill, Tensor) else self.fill
            covered = ops.occlude(self.images, box.to(self.images.device), None, fill)
            with self._without_side_effects():
                try:
                    self._checked_output(batches, torch.cat([self.images, covered]))
                except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
                    raise LeftToCaptum("the model takes one image at a time") from error
        return Job(self.model, self.images, self.fill, target, output, clean.reshape(len(self.images), -1), batches)

    def _checked_output(self, batches: Batches, images: Tensor) -> Any:
        """The model's output for all ``images`` in one pass, if it is proved that they do not affect one another."""
        outputs = batches(lambda part: batches.watched(self.model, part.clone()), images)
        if batches.reason or len(outputs) != 1:
            raise LeftToCaptum(f"the output for an image may depend on the others of its batch: {batches.reason}")
        return outputs[0]

    def _require_work(self, evaluations: int) -> None:
        """Raise if the call is known to be less work than preparing the model."""
        work = incremental.known(self.model, self.images)
        if work is not None and _bases.installed and work.operations * evaluations < MIN_WORK:
            raise LeftToCaptum("the call is less work than preparing the model")

    def _require_same_in_evaluation(self, output: Tensor) -> None:
        """Raise for a model in training mode whose output differs in evaluation mode, which sweeps use."""
        if not any(module.training for module in self.model.modules()):
            return
        with frozen_model(self.model), self._without_side_effects():
            other = self.model(self.images.clone())
        if not isinstance(other, Tensor) or not torch.equal(other, output):
            raise LeftToCaptum("the model is in training mode")

    @contextmanager
    def _without_side_effects(self) -> Iterator[None]:
        """For passes that captum does not make: no gradients, and no effect on the random number generators."""
        devices = [self.images.device] if self.images.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield


@dataclass(frozen=True)
class Job(Call):
    """A call that fastviz computes itself.

    Attributes:
        target: captum's target.
        output: the model's output for the unchanged images.
        clean: [N, M], the target's values in it.
        batches: whether and how the model can be run on batches.
    """

    target: object
    output: Tensor
    clean: Tensor
    batches: Batches

    def values(self, boxes: Tensor, sample: Tensor, fill: float | Tensor, advance: Callable[[int], object]) -> Tensor:
        """[P, M]: the target's values when each of ``boxes`` [P, 4] covers a part of the image ``sample`` [P]."""
        return incremental.sweep(
            self.model,
            self.images,
            boxes.to(self.images.device),
            sample,
            fill,
            lambda output, number: select(output, target_of(self.target, sample[number])).reshape(len(number), -1),
            outputs=_entries(self.output, self.target),
            clean=self.output,
            batches=self.batches,
            advance=advance,
        ).values


def accepted(
    attribution: Any, kind: type, inputs: object, baselines: object, extra: object, perturbations_per_eval: object
) -> Call:
    """The call, if fastviz can compute it as far as is known without running the model.

    Raises:
        LeftToCaptum: captum has to compute the call.
    """
    model = _module(attribution.forward_func)
    if type(attribution) is not kind:
        raise LeftToCaptum(f"{type(attribution).__name__} may override methods")
    if extra is not None:
        raise LeftToCaptum("the model takes further arguments")
    if type(perturbations_per_eval) is not int or perturbations_per_eval < 1:
        raise LeftToCaptum("perturbations_per_eval is not a whole number of at least 1")
    images = _images(inputs)
    if torch.is_autocast_enabled(images.device.type):
        raise LeftToCaptum("autocast is on")
    return Call(model, images, _fill(baselines, images))


def _module(model: object) -> nn.Module:
    """``model``, if it is a module without hooks, wrappers or compiled code."""
    if not isinstance(model, nn.Module):
        raise LeftToCaptum("forward_func is not a module")
    if isinstance(model, (torch.jit.ScriptModule, nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise LeftToCaptum(f"forward_func is a {type(model).__name__}")
    for name, module in model.named_modules():
        if has_hooks(module, backward=False):
            raise LeftToCaptum(f"{name or 'the model'} has forward hooks")
        if module._compiled_call_impl is not None or hasattr(module, "_orig_mod"):
            raise LeftToCaptum(f"{name or 'the model'} is compiled")
        if module.training and isinstance(module, _OTHER_IN_TRAINING):
            raise LeftToCaptum("the model is in training mode")
    return model


def _images(inputs: object) -> Tensor:
    images = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
    if type(images) not in (Tensor, nn.Parameter):
        raise LeftToCaptum("the inputs are not one tensor")
    assert isinstance(images, Tensor)
    if images.dim() not in (3, 4, 5) or not images.is_floating_point() or images.device.type not in ("cpu", "cuda"):
        raise LeftToCaptum("the inputs are not images, signals or volumes of floating-point values")
    if not images.numel() or not bool(torch.isfinite(images).all()):
        raise LeftToCaptum("there are no images, or some of their values are not finite")
    return images.detach()


def _fill(baselines: object, images: Tensor) -> float | Tensor:
    """The baseline as a number or as images [1 or N, C, H, W]."""
    baseline = baselines[0] if isinstance(baselines, tuple) and len(baselines) == 1 else baselines
    if baseline is None:
        return 0.0
    if isinstance(baseline, (int, float)):
        if not abs(baseline) < torch.inf:
            raise LeftToCaptum("the baseline is not finite")
        return float(baseline)
    if type(baseline) not in (Tensor, nn.Parameter):
        raise LeftToCaptum("the baselines are not one number or tensor")
    assert isinstance(baseline, Tensor)
    wanted = (len(baseline) if baseline.dim() == images.dim() else 1, *images.shape[1:])
    if baseline.dim() > images.dim() or wanted[0] not in (1, len(images)):
        raise LeftToCaptum("the baseline does not have the images' shape")
    if any(size not in (1, other) for size, other in zip(baseline.shape[::-1], wanted[::-1], strict=False)):
        raise LeftToCaptum("the baseline does not have the images' shape")
    if torch.result_type(baseline, images) != images.dtype or (baseline.dim() and baseline.device != images.device):
        raise LeftToCaptum("the baseline has another dtype or device than the images")
    if not bool(torch.isfinite(baseline).all()):
        raise LeftToCaptum("the baseline is not finite")
    return baseline.detach().to(images).expand(wanted).contiguous()


def _entries(output: Tensor, target: object) -> list[int] | None:
    """The columns of the output [N, K] that ``target`` reads; None if they are unknown, or all are read."""
    if output.dim() != 2 or target is None:
        return None
    each: list[Any] = (
        target.flatten().tolist() if isinstance(target, Tensor) else target if isinstance(target, list) else [target]
    )
    numbers = [entry[0] if isinstance(entry, tuple) and len(entry) == 1 else entry for entry in each]
    if not all(isinstance(number, int) for number in numbers):
        return None
    return sorted({number % output.shape[1] for number in numbers})
