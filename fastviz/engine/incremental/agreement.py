"""Checks, in each call, that a model's steps give the same as the model itself, since either may change unnoticed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastviz.engine.incremental.network import Network

__all__ = ["StaleError", "UnusableError", "compare"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest difference between steps and model, as a fraction of the largest output, at which steps are used."""

_ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""The same for steps from an earlier call, beyond which they are rebuilt; or :data:`_DRIFT` times their difference when
new, if that is larger."""

_DRIFT = 8.0


class UnusableError(ValueError):
    """The steps cannot be used for some images; the message says why."""


class StaleError(ValueError):
    """The steps of an earlier call give other numbers than the model now."""


def compare(made: Network, what: str, output: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare the ``output`` of the steps with the model's.

    Args:
        made: the steps.
        what: the name of the difference in their facts.
        output: by the steps.
        expected: by the model.
        dtype: the dtype of the steps.

    Raises:
        StaleError: steps from an earlier call differ more from the model than before.
        UnusableError: new steps differ too much from it.
    """
    if made.outputs is not None:
        output, expected = (each[:, list(made.outputs)] for each in (output, expected))
    difference = _difference(output, expected)
    before, most = made.facts.get(what), _TOLERANCE.get(dtype, 1e-2)
    if before is not None and not difference <= min(most, max(_ROUNDING.get(dtype, 1e-2), _DRIFT * before)):
        raise StaleError("the steps of an earlier call give other numbers than the model now")
    if not difference <= most:
        raise UnusableError(
            f"the exported graph gives other numbers than the model, {difference:.2g} of the largest apart"
        )
    made.facts.setdefault(what, difference)


def _difference(output: Tensor, expected: Tensor) -> float:
    """The largest difference, as a fraction of the largest expected value."""
    if output.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    largest = float(expected.double().abs().max())
    return float((output.double() - expected.double()).abs().max()) / (largest or 1.0)
