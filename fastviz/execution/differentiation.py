"""Backward passes during which torch function modes stay active."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward

__all__ = ["differentiate"]


def differentiate(
    output: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    *,
    retain_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of the sum of ``output`` for the ``inputs``; None for an input that it does not depend on.

    Of the sum of several outputs times their ``weights``, if these are given.

    Like ``torch.autograd.grad``, but the rule of :func:`fastviz.execution.rectifiers.rectifier_rule` also holds in the
    parts of a model that ``torch.utils.checkpoint`` runs again.
    """
    # Every public way to run a backward pass is itself a function that modes intercept, and a mode is off while it
    # handles a call: what is run again would not have the rule. To be replaced once torch.autograd.grad keeps modes on.
    outputs = (output,) if isinstance(output, Tensor) else tuple(output)
    found: tuple[Tensor | None, ...] = _engine_run_backward(
        outputs,
        tuple(torch.ones_like(each) for each in outputs) if weights is None else tuple(weights),
        retain_graph,
        False,  # no graph of the gradient
        tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=False,
    )
    return found
