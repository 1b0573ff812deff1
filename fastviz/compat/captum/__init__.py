"""Drop-in for captum: the same classes, arguments, results and errors, computed sooner.

Change ``from captum.attr import Occlusion`` to ``from fastviz.compat.captum import Occlusion``, or call
``fastviz.accelerate("captum")``. Where captum is installed the classes are captum's types; calls that fastviz does not
compute itself take captum's own path. Without captum they work where fastviz computes everything itself, and say so
where it does not. What is faster, and what differs on purpose, is listed in docs/compat.md.
"""

from fastviz.compat.captum import _bases
from fastviz.compat.captum.gradient import (
    Deconvolution,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    LayerGradCam,
    NeuronDeconvolution,
    NeuronGuidedBackprop,
    Saliency,
)
from fastviz.compat.captum.layers import (
    InternalInfluence,
    LayerActivation,
    LayerConductance,
    LayerGradientXActivation,
)
from fastviz.compat.captum.path import GradientShap, IntegratedGradients, NoiseTunnel
from fastviz.compat.captum.perturbation import FeatureAblation, Occlusion
from fastviz.compat.captum.sampling import (
    FeaturePermutation,
    KernelShap,
    Lime,
    ShapleyValues,
    ShapleyValueSampling,
)

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
]

if _bases.data_loaders is not None:
    # captum's DataLoaderAttribution takes instances of the classes in this set, and not of what is derived from them.
    _bases.data_loaders.SUPPORTED_METHODS.add(FeatureAblation)
