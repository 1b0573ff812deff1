"""Objectives: functions of layers' outputs that are minimised. They can be added, subtracted and scaled.

Layers have lucent's names, see :func:`fastviz.compat.lucent.get_model_layers`; ``"input"`` means the pictures in 0 to
1, ``"labels"`` the output of the last layer. ``batch`` is the index of the image that an objective applies to; None is
all of them. An objective is called with a function from a layer's name to the layer's output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Objective",
    "alignment",
    "as_objective",
    "blur_input_each_step",
    "channel",
    "channel_interpolate",
    "channel_weight",
    "deepdream",
    "direction",
    "direction_neuron",
    "diversity",
    "handle_batch",
    "localgroup_weight",
    "neuron",
    "neuron_weight",
    "wrap_objective",
]

Layers: TypeAlias = Callable[[str], Any]
"""A function from a layer's name to the layer's output."""

_MAX_LENGTH = 15
"""Longer arguments are replaced by three dots in descriptions."""


class Objective:
    """A function of layers' outputs, with a name and a description.

    Args:
        objective_func: called with a function from a layer's name to the layer's output; returns one number.
        name, description: texts; those of sums are combined.

    >>> twice = 2 * Objective(lambda layers: layers("conv").mean(), "mean") + 1
    >>> twice(lambda layer: torch.ones(3))
    tensor(3.)
    """

    def __init__(self, objective_func: Callable[[Layers], Any], name: str = "", description: str = "") -> None:
        self.objective_func = objective_func
        self.name = name
        self.description = description

    def __call__(self, model: Layers) -> Any:
        """The objective's value, for a function from a layer's name to the layer's output."""
        return self.objective_func(model)

    def __add__(self, other: Any) -> Objective:
        if isinstance(other, (int, float)):
            return Objective(lambda model: other + self(model), self.name, self.description)
        return Objective.sum([self, other])

    @staticmethod
    def sum(objs: Sequence[Objective]) -> Objective:
        """The sum of several objectives."""
        name = ", ".join(each.name for each in objs)
        description = "Sum(" + " +\n".join(each.description for each in objs) + ")"
        return Objective(lambda model: sum(each(model) for each in objs), name, description)

    def __neg__(self) -> Objective:
        return self * -1

    def __sub__(self, other: Any) -> Objective:
        return Objective.__add__(self, -1 * other)

    def __mul__(self, other: float) -> Objective:
        if not isinstance(other, (int, float)):
            raise TypeError(f"Can only multiply by int or float. Received type {type(other)}")
        return Objective(lambda model: other * self(model), self.name, self.description)

    def __truediv__(self, other: float) -> Objective:
        if not isinstance(other, (int, float)):
            raise TypeError(f"Can only divide by int or float. Received type {type(other)}")
        return self * (1 / other)

    def __rmul__(self, other: float) -> Objective:
        return self * other

    def __radd__(self, other: Any) -> Objective:
        return Objective.__add__(self, other)


def wrap_objective() -> Callable[[Callable[..., Callable[[Layers], Any]]], Callable[..., Objective]]:
    """A decorator that turns a function's result into an :class:`Objective` with the function's name."""

    def decorate(func: Callable[..., Callable[[Layers], Any]]) -> Callable[..., Objective]:
        signature = inspect.signature(func)

        @wraps(func)
        def make(*args: Any, **options: Any) -> Objective:
            given = signature.bind(*args, **options)
            given.apply_defaults()
            words = ", ".join(_word(argument) for argument in given.arguments.values())
            return Objective(func(*args, **options), func.__name__, f"{func.__name__.title()} [{words}]")

        make.__annotations__["return"] = Objective
        return make

    return decorate


def _word(argument: object) -> str:
    word = str(argument)
    return "..." if len(word) > _MAX_LENGTH or "\n" in word else word


