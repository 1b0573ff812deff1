"""What is optimised: functions of what layers give, to be decreased. They add, subtract, and take numbers as factors.

Layers have lucent's names, see :func:`fastviz.compat.lucent.get_model_layers`; ``"input"`` are the pictures in 0 to 1,
``"labels"`` is what the last of the layers gives. ``batch`` is the number of the image that an objective is about; None
is all of them. An objective is called with a function from the name of a layer to what it gives.
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
"""From the name of a layer to what it gives."""

_LONGEST = 15
"""Arguments of more letters are three dots in descriptions."""


class Objective:
    """A function of what layers give, with a name and a description.

    Args:
        objective_func: called with a function from the name of a layer to what it gives; returns one number.
        name, description: words, also of sums.

    >>> twice = 2 * Objective(lambda layers: layers("conv").mean(), "mean") + 1
    >>> twice(lambda layer: torch.ones(3))
    tensor(3.)
    """

    def __init__(self, objective_func: Callable[[Layers], Any], name: str = "", description: str = "") -> None:
        self.objective_func = objective_func
        self.name = name
        self.description = description

    def __call__(self, model: Layers) -> Any:
        """The number, for a function from the name of a layer to what it gives."""
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
    """A decorator: what a function returns becomes an :class:`Objective` with the function's name."""

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
    return "..." if len(word) > _LONGEST or "\n" in word else word


def handle_batch(batch: int | None = None) -> Callable[[Callable[[Layers], Any]], Callable[[Layers], Any]]:
    """A decorator: the function sees only image ``batch`` of what layers give; None is all."""

    def decorate(function: Callable[[Layers], Any]) -> Callable[[Layers], Any]:
        if not isinstance(batch, int):
            return function
        return lambda model: function(lambda name: model(name)[batch : batch + 1])

    return decorate


def _at(maps: Tensor, x: int | None, y: int | None) -> Tensor:
    """The place (``x``, ``y``) of ``maps`` [N, C, H, W] as [N, C, 1, 1]; None is the middle, counted as in lucent."""
    x = maps.shape[2] // 2 if x is None else x
    y = maps.shape[3] // 2 if y is None else y
    return maps[:, :, y : y + 1, x : x + 1]


@wrap_objective()
def neuron(
    layer: str, n_channel: int, x: int | None = None, y: int | None = None, batch: int | None = None
) -> Callable[[Layers], Any]:
    """One unit of a channel, at column ``x`` and row ``y``; None is the middle, of an even number the second."""

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
    """The channels at one place, weighted by ``weight`` [C]; None weighs them alike."""

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
    """The channels of ``wx`` times ``wy`` places from column ``x`` and row ``y`` on, weighted by ``weight`` [C]."""

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
    """The cosine between the channels at each place and ``direction`` [C], on average."""

    @handle_batch(batch)
    def inner(model: Layers) -> Tensor:
        return -functional.cosine_similarity(direction.reshape(1, -1, 1, 1), model(layer), dim=1).mean()

    return inner


@wrap_objective()
def direction_neuron(
    layer: str, direction: Tensor, x: int | None = None, y: int | None = None, batch: int | None = None
) -> Callable[[Layers], Any]:
    """The cosine between the channels at one place, as of :func:`neuron`, and ``direction`` [C]."""

    @handle_batch(batch)
    def inner(model: Layers) -> Tensor:
        found = _at(model(layer), x, y)
        return -functional.cosine_similarity(direction.reshape(1, -1, 1, 1), found, dim=1).mean()

    return inner


@wrap_objective()
def deepdream(layer: str) -> Callable[[Layers], Any]:
    """The mean square of everything that a layer gives: lucid's objective of that name, which lucent lacks."""

    def inner(model: Layers) -> Tensor:
        value: Tensor = -model(layer).square().mean()
        return value

    return inner


@wrap_objective()
def blur_input_each_step() -> Callable[[Layers], Any]:
    """Minus half the squared distance between the pictures and blurred ones (3x3, the middle twice the others).

    Times −k it blurs the pictures a little in each step of gradient descent: Nguyen et al. 2015,
    https://arxiv.org/abs/1412.1897.
    """

    def inner(model: Layers) -> Tensor:
        pictures = model("input")
        with torch.no_grad():
            kernel = pictures.new_full((1, 1, 3, 3), 0.5)
            kernel[0, 0, 1, 1] = 1
            channels = pictures.shape[1]
            sums = functional.conv2d(pictures, kernel.expand(channels, -1, -1, -1), padding=1, groups=channels)
            # at the edges fewer pixels count
            blurred = sums / functional.conv2d(torch.ones_like(pictures[:1, :1]), kernel, padding=1)
        value: Tensor = -0.5 * (pictures - blurred).square().sum()
        return value

    return inner


@wrap_objective()
def channel_interpolate(layer1: str, n_channel1: int, layer2: str, n_channel2: int) -> Callable[[Layers], Any]:
    """From one channel to another over the images of a batch: the first image has all of the one, the last the other.

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
    """How different images are that stand up to four apart in the batch: mean squares, divided by ``decay_ratio`` ** d.

    It makes images alike, so that they can be compared.
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
    """How different the images of a batch are: minus the mean over images of the cosines of their Gram matrices.

    Subtract it from an objective to make images differ.
    """

    def inner(model: Layers) -> Tensor:
        maps = model(layer).flatten(2)
        grams = functional.normalize((maps @ maps.transpose(1, 2)).flatten(1), dim=1)
        cosines = grams @ grams.T
        return -(cosines.sum() - cosines.diagonal().sum()) / len(maps)

    return inner


def as_objective(obj: Any) -> Any:
    """An objective of ``obj``: one, or a function like one, stays; ``"layer:channel"`` is that :func:`channel`.

    Raises:
        TypeError, ValueError: it is none.

    >>> as_objective("conv1:7").name
    'channel'
    """
    if callable(obj):
        return obj
    if not isinstance(obj, str):
        raise TypeError(f"objective should be an Objective, a function or 'layer:channel', got {type(obj).__name__}")
    layer, _, number = obj.partition(":")
    if not number.strip().lstrip("-").isdigit():
        raise ValueError(f"objective should be 'layer:channel' with a number of a channel, got {obj!r}")
    return channel(layer.strip(), int(number))
