"""captum's classes that ask a model about many changed inputs, drawn by chance: Shapley values, LIME, permutation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastviz.compat.captum import _bases
from fastviz.compat.captum._forward import one_mask_each
from fastviz.compat.captum._quick import at_once, own, quick

__all__ = ["FeaturePermutation", "KernelShap", "Lime", "ShapleyValueSampling", "ShapleyValues"]

Tensors = Tensor | tuple[Tensor, ...]


class FeaturePermutation(_bases.FeaturePermutation):
    """captum's ``FeaturePermutation``: how much the target changes when a feature's values change places in the batch.

    Arguments, results, random numbers and errors are captum's; images go through the model in the fast order.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The attributions, of the shapes of the inputs: see captum's ``FeaturePermutation.attribute``."""
        one_mask_each(inputs, feature_mask)
        with torch.no_grad():
            return own(_bases.FeaturePermutation)(
                *(quick(self), inputs, target, additional_forward_args, feature_mask, perturbations_per_eval),
                show_progress=show_progress,
                **kwargs,
            )


class ShapleyValueSampling(_bases.ShapleyValueSampling):
    """captum's ``ShapleyValueSampling``: what features add to the target, the mean over random orders of joining.

    Arguments, results, random numbers and errors are captum's; 16 images go through the model together where they do
    not meet in it, in the fast order.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 25,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
    ) -> Any:
        """The attributions, of the shapes of the inputs: see captum's ``ShapleyValueSampling.attribute``."""
        one_mask_each(inputs, feature_mask)
        per_eval = at_once(self, ShapleyValueSampling, inputs, additional_forward_args, perturbations_per_eval)
        return own(_bases.ShapleyValueSampling)(
            *(quick(self), inputs, baselines, target, additional_forward_args, feature_mask, n_samples, per_eval),
            show_progress=show_progress,
        )


class ShapleyValues(_bases.ShapleyValues):
    """captum's ``ShapleyValues``: the same over all orders.

    Arguments, results and errors are captum's; what is said of :class:`ShapleyValueSampling` holds too.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
    ) -> Any:
        """The attributions, of the shapes of the inputs: see captum's ``ShapleyValues.attribute``."""
        one_mask_each(inputs, feature_mask)
        per_eval = at_once(self, ShapleyValues, inputs, additional_forward_args, perturbations_per_eval)
        return own(_bases.ShapleyValues)(
            *(quick(self), inputs, baselines, target, additional_forward_args, feature_mask, per_eval),
            show_progress=show_progress,
        )


class Lime(_bases.Lime):
    """captum's ``Lime``: the coefficients of a linear model, fitted to what the model says near the input.

    Arguments, results, random numbers and errors are captum's; 16 images go through the model together where they do
    not meet in it, in the fast order.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 25,
        perturbations_per_eval: int = 1,
        return_input_shape: bool = True,
        show_progress: bool = False,
    ) -> Any:
        """The attributions, or the coefficients: see captum's ``Lime.attribute``."""
        one_mask_each(inputs, feature_mask)
        per_eval = at_once(self, Lime, _first(inputs), additional_forward_args, perturbations_per_eval)
        return own(_bases.Lime)(
            *(quick(self), inputs, baselines, target, additional_forward_args, feature_mask, n_samples, per_eval),
            *(return_input_shape, show_progress),
        )


class KernelShap(_bases.KernelShap):
    """captum's ``KernelShap``: Shapley values as the coefficients of a linear model.

    Arguments, results, random numbers and errors are captum's; what is said of :class:`Lime` holds too.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 25,
        perturbations_per_eval: int = 1,
        return_input_shape: bool = True,
        show_progress: bool = False,
    ) -> Any:
        """The attributions, or the coefficients: see captum's ``KernelShap.attribute``."""
        one_mask_each(inputs, feature_mask)
        per_eval = at_once(self, KernelShap, _first(inputs), additional_forward_args, perturbations_per_eval)
        return own(_bases.KernelShap)(
            *(quick(self), inputs, baselines, target, additional_forward_args, feature_mask, n_samples, per_eval),
            *(return_input_shape, show_progress),
        )


def _first(inputs: object) -> object:
    """The first image: LIME explains one after another."""
    return inputs[:1] if isinstance(inputs, Tensor) else inputs
