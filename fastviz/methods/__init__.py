"""The registry of methods: name → function, paper, what it draws. Command line, jobs, report and README read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastviz.methods.cam import cam, grad_cam, guided_grad_cam
from fastviz.methods.gradients import (
    deconvnet,
    gradient_times_input,
    guided_backprop,
    input_gradient,
    saliency,
    smooth_grad,
)
from fastviz.methods.occlusion import OcclusionMap, occlusion
from fastviz.methods.texture import fill_hole, synthesize_texture

__all__ = [
    "EXPLAINERS",
    "METHODS",
    "Method",
    "OcclusionMap",
    "cam",
    "deconvnet",
    "fill_hole",
    "grad_cam",
    "gradient_times_input",
    "guided_backprop",
    "guided_grad_cam",
    "input_gradient",
    "occlusion",
    "saliency",
    "smooth_grad",
    "synthesize_texture",
]


@dataclass(frozen=True)
class Method:
    """One way of seeing inside a network.

    Attributes:
        name: its name on the command line and in files.
        function: what computes it; of the family ``"explain"`` it takes ``(model, x, target, **options)``.
        paper: short citation and link.
        summary: one line for lists.
        draws: ``"heat"`` a map [N, h, w] of 0 or more; ``"signed"`` a map [N, h, w] of both signs; ``"gradient"`` a
            picture [N, C, H, W] of both signs; ``"picture"`` anything else that a person looks at.
        family: ``"explain"``: what in an image makes a target; ``"read"``: what a network holds and responds to;
            ``"make"``: pictures that it imagines.
        defaults: options that the command line and jobs pass unless told otherwise.
    """

    name: str
    function: Callable[..., Any]
    paper: str
    summary: str
    draws: Literal["heat", "signed", "gradient", "picture"]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    family: Literal["explain", "read", "make"] = "explain"


_SIMONYAN = "Simonyan, Vedaldi, Zisserman 2014, https://arxiv.org/abs/1312.6034"
_ZEILER = "Zeiler, Fergus 2014, https://arxiv.org/abs/1311.2901"
_EFROS = "Efros, Leung 1999, https://doi.org/10.1109/ICCV.1999.790383"
_SELVARAJU = "Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("saliency", saliency, _SIMONYAN, "largest absolute gradient over the channels of each pixel", "heat"),
        Method("input_gradient", input_gradient, _SIMONYAN, "signed gradient for every input value", "gradient"),
        Method(
            "gradient_times_input",
            gradient_times_input,
            "Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713",
            "gradient times the input value",
            "gradient",
        ),
        Method(
            "smooth_grad",
            smooth_grad,
            "Smilkov et al. 2017, https://arxiv.org/abs/1706.03825",
            "mean gradient over noisy copies of the image",
            "gradient",
        ),
        Method(
            "deconvnet",
            deconvnet,
            _ZEILER,
            "gradient whose rectifiers pass on what is positive, active or not",
            "gradient",
        ),
        Method(
            "guided_backprop",
            guided_backprop,
            "Springenberg et al. 2015, https://arxiv.org/abs/1412.6806",
            "gradient whose rectifiers pass on what is positive, where they are active",
            "gradient",
        ),
        Method(
            "cam",
            cam,
            "Zhou et al. 2016, https://arxiv.org/abs/1512.04150",
            "last maps weighted by the class's weights, for networks that end in average pooling and a linear layer",
            "signed",
        ),
        Method("grad_cam", grad_cam, _SELVARAJU, "a layer's maps weighted by their mean gradient", "heat"),
        Method(
            "guided_grad_cam",
            guided_grad_cam,
            _SELVARAJU,
            "guided backprop times resized Grad-CAM",
            "gradient",
        ),
        Method("occlusion", occlusion, _ZEILER, "fall of the score when a window of the image is covered", "signed"),
        Method(
            "synthesize_texture",
            synthesize_texture,
            _EFROS,
            "a texture grown pixel by pixel from a sample",
            "picture",
            family="make",
        ),
        Method(
            "fill_hole",
            fill_hole,
            _EFROS,
            "a hole in a picture filled from the rest of it",
            "picture",
            family="make",
        ),
    )
}
"""Name → method, in the order in which they are shown."""

EXPLAINERS = {name: method for name, method in METHODS.items() if method.family == "explain"}
"""Those that explain a target in an image: what ``fastviz explain`` offers."""
