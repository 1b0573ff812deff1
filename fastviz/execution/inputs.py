"""Checks whether a model can run on an input: before the run if possible, else by explaining the failure."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fastviz import models
from fastviz._util import checks
from fastviz._util.memory import is_out_of_memory
from fastviz._util.modules import every_module
from fastviz.execution import exported, quantised
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.precision import NARROW, as_map, weights_dtype
from fastviz.execution.preparedness import say_unprepared

__all__ = ["UnusableInputError", "convolution_axes", "input_batch", "output_of", "require_gradients", "usable"]


def input_batch(
    model: nn.Module, x: object, argument: str = "x", *, wide: bool = False, axes: tuple[int, ...] = (2,)
) -> Tensor:
    """``x``, if it is a floating-point batch [N, C, H, W] that ``model`` can be given; N may be 0.

    ``axes`` says how many the method works on: 1 are signals [N, C, L], 3 volumes [N, C, D, H, W].

    Another dtype than that of the first parameter is tried on one image: some models cast their input themselves.
    Images for a 16-bit model come in its dtype, or in float32 if they are to be ``wide``, for methods that change them:
    :func:`fastviz.execution.precision.as_taken` converts them for each pass. A warning is given for images that do not
    look prepared for the model.

    Raises:
        TypeError: ``model`` is not a module, or needs more than images; ``x`` is not a floating-point tensor, or of a
            dtype that ``model`` refuses.
        ValueError: ``x`` has another number of dimensions, no channels or pixels, or is on a device on which the model
            has nothing, or that is neither a CPU nor a GPU that torch calls cuda; inside of ``torch.export``.
    """
    checks.not_exporting()
    _only_images(checks.module(model))
    batch = checks.image_batch(x, argument, axes=axes)
    if batch.dim() - 1 in axes and _is_one_input(model, batch):
        checks.image_batch(x, argument, axes=(batch.dim() - 1,))  # this error says that the batch dimension is missing
    if 0 in batch.shape[1:]:
        raise ValueError(f"{argument} should have at least one channel and one pixel, got {list(batch.shape)}")
    fixed = exported.fixed_batch(model)
    if fixed is not None and len(batch) != fixed:
        raise ValueError(
            f"{argument} should have {fixed} images, the number that the model was exported for, got {len(batch)}"
        )
    devices = checks.devices(model)
    if devices and batch.device not in devices:
        raise ValueError(
            f"{argument} should be on the device of the model, {', '.join(map(str, devices))}, got {batch.device}"
        )
    checks.device(batch.device, argument)
    batch = _in_dtype_of(model, batch, argument, wide=wide)
    say_unprepared(model, batch, argument)
    return batch


def _in_dtype_of(model: nn.Module, batch: Tensor, argument: str, *, wide: bool) -> Tensor:
    """``batch`` in a dtype that ``model`` takes, see :func:`input_batch`."""
    own = weights_dtype(model) or batch.dtype
    if wide and own in NARROW:
        return batch.float()
    if own != batch.dtype:
        wrong = _wrong_dtype(model, batch, argument)
        if own in NARROW and (wrong is not None or not len(batch)):
            return batch.to(own)
        if wrong is not None:
            raise TypeError(wrong)
    return as_map(batch) if wide else batch


def convolution_axes(model: nn.Module) -> set[int]:
    """How many axes the convolutions of ``model`` slide along: 1 for signals, 2 for images, 3 for volumes."""
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    return {axes for axes, kind in kinds.items() if any(isinstance(module, kind) for module in every_module(model))}


def _is_one_input(model: nn.Module, batch: Tensor) -> bool:
    """Whether a batch (of signals, say) is really one image [C, H, W], because all convolutions have one more axis."""
    return convolution_axes(model) == {batch.dim() - 1} and _runs(model, batch[None])


def _only_images(model: nn.Module) -> None:
    """Refuse a ``model`` that cannot be called with images alone, and say how it can."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # scripts have no signature
        return
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each.name for each in parameters if each.default is each.empty and each.kind not in several]
    if len(needed) > 1:
        raise TypeError(
            f"model should take images alone, and needs {', '.join(needed)}: fastviz.fix_inputs(model, ...) gives it "
            "the others"
        )


