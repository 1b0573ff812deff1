"""The methods that users call, by family; the registry lists them by name."""

from fastviz.methods.adversarial.evolution import evolve
from fastviz.methods.adversarial.fooling import FoolingImages
from fastviz.methods.adversarial.targeted import Fooled, fool, fool_from_noise
from fastviz.methods.attribution.cam import cam
from fastviz.methods.attribution.changed_maps import ablation_cam, recipro_cam
from fastviz.methods.attribution.full_grad import full_grad
from fastviz.methods.attribution.grad_cam import grad_cam, guided_grad_cam
from fastviz.methods.attribution.grad_cam_variants import (
    cams,
    eigen_cam,
    eigen_grad_cam,
    element_wise_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    xgrad_cam,
)
from fastviz.methods.attribution.gradients import (
    deconvnet,
    gradient_times_input,
    guided_backprop,
    input_gradient,
    saliency,
    smooth_grad,
)
from fastviz.methods.attribution.map_fusion import augmented, fuse_maps
from fastviz.methods.attribution.noise_tunnel import noise_tunnel, smooth_grad_squared, var_grad
from fastviz.methods.attribution.occlusion import OcclusionMap, occlusion
from fastviz.methods.attribution.path import PathAttribution, gradient_shap, integrated_gradients
from fastviz.methods.attribution.rise import RiseMap, rise
from fastviz.methods.attribution.score_cam import score_cam
from fastviz.methods.attribution.segment_maps import SegmentMap
from fastviz.methods.attribution.segmentation import Segmentation, segment
from fastviz.methods.attribution.shapley import feature_ablation, shapley_sampling
from fastviz.methods.attribution.surrogates import kernel_shap, lime
from fastviz.methods.inspection.activations import activation_grid, activations
from fastviz.methods.inspection.embedding import Embedding, embedding, load_embedding
from fastviz.methods.inspection.filters import filter_grid, filters
from fastviz.methods.inspection.image_map import ImageMap, image_map
from fastviz.methods.inspection.neighbours import Neighbours, neighbour_sheet, neighbours
from fastviz.methods.inspection.patch_sheets import PatchPictures, patch_pictures, patch_sheet
from fastviz.methods.inspection.patches import Patches, patches
from fastviz.methods.registry import EXPLAINERS, METHODS, Method
from fastviz.methods.synthesis.activation_maximization import Maximized, maximize
from fastviz.methods.synthesis.deep_dream import Dream, deep_dream, dream_zoom
from fastviz.methods.synthesis.dream_objectives import squared
from fastviz.methods.synthesis.inversion import Inverted, invert, invert_all, invertible_layers
from fastviz.methods.synthesis.latent_maximization import CodeImages, maximize_code
from fastviz.methods.synthesis.neural_texture import neural_texture
from fastviz.methods.synthesis.style_transfer import Style, Styled, style_transfer
from fastviz.methods.synthesis.texture_synthesis import fill_hole, synthesize_texture

__all__ = [
    "EXPLAINERS",
    "METHODS",
    "CodeImages",
    "Dream",
    "Embedding",
    "Fooled",
    "FoolingImages",
    "ImageMap",
    "Inverted",
    "Maximized",
    "Method",
    "Neighbours",
    "OcclusionMap",
    "PatchPictures",
    "Patches",
    "PathAttribution",
    "RiseMap",
    "SegmentMap",
    "Segmentation",
    "Style",
    "Styled",
    "ablation_cam",
    "activation_grid",
    "activations",
    "augmented",
    "cam",
    "cams",
    "deconvnet",
    "deep_dream",
    "dream_zoom",
    "eigen_cam",
    "eigen_grad_cam",
    "element_wise_cam",
    "embedding",
    "evolve",
    "feature_ablation",
    "fill_hole",
    "filter_grid",
    "filters",
    "fool",
    "fool_from_noise",
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
    "input_gradient",
    "integrated_gradients",
    "invert",
    "invert_all",
    "invertible_layers",
    "kernel_shap",
    "layer_cam",
    "lime",
    "load_embedding",
    "maximize",
    "maximize_code",
    "neighbour_sheet",
    "neighbours",
    "neural_texture",
    "noise_tunnel",
    "occlusion",
    "patch_pictures",
    "patch_sheet",
    "patches",
    "recipro_cam",
    "rise",
    "saliency",
    "score_cam",
    "segment",
    "shapley_sampling",
    "smooth_grad",
    "smooth_grad_squared",
    "squared",
    "style_transfer",
    "synthesize_texture",
    "var_grad",
    "xgrad_cam",
]
