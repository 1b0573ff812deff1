"""fastviz: see inside convolutional networks, fast.

>>> import fastviz as fv
>>> model = fv.load_model("demo")
>>> x, names = fv.load_images("photos/", model=model)  # doctest: +SKIP
>>> heat = fv.saliency(model, x)  # doctest: +SKIP
"""

from fastviz import images, ops
from fastviz.accelerate import accelerate
from fastviz.capture import RectifierWarning
from fastviz.graph import layers, receptive_field
from fastviz.images import load_images
from fastviz.methods import (
    METHODS,
    Embedding,
    Fooled,
    ImageMap,
    Neighbours,
    OcclusionMap,
    Patches,
    PatchPictures,
    Segmentation,
    activation_grid,
    activations,
    cam,
    deconvnet,
    embedding,
    evolve,
    fill_hole,
    filter_grid,
    filters,
    fool,
    fool_from_noise,
    grad_cam,
    gradient_times_input,
    guided_backprop,
    guided_grad_cam,
    image_map,
    input_gradient,
    load_embedding,
    neighbour_sheet,
    neighbours,
    occlusion,
    patch_pictures,
    patch_sheet,
    patches,
    saliency,
    segment,
    smooth_grad,
    synthesize_texture,
)
from fastviz.models import class_names, describe, load_model, model_names
from fastviz.native import version
from fastviz.projection import pca, tsne
from fastviz.streaming import batches
from fastviz.targets import Target, channel, class_probability, class_score, layer, neuron

__all__ = [
    "METHODS",
    "Embedding",
    "Fooled",
    "ImageMap",
    "Neighbours",
    "OcclusionMap",
    "PatchPictures",
    "Patches",
    "RectifierWarning",
    "Segmentation",
    "Target",
    "accelerate",
    "activation_grid",
    "activations",
    "batches",
    "cam",
    "channel",
    "class_names",
    "class_probability",
    "class_score",
    "deconvnet",
    "describe",
    "embedding",
    "evolve",
    "fill_hole",
    "filter_grid",
    "filters",
    "fool",
    "fool_from_noise",
    "grad_cam",
    "gradient_times_input",
    "guided_backprop",
    "guided_grad_cam",
    "image_map",
    "images",
    "input_gradient",
    "layer",
    "layers",
    "load_embedding",
    "load_images",
    "load_model",
    "model_names",
    "neighbour_sheet",
    "neighbours",
    "neuron",
    "occlusion",
    "ops",
    "patch_pictures",
    "patch_sheet",
    "patches",
    "pca",
    "receptive_field",
    "saliency",
    "segment",
    "smooth_grad",
    "synthesize_texture",
    "tsne",
]

__version__ = version()
