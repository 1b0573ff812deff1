"""Drop-in replacement for captum: the same classes, arguments, results and errors, computed faster.

Change ``from captum.attr import Occlusion`` to ``from fastviz.compat.captum import Occlusion``, or call
``fastviz.accelerate("captum")``. If captum is installed, the classes are subclasses of captum's, and calls that fastviz
does not compute itself are delegated to captum. Without captum, such calls raise an error. What is faster, and what
differs on purpose, is listed in docs/compat.md.
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
    # captum's DataLoaderAttribution accepts only the exact classes in this set, not their subclasses.
    _bases.data_loaders.SUPPORTED_METHODS.add(FeatureAblation)