def handle_batch(batch: int | None = None) -> Callable[[Callable[[Layers], Any]], Callable[[Layers], Any]]:
    """A decorator that gives the function only image ``batch`` of the layers' outputs; None gives all."""

    def decorate(function: Callable[[Layers], Any]) -> Callable[[Layers], Any]:
        if not isinstance(batch, int):
            return function
        return lambda model: function(lambda name: model(name)[batch : batch + 1])

    return decorate


def _at(maps: Tensor, x: int | None, y: int | None) -> Tensor:
    """The position (``x``, ``y``) of ``maps`` [N, C, H, W] as [N, C, 1, 1]; None is the middle, as in lucent."""
    x = maps.shape[2] // 2 if x is None else x
    y = maps.shape[3] // 2 if y is None else y
    return maps[:, :, y : y + 1, x : x + 1]


@wrap_objective()
def neuron(
    layer: str, n_channel: int, x: int | None = None, y: int | None = None, batch: int | None = None
) -> Callable[[Layers], Any]:
    """One unit of a channel, at column ``x`` and row ``y``; None is the middle, for even sizes the second one."""

    @handle_batch(batch)
    def inner(model: Layers) -> Tensor:
        return -_at(model(layer), x, y)[:, n_channel].mean()

    return inner


@wrap_objective()
def channel(layer: str, n_channel: int, batch: int | None = None) -> Callable[[Layers], Any]:
    """The mean of a channel, or of one score of a layer without maps."""

    @handle_batch(batch)
    def inner(model: Layers) -> Tensor:
        value: Tensor = -model(layer)[:, n_channel].mean()
        return value

    return inner


@wrap_objective()
def neuron_weight(
    layer: str, weight: Tensor | None, x: int | None = None, y: int | None = None, batch: int | None = None
) -> Callable[[Layers], Any]:
    """The channels at one position, weighted by ``weight`` [C]; None weights them equally."""

    @handle_batch(batch)
    def inner(model: Layers) -> Tensor:
        found = _at(model(layer), x, y)
        return -found.mean() if weight is None else -(found.squeeze() * weight).mean()

    return inner


@wrap_objective()
def channel_weight(layer: str, weight: Tensor, batch: int | None = None) -> Callable[[Layers], Any]:
    """All channels, weighted by ``weight`` [C]."""

    @handle_batch(batch)
    def inner(model: Layers) -> Tensor:
        value: Tensor = -(model(layer) * weight.view(1, -1, 1, 1)).mean()
        return value

    return inner


@wrap_objective()
def localgroup_weight(
    layer: str,
    weight: Tensor | None = None,
    x: int | None = None,
    y: int | None = None,
    wx: int = 1,
    wy: int = 1,
    batch: int | None = None,
) -> Callable[[Layers], Any]:
    """The channels in ``wx`` times ``wy`` positions from column ``x`` and row ``y``, weighted by ``weight`` [C]."""

    @handle_batch(batch)
    def inner(model: Layers) -> Tensor:
        columns = slice(x, None if x is None else x + wx)
        rows = slice(y, None if y is None else y + wy)
        found = model(layer)[:, :, rows, columns]
        value: Tensor = -(found if weight is None else found * weight.view(1, -1, 1, 1)).mean()
        return value

    return inner


@wrap_objective()
def direction(layer: str, direction: Tensor, batch: int | None = None) -> Callable[[Layers], Any]:
    """The mean cosine similarity between the channels at each position and ``direction`` [C]."""

    @handle_batch(batch)
    def inner(model: Layers) -> Tensor:
        return -functional.cosine_similarity(direction.reshape(1, -1, 1, 1), model(layer), dim=1).mean()

    return inner


@wrap_objective()
def direction_neuron(
    layer: str, direction: Tensor, x: int | None = None, y: int | None = None, batch: int | None = None
) -> Callable[[Layers], Any]:
    """The cosine similarity between the channels at one position, see :func:`neuron`, and ``direction`` [C]."""

    @handle_batch(batch)
    def inner(model: Layers) -> Tensor:
        found = _at(model(layer), x, y)
        return -functional.cosine_similarity(direction.reshape(1, -1, 1, 1), found, dim=1).mean()

    return inner


