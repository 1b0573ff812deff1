"""captum's layer classes: a layer's activations, and their contributions to the target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastviz.compat._layers import recorded
from fastviz.compat._order import in_fast_order
from fastviz.compat.captum import _bases
from fastviz.compat.captum._fast_model import internal_batch, own
from fastviz.compat.captum._forward import run, tensors
from fastviz.compat.captum._layers import in_parallel, layer_gradients

__all__ = ["InternalInfluence", "LayerActivation", "LayerConductance", "LayerGradientXActivation"]

Tensors = Tensor | tuple[Tensor, ...]


class LayerActivation(_bases.LayerActivation):
    """captum's ``LayerActivation``: a layer's outputs or inputs.

    Arguments, results and errors are captum's. Batches of four or more images run in the fast memory order.
    """

    @_bases.log_usage()
    def attribute(
        self, inputs: Tensors, additional_forward_args: Any = None, attribute_to_layer_input: bool = False
    ) -> Any:
        """The layer's outputs: see captum's ``LayerActivation.attribute``."""
        if not isinstance(self.layer, torch.nn.Module) or in_parallel(self.forward_func, self.device_ids):
            return own(_bases.LayerActivation)(self, inputs, additional_forward_args, attribute_to_layer_input)
        each = tensors(inputs)

        def compute(*images: Tensor) -> list[Tensor]:
            with recorded(self.layer, at_input=attribute_to_layer_input, leaves=False) as values:
                run(self.forward_func, images, None, additional_forward_args)
            return values

        with torch.no_grad():
            values = [value.contiguous() for value in in_fast_order(self.forward_func, each, compute)(*each)]
        return tuple(values) if len(values) > 1 else values[0]


class LayerGradientXActivation(_bases.LayerGradientXActivation):
    """captum's ``LayerGradientXActivation``: a layer's outputs times the gradient of the target for them.

    Arguments, results and errors are captum's, but the results have no autograd graph: the model runs without one up to
    the layer.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The attributions of the layer's size: see captum's ``LayerGradientXActivation.attribute``."""
        several = not isinstance(self.layer, torch.nn.Module) or getattr(self, "_memory_efficient", False)
        if several or in_parallel(self.forward_func, self.device_ids):
            return own(_bases.LayerGradientXActivation)(
                self, inputs, target, additional_forward_args, attribute_to_layer_input, grad_kwargs
            )
        values, gradients = layer_gradients(
            self, inputs, target, additional_forward_args, at_input=attribute_to_layer_input, options=grad_kwargs
        )
        results = tuple(
            (gradient * value.detach() if self.multiplies_by_inputs else gradient).contiguous()
            for gradient, value in zip(gradients, values, strict=True)
        )
        return results if len(results) > 1 else results[0]


class InternalInfluence(_bases.InternalInfluence):
    """captum's ``InternalInfluence``: the gradient of the target for a layer, averaged along the line from a baseline.

    Arguments, results and errors are captum's. Without ``internal_batch_size``, a pass has at most 16 images if the
    model treats images independently.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The attributions of the layer's size: see captum's ``InternalInfluence.attribute``."""
        if internal_batch_size is None and not grad_kwargs:
            internal_batch_size = internal_batch(self, InternalInfluence, inputs)
        return own(_bases.InternalInfluence)(
            *(self, inputs, baselines, target, additional_forward_args, n_steps, method, internal_batch_size),
            *(attribute_to_layer_input, grad_kwargs),
        )


class LayerConductance(_bases.LayerConductance):
    """captum's ``LayerConductance``: the part of the integrated gradients that flows through each value of a layer.

    Arguments, results and errors are captum's; see also :class:`InternalInfluence`.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The attributions of the layer's size, and the delta: see captum's ``LayerConductance.attribute``."""
        if internal_batch_size is None and not grad_kwargs:
            internal_batch_size = internal_batch(self, LayerConductance, inputs, points=2)
        return own(_bases.LayerConductance)(
            *(self, inputs, baselines, target, additional_forward_args, n_steps, method, internal_batch_size),
            return_convergence_delta=return_convergence_delta,
            attribute_to_layer_input=attribute_to_layer_input,
            grad_kwargs=grad_kwargs,
        )
