"""captum's classes that evaluate a model on random perturbations: Shapley values, LIME, permutation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastviz.compat.captum import _bases
from fastviz.compat.captum._fast_model import own, perturbations_per_pass, with_fast_model
from fastviz.compat.captum._forward import one_mask_each

__all__ = ["FeaturePermutation", "KernelShap", "Lime", "ShapleyValueSampling", "ShapleyValues"]

Tensors = Tensor | tuple[Tensor, ...]


class FeaturePermutation(_bases.FeaturePermutation):
    """captum's ``FeaturePermutation``: how much the target changes when a feature is permuted within the batch.

    Arguments, results, random numbers and errors are captum's; the model runs in the fast memory order.
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
                *(with_fast_model(self), inputs, target, additional_forward_args, feature_mask, perturbations_per_eval),
                show_progress=show_progress,
                **kwargs,
            )


class ShapleyValueSampling(_bases.ShapleyValueSampling):
    """captum's ``ShapleyValueSampling``: the contributions of features, averaged over random permutations.

    Arguments, results, random numbers and errors are captum's. The model runs in the fast memory order, on 16 images at
    a time if it treats images independently.
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
        per_eval = perturbations_per_pass(
            self, ShapleyValueSampling, inputs, additional_forward_args, perturbations_per_eval
        )
        return own(_bases.ShapleyValueSampling)(
            *(
                with_fast_model(self),
                inputs,
                baselines,
                target,
                additional_forward_args,
                feature_mask,
                n_samples,
                per_eval,
            ),
            show_progress=show_progress,
        )


class ShapleyValues(_bases.ShapleyValues):
    """captum's ``ShapleyValues``: the same over all permutations.

    Arguments, results and errors are captum's; see also :class:`ShapleyValueSampling`.
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
        per_eval = perturbations_per_pass(self, ShapleyValues, inputs, additional_forward_args, perturbations_per_eval)
        return own(_bases.ShapleyValues)(
            *(with_fast_model(self), inputs, baselines, target, additional_forward_args, feature_mask, per_eval),
            show_progress=show_progress,
        )


class Lime(_bases.Lime):
    """captum's ``Lime``: the coefficients of a linear model, fitted to the model's outputs near the input.

    Arguments, results, random numbers and errors are captum's. The model runs in the fast memory order, on 16 images at
    a time if it treats images independently.
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
        per_eval = perturbations_per_pass(self, Lime, _first(inputs), additional_forward_args, perturbations_per_eval)
        return own(_bases.Lime)(
            *(
                with_fast_model(self),
                inputs,
                baselines,
                target,
                additional_forward_args,
                feature_mask,
                n_samples,
                per_eval,
            ),
            *(return_input_shape, show_progress),
        )


class KernelShap(_bases.KernelShap):
    """captum's ``KernelShap``: Shapley values as the coefficients of a linear model.

    Arguments, results, random numbers and errors are captum's; see also :class:`Lime`.
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
        per_eval = perturbations_per_pass(
            self, KernelShap, _first(inputs), additional_forward_args, perturbations_per_eval
        )
        return own(_bases.KernelShap)(
            *(
                with_fast_model(self),
                inputs,
                baselines,
                target,
                additional_forward_args,
                feature_mask,
                n_samples,
                per_eval,
            ),
            *(return_input_shape, show_progress),
        )


def _first(inputs: object) -> object:
    """The first image, because LIME explains images one by one."""
    return inputs[:1] if isinstance(inputs, Tensor) else inputs
