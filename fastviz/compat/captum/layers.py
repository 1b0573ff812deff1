"""captum's classes about a layer: what it gives, and what of it makes the target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastviz.compat._layers import recorded
from fastviz.compat._order import in_fast_order
from fastviz.compat.captum import _bases
from fastviz.compat.captum._forward import run, tensors
from fastviz.compat.captum._layers import in_parallel
from fastviz.compat.captum._quick import internal_batch, own

__all__ = ["InternalInfluence", "LayerActivation", "LayerConductance", "LayerGradientXActivation"]

Tensors = Tensor | tuple[Tensor, ...]


class LayerActivation(_bases.LayerActivation):
    """captum's ``LayerActivation``: what a layer gives, or takes in.

    Arguments, results and errors are captum's. Four images or more go through the model in the fast order.
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
    """captum's ``LayerGradientXActivation``: what a layer gives, times the gradient of the target for it.

    Arguments, results and errors are captum's, but the results hold no graph: the model runs without one up to the
    layer.
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
        each = tensors(inputs)

        def compute(*images: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
            with recorded(self.layer, at_input=attribute_to_layer_input, leaves=True) as values:
                output = run(self.forward_func, tuple(x.clone() for x in images), target, additional_forward_args)
            if output[0].numel() != 1:
                raise AssertionError(
                    f"target should choose one value of the output a sample, got {list(output[0].shape)}"
                )
            return values, torch.autograd.grad(output.unbind(), values, **(grad_kwargs or {}))

        with torch.inference_mode(False), torch.no_grad():
            values, found = in_fast_order(self.forward_func, each, compute)(*each)
        times = (
            (gradient * value.detach() if self.multiplies_by_inputs else gradient).contiguous()
            for gradient, value in zip(found, values, strict=True)
        )
        results = tuple(times)
        return results if len(results) > 1 else results[0]


class InternalInfluence(_bases.InternalInfluence):
    """captum's ``InternalInfluence``: the gradient of the target for a layer, along the line from a baseline.

    Arguments, results and errors are captum's; without ``internal_batch_size`` a pass has 16 images at most, where
    images do not meet in the model.
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
    """captum's ``LayerConductance``: what of the target flows through each value of a layer.

    Arguments, results and errors are captum's; what is said of :class:`InternalInfluence` holds too.
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
