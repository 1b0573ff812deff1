"""Drop-in replacement for pytorch-grad-cam's CAM classes, guided backprop and ROAD metrics: the same arrays, faster.

No parameter gradients are computed. The model keeps its mode and its parameters' ``grad``, its layers have no hooks
between calls, and exceptions are not swallowed. Targets are any callables, including pytorch-grad-cam's own. What is
faster, and what differs on purpose, is listed in docs/compat.md.
"""

from fastviz.compat.grad_cam.full_grad import FullGrad
from fastviz.compat.grad_cam.gradient import (
    FEM,
    KPCA_CAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RandomCAM,
    SegEigenCAM,
    XGradCAM,
)
from fastviz.compat.grad_cam.guided import GuidedBackpropReLUModel
from fastviz.compat.grad_cam.many_passes import AblationCAM, ScoreCAM
from fastviz.compat.grad_cam.metrics import (
    ROADCombined,
    ROADLeastRelevantFirst,
    ROADLeastRelevantFirstAverage,
    ROADMostRelevantFirst,
    ROADMostRelevantFirstAverage,
)

__all__ = [
    "FEM",
    "KPCA_CAM",
    "AblationCAM",
    "EigenCAM",
    "EigenGradCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackpropReLUModel",
    "HiResCAM",
    "LayerCAM",
    "ROADCombined",
    "ROADLeastRelevantFirst",
    "ROADLeastRelevantFirstAverage",
    "ROADMostRelevantFirst",
    "ROADMostRelevantFirstAverage",
    "RandomCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "XGradCAM",
]