class UnusableInputError(ValueError, RuntimeError):
    """A model cannot be run on what it was given; the message says what it can be run on, where that was found."""


def output_of(model: nn.Module, x: Tensor, argument: str = "x") -> Any:
    """The output of ``model`` for ``x``; see :func:`usable`. A model that works in place on its input changes ``x``."""
    with usable(model, x, argument):
        return model(x)


@contextmanager
def usable(model: nn.Module, x: Tensor, argument: str | None = "x") -> Iterator[None]:
    """Within the ``with`` block, explains errors of ``model`` when it runs on ``x``: which argument is wrong, and a
    fix.

    ``"size"`` is for images that were made in a size that the caller chose. Without an ``argument`` errors pass
    unchanged.

    Raises:
        UnusableInputError: what torch says of the model and ``x``, unless memory ran out, with their shape and dtype.
    """
    shape = list(x.shape)
    try:
        yield
    except TypeError as error:
        if "required positional argument" in str(error):
            _only_images(model)
        raise
    except (RuntimeError, AssertionError, IndexError) as error:
        known = isinstance(error, UnusableInputError) or is_out_of_memory(error)
        if argument is None or known or _runs(model, x):
            raise
        raise UnusableInputError(_unusable(model, x, shape, argument, error)) from error


def _unusable(model: nn.Module, x: Tensor, shape: list[int], argument: str, error: Exception) -> str:
    """Which argument, what is needed, what came."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    wrong = _wrong_dtype(model, x, argument)
    if wrong is not None:
        return wrong
    if len(shape) != 4:
        return f"the model cannot be run on {argument} of shape {shape} and {x.dtype} ({said})"
    sized = argument == "size"
    came = (
        f"the model cannot be run on {'images' if sized else argument} of {shape[2]}x{shape[3]} pixels with "
        f"{shape[1]} channels in {x.dtype} ({said})"
    )
    convolutions = {getattr(module, "in_channels", None) for module in model.modules()}
    others = sorted({1, 3, *(number for number in convolutions if isinstance(number, int) and number > 0)} - {shape[1]})
    usual = models.preprocessing(model).size or (224, 224)
    for size in ([*shape[2:]], [*usual]):
        for channels in (shape[1], *others):
            if [channels, *size] != shape[1:] and _runs(model, x.new_zeros(1, channels, *size)):
                cure = f"{came}; it can be run on [N, {channels}, {size[0]}, {size[1]}]"
                if channels != shape[1]:
                    return f"{cure}; fastviz.describe(model, preprocessing=...) sets its channels"
                return f"size should be one that the model can take: {cure}" if sized else cure
    return came


def _wrong_dtype(model: nn.Module, x: Tensor, argument: str) -> str | None:
    """The message if ``model`` can run on ``x`` only in the dtype of its parameters; None if that is not the cause."""
    own = weights_dtype(model) or x.dtype
    if own == x.dtype or not x.numel() or _runs(model, x[:1]) or not _runs(model, x[:1].to(own)):
        return None
    return (
        f"{argument} should have the dtype of the model, {own}, got {x.dtype}: give {argument}.to({own}), or "
        f"model.to({x.dtype})"
    )


def _runs(model: nn.Module, batch: Tensor) -> bool:
    """Whether ``model`` can be run on a ``batch``."""
    devices = [batch.device] if batch.is_cuda else []
    try:
        with frozen_model(model), torch.no_grad(), torch.random.fork_rng(devices):
            model(batch.detach().clone())
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
        return False
    return True


def require_gradients(model: nn.Module) -> None:
    """Refuse a ``model`` with parameters or buffers that cannot take part in a graph, or with quantised layers.

    Raises:
        ValueError: some were made under ``torch.inference_mode()``, or a layer computes with integers; this runs inside
            of ``torch.export``.
    """
    checks.not_exporting()
    if any(value.is_inference() for value in chain(model.parameters(), model.buffers())):
        raise ValueError(
            "model should not have parameters made under torch.inference_mode(), which take no part in gradients; "
            "make or load it outside"
        )
    found = quantised.layer_with_integers(model)
    if found:
        raise ValueError(
            f"model should not be quantised, as no gradient goes through the integers of {found}: give the model as it "
            "was before, or use a method without gradients, such as occlusion"
        )
