"""captum's gradient classes: saliency, guided backprop, deconvolution and Grad-CAM, of scores and neurons."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastviz import ops
from fastviz.compat._layers import recorded
from fastviz.compat._order import in_fast_order, may_round
from fastviz.compat.captum import _bases
from fastviz.compat.captum._fast_model import own
from fastviz.compat.captum._forward import formatted, one_value, run, tensors
from fastviz.compat.captum._layers import in_parallel, layer_gradients, neurons
from fastviz.execution.differentiation import differentiate
from fastviz.execution.fast_conv.memory_format import fast_convolutions
from fastviz.execution.rectifiers import rectifier_rule

__all__ = [
    "Deconvolution",
    "GuidedBackprop",
    "GuidedGradCam",
    "InputXGradient",
    "LayerGradCam",
    "NeuronDeconvolution",
    "NeuronGuidedBackprop",
    "Saliency",
]

Tensors = Tensor | tuple[Tensor, ...]


class Saliency(_bases.Saliency):
    """captum's ``Saliency``: the gradient of the target for each input value, by default its absolute value.

    Arguments, results and errors are captum's. The inputs' ``requires_grad`` never changes, even if the call raises, so
    there is no warning about it.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    >>> Saliency(model).attribute(torch.ones(1, 3, 2, 2), target=1).shape
    torch.Size([1, 3, 2, 2])
    """

    @_bases.log_usage()
    def attribute(
        self, inputs: Tensors, target: Any = None, abs: bool = True, additional_forward_args: Any = None
    ) -> Tensors:
        """The attributions, of the shapes of the inputs: see captum's ``Saliency.attribute``."""
        found = _gradients(self, inputs, target, additional_forward_args)
        return formatted(inputs, tuple(gradient.abs() for gradient in found) if abs else found)


class InputXGradient(_bases.InputXGradient):
    """captum's ``InputXGradient``: each input value times the gradient of the target for it.

    Arguments, results and errors are captum's; see also :class:`Saliency`.
    """

    @_bases.log_usage()
    def attribute(self, inputs: Tensors, target: Any = None, additional_forward_args: Any = None) -> Tensors:
        """The attributions, of the shapes of the inputs: see captum's ``InputXGradient.attribute``."""
        found = _gradients(self, inputs, target, additional_forward_args)
        return formatted(inputs, tuple(x * gradient for x, gradient in zip(tensors(inputs), found, strict=True)))


class GuidedBackprop(_bases.GuidedBackprop):
    """captum's ``GuidedBackprop``: the gradient, where every rectifier passes only positive gradients of active units.

    Arguments, results and errors are captum's. No hooks are set on the model or the inputs, so there is no warning
    about them, and none are left behind. Every rectifier follows the rule, including functions (``F.relu``), reused
    modules, ReLU6, and rectifiers whose input is also used elsewhere; a :class:`fastviz.RectifierWarning` names
    activations that do not.
    """

    @_bases.log_usage()
    def attribute(self, inputs: Tensors, target: Any = None, additional_forward_args: Any = None) -> Tensors:
        """The attributions, of the shapes of the inputs: see captum's ``GuidedBackprop.attribute``."""
        return formatted(inputs, _gradients(self, inputs, target, additional_forward_args, rule="guided"))


class Deconvolution(_bases.Deconvolution):
    """captum's ``Deconvolution``: the gradient, where every rectifier passes positive gradients, active or not.

    Arguments, results and errors are captum's; see also :class:`GuidedBackprop`.
    """

    @_bases.log_usage()
    def attribute(self, inputs: Tensors, target: Any = None, additional_forward_args: Any = None) -> Tensors:
        """The attributions, of the shapes of the inputs: see captum's ``Deconvolution.attribute``."""
        return formatted(inputs, _gradients(self, inputs, target, additional_forward_args, rule="deconvnet"))


class NeuronGuidedBackprop(_bases.NeuronGuidedBackprop):
    """captum's ``NeuronGuidedBackprop``: :class:`GuidedBackprop` of a neuron of any layer.

    Arguments, results and errors are captum's.
    """

    def __init__(self, model: Any, layer: Any, device_ids: list[int] | None = None) -> None:
        _bases.NeuronGuidedBackprop.__init__(self, model, layer, device_ids)
        self.guided_backprop = GuidedBackprop(model)

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        neuron_selector: Any,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
    ) -> Tensors:
        """The attributions, of the shapes of the inputs: see captum's ``NeuronGuidedBackprop.attribute``."""
        if in_parallel(self.forward_func, self.device_ids):
            return own(_bases.NeuronGuidedBackprop)(  # type: ignore[no-any-return]
                self, inputs, neuron_selector, additional_forward_args, attribute_to_neuron_input
            )
        value = _neuron_value(self.layer, neuron_selector, attribute_to_neuron_input)
        attribution = self.guided_backprop
        return formatted(inputs, _gradients(attribution, inputs, None, additional_forward_args, value, rule="guided"))


class NeuronDeconvolution(_bases.NeuronDeconvolution):
    """captum's ``NeuronDeconvolution``: :class:`Deconvolution` of a neuron of any layer.

    Arguments, results and errors are captum's.
    """

    def __init__(self, model: Any, layer: Any, device_ids: list[int] | None = None) -> None:
        _bases.NeuronDeconvolution.__init__(self, model, layer, device_ids)
        self.deconv = Deconvolution(model)

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        neuron_selector: Any,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
    ) -> Tensors:
        """The attributions, of the shapes of the inputs: see captum's ``NeuronDeconvolution.attribute``."""
        if in_parallel(self.forward_func, self.device_ids):
            return own(_bases.NeuronDeconvolution)(  # type: ignore[no-any-return]
                self, inputs, neuron_selector, additional_forward_args, attribute_to_neuron_input
            )
        value = _neuron_value(self.layer, neuron_selector, attribute_to_neuron_input)
        attribution = self.deconv
        return formatted(
            inputs, _gradients(attribution, inputs, None, additional_forward_args, value, rule="deconvnet")
        )


