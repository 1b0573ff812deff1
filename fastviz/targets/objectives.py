"""What to explain or to maximise: scores and probabilities of classes, units of any layer, and sums of them."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.execution import cuda_graphs
from fastviz.execution.batches import Batches
from fastviz.execution.compiled import eager
from fastviz.execution.differentiation import differentiate
from fastviz.execution.forward import layer_outputs
from fastviz.execution.hooks import layer_module
from fastviz.execution.inputs import usable

__all__ = [
    "Activations",
    "Objective",
    "Selection",
    "Target",
    "channel",
    "class_probability",
    "class_score",
    "gradients",
    "layer",
    "neuron",
    "predicted",
    "resolve",
    "run",
]

Index: TypeAlias = int | Tensor
Activations: TypeAlias = Mapping[str, Tensor]


# --------------------------------------------------------------------------------------------------- objectives


class Objective(ABC):
    """One number a sample, computed from a forward pass; objectives add, subtract and multiply by numbers.

    >>> combined = 2 * class_score(3) - neuron("features.0", channel=1) + channel("features.3", 5) * 0.5
    >>> combined.layers
    ('features.0', 'features.3')
    """

    layers: tuple[str, ...] = ()
    """Layers whose activations it reads."""
    predicts: bool = False
    """Whether it is about the class with the highest score."""
    is_unit: bool = False
    """Whether it is the activation of one unit of a layer, whose place :meth:`places` tells."""
    # A slot, so that vars() has what an objective is and no more: checkpoints compare that.
    __slots__ = ("_copies",)
    _copies: dict[tuple[int, torch.device], tuple[Tensor, Tensor]]

    @property
    def scores_read(self) -> frozenset[int] | None:
        """The classes whose scores are all that it reads of the output; None if it may read others."""
        return None

    @property
    def reads_output(self) -> bool:
        """Whether it reads the output of the model, or only :attr:`layers`."""
        return True

    @property
    def samples(self) -> int | None:
        """For how many samples its tensors of numbers are; None if it has none, and fits any number."""
        return None

    def as_probability(self) -> Objective | None:
        """The probability of its class, if it is the score or the probability of a class."""
        return None

    def places(self, shape: Sequence[int]) -> list[Index]:
        """Channel and position of a unit in maps of this ``shape``, [N, C, ...]: a number each, or [N] one a sample.

        Raises:
            ValueError: there is no such channel or position, or another number of samples.
        """
        raise TypeError(f"{type(self).__name__} is not one unit")

    @abstractmethod
    def values(self, output: object, activations: Activations) -> Tensor:
        """Values [N] from the ``output`` of the model and the ``activations`` of :attr:`layers`."""

    def settled(self, predicted: Tensor) -> Objective:
        """The objective with the ``predicted`` classes, int64 [N], in place of "the class with the highest score"."""
        return self

    def apart(self) -> list[Objective]:
        """Objectives with one value a sample each, for one that may have several."""
        return [self]

    def taken(self, samples: Tensor, of: int) -> Objective:
        """The objective for a batch of the ``samples`` with these numbers, int64 [P], ``of`` a batch of so many."""
        return self

    def _beside(self, index: Tensor, like: Tensor) -> Tensor:
        """``index``, which belongs to the objective, on the device of ``like``: copied once, as a copy waits for it."""
        if index.device == like.device:
            return index
        try:
            copies = self._copies
        except AttributeError:
            copies = self._copies = {}
        kept = copies.get((id(index), like.device))
        if kept is None or kept[0] is not index:
            kept = copies[id(index), like.device] = index, index.to(like.device)
        return kept[1]

    def __add__(self, other: Objective) -> Objective:
        return _Sum(((1.0, self), (1.0, other))) if isinstance(other, Objective) else NotImplemented

    def __radd__(self, other: object) -> Objective:
        # sum() of a list of objectives begins with 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, factor: float) -> Objective:
        return _Sum(((float(factor), self),)) if isinstance(factor, (int, float)) else NotImplemented

    def __rmul__(self, factor: float) -> Objective:
        return self * factor

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        return _Sum(((1.0, self), (-1.0, other))) if isinstance(other, Objective) else NotImplemented


class _Sum(Objective):
    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        self.terms = tuple(terms)
        self.layers = tuple(dict.fromkeys(chain.from_iterable(term.layers for _, term in self.terms)))
        self.predicts = any(term.predicts for _, term in self.terms)

    @property
    def scores_read(self) -> frozenset[int] | None:
        return _all_read(term for _, term in self.terms)

    @property
    def reads_output(self) -> bool:
        return any(term.reads_output for _, term in self.terms)

    @property
    def samples(self) -> int | None:
        return next((term.samples for _, term in self.terms if term.samples is not None), None)

    def values(self, output: object, activations: Activations) -> Tensor:
        parts = [weight * term.values(output, activations) for weight, term in self.terms]
        return torch.stack(parts).sum(0)

    def settled(self, predicted: Tensor) -> Objective:
        return _Sum([(weight, term.settled(predicted)) for weight, term in self.terms])

    def taken(self, samples: Tensor, of: int) -> Objective:
        return _Sum([(weight, term.taken(samples, of)) for weight, term in self.terms])


def _all_read(objectives: Iterable[Objective]) -> frozenset[int] | None:
    """The scores that several objectives read, if all of them say."""
    found = [objective.scores_read for objective in objectives]
    return None if None in found else frozenset(chain.from_iterable(each for each in found if each is not None))


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
        return _samples(self.k)

    def as_probability(self) -> Objective | None:
        return _Class(self.k, probability=True)

    def values(self, output: object, activations: Activations) -> Tensor:
        scores = _scores(output)
        k = predicted(output) if self.k is None else _index(self.k, "target", scores.shape[0], scores.shape[1], "class")
        values = scores.softmax(1) if self.probability else scores
        if isinstance(k, int):
            return values[:, k]
        picked = values.gather(1, self._beside(k, scores).reshape(len(k), -1))
        return picked if k.dim() == 2 else picked[:, 0]

    def settled(self, predicted: Tensor) -> Objective:
        return _Class(predicted, probability=self.probability) if self.k is None else self

    def apart(self) -> list[Objective]:
        if isinstance(self.k, Tensor) and self.k.dim() == 2:
            return [_Class(column, probability=self.probability) for column in self.k.unbind(1)]
        return [self]

    def taken(self, samples: Tensor, of: int) -> Objective:
        if self.k is None:
            return self
        return _Class(_taken(self.k, "target", samples, of, "class"), probability=self.probability)


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
        return _samples(self.k, *(self.position or ()))

    def values(self, output: object, activations: Activations) -> Tensor:
        maps = _maps(activations, self.layers[0])
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
        where = [_index(self.k, "channel", shape[0], shape[1], f"channel of layer {self.layers[0]!r}")]
        for at, size in zip(position, sizes, strict=True):
            where.append(_index(at, "position", shape[0], size, f"position of layer {self.layers[0]!r}"))
        return where

    def taken(self, samples: Tensor, of: int) -> Objective:
        position = self.position
        if position is not None:
            position = tuple(_taken(at, "position", samples, of, "position") for at in position)
        return _Unit(self.layers[0], _taken(self.k, "channel", samples, of, "channel"), position)


class _Channel(Objective):
    def __init__(self, name: str, k: Index) -> None:
        self.layers = (name,)
        self.k = k

    @property
    def reads_output(self) -> bool:
        return False

    @property
    def samples(self) -> int | None:
        return _samples(self.k)

    def values(self, output: object, activations: Activations) -> Tensor:
        maps = _maps(activations, self.layers[0])
        k = _index(self.k, "channel", maps.shape[0], maps.shape[1], f"channel of layer {self.layers[0]!r}")
        rows = torch.arange(maps.shape[0], device=maps.device)
        chosen = maps[:, k] if isinstance(k, int) else maps[rows, self._beside(k, maps)]
        return chosen.reshape(len(chosen), -1).sum(1)

    def taken(self, samples: Tensor, of: int) -> Objective:
        return _Channel(self.layers[0], _taken(self.k, "channel", samples, of, "channel"))


class _Layer(Objective):
    def __init__(self, name: str) -> None:
        self.layers = (name,)

    @property
    def reads_output(self) -> bool:
        return False

    def values(self, output: object, activations: Activations) -> Tensor:
        maps = activations[self.layers[0]]
        return maps.reshape(len(maps), -1).square().sum(1) / 2


def class_score(k: Index | None = None) -> Objective:
    """The score of a class, before softmax.

    ``k`` is the class: an int, a tensor of ints [N] with one a sample, or None for the one with the highest score
    (the first of equal ones).
    """
    return _Class(_whole(k, "k"), probability=False)


def class_probability(k: Index | None = None) -> Objective:
    """The probability of a class: ``softmax(scores)[k]``, from 0 to 1. ``k`` as in :func:`class_score`."""
    return _Class(_whole(k, "k"), probability=True)


def neuron(layer: str, channel: Index, position: Sequence[Index] | None = None) -> Objective:
    """The activation of one unit of ``layer``: ``a[n, channel, *position]``.

    ``channel`` counts along dimension 1 of the layer's output; ``position`` is (row, column) in it for maps [N, C, H,
    W], and has one number for each further dimension in general. None is the centre (H // 2, W // 2), and what outputs
    [N, C] need. Each number is an int or a tensor of ints [N], one a sample.
    """
    if position is not None and not isinstance(position, Sequence):
        raise TypeError(f"position should have one number for each dimension of a map, got {position!r}")
    places = None if position is None else tuple(_given(at, "position") for at in position)
    return _Unit(_name(layer), _given(channel, "channel"), places)


def channel(layer: str, k: Index) -> Objective:
    """The sum over all positions of channel ``k`` of ``layer``: ``Σ_ij a[n, k, i, j]``.

    ``k`` is an int or a tensor of ints [N], one a sample.
    """
    return _Channel(_name(layer), _given(k, "k"))


def layer(layer: str) -> Objective:
    """Half the sum of squares of the output of ``layer``, ``½‖a‖²``: its gradient for the layer is ``a`` itself.

    The objective of DeepDream: Mordvintsev, Olah, Tyka 2015,
    https://research.google/blog/inceptionism-going-deeper-into-neural-networks/
    """
    return _Layer(_name(layer))


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"layer should be a dotted module name, got {type(value).__name__}")
    return value


def _whole(value: object, argument: str) -> Index | None:
    """An int, or a tensor of ints with one a sample, from 0 on; None stays None."""
    if value is None:
        return None
    if isinstance(value, Tensor) and value.dim() > 0:
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{argument} should be a tensor of whole numbers, got {value.dtype}")
        if value.dim() != 1:
            raise ValueError(f"{argument} should have shape [N], one number a sample, got {list(value.shape)}")
        return value.detach().long().cpu()  # where it is looked at without waiting for a device
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)
    return checks.whole_number(value, argument, minimum=0)


def _given(value: object, argument: str) -> Index:
    """As :func:`_whole`, where None is not allowed."""
    checked = _whole(value, argument)
    if checked is None:
        raise TypeError(f"{argument} should be a whole number or a tensor of them, got None")
    return checked


def _one_each(index: Tensor, argument: str, samples: int, what: str) -> None:
    if len(index) != samples:
        raise ValueError(f"{argument} should have one {what} a sample, {samples}, got {len(index)}")


def _samples(*indices: Index | None) -> int | None:
    """For how many samples the first tensor among ``indices`` is; None if there is no tensor."""
    return next((len(index) for index in indices if isinstance(index, Tensor)), None)


def _taken(index: Index, argument: str, samples: Tensor, of: int, what: str) -> Index:
    """The entries of ``index``, one for each of a batch ``of`` so many, for the ``samples`` with these numbers."""
    if isinstance(index, int):
        return index
    _one_each(index, argument, of, what)
    return index[samples.to(index.device)]


def _index(index: Index, argument: str, samples: int, size: int, what: str) -> Index:
    """``index``, if it is one number or one for each of the ``samples``, all below ``size``."""
    if isinstance(index, int):
        worst = index
    else:
        _one_each(index, argument, samples, what)
        if not index.numel():
            return index
        low, high = (int(value) for value in index.aminmax())
        worst = low if low < 0 else high
    if not 0 <= worst < size:
        raise ValueError(f"{argument} should be a {what} below {size}, the number there is, got {worst}")
    return index


def _scores(output: object) -> Tensor:
    """The model's output, if it is scores [N, K]."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"model should return one tensor of scores [N, K], got {type(output).__name__}; "
            "wrap it in a module that returns the scores"
        )
    if output.dim() != 2 or not output.shape[1] or not output.is_floating_point():
        raise ValueError(
            f"model should return floating-point scores [N, K] for a class target, got {output.dtype} of shape "
            f"{list(output.shape)}; explain a neuron, channel or layer instead, or wrap it"
        )
    return output


