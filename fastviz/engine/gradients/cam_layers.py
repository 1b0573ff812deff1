"""The default layer for class activation maps, and its maps as planes.

Maps [N, K, h, w] are planes already; [N, h, w, K] and tokens [N, L, K] are rearranged to planes, without class and
register tokens. Signals and volumes have maps [N, K, l] and [N, K, d, h, w].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util.by_model import ByModel
from fastviz.execution.differentiation import differentiate
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.exported import is_exported
from fastviz.execution.hooks import hookable, hooked
from fastviz.execution.inputs import output_of, require_gradients
from fastviz.execution.map_axes import Axes
from fastviz.execution.model_outputs import scores_in
from fastviz.execution.quantised import layer_with_integers

__all__ = ["at_layers", "confirming", "default_layer", "last_maps", "layout", "planes"]

Result = TypeVar("Result")
Found = TypeVar("Found", bound="tuple[Any, ...]")

_POOLING = tuple(
    getattr(nn, f"{name}{dims}d")
    for name in ("MaxPool", "AvgPool", "LPPool", "FractionalMaxPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
    for dims in (1, 2, 3)
    if hasattr(nn, f"{name}{dims}d")
)


_found_before: ByModel[str] = ByModel()
"""The default layers of classifiers, as the last call found them."""

_LOST = 1 / 3
"""If more than this fraction of possible layers with maps follows the last known maps, those are not the last maps."""


def planes(values: Tensor, layer: Tensor, name: str, axes: Axes) -> Tensor:
    """``values`` [N, ...] or [N, T, ...], otherwise shaped like ``layer``, as [N, K, *positions] or [N, T, K, ...].

    Args:
        values: the output of a layer, or a gradient for it.
        layer: that output, recorded inside ``axes``.
        name: of the layer, for errors.
        axes: traced the dimensions in that pass.

    Raises:
        ValueError: the layer has no maps, or the meaning of its dimensions is unknown.
    """
    return layout(layer, name, axes)(values)


def layout(layer: Tensor, name: str, axes: Axes) -> Callable[[Tensor], Tensor]:
    """A function that rearranges tensors shaped like a layer's output to maps; arguments and errors as for
    :func:`planes`."""
    known = axes.planes(layer)
    if known is not None:
        return known.laid
    wanted = axes.layout
    if layer.dim() != axes.dims and not (layer.dim() == 3 and axes.on_tokens):
        raise ValueError(f"layer {name!r} should have maps {wanted} as its output, got {list(layer.shape)}")
    if axes.on_tokens:
        raise ValueError(
            f"layer {name!r} should have maps {wanted}, or such maps with their channels last or as tokens, as its "
            f"output; which dimensions of its {list(layer.shape)} are rows and columns of the image cannot be told in "
            "this network, name another layer"
        )
    return lambda values: values


@dataclass(frozen=True)
class _Maps:
    """A layer with maps: its name, channels and positions, and its index among all layers that may have maps."""

    name: str
    channels: int
    places: int
    call: int


def default_layer(model: nn.Module, images: Tensor, selection: targets.Selection | None = None) -> str:
    """The default layer for class activation maps: the last, apart from pooling, with maps of more than one position.

    That is the last convolution of a classifier, or a layer after it. If the rest of the network may not use all of its
    maps, another pass of the first image and its gradient decide. For a network that continues with tokens (in a
    transformer with a class token, the last patches have no effect) or does not return scores, it is the last layer
    whose gradient is not zero; for one that returns maps, the last of the coarsest maps, apart from its scores, as in
    Vinogradova, Dibrov, Myers 2020, https://arxiv.org/abs/2002.11434.

    Args:
        model: any module; not changed.
        images: [N, C, ...], as the model takes them; only the first is run, or a black one if there is none.
        selection: the targets; None does not use gradients.

    Raises:
        ValueError: there is no such layer; an exported model, whose layers are not accessible.
    """
    return _search(model, images, selection)[0]


def at_layers(
    names: list[str] | None,
    model: nn.Module,
    images: Tensor,
    selection: targets.Selection | None,
    compute: Callable[[list[str], bool], Result],
) -> tuple[list[str], Result]:
    """The layers ``names``, or the default one for None, and what ``compute`` gives for them.

    The default layer of an earlier call is tried first, which saves the pass that looks for it: then the second
    argument of ``compute`` is True, and its passes must go through :func:`confirming`. Other arguments and errors as
    for :func:`default_layer`.
    """
    if names is not None:
        return names, compute(names, False)
    known = _found_before.get(model)
    if known is not None and len(images) and known in hookable(model):
        with suppress(_AnotherLayer):
            return [known], compute([known], True)
    name, by_shape = _search(model, images, selection)
    if by_shape:
        _found_before[model] = name
    return [name], compute([name], False)


class _AnotherLayer(Exception):  # noqa: N818 - no error: the layer is looked for then
    """The default layer is not the one that an earlier call found."""


def confirming(
    run: Callable[[Tensor], Found], model: nn.Module, names: list[str], axes: Axes, confirm: bool
) -> Callable[[Tensor], Found]:
    """``run``, which returns the output of ``model`` and more; with ``confirm`` it looks for the default layer as well.

    Another one than that of the ``names`` ends what :func:`at_layers` tries.
    """
    if not confirm:
        return run

    def confirmed(images: Tensor) -> Found:
        notes = _Notes(axes, len(images))
        try:
            with hooked(model, notes.hooks(model)):
                found = run(images)
            same = _is_classifier(found[0], axes) and [notes.with_maps()[-1].name] == names
        except (ValueError, IndexError) as error:
            if isinstance(error, RuntimeError):  # of the model, not about layers
                raise
            raise _AnotherLayer from error
        if not same:
            raise _AnotherLayer
        return found

    return confirmed


def _search(model: nn.Module, images: Tensor, selection: targets.Selection | None) -> tuple[str, bool]:
    """The default layer, and whether the shapes of the outputs decided, as in a classifier."""
    _visible(model)
    image = images[:1] if len(images) else images.new_zeros((1, *images.shape[1:]))
    found, output, axes = _layers_with_maps(model, image)
    if not found:
        if layer_with_integers(model):
            require_gradients(model)  # warns
        raise _no_maps(model, axes)
    classifies = _is_classifier(output, axes)
    if classifies or selection is None or not len(images):
        return found[-1].name, classifies
    return _with_gradient(model, image, selection.for_samples(torch.tensor([0]), len(images)), found, output), False


def _is_classifier(output: object, axes: Axes) -> bool:
    """Whether the model returns scores [N, K], and does not work on tokens."""
    scores = scores_in(output)
    return scores is not None and scores.dim() == 2 and not axes.on_tokens


def last_maps(model: nn.Module, images: Tensor) -> tuple[str, Tensor, Any]:
    """The default layer of a classifier, its maps [N, K, *places] and the model's output, from one pass over images.

    No call depends on values: ``torch.export`` can record the pass. The caller holds evaluation mode.

    Raises:
        ValueError: as :func:`default_layer`.
    """
    _visible(model)
    axes = Axes()
    notes = _Notes(axes, images.shape[0], keep=True)
    with hooked(model, notes.hooks(model)), axes:
        output = model(axes.images(images.clone()))
    found = notes.with_maps()
    if not found:
        raise _no_maps(model, axes)
    name = found[-1].name
    given, values = notes.outputs[name]
    return name, planes(values, given, name, axes), output


def _visible(model: nn.Module) -> None:
    if is_exported(model):
        raise ValueError("model should not be exported, whose layers cannot be seen: give the module it was made from")


def _layers_with_maps(model: nn.Module, image: Tensor) -> tuple[list[_Maps], Any, Axes]:
    """The layers whose output for one image has maps, in the order of their last calls, and the model's output."""
    axes = Axes()
    notes = _Notes(axes, 1)
    with hooked(model, notes.hooks(model)), frozen_model(model), torch.no_grad(), axes:
        output = output_of(model, axes.images(image.clone()))
    maps = notes.with_maps()
    once = [each for each in maps if notes.calls[each.name] == 1]
    return maps if scores_in(output) is not None else (once or maps), output, axes


