"""fastviz: see inside convolutional networks, fast.

>>> import fastviz as fv
>>> model = fv.load_model("demo")
>>> x, names = fv.load_images("photos/", model=model)  # doctest: +SKIP
>>> heat = fv.saliency(model, x)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastviz import images, ops
from fastviz._util.by_model import forget
from fastviz.accelerate import accelerate
from fastviz.engine.optimize import Optimization, canvas, priors, transforms
from fastviz.execution.cuda_graphs import cuda_graphs
from fastviz.execution.fixed_inputs import fix_inputs
from fastviz.execution.rectifiers import RectifierWarning
from fastviz.graph.layers import layers, receptive_field
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
    PathAttribution,
    RiseMap,
    Segmentation,
    SegmentMap,
    Style,
    Styled,
    ablation_cam,
    activation_grid,
    activations,
    augmented,
    cam,
    cams,
    deconvnet,
    deep_dream,
    dream_zoom,
    eigen_cam,
    eigen_grad_cam,
    element_wise_cam,
    embedding,
    evolve,
    feature_ablation,
    fill_hole,
    filter_grid,
    filters,
    fool,
    fool_from_noise,
    full_grad,
    fuse_maps,
    grad_cam,
    grad_cam_plus_plus,
    gradient_shap,
    gradient_times_input,
    guided_backprop,
    guided_grad_cam,
    hires_cam,
    image_map,
    input_gradient,
    integrated_gradients,
    invert,
    invert_all,
    kernel_shap,
    layer_cam,
    lime,
    load_embedding,
    maximize,
    maximize_code,
    neighbour_sheet,
    neighbours,
    neural_texture,
    noise_tunnel,
    occlusion,
    patch_pictures,
    patch_sheet,
    patches,
    recipro_cam,
    rise,
    saliency,
    score_cam,
    segment,
    shapley_sampling,
    smooth_grad,
    smooth_grad_squared,
    squared,
    style_transfer,
    synthesize_texture,
    var_grad,
    xgrad_cam,
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
from fastviz.vectors.projection import Components, pca, tsne

if TYPE_CHECKING:
    from fastviz import evaluation, jobs
    from fastviz.evaluation.evaluate import evaluate

__all__ = [
    "METHODS",
    "CodeImages",
    "Components",
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
    "PathAttribution",
    "RectifierWarning",
    "RiseMap",
    "SegmentMap",
    "Segmentation",
    "Style",
    "Styled",
    "Target",
    "ablation_cam",
    "accelerate",
    "activation_grid",
    "activations",
    "animation",
    "augmented",
    "batches",
    "box_score",
    "cam",
    "cams",
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
    "eigen_cam",
    "eigen_grad_cam",
    "element_wise_cam",
    "embedding",
    "evaluate",
    "evaluation",
    "evolve",
    "feature_ablation",
    "fill_hole",
    "filter_grid",
    "filters",
    "fix_inputs",
    "fool",
    "fool_from_noise",
    "forget",
    "full_grad",
    "fuse_maps",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient_shap",
    "gradient_times_input",
    "guided_backprop",
    "guided_grad_cam",
    "hires_cam",
    "image_map",
    "images",
    "input_gradient",
    "integrated_gradients",
    "invert",
    "invert_all",
    "jobs",
    "kernel_shap",
    "layer",
    "layer_cam",
    "layers",
    "lime",
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
    "noise_tunnel",
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
    "recipro_cam",
    "region_score",
    "rise",
    "saliency",
    "score_cam",
    "segment",
    "shapley_sampling",
    "similarity",
    "smooth_grad",
    "smooth_grad_squared",
    "squared",
    "style_transfer",
    "synthesize_texture",
    "transforms",
    "tsne",
    "var_grad",
    "xgrad_cam",
]

__version__ = version()

_AT_FIRST_USE = {"evaluation": None, "jobs": None, "evaluate": "evaluation"}
"""What maps alone do not need; without it, importing the package takes a sixth less: subpackages, and name → its
subpackage."""


def __getattr__(name: str) -> Any:
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _AT_FIRST_USE[name]
    found = import_module(f"{__name__}.{name}") if home is None else getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
