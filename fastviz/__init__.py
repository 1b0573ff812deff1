"""fastviz: see inside convolutional networks, fast.

>>> import fastviz as fv
>>> model = fv.load_model("demo")
>>> x, names = fv.load_images("photos/", model=model)  # doctest: +SKIP
>>> heat = fv.saliency(model, x)  # doctest: +SKIP
"""

from fastviz import evaluation, images, jobs, ops
from fastviz._util.by_model import forget
from fastviz.accelerate import accelerate
from fastviz.engine.optimize import Optimization, canvas, priors, transforms
from fastviz.evaluation.evaluate import evaluate
from fastviz.execution.cuda_graphs import cuda_graphs
from fastviz.execution.fixed_inputs import fix_inputs
from fastviz.execution.rectifiers import RectifierWarning
from fastviz.graph.model_graph import layers, receptive_field
from fastviz.images import animation
from fastviz.images.reading import load_images
from fastviz.images.streams import batches
from fastviz.methods import (
    METHODS,
    CodeImages,
    Dream,
    Embedding,
    Fooled,
    FoolingImages,
    ImageMap,
    Inverted,
    Maximized,
    Neighbours,
    OcclusionMap,
    Patches,
    PatchPictures,
    Segmentation,
    Styled,
    activation_grid,
    activations,
    cam,
    deconvnet,
    deep_dream,
    dream_zoom,
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
    invert,
    invert_all,
    load_embedding,
    maximize,
    maximize_code,
    neighbour_sheet,
    neighbours,
    neural_texture,
    occlusion,
    patch_pictures,
    patch_sheet,
    patches,
    saliency,
    segment,
    smooth_grad,
    squared,
    style_transfer,
    synthesize_texture,
)
from fastviz.models.descriptions import class_names, describe
from fastviz.models.loading import load_model, model_names
from fastviz.ops._library import version
from fastviz.targets.boxes import box_score
from fastviz.targets.functions import output
from fastviz.targets.objectives import Objective, channel, class_probability, class_score, layer, neuron
from fastviz.targets.regions import pixel, region_score
from fastviz.targets.selection import Target
from fastviz.targets.similarity import similarity
from fastviz.vectors.projection import pca, tsne

__all__ = [
    "METHODS",
    "CodeImages",
    "Dream",
    "Embedding",
    "Fooled",
    "FoolingImages",
    "ImageMap",
    "Inverted",
    "Maximized",
    "Neighbours",
    "Objective",
    "OcclusionMap",
    "Optimization",
    "PatchPictures",
    "Patches",
    "RectifierWarning",
    "Segmentation",
    "Styled",
    "Target",
    "accelerate",
    "activation_grid",
    "activations",
    "animation",
    "batches",
    "box_score",
    "cam",
    "canvas",
    "channel",
    "class_names",
    "class_probability",
    "class_score",
    "cuda_graphs",
    "deconvnet",
    "deep_dream",
    "describe",
    "dream_zoom",
    "embedding",
    "evaluate",
    "evaluation",
    "evolve",
    "fill_hole",
    "filter_grid",
    "filters",
    "fix_inputs",
    "fool",
    "fool_from_noise",
    "forget",
    "grad_cam",
    "gradient_times_input",
    "guided_backprop",
    "guided_grad_cam",
    "image_map",
    "images",
    "input_gradient",
    "invert",
    "invert_all",
    "jobs",
    "layer",
    "layers",
    "load_embedding",
    "load_images",
    "load_model",
    "maximize",
    "maximize_code",
    "model_names",
    "neighbour_sheet",
    "neighbours",
    "neural_texture",
    "neuron",
    "occlusion",
    "ops",
    "output",
    "patch_pictures",
    "patch_sheet",
    "patches",
    "pca",
    "pixel",
    "priors",
    "receptive_field",
    "region_score",
    "saliency",
    "segment",
    "similarity",
    "smooth_grad",
    "squared",
    "style_transfer",
    "synthesize_texture",
    "transforms",
    "tsne",
]

__version__ = version()
