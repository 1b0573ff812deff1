"""A model run for its targets: output and activations from one forward pass, and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fastviz.execution import cuda_graphs
from fastviz.execution.batches import Batches
from fastviz.execution.compiled import eager
from fastviz.execution.differentiation import differentiate
from fastviz.execution.forward import layer_outputs
from fastviz.execution.inputs import usable
from fastviz.execution.precision import as_map
from fastviz.targets.indices import Activations

__all__ = ["gradients", "run"]


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
    :func:`fastviz.execution.forward.layer_outputs`; with ``calls`` the output is None. Errors of the model name ``x``
    by ``argument``; with None they pass unchanged. With ``batches`` the pass is watched, see
    :meth:`fastviz.execution.batches.Batches.watched`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> output, activations = run(model, torch.ones(2, 1, 2, 2), ["0"])
    >>> output.shape, activations["0"].shape
    (torch.Size([2, 3]), torch.Size([2, 4]))
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


def gradients(values: Tensor, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Gradients of ``values`` for each of the ``inputs``.

    Args:
        values: [N] or [N, T], from one forward pass.
        inputs: tensors [N, ...] that the pass used, by the names that errors call them.

    Returns:
        One tensor an input, [N, ...], or [N, T, ...] for several targets, in the input's dtype; float32 for 16 bits.

    Samples must not mix in the model, as they do not in evaluation mode: the gradient of the sum over the batch is the
    gradient of each sample.

    Raises:
        ValueError: a value does not depend on an input, which is called by its key in ``inputs``.

    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> gradients(x.square().sum(1), {"x": x})
    [tensor([[2., 4.],
            [6., 8.]])]
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
        return [as_map(gradient) for gradient in found[0] if gradient is not None]
    return [
        as_map(torch.stack([gradient for gradient in each if gradient is not None], dim=1))
        for each in zip(*found, strict=True)
    ]