@wrap_objective()
def deepdream(layer: str) -> Callable[[Layers], Any]:
    """The mean square of a layer's output: lucid's objective of that name, which lucent lacks."""

    def inner(model: Layers) -> Tensor:
        value: Tensor = -model(layer).square().mean()
        return value

    return inner


@wrap_objective()
def blur_input_each_step() -> Callable[[Layers], Any]:
    """Minus half the squared distance between the pictures and blurred ones (3x3, with twice the weight in the middle).

    Multiplied by −k it blurs the pictures a little in each step of gradient descent: Nguyen et al. 2015,
    https://arxiv.org/abs/1412.1897.
    """

    def inner(model: Layers) -> Tensor:
        pictures = model("input")
        with torch.no_grad():
            kernel = pictures.new_full((1, 1, 3, 3), 0.5)
            kernel[0, 0, 1, 1] = 1
            channels = pictures.shape[1]
            sums = functional.conv2d(pictures, kernel.expand(channels, -1, -1, -1), padding=1, groups=channels)
            # at the borders the kernel covers fewer pixels
            blurred = sums / functional.conv2d(torch.ones_like(pictures[:1, :1]), kernel, padding=1)
        value: Tensor = -0.5 * (pictures - blurred).square().sum()
        return value

    return inner


@wrap_objective()
def channel_interpolate(layer1: str, n_channel1: int, layer2: str, n_channel2: int) -> Callable[[Layers], Any]:
    """Interpolation between two channels over a batch: the first image maximises one channel, the last one the other.

    It needs at least two images.
    """

    def inner(model: Layers) -> Tensor:
        first, second = model(layer1)[:, n_channel1], model(layer2)[:, n_channel2]
        if len(first) < 2:
            raise ValueError(f"channel_interpolate should have at least 2 images in a batch, got {len(first)}")
        share = torch.linspace(0, 1, len(first), dtype=first.dtype, device=first.device)
        value: Tensor = -((1 - share) * first.flatten(1).mean(1) + share * second.flatten(1).mean(1)).sum()
        return value

    return inner


@wrap_objective()
def alignment(layer: str, decay_ratio: float = 2) -> Callable[[Layers], Any]:
    """The mean squared difference of images at distances d up to 4 in the batch, divided by ``decay_ratio`` ** d.

    It makes the images similar, so that they can be compared.
    """

    def inner(model: Layers) -> Any:
        found = model(layer)
        return sum(
            (found[:-apart] - found[apart:]).flatten(1).square().mean(1).sum() / decay_ratio ** float(apart)
            for apart in range(1, min(5, len(found)))
        )

    return inner


@wrap_objective()
def diversity(layer: str) -> Callable[[Layers], Any]:
    """The diversity of a batch: minus the mean over images of the cosine similarities of their Gram matrices.

    Subtract it from an objective to make images differ.
    """

    def inner(model: Layers) -> Tensor:
        maps = model(layer).flatten(2)
        grams = functional.normalize((maps @ maps.transpose(1, 2)).flatten(1), dim=1)
        cosines = grams @ grams.T
        return -(cosines.sum() - cosines.diagonal().sum()) / len(maps)

    return inner


def as_objective(obj: Any) -> Any:
    """``obj`` as an objective: a function is returned unchanged; ``"layer:channel"`` becomes :func:`channel`.

    Raises:
        TypeError, ValueError: it is not an objective.

    >>> as_objective("conv1:7").name
    'channel'
    """
    if callable(obj):
        return obj
    if not isinstance(obj, str):
        raise TypeError(f"objective should be an Objective, a function or 'layer:channel', got {type(obj).__name__}")
    layer, _, number = obj.partition(":")
    if not number.strip().lstrip("-").isdigit():
        raise ValueError(f"objective should be 'layer:channel' with the index of a channel, got {obj!r}")
    return channel(layer.strip(), int(number))
