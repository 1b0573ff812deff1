"""fastviz: see inside convolutional networks, fast.

>>> import fastviz as fv
>>> model = fv.load_model("demo")
>>> x, names = fv.load_images("photos/", model=model)  # doctest: +SKIP
>>> heat = fv.saliency(model, x)  # doctest: +SKIP
"""

from fastviz import images, ops
from fastviz.capture import RectifierWarning
from fastviz.graph import layers, receptive_field
from fastviz.images import load_images
from fastviz.methods import (
    METHODS,
    OcclusionMap,
    cam,
    deconvnet,
    fill_hole,
    grad_cam,
    gradient_times_input,
    guided_backprop,
    guided_grad_cam,
    input_gradient,
    occlusion,
    saliency,
    smooth_grad,
    synthesize_texture,
)
from fastviz.models import class_names, describe, load_model, model_names
from fastviz.native import version
from fastviz.targets import Target, channel, class_probability, class_score, layer, neuron

__all__ = [
    "METHODS",
    "OcclusionMap",
    "RectifierWarning",
    "Target",
    "cam",
    "channel",
    "class_names",
    "class_probability",
    "class_score",
    "deconvnet",
    "describe",
    "fill_hole",
    "grad_cam",
    "gradient_times_input",
    "guided_backprop",
    "guided_grad_cam",
    "images",
    "input_gradient",
    "layer",
    "layers",
    "load_images",
    "load_model",
    "model_names",
    "neuron",
    "occlusion",
    "ops",
    "receptive_field",
    "saliency",
    "smooth_grad",
    "synthesize_texture",
]

__version__ = version()
