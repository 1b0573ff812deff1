"""The base classes of the replacements: captum's own classes if it is installed, otherwise stand-ins."""

from __future__ import annotations

from typing import Any

__all__ = [
    "Deconvolution",
    "FeatureAblation",
    "FeaturePermutation",
    "GradientShap",
    "GuidedBackprop",
    "GuidedGradCam",
    "InputXGradient",
    "IntegratedGradients",
    "InternalInfluence",
    "KernelShap",
    "LayerActivation",
    "LayerConductance",
    "LayerGradCam",
    "LayerGradientXActivation",
    "Lime",
    "NeuronDeconvolution",
    "NeuronGuidedBackprop",
    "NoiseTunnel",
    "Occlusion",
    "Saliency",
    "ShapleyValueSampling",
    "ShapleyValues",
    "compute_gradients",
    "data_loaders",
    "installed",
    "log_usage",
    "progress_bar",
]

compute_gradients: Any = None
"""The default ``gradient_func`` of captum's gradient classes."""
progress_bar: Any = None
"""captum's progress bar: ``progress_bar(desc=, total=)`` with ``update(steps)`` and ``close()``."""

data_loaders: Any = None
"""captum's module for data loaders, with the ``SUPPORTED_METHODS`` of its ``DataLoaderAttribution``."""

try:
    from captum._utils.gradient import compute_gradients  # type: ignore[no-redef]
    from captum._utils.progress import progress as progress_bar  # type: ignore[no-redef]
    from captum.attr import (
        Deconvolution,
        FeatureAblation,
        FeaturePermutation,
        GradientShap,
        GuidedBackprop,
        GuidedGradCam,
        InputXGradient,
        IntegratedGradients,
        InternalInfluence,
        KernelShap,
        LayerActivation,
        LayerConductance,
        LayerGradCam,
        LayerGradientXActivation,
        Lime,
        NeuronDeconvolution,
        NeuronGuidedBackprop,
        NoiseTunnel,
        Occlusion,
        Saliency,
        ShapleyValues,
        ShapleyValueSampling,
    )
    from captum.attr._core import dataloader_attr as data_loaders  # type: ignore[no-redef]
    from captum.log import log_usage
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "captum":
        raise
    from fastviz.compat.captum._stand_in import (
        Deconvolution,
        FeatureAblation,
        FeaturePermutation,
        GradientShap,
        GuidedBackprop,
        GuidedGradCam,
        InputXGradient,
        IntegratedGradients,
        InternalInfluence,
        KernelShap,
        LayerActivation,
        LayerConductance,
        LayerGradCam,
        LayerGradientXActivation,
        Lime,
        NeuronDeconvolution,
        NeuronGuidedBackprop,
        NoiseTunnel,
        Occlusion,
        Saliency,
        ShapleyValues,
        ShapleyValueSampling,
        log_usage,
    )

installed = compute_gradients is not None
