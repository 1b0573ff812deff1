"""What to explain or to maximise: scores and probabilities of classes, units of any layer, and sums of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from fastviz.execution.precision import as_map, map_dtype
from fastviz.targets.indices import (
    Activations,
    Index,
    checked_index,
    class_scores,
    index_for_samples,
    index_in_range,
    layer_maps,
    predicted,
    required_index,
    sample_count,
)
from fastviz.targets.objective import Objective, all_parts, all_scores_read

__all__ = [
    "Objective",
    "all_parts",
    "all_scores_read",
    "channel",
    "class_objective",
    "class_probability",
    "class_score",
    "layer",
    "neuron",
]


class _Class(Objective):
    """Score or probability of class ``k``: None the predicted one, an int, or a tensor [N] or [N, T]."""

    def __init__(self, k: Index | None, *, probability: bool) -> None:
        self.k = k
        self.probability = probability
        self.predicts = k is None

    @property
    def scores_read(self) -> frozenset[int] | None:
        if self.k is None or self.probability:
            return None
        return frozenset(self.k.flatten().tolist() if isinstance(self.k, Tensor) else [self.k])

    @property
    def samples(self) -> int | None:
        return sample_count(self.k)

    @property
    def class_index(self) -> Index | None:
        return self.k

    def as_probability(self) -> Objective | None:
        return _Class(self.k, probability=True)

    def values(self, output: object, activations: Activations) -> Tensor:
        return self._read(class_scores(output))

    @property
    def parts(self) -> Mapping[Hashable, Objective] | None:
        return {"scores": self}

    def part(self, output: object) -> Tensor:
        return class_scores(output)

    def of_parts(self, parts: Mapping[Hashable, Tensor]) -> Tensor:
        return self._read(parts["scores"])

    def _read(self, scores: Tensor) -> Tensor:
        k = (
            predicted(scores)
            if self.k is None
            else index_in_range(self.k, "target", scores.shape[0], scores.shape[1], "class")
        )
        values = scores.softmax(1, dtype=map_dtype(scores.dtype)) if self.probability else scores
        if isinstance(k, int):
            return values[:, k]
        picked = values.gather(1, self._beside(k, scores).reshape(len(k), -1))
        return picked if k.dim() == 2 else picked[:, 0]

    def with_predicted(self, predicted: Tensor) -> Objective:
        return _Class(predicted, probability=self.probability) if self.k is None else self

    def split_targets(self) -> list[Objective]:
        if isinstance(self.k, Tensor) and self.k.dim() == 2:
            return [_Class(column, probability=self.probability) for column in self.k.unbind(1)]
        return [self]

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        if self.k is None:
            return self
        return _Class(index_for_samples(self.k, "target", samples, of, "class"), probability=self.probability)


class _Unit(Objective):
    """One unit of a layer: ``position`` None is the centre."""

    is_unit = True

    def __init__(self, name: str, k: Index, position: tuple[Index, ...] | None) -> None:
        self.layers = (name,)
        self.k = k
        self.position = position

    @property
    def reads_output(self) -> bool:
        return False

    @property
    def samples(self) -> int | None:
        return sample_count(self.k, *(self.position or ()))

    def values(self, output: object, activations: Activations) -> Tensor:
        maps = layer_maps(activations, self.layers[0])
        where = self.places(maps.shape)
        rows = torch.arange(maps.shape[0], device=maps.device)
        return maps[(rows, *(at if isinstance(at, int) else self._beside(at, maps) for at in where))]

    def places(self, shape: Sequence[int]) -> list[Index]:
        sizes = shape[2:]
        position = tuple(size // 2 for size in sizes) if self.position is None else self.position
        if len(position) != len(sizes):
            raise ValueError(
                f"position should have {len(sizes)} numbers for layer {self.layers[0]!r}, "
                f"whose output is {list(shape)}, got {len(position)}"
            )
        where = [index_in_range(self.k, "channel", shape[0], shape[1], f"channel of layer {self.layers[0]!r}")]
        for at, size in zip(position, sizes, strict=True):
            where.append(index_in_range(at, "position", shape[0], size, f"position of layer {self.layers[0]!r}"))
        return where

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        position = self.position
        if position is not None:
            position = tuple(index_for_samples(at, "position", samples, of, "position") for at in position)
        return _Unit(self.layers[0], index_for_samples(self.k, "channel", samples, of, "channel"), position)


class _Channel(Objective):
    def __init__(self, name: str, k: Index) -> None:
        self.layers = (name,)
        self.k = k

    @property
    def reads_output(self) -> bool:
        return False

    @property
    def samples(self) -> int | None:
        return sample_count(self.k)

    def values(self, output: object, activations: Activations) -> Tensor:
        maps = layer_maps(activations, self.layers[0])
        k = index_in_range(self.k, "channel", maps.shape[0], maps.shape[1], f"channel of layer {self.layers[0]!r}")
        rows = torch.arange(maps.shape[0], device=maps.device)
        chosen = maps[:, k] if isinstance(k, int) else maps[rows, self._beside(k, maps)]
        return chosen.reshape(len(chosen), -1).sum(1, dtype=map_dtype(chosen.dtype))

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        return _Channel(self.layers[0], index_for_samples(self.k, "channel", samples, of, "channel"))


class _Layer(Objective):
    def __init__(self, name: str) -> None:
        self.layers = (name,)

    @property
    def reads_output(self) -> bool:
        return False

    def values(self, output: object, activations: Activations) -> Tensor:
        maps = activations[self.layers[0]]
        return as_map(maps).reshape(len(maps), -1).square().sum(1) / 2


def class_objective(k: Index | None) -> Objective:
    """The score of class ``k``, already checked: None (the predicted class), an int, or a tensor [N] or [N, T]."""
    return _Class(k, probability=False)


def class_score(k: Index | None = None) -> Objective:
    """The score of a class, before softmax.

    Args:
        k: the class: an int, a tensor of ints [N], one per sample, or None for the class with the highest score (the
            first of equal ones).

    Returns:
        An objective with one value per sample, [N].

    Raises:
        TypeError: ``k`` is not a whole number, or a tensor of another dtype.
        ValueError: ``k`` is below 0, or a tensor that is not [N].

    >>> class_score(2).values(torch.tensor([[1.0, 3.0, 2.0]]), {})
    tensor([2.])
    """
    return _Class(checked_index(k, "k"), probability=False)


def class_probability(k: Index | None = None) -> Objective:
    """The probability of a class: ``softmax(scores)[k]``, from 0 to 1.

    Args:
        k: as in :func:`class_score`.

    Returns:
        An objective with one value per sample, [N].

    Raises:
        TypeError, ValueError: as :func:`class_score`.

    >>> class_probability(0).values(torch.zeros(1, 4), {})
    tensor([0.2500])
    """
    return _Class(checked_index(k, "k"), probability=True)


def neuron(layer: str, channel: Index, position: Sequence[Index] | None = None) -> Objective:
    """The activation of one unit of ``layer``: ``a[n, channel, *position]``.

    Args:
        layer: the dotted name of a module.
        channel: the index along dimension 1 of the layer's output: an int, or a tensor of ints [N], one per sample.
        position: (row, column) for maps [N, C, H, W], one number for each dimension behind the channels in general,
            each an int or a tensor of ints [N]. None is the centre (H // 2, W // 2); for an output [N, C] it must be
            None.

    Returns:
        An objective with one value per sample, [N].

    Raises:
        TypeError: a name that is not a string, numbers that are not whole.
        ValueError: a number below 0, or a tensor that is not [N].

    >>> unit = neuron("conv", channel=1, position=(0, 1))
    >>> unit.values(None, {"conv": torch.arange(8.0).view(1, 2, 2, 2)})
    tensor([5.])
    """
    if position is not None and not isinstance(position, Sequence):
        raise TypeError(f"position should have one number for each dimension of a map, got {position!r}")
    places = None if position is None else tuple(required_index(at, "position") for at in position)
    return _Unit(_name(layer), required_index(channel, "channel"), places)


def channel(layer: str, k: Index) -> Objective:
    """The sum over all positions of channel ``k`` of ``layer``: ``Σ_ij a[n, k, i, j]``.

    Args:
        layer: the dotted name of a module.
        k: an int, or a tensor of ints [N], one per sample.

    Returns:
        An objective with one value per sample, [N].

    Raises:
        TypeError: a name that is not a string, a ``k`` that is not whole.
        ValueError: ``k`` is below 0, or a tensor that is not [N].

    >>> channel("conv", 1).values(None, {"conv": torch.arange(8.0).view(1, 2, 2, 2)})
    tensor([22.])
    """
    return _Channel(_name(layer), required_index(k, "k"))


def layer(layer: str) -> Objective:
    """Half the sum of squares of the output of ``layer``, ``½‖a‖²``: its gradient for the layer is ``a`` itself.

    The objective of DeepDream: Mordvintsev, Olah, Tyka 2015,
    https://research.google/blog/inceptionism-going-deeper-into-neural-networks/

    Args:
        layer: the dotted name of a module.

    Returns:
        An objective with one value per sample, [N].

    Raises:
        TypeError: a name that is not a string.

    >>> layer("conv").values(None, {"conv": torch.tensor([[3.0, 4.0]])})
    tensor([12.5000])
    """
    return _Layer(_name(layer))


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"layer should be a dotted module name, got {type(value).__name__}")
    return value