class LayerGradCam(_bases.LayerGradCam):
    """captum's ``LayerGradCam``: a layer's maps weighted by their mean gradient.

    Arguments, results and errors are captum's, but the results have no autograd graph. The model runs without a graph
    up to the layer, so nothing before the layer is kept for the backward pass.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensors:
        """The attributions [N, 1, ...] of the layer's size: see captum's ``LayerGradCam.attribute``."""
        if in_parallel(self.forward_func, self.device_ids):
            return own(_bases.LayerGradCam)(  # type: ignore[no-any-return]
                self,
                inputs,
                target,
                additional_forward_args,
                attribute_to_layer_input,
                relu_attributions,
                attr_dim_summation,
                grad_kwargs,
            )
        values, gradients = layer_gradients(
            self, inputs, target, additional_forward_args, at_input=attribute_to_layer_input, options=grad_kwargs
        )
        found = []
        for value, gradient in zip(values, gradients, strict=True):
            weight = gradient.mean(tuple(range(2, gradient.dim())), keepdim=True) if gradient.dim() > 2 else gradient
            cam = weight * value.detach()
            cam = cam.sum(1, keepdim=True) if attr_dim_summation else cam
            found.append((cam.relu() if relu_attributions else cam).contiguous())
        return tuple(found) if len(found) > 1 else found[0]


class GuidedGradCam(_bases.GuidedGradCam):
    """captum's ``GuidedGradCam``: :class:`GuidedBackprop` times :class:`LayerGradCam`, resized to the input.

    Arguments, results and errors are captum's.
    """

    def __init__(self, model: Any, layer: Any, device_ids: list[int] | None = None) -> None:
        _bases.GuidedGradCam.__init__(self, model, layer, device_ids)
        self.grad_cam = LayerGradCam(model, layer, device_ids)
        self.guided_backprop = GuidedBackprop(model)

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        interpolate_mode: str = "nearest",
        attribute_to_layer_input: bool = False,
    ) -> Tensors:
        """The attributions, of the shapes of the inputs: see captum's ``GuidedGradCam.attribute``.

        Warns:
            UserWarning: a map cannot be resized to an input; the attribution is an empty tensor.
        """
        cam = self.grad_cam.attribute(
            inputs, target, additional_forward_args, attribute_to_layer_input, relu_attributions=True
        )
        if isinstance(cam, tuple):
            raise AssertionError(f"layer should have one tensor for GuidedGradCam, got {len(cam)}")
        each = tensors(inputs)
        guided = self.guided_backprop.attribute(each, target, additional_forward_args)
        found = []
        for x, gradient in zip(each, guided, strict=True):
            try:
                resized = functional.interpolate(cam, tuple(x.shape[2:]), mode=interpolate_mode)
                found.append(gradient * resized)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                warnings.warn(
                    f"the map {list(cam.shape)} of the layer cannot be resized to the input {list(x.shape)}, whose "
                    f"attribution is therefore empty: {error}",
                    stacklevel=3,
                )
                found.append(torch.empty(0))
        return formatted(inputs, tuple(found))


# ------------------------------------------------------------------------------------------------------- helpers


def _gradients(
    attribution: Any,
    inputs: Tensors,
    target: object,
    extra: object,
    value: Callable[..., Tensor] | None = None,
    *,
    rule: ops.Rule | None = None,
) -> tuple[Tensor, ...]:
    """The gradients, for each input, of the result of ``value``, or by default of the target's values."""
    value = value or _scores
    forward_func = attribution.forward_func

    def differentiated(*images: Tensor) -> tuple[Tensor | None, ...]:
        rectifiers = nullcontext() if rule is None else rectifier_rule(rule, model=attribution.model)
        with torch.inference_mode(False), torch.enable_grad(), rectifiers as found:
            leaves = tuple(_leaf(x) for x in images)
            if attribution.gradient_func is not _bases.compute_gradients:
                return tuple(attribution.gradient_func(forward_func, leaves, target, extra))
            # copies, for models that change their input in place
            with fast_convolutions(forward_func, len(leaves[0])) if faster else nullcontext():
                output = value(forward_func, tuple(leaf.clone() for leaf in leaves), target, extra)
                if found is not None and output.requires_grad:
                    found.check(output, stacklevel=6)
                return tuple(differentiate(output, leaves))

    each = tensors(inputs)
    faster = may_round(forward_func, each)
    gradients = in_fast_order(forward_func, each, differentiated)(*each)
    for number, gradient in enumerate(gradients):
        if gradient is None:
            raise RuntimeError(f"the target should depend on each input, but has no gradient for input {number}")
    return tuple(gradient.contiguous() for gradient in gradients if gradient is not None)


def _leaf(x: Tensor) -> Tensor:
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


def _scores(forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], target: object, extra: object) -> Tensor:
    return one_value(run(forward_func, inputs, target, extra))


def _neuron_value(layer: Any, selector: object, at_input: bool) -> Callable[..., Tensor]:
    def value(forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], target: object, extra: object) -> Tensor:
        with recorded(layer, at_input=at_input, leaves=False) as values:
            run(forward_func, inputs, None, extra)
        return neurons(values, selector)

    return value