def _maps(activations: Activations, name: str) -> Tensor:
    maps = activations[name]
    if maps.dim() < 2:
        raise ValueError(f"layer {name!r} should have output [N, C, ...] to have channels, got {list(maps.shape)}")
    return maps


# ------------------------------------------------------------------------------------------------------ targets

Target: TypeAlias = int | Tensor | Objective | Sequence[int | Tensor | Objective | None] | None
"""None (the class with the highest score), a class index, a tensor of them [N] (one a sample) or [N, T] (T a sample),
an objective, or a list of T of those (T targets a sample, from one forward pass)."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Targets that have been checked: what :func:`resolve` makes.

    ``several`` says whether there are T targets a sample (values [N, T]) or one (values [N]); ``columns`` is T, or
    None.
    """

    objectives: tuple[Objective, ...]
    several: bool
    columns: int | None

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers whose activations must be captured, each once."""
        return tuple(dict.fromkeys(chain.from_iterable(objective.layers for objective in self.objectives)))

    @property
    def predicts(self) -> bool:
        """Whether some target is the class with the highest score."""
        return any(objective.predicts for objective in self.objectives)

    @property
    def scores_read(self) -> frozenset[int] | None:
        """The classes whose scores are all that is read of the output; None if others may be."""
        return _all_read(self.objectives)

    @property
    def reads_output(self) -> bool:
        """Whether some target reads the output of the model, and not only :attr:`layers`."""
        return any(objective.reads_output for objective in self.objectives)

    def apart(self) -> list[Selection]:
        """The targets of each sample one by one: T selections with one target a sample."""
        return [Selection((each,), False, None) for objective in self.objectives for each in objective.apart()]

    def values(self, output: object, activations: Activations) -> Tensor:
        """Values [N], or [N, T] if there are several targets a sample, in the graph of the forward pass.

        Raises:
            TypeError: a class is asked for and the ``output`` of the model is not a tensor.
            ValueError: it is not [N, K]; a class, channel or position does not exist; a tensor of targets has another
                length than N; a layer was not called.
        """
        parts = [objective.values(output, activations) for objective in self.objectives]
        if not self.several:
            return parts[0]
        return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)

    def no_values(self, like: Tensor, shape: Sequence[int] = ()) -> Tensor:
        """What there is for no samples: zeros [0, *shape], or [0, T, *shape], of the dtype and device of ``like``."""
        return like.new_zeros((0, *(() if self.columns is None else (self.columns,)), *shape))

    def settled(self, predicted: Tensor) -> Selection:
        """The selection with the ``predicted`` classes, int64 [N], in place of "the class with the highest score"."""
        objectives = tuple(objective.settled(predicted) for objective in self.objectives)
        return Selection(objectives, self.several, self.columns)

    def taken(self, samples: Tensor, of: int) -> Selection:
        """The selection for a batch of the ``samples`` with these numbers, int64 [P], ``of`` a batch of so many.

        Raises:
            ValueError: a tensor of targets has another length than ``of``.
        """
        objectives = tuple(objective.taken(samples, of) for objective in self.objectives)
        return Selection(objectives, self.several, self.columns)


def resolve(target: Target, model: nn.Module) -> Selection:
    """``target``, checked against ``model`` as far as that is possible without running it.

    >>> resolve([3, class_probability(3)], nn.Linear(4, 5)).columns
    2

    Raises:
        TypeError: not a target, or not of whole numbers.
        ValueError: a negative class, a tensor that is neither [N] nor [N, T], an empty list, or a layer that the model
            does not have; the message lists the nearest.
    """
    if isinstance(target, Tensor) and target.dim() == 2:
        if not target.shape[1]:
            raise ValueError(f"target should have at least one class a sample, got shape {list(target.shape)}")
        flat = _given(target.reshape(-1), "target")
        assert isinstance(flat, Tensor)
        selection = Selection((_Class(flat.reshape(target.shape), probability=False),), True, target.shape[1])
    elif isinstance(target, Sequence) and not isinstance(target, str):
        if not target:
            raise ValueError("target should have at least one entry, got an empty list")
        selection = Selection(tuple(_objective(entry) for entry in target), True, len(target))
    else:
        selection = Selection((_objective(target),), False, None)
    for name in selection.layers:
        layer_module(model, name)
    return selection


def _objective(target: object) -> Objective:
    if isinstance(target, Objective):
        return target
    if target is None or isinstance(target, (numbers.Integral, Tensor)):
        return _Class(_whole(target, "target"), probability=False)
    raise TypeError(
        "target should be None, a class index, a tensor of them, an objective such as class_score(3), "
        f"or a list of those, got {type(target).__name__}"
    )


# ---------------------------------------------------------------------------------- running the model for them


def run(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str] = (),
    *,
    start_gradients: bool = False,
    calls: Mapping[str, int] | None = None,
    argument: str | None = None,
    batches: Batches | None = None,
) -> tuple[object, Activations]:
    """Output of the model for ``x`` and the activations of ``layers``, from one forward pass.

    A model that works in place on its input changes ``x``. ``start_gradients`` and ``calls`` as in
    :func:`fastviz.execution.forward.layer_outputs`; with ``calls`` the output is None. Errors of the model call ``x``
    the ``argument``, and come as they are for None. With ``batches`` the pass is watched, see
    :meth:`fastviz.execution.batches.Batches.watched`.
    """
    if batches is not None:
        return batches.watched(
            lambda images: run(model, images, layers, start_gradients=start_gradients, calls=calls, argument=argument),
            x,
        )
    model = eager(model) if layers else model
    recordings = None if start_gradients else cuda_graphs.recordings(x)
    circumstances = None if recordings is None else cuda_graphs.circumstances(model, x.device)
    if recordings is None or circumstances is None:
        with usable(model, x, argument):
            return _run(model, x, layers, start_gradients, calls)

    def function(images: Tensor) -> cuda_graphs.Outputs:
        # The copy is for models that work in place on their input.
        output, recorded = _run(model, images.clone(), layers, False, calls)
        return output, *(recorded[name] for name in layers)

    key = (*circumstances, tuple(layers), None if calls is None else tuple(calls.items()))
    with usable(model, x, argument):
        output, *maps = recordings.replayed(key, function, x, model=model)
    return output, dict(zip(layers, maps, strict=True))


def _run(
    model: nn.Module, x: Tensor, layers: Sequence[str], start_gradients: bool, calls: Mapping[str, int] | None
) -> tuple[object, Activations]:
    if not layers:
        return model(x), {}
    output = None
    with layer_outputs(model, layers, start_gradients=start_gradients, calls=calls) as recorded:
        output = model(x)
    return output, recorded


def predicted(output: object) -> Tensor:
    """Classes with the highest score, int64 [N] (the first of equal ones), in the output [N, K] of a model."""
    return _scores(output).detach().argmax(1)


def gradients(values: Tensor, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Gradients of ``values``, [N] or [N, T], for each of the ``inputs`` [N, ...]: [N, ...] or [N, T, ...].

    Samples must not mix in the model, as they do not in evaluation mode: the gradient of the sum over the batch is the
    gradient of each sample.

    Raises:
        ValueError: a value does not depend on an input, which is called by its key in ``inputs``.
    """
    columns = values.unbind(1) if values.dim() == 2 else (values,)
    tensors = list(inputs.values())
    found = []
    for number, column in enumerate(columns, start=1):
        got: Sequence[Tensor | None] = [None] * len(tensors)
        if column.requires_grad:
            more = number < len(columns)
            got = differentiate(column, tensors, retain_graph=more)
        for name, gradient in zip(inputs, got, strict=True):
            if gradient is None:
                raise ValueError(
                    f"target should depend on {name}, but has no gradient for it "
                    "(is the target behind it, and does the model use torch.no_grad or detach?)"
                )
        found.append(got)
    if values.dim() == 1:
        return [gradient for gradient in found[0] if gradient is not None]
    return [
        torch.stack([gradient for gradient in each if gradient is not None], dim=1) for each in zip(*found, strict=True)
    ]
