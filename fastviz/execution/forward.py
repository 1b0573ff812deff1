"""Forward passes: layer outputs, passes that end at the requested layers, and one vector per image from a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from fastviz.execution.fast_conv.memory_format import in_fast_order
from fastviz.execution.hooks import Hook, floating_output, hookable, hooked
from fastviz.execution.inputs import output_of
from fastviz.execution.map_axes import Axes, Planes
from fastviz.execution.precision import Precision, reduced_precision

__all__ = [
    "Pool",
    "called",
    "hooked_until",
    "layer_outputs",
    "noting",
    "outputs",
    "penultimate",
    "planes_of",
    "run",
    "vectors",
]

Pool = Literal["mean", "flatten"]

Note = TypeVar("Note")


# ---------------------------------------------------------------------------------- passes that end before the output


class _PassEnded(BaseException):
    """Leaves a forward pass whose layers have all been called. No model should catch it."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts


@contextmanager
def hooked_until(
    model: nn.Module,
    hooks: Mapping[str, Hook],
    calls: Mapping[str, int] | None,
    *,
    passed_on: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Counter[str]]:
    """Hooks like :func:`fastviz.execution.hooks.hooked`; the ``with`` block ends once the layers have been called often
    enough.

    Args:
        model: any module; not changed.
        hooks: layer name → what is called after each of its calls.
        calls: layer name → calls in one forward pass. After the last of them the rest of the ``with`` block is skipped,
            so that an output that is assigned in it stays unassigned. None or empty: the pass runs to its end.
        passed_on: converts a hook's result into what the model continues with; not called if the pass ends there.

    Yields:
        How often each layer has been called.

    Raises:
        ValueError: a layer does not exist or is scripted.

    >>> model = nn.Sequential(nn.ReLU(), nn.Tanh())
    >>> output = "skipped"
    >>> with hooked_until(model, {"0": lambda module, inputs, output: None}, {"0": 1}) as counts:
    ...     output = model(torch.ones(1))
    >>> output, dict(counts)
    ('skipped', {'0': 1})
    """
    counts: Counter[str] = Counter()
    wanted = Counter(calls)

    def counted(name: str, hook: Hook) -> Hook:
        def call(module: nn.Module, inputs: Any, output: object) -> Tensor | None:
            changed = hook(module, inputs, output)
            counts[name] += 1
            if wanted and counts == wanted:
                raise _PassEnded(counts)
            return changed if passed_on is None or changed is None else passed_on(changed)

        return call

    with hooked(model, {name: counted(name, hook) for name, hook in hooks.items()}):
        try:
            yield counts
        except _PassEnded as end:
            # a nested pass ends only itself
            if end.counts is not counts:
                raise


def run(
    model: nn.Module,
    images: Tensor,
    hooks: Mapping[str, Hook],
    calls: Counter[str],
    precision: Precision = "model",
) -> None:
    """Run ``model`` on ``images`` as far as its layers in ``hooks`` need, and call their hooks.

    The first pass, with ``calls`` empty, runs to the end and fills it with how often each layer is called; later ones
    end when every layer has been called as often. The images have the order in memory of
    :func:`fastviz.execution.fast_conv.memory_format.in_fast_order`; a model that cannot take it runs again, so hooks
    should replace what they noted before.

    Raises:
        ValueError: a layer does not exist, is scripted or was not called.
    """

    def through(batch: Tensor) -> Counter[str]:
        with hooked_until(model, hooks, calls) as counts, reduced_precision(batch, precision):
            model(batch)
        return counts

    counts = in_fast_order(model, precision, through)(images)
    for name in hooks:
        if not counts[name]:
            raise _not_called(name)
    calls.update(counts - calls)


def _not_called(name: str) -> ValueError:
    return ValueError(
        f"layer {name!r} was not called in the forward pass, so it has no output "
        "(layers inside scripted or compiled modules, and those of replicas in other threads, are not seen)"
    )


# -------------------------------------------------------------------------------------------------- what layers give


class _LayerOutputs(dict[str, Tensor]):
    """Maps layer names to outputs; looking up a layer that was not called raises an error that says so."""

    def __missing__(self, name: str) -> Tensor:
        raise _not_called(name)


