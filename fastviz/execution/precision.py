"""The precision of a forward pass, and of the maps that methods make of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.execution.model_outputs import map_tensors

__all__ = [
    "NARROW",
    "Precision",
    "as_map",
    "as_taken",
    "checked_precision",
    "in_dtype",
    "map_dtype",
    "reduced_precision",
    "weights_dtype",
    "widened",
]

NARROW = (torch.bfloat16, torch.float16)
"""The dtypes of 16-bit models. What is optimised for them, and all that is computed of their maps, is float32."""

Precision: TypeAlias = Literal["model", "bfloat16"]
"""``"model"``: in the dtype of the model and its input, exact; ``"bfloat16"``: under autocast, approximate."""


def checked_precision(precision: object) -> str:
    """``precision``, if it is one of the words."""
    return checks.one_of(precision, "precision", get_args(Precision))


def reduced_precision(x: Tensor, precision: Precision) -> AbstractContextManager[object]:
    """What runs a model on ``x`` in this precision; what the caller has set, for ``"model"``."""
    return torch.autocast(x.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def widened(
    output: object, layers: Mapping[str, Tensor], dtype: torch.dtype, precision: Precision
) -> tuple[object, Mapping[str, Tensor]]:
    """The output of a model and of its layers, converted to this dtype if ``precision`` changed it."""
    if precision == "model":
        return output, layers
    return in_dtype(output, dtype), {name: value.to(dtype) for name, value in layers.items()}


def map_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of maps, and of what targets say, for images of ``dtype``: float32 for 16 bits, else the same.

    It is decided here for all methods. Sums over maps of 16 bits lose small values, and float16 ends at 65504; NumPy,
    Pillow and table formats have no bfloat16.
    """
    return torch.promote_types(dtype, torch.float32)


def as_map(values: Tensor) -> Tensor:
    """``values`` in the dtype of maps."""
    return values.to(map_dtype(values.dtype))


def weights_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating-point parameter of ``model``; None if it has none."""
    return next((value.dtype for value in model.parameters() if value.is_floating_point()), None)


def as_taken(model: nn.Module, images: Tensor) -> Tensor:
    """``images`` in the dtype of a 16-bit ``model``, in their graph; unchanged for other models.

    >>> as_taken(nn.Linear(2, 2).to(torch.bfloat16), torch.zeros(1, 2)).dtype
    torch.bfloat16
    """
    own = weights_dtype(model)
    return images.to(own) if own in NARROW else images


def in_dtype(output: object, dtype: torch.dtype) -> object:
    """``output`` with the floating-point tensors in it in this dtype: of dictionaries, tuples and lists, too."""

    def converted(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    return map_tensors(converted, output)
