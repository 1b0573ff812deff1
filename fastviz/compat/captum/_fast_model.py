"""captum's own code with a faster model: the same calls, in the same order, with the same random numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastviz.compat._order import in_fast_order, may_round
from fastviz.compat.captum import _bases
from fastviz.compat.captum._forward import run, target_of, tensors
from fastviz.compat.captum._sweep import LeftToCaptum, accepted
from fastviz.execution.batches import Batches
from fastviz.execution.differentiation import differentiate
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.memory_format import fast_convolutions

__all__ = [
    "IMAGES_PER_PASS",
    "gradients",
    "images_are_independent",
    "in_chunks",
    "internal_batch",
    "is_captums",
    "own",
    "perturbations_per_pass",
    "with_fast_model",
]

IMAGES_PER_PASS = 16
"""Images per forward pass if the caller gives no number or a larger one; more would not be faster but take memory."""

Attribution = TypeVar("Attribution")


def own(kind: Any) -> Callable[..., Any]:
    """captum's own ``attribute`` of the class ``kind``, without usage logging, which our method already does."""
    computed: Callable[..., Any] = kind.attribute.__wrapped__
    return computed


def with_fast_model(attribution: Attribution) -> Attribution:
    """A copy of ``attribution`` whose model runs in the fast memory order; only for calls without gradients."""
    other: Any = copy.copy(attribution)
    model = other.forward_func
    if not isinstance(model, nn.Module):
        return attribution

    def forward(*arguments: Any) -> Any:
        images = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], Tensor) else None
        if images is None or not may_round(model, (images,)):
            return model(*arguments)

        def compute(batch: Tensor) -> Any:
            with fast_convolutions(model, len(batch)):
                return model(batch)

        return in_fast_order(model, (images,), compute)(images)

    other.forward_func = forward
    return other  # type: ignore[no-any-return]


def images_are_independent(
    attribution: Any, kind: type, inputs: object, baselines: object = None, extra: object = None
) -> bool:
    """Whether it is proved that the model treats the images of a batch independently, so that batches may be split.

    Only checked for a plain module with one batch of images; otherwise False.
    """
    try:
        call = accepted(attribution, kind, inputs, baselines, extra, 1)
    except LeftToCaptum:
        return False
    two = call.images[:1].expand(2, -1, -1, -1)
    batches = Batches(call.model)
    with frozen_model(call.model), torch.no_grad():
        return batches.together(two, lambda images: call.model(images.clone())) > 1


def perturbations_per_pass(attribution: Any, kind: type, inputs: object, extra: object, asked: Any) -> Any:
    """The number of perturbations per forward pass: more than ``asked`` if the model treats images independently."""
    if type(asked) is not int or asked < 1 or asked * len(tensors(inputs)[0]) >= IMAGES_PER_PASS:
        return asked
    if not images_are_independent(attribution, kind, inputs, None, extra):
        return asked
    return max(asked, IMAGES_PER_PASS // len(tensors(inputs)[0]))


def internal_batch(attribution: Any, kind: type, inputs: object, points: int = 1) -> int | None:
    """The default ``internal_batch_size``, at least ``points`` per image; None if images may affect one another."""
    if not images_are_independent(attribution, kind, inputs):
        return None
    return max(IMAGES_PER_PASS, points * len(tensors(inputs)[0]))


def gradients(forward_fn: Any, inputs: Any, target_ind: Any = None, additional_forward_args: Any = None) -> Any:
    """captum's ``compute_gradients``, in the fast memory order."""
    each = tensors(inputs)

    def differentiated(*images: Tensor) -> tuple[Tensor | None, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            leaves = tuple((x.clone() if x.is_inference() else x.detach()).requires_grad_() for x in images)
            with fast_convolutions(forward_fn, len(leaves[0])) if faster else nullcontext():
                output = run(forward_fn, tuple(leaf.clone() for leaf in leaves), target_ind, additional_forward_args)
                if output[0].numel() != 1:
                    raise AssertionError("Target not provided when necessary, cannot take gradient with respect to it")
                return tuple(differentiate(output, leaves))

    faster = may_round(forward_fn, each)
    found = in_fast_order(forward_fn, each, differentiated)(*each)
    return tuple(None if gradient is None else gradient.contiguous() for gradient in found)


def in_chunks(compute: Callable[..., Any]) -> Callable[..., Any]:
    """``compute``, a function like :func:`gradients`, called on :data:`IMAGES_PER_PASS` images of an input at once."""

    def computed(forward_fn: Any, inputs: Any, target_ind: Any = None, additional_forward_args: Any = None) -> Any:
        each = tensors(inputs)
        if len(each) != 1 or additional_forward_args is not None or len(each[0]) <= IMAGES_PER_PASS:
            return compute(forward_fn, inputs, target_ind, additional_forward_args)
        parts = [
            compute(forward_fn, (each[0][at],), target_of(target_ind, at), None)[0]
            for at in torch.arange(len(each[0])).split(IMAGES_PER_PASS)
        ]
        return (torch.cat(parts),)

    return computed


def is_captums(gradient_func: object) -> bool:
    """Whether this is captum's own gradient function and not one that the user set."""
    return gradient_func is _bases.compute_gradients