@contextmanager
def layer_outputs(
    model: nn.Module,
    layers: Sequence[str],
    *,
    start_gradients: bool = False,
    calls: Mapping[str, int] | None = None,
) -> Iterator[Mapping[str, Tensor]]:
    """Record the outputs of ``layers`` in the forward passes made inside, by the thread that entered.

    Yields a mapping from layer name to output, in the graph of the forward pass, that fills while the model runs. The
    network continues with a copy of the output, so an in-place rectifier behind the layer does not change what was
    recorded. A layer that is called several times leaves its last output.

    With ``start_gradients``, to be used under ``torch.no_grad()``, autograd starts at the layers: the first one called
    switches gradients on for the rest of the ``no_grad`` block, and its output is a leaf. What comes before needs no
    graph then, which saves its memory and time.

    ``calls`` as in :func:`hooked_until`: with it the block ends when the layers are recorded.

    Raises:
        ValueError: a layer does not exist or is scripted (on entering), was not called (when it is read from the
            mapping).
        TypeError: a layer returns something other than a floating-point tensor (while the model runs).

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> with layer_outputs(model, ["0"]) as recorded:
    ...     scores = model(torch.zeros(3, 1, 2, 2))
    >>> recorded["0"].shape
    torch.Size([3, 4])
    """
    recorded = _LayerOutputs()

    def record(name: str, module: nn.Module, inputs: object, output: object) -> Tensor:
        tensor = floating_output(name, output)
        if start_gradients:
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
            torch.set_grad_enabled(True)
        recorded[name] = tensor
        return tensor

    with hooked_until(model, {name: partial(record, name) for name in layers}, calls, passed_on=torch.clone):
        yield recorded


@contextmanager
def noting(
    model: nn.Module, note: Callable[[object], Note], layers: Iterable[str] | None = None
) -> Iterator[list[tuple[str, Note]]]:
    """Record a note about every output of the ``layers`` while the model runs within the ``with`` block.

    Args:
        model: any module; not changed.
        note: called with the output of a layer as the layer gave it; what it returns is kept.
        layers: dotted names; None is every named module that is not scripted. The names must not repeat.

    Yields:
        A list that fills with layer names and notes, in the order in which the calls end; a layer that is called twice
        is there twice.

    Raises:
        ValueError: a layer does not exist or is scripted.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> with noting(model, lambda output: tuple(output.shape)) as shapes:
    ...     _ = model(torch.zeros(1, 3, 5, 5))
    >>> shapes
    [('0', (1, 8, 3, 3)), ('1', (1, 8, 3, 3))]
    """
    found: list[tuple[str, Note]] = []

    def keep(name: str, module: nn.Module, inputs: Any, output: object) -> None:
        found.append((name, note(output)))

    names = [name for name in hookable(model) if name] if layers is None else layers
    with hooked(model, {name: partial(keep, name) for name in names}):
        yield found


def outputs(
    model: nn.Module, images: Tensor, layers: Iterable[str], calls: Counter[str], precision: Precision = "model"
) -> list[object]:
    """What ``layers`` give, each as its last call left it; ``calls`` as in :func:`run`."""
    found: dict[str, object] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: object) -> None:
        found[name] = output

    run(model, images, {name: partial(keep, name) for name in layers}, calls, precision)
    return list(found.values())


def called(model: nn.Module, images: Tensor, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """The names of the modules of these ``kinds`` that ``model`` calls, in the order of their last calls."""
    with noting(model, lambda output: None, hookable(model, kinds)) as calls:
        output_of(model, images)
    last_first = dict.fromkeys(name for name, _ in reversed(calls))
    return list(reversed(last_first))


def penultimate(model: nn.Module, images: Tensor) -> str:
    """The last linear layer or convolution that ``model`` calls; its input is what the model decides by.

    Raises:
        ValueError: it calls none.
    """
    found = called(model, images, (nn.Linear, nn.Conv1d, nn.Conv2d))
    if not found:
        raise ValueError("layer should be given for this model: it calls no linear layer and no convolution")
    return found[-1]


def planes_of(model: nn.Module, image: Tensor, layer: str, *, of_input: bool = False) -> Planes | None:
    """Where the maps are in what ``layer`` gives (or takes) for one ``image``; None if that is not known."""
    axes = Axes()
    found: list[Planes | None] = []

    def look(module: nn.Module, inputs: Any, output: object) -> None:
        value = (inputs[0] if inputs else None) if of_input else output
        found[:] = [axes.planes(value) if isinstance(value, Tensor) else None]

    with hooked_until(model, {layer: look}, None), axes:
        output_of(model, axes.images(image.clone()))
    return found[0] if found else None


def vectors(value: object, layer: str, pool: Pool, planes: Planes | None = None) -> Tensor:
    """One vector per image, [N, D], from what a layer takes or gives; float32 at least.

    [N, D] stays; of maps [N, C, H, W] the mean over the places of each channel, and of tokens [N, L, D] the mean over
    the tokens (``"mean"``), or all values in order (``"flatten"``). ``planes`` says where the maps are in four
    dimensions; None is [N, C, H, W].

    Raises:
        TypeError: it is no floating-point tensor.
        ValueError: it has another number of dimensions.
    """
    tensor = floating_output(layer, value).detach()
    exact = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    if exact.dim() not in (2, 3, 4):
        raise ValueError(
            f"layer {layer!r} should have vectors [N, D], tokens [N, L, D] or maps [N, C, H, W], got shape "
            f"{list(exact.shape)}"
        )
    if pool == "flatten" or exact.dim() == 2:
        return exact.flatten(1).clone()  # calls after the layer may change its output in place
    if exact.dim() == 3:
        return exact.mean(1)
    return (exact if planes is None else planes.laid(exact)).mean((2, 3))