class _Notes:
    """What the layers of a model give in a pass over ``count`` images, as far as these are maps.

    Attributes:
        outputs: layer → its last output, itself and as it was before a later layer may have written to it; empty unless
            they are to be kept.
        calls: layer → how often it was called.
    """

    def __init__(self, axes: Axes, count: int, *, keep: bool = False) -> None:
        self.outputs: dict[str, tuple[Tensor, Tensor]] = {}
        self.calls: Counter[str] = Counter()
        self._axes, self._count, self._keep = axes, count, keep
        self._found: dict[str, _Maps] = {}
        self._known_order: set[str] = set()
        self._pooled: object = None
        self._spread = 0  # calls whose results have positions, or may have

    def hooks(self, model: nn.Module) -> dict[str, Callable[..., None]]:
        """The hooks that make the notes, by layer."""

        def hook(name: str, module: nn.Module, inputs: object, output: object) -> None:
            with torch._C.DisableTorchFunction():  # the modes need not see what is asked of tensors here
                self._note(name, module, output)

        return {name: partial(hook, name) for name in hookable(model) if name}

    def with_maps(self) -> list[_Maps]:
        """The layers with maps, in the order of their last calls."""
        # Unless another order is known, maps are [N, K, h, w], except in networks that work on tokens.
        maps = [each for name, each in self._found.items() if name in self._known_order or not self._axes.on_tokens]
        if self._axes.on_tokens and maps and self._spread - maps[-1].call > _LOST * self._spread:
            raise ValueError(
                f"layer should be named for this network: after its last maps, those of {maps[-1].name!r}, come "
                "tokens whose places cannot be followed"
            )
        return maps

    def _note(self, name: str, module: nn.Module, output: object) -> None:
        self.calls[name] += 1
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 3:
            return
        self._spread += 1
        if output.shape[0] != self._count:
            return
        if isinstance(module, _POOLING):
            self._pooled = output
            return
        known = self._axes.planes(output)
        if known is None and output.dim() != self._axes.dims:
            return
        places = tuple(output.shape[2:]) if known is None else known.shape(output.shape)
        # Modules that only pass a pooled map on (its container, a dropout) do not count either.
        if output is self._pooled or min(places[-2:]) <= 1:
            return
        channels = output.shape[1 if known is None else known.order[1]]
        self._found.pop(name, None)
        self._found[name] = _Maps(name, channels, prod(places), self._spread)
        self._known_order.add(name) if known is not None else self._known_order.discard(name)
        if self._keep:
            self.outputs[name] = output, output.clone()


