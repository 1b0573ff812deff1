"""Finding and skipping a model's first convolution, for passes that already know its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["FirstConvolution", "FirstConvolutionFinder", "FirstConvolutionReplaced"]

_FACTS = {"shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout", "is_leaf", "names"}
_QUESTIONS = {"size", "dim", "numel", "is_floating_point", "stride", "is_contiguous", "get_device", "ndimension"}
"""What a model may ask of its images without reading their values."""


@dataclass(frozen=True, eq=False)
class FirstConvolution:
    """The only call that reads the images: a convolution.

    Attributes:
        arguments: its other arguments, by name.
        shape: of its output.
    """

    arguments: dict[str, Any]
    shape: tuple[int, ...]

    def __call__(self, images: Tensor, *, bias: bool = True) -> Tensor:
        """The convolution of ``images``; without its bias it is linear."""
        arguments = self.arguments if bias else self.arguments | {"bias": None}
        return F.conv2d(images, **arguments)


class FirstConvolutionFinder(TorchFunctionMode):
    """Within the ``with`` block, watches what reads ``images``: the tensor itself, not a copy.

    Attributes:
        found: the convolution, once it has been called; also None if something else read the images, or it was called
            twice.

    >>> import torch
    >>> model, x = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()), torch.ones(1, 1, 5, 5)
    >>> with FirstConvolutionFinder(x) as finder:
    ...     _ = model(x)
    >>> finder.found.shape
    (1, 2, 3, 3)
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.found: FirstConvolution | None = None
        self._spoiled = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._spoiled or not _holds((args, kwargs), self.images) or _asks(func):
            return result
        call = _call(args, kwargs) if func is F.conv2d else None
        if call is None or self.found is not None or call.pop("input") is not self.images:
            self._spoiled, self.found = True, None
        elif not _holds(call, self.images):
            self.found = FirstConvolution(call, tuple(result.shape))
        return result


class FirstConvolutionReplaced(TorchFunctionMode):
    """Within the ``with`` block, the convolution of ``images``, the tensor itself, returns ``maps`` without
    computing."""

    def __init__(self, images: Tensor, maps: Tensor) -> None:
        super().__init__()
        self.images, self.maps = images, maps

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d and _call(args, kwargs or {})["input"] is self.images:
            return self.maps
        return func(*args, **(kwargs or {}))


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    return dict(zip(names, args, strict=False)) | kwargs


def _asks(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") in _FACTS
    return name in _QUESTIONS


def _holds(value: Any, tensor: Tensor) -> bool:
    """Whether ``tensor`` itself is among the values of a call, at any depth."""
    if isinstance(value, (tuple, list)):
        return any(_holds(each, tensor) for each in value)
    if isinstance(value, dict):
        return any(_holds(each, tensor) for each in value.values())
    return value is tensor