def _no_maps(model: nn.Module, axes: Axes) -> ValueError:
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    return ValueError(
        f"model should have a layer with maps {axes.layout} larger than 1x1, and has none"
        + (" (those inside scripted modules are not seen)" if scripted else "")
        + ("; it works on tokens" if axes.on_tokens else "")
    )


def _with_gradient(
    model: nn.Module, image: Tensor, selection: targets.Selection, found: Sequence[_Maps], output: object
) -> str:
    """The last layer that the target depends on, or the last of the coarsest if the model returns maps."""
    require_gradients(model)
    axes = Axes()
    names = [each.name for each in found]
    needed = tuple(dict.fromkeys((*names, *selection.layers)))
    with frozen_model(model):
        with torch.no_grad(), axes:
            output, recorded = targets.run(model, axes.images(image.clone()), needed, start_gradients=True)
        values = selection.values(output, recorded).flatten()
        if not values.requires_grad:
            return names[-1]
        # Targets get different weights, so that two opposite ones do not cancel.
        weights = torch.arange(1, len(values) + 1, device=values.device, dtype=values.dtype)
        gradients = differentiate([(values * weights).sum()], [recorded[name] for name in names])
    used = []
    for each, gradient in zip(found, gradients, strict=True):
        known = axes.planes(recorded[each.name])
        # for a layer that is called several times, the output may be from another call
        if gradient is not None and (known is not None or not axes.on_tokens):
            used += [each] if bool((gradient if known is None else known.laid(gradient)).any()) else []
    # The queries, keys and values inside attention carry less than its input.
    inside = [each for each in used if not _is_inside_attention(model, each.name)]
    used = inside or used
    scores = _classes(output, image.dim())
    inner = [each for each in used if each.channels != scores] if scores else []
    if inner:
        coarsest = min(each.places for each in inner)
        used = [each for each in inner if each.places == coarsest]
    return (used or found)[-1].name


def _is_inside_attention(model: nn.Module, name: str) -> bool:
    parents = (name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1))
    kinds = (type(model.get_submodule(parent)).__name__.lower() for parent in parents)
    return any("attention" in kind or "attn" in kind for kind in kinds)


def _classes(output: object, dims: int) -> int:
    """The number of classes in the maps that a model returned; 0 if it returned something else."""
    try:
        maps = targets.maps_of(output)
    except (TypeError, ValueError):
        return 0
    return maps.shape[1] if maps.dim() == dims and prod(maps.shape[2:]) > 1 else 0
