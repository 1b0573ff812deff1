"""The registry of methods, for command line, jobs, report and README: function, paper and kind of result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastviz.methods.adversarial.evolution import evolve
from fastviz.methods.adversarial.targeted import fool, fool_from_noise
from fastviz.methods.attribution.cam import cam
from fastviz.methods.attribution.changed_maps import ablation_cam, recipro_cam
from fastviz.methods.attribution.full_grad import full_grad
from fastviz.methods.attribution.grad_cam import grad_cam, guided_grad_cam
from fastviz.methods.attribution.grad_cam_variants import (
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
from fastviz.methods.attribution.noise_tunnel import smooth_grad_squared, var_grad
from fastviz.methods.attribution.occlusion import occlusion
from fastviz.methods.attribution.path import gradient_shap, integrated_gradients
from fastviz.methods.attribution.rise import rise
from fastviz.methods.attribution.score_cam import score_cam
from fastviz.methods.attribution.segmentation import segment
from fastviz.methods.attribution.shapley import feature_ablation, shapley_sampling
from fastviz.methods.attribution.surrogates import kernel_shap, lime
from fastviz.methods.inspection.activations import activations
from fastviz.methods.inspection.embedding import embedding
from fastviz.methods.inspection.filters import filters
from fastviz.methods.inspection.neighbours import neighbours
from fastviz.methods.inspection.patches import patches
from fastviz.methods.synthesis.activation_maximization import maximize
from fastviz.methods.synthesis.deep_dream import deep_dream
from fastviz.methods.synthesis.inversion import invert
from fastviz.methods.synthesis.latent_maximization import maximize_code
from fastviz.methods.synthesis.neural_texture import neural_texture
from fastviz.methods.synthesis.style_transfer import style_transfer
from fastviz.methods.synthesis.texture_synthesis import fill_hole, synthesize_texture

__all__ = ["EXPLAINERS", "METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """A visualisation or explanation method.

    Attributes:
        name: its name on the command line and in files.
        function: the public function; in the family ``"explain"`` it takes ``(model, x, target, **options)``.
        paper: short citation and link.
        summary: one line for lists.
        draws: the kind of result. ``"heat"``: a map [N, h, w] of 0 or more; ``"signed"``: a map [N, h, w] of both
            signs, or [N, C, h, w], drawn as the sum over the channels; ``"gradient"``: a picture [N, C, H, W] of both
            signs; ``"mask"``: an object [N, H, W], 1 inside and 0 outside; ``"picture"``: any other picture.
        family: ``"explain"``: attribution; ``"read"``: inspection of weights and activations; ``"make"``: synthesis of
            images.
        command: its command, if it has another name than the method.
        defaults: default options of the command line and jobs.
    """

    name: str
    function: Callable[..., Any]
    paper: str
    summary: str
    draws: Literal["heat", "signed", "gradient", "mask", "picture"]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    family: Literal["explain", "read", "make"] = "explain"
    command: str = ""

    @property
    def verb(self) -> str:
        """The command that runs it: ``"run"`` for the family ``"explain"``, else :attr:`command` or the name."""
        return self.command or ("run" if self.family == "explain" else self.name)


_SIMONYAN = "Simonyan, Vedaldi, Zisserman 2014, https://arxiv.org/abs/1312.6034"
_ZEILER = "Zeiler, Fergus 2014, https://arxiv.org/abs/1311.2901"
_EFROS = "Efros, Leung 1999, https://doi.org/10.1109/ICCV.1999.790383"
_SELVARAJU = "Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391"
_MUHAMMAD = "Muhammad, Yeasin 2020, https://arxiv.org/abs/2008.00299"
_LUNDBERG = "Lundberg, Lee 2017, https://arxiv.org/abs/1705.07874"
_NGUYEN = "Nguyen, Yosinski, Clune 2015, https://arxiv.org/abs/1412.1897"

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
            "smooth_grad_squared",
            smooth_grad_squared,
            "Hooker et al. 2019, https://arxiv.org/abs/1806.10758",
            "mean square of the gradient over noisy copies of the image",
            "heat",
        ),
        Method(
            "var_grad",
            var_grad,
            "Adebayo et al. 2018, https://arxiv.org/abs/1810.03292",
            "variance of the gradient over noisy copies of the image",
            "heat",
        ),
        Method(
            "integrated_gradients",
            integrated_gradients,
            "Sundararajan, Taly, Yan 2017, https://arxiv.org/abs/1703.01365",
            "mean gradient on the line from a baseline to the image, times their difference",
            "signed",
        ),
        Method(
            "gradient_shap",
            gradient_shap,
            _LUNDBERG,
            "integrated gradients at random points, from random baselines",
            "signed",
        ),
        Method(
            "deconvnet",
            deconvnet,
            _ZEILER,
            "gradient whose rectifiers pass on positive gradients, active or not",
            "gradient",
        ),
        Method(
            "guided_backprop",
            guided_backprop,
            "Springenberg et al. 2015, https://arxiv.org/abs/1412.6806",
            "gradient whose rectifiers pass on positive gradients where they are active",
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
        Method(
            "grad_cam_plus_plus",
            grad_cam_plus_plus,
            "Chattopadhay et al. 2018, https://arxiv.org/abs/1710.11063",
            "maps weighted by their positions with positive gradients",
            "heat",
        ),
        Method(
            "xgrad_cam",
            xgrad_cam,
            "Fu et al. 2020, https://arxiv.org/abs/2008.02312",
            "maps weighted by the mean gradient over their active positions",
            "heat",
        ),
        Method(
            "layer_cam",
            layer_cam,
            "Jiang et al. 2021, https://doi.org/10.1109/TIP.2021.3089943",
            "maps weighted at each position by the positive gradient; also for early layers",
            "heat",
        ),
        Method(
            "hires_cam",
            hires_cam,
            "Draelos, Carin 2020, https://arxiv.org/abs/2011.08891",
            "gradient times map: each position's contribution to the score",
            "heat",
        ),
        Method(
            "element_wise_cam",
            element_wise_cam,
            "GradCAMElementWise, https://github.com/jacobgil/pytorch-grad-cam",
            "positive part of gradient times map",
            "heat",
        ),
        Method(
            "eigen_cam", eigen_cam, _MUHAMMAD, "first principal component of a layer's maps, for any target", "heat"
        ),
        Method("eigen_grad_cam", eigen_grad_cam, _MUHAMMAD, "first principal component of gradient times map", "heat"),
        Method(
            "full_grad",
            full_grad,
            "Srinivas, Fleuret 2019, https://arxiv.org/abs/1905.00780",
            "gradient times input and times the biases of all layers, in one map",
            "heat",
        ),
        Method(
            "ablation_cam",
            ablation_cam,
            "Desai, Ramaswamy 2020, https://doi.org/10.1109/WACV45572.2020.9093360",
            "maps weighted by the fall of the score without each of them",
            "heat",
        ),
        Method(
            "score_cam",
            score_cam,
            "Wang et al. 2020, https://arxiv.org/abs/1910.01279",
            "maps weighted by the score of the image masked with each of them",
            "heat",
        ),
        Method(
            "recipro_cam",
            recipro_cam,
            "Byun, Lee 2022, https://arxiv.org/abs/2209.14074",
            "score from each single position of a layer",
            "heat",
        ),
        Method("segment", segment, _SIMONYAN, "the object segmented by GrabCut, seeded by saliency", "mask"),
        Method("occlusion", occlusion, _ZEILER, "fall of the score when a window of the image is covered", "signed"),
        Method(
            "feature_ablation",
            feature_ablation,
            _ZEILER,
            "fall of the score when a superpixel is left out",
            "signed",
        ),
        Method(
            "shapley_sampling",
            shapley_sampling,
            "Castro, Gómez, Tejada 2009, https://doi.org/10.1016/j.cor.2008.04.004",
            "mean contribution of a superpixel to the score over random orders of adding them",
            "signed",
        ),
        Method(
            "kernel_shap",
            kernel_shap,
            _LUNDBERG,
            "superpixels' Shapley values, from a linear model of the score",
            "signed",
        ),
        Method(
            "lime",
            lime,
            "Ribeiro, Singh, Guestrin 2016, https://arxiv.org/abs/1602.04938",
            "linear model of the score near the image, over superpixels",
            "signed",
        ),
        Method(
            "rise",
            rise,
            "Petsiuk, Das, Saenko 2018, https://arxiv.org/abs/1806.07421",
            "mean of random masks, each weighted by the probability of the class under it",
            "heat",
            {"stop": 0.95},
        ),
        Method(
            "filters",
            filters,
            "Krizhevsky, Sutskever, Hinton 2012, https://papers.nips.cc/paper/4824",
            "the weights of a convolution: colour pictures in the first layer, grey ones in deeper layers",
            "picture",
            family="read",
        ),
        Method(
            "activations",
            activations,
            "Yosinski et al. 2015, https://arxiv.org/abs/1506.06579",
            "the maps of any layers for an image, from one forward pass",
            "picture",
            family="read",
        ),
        Method(
            "embedding",
            embedding,
            "van der Maaten, Hinton 2008, https://jmlr.org/papers/v9/vandermaaten08a.html",
            "feature vectors of many images, projected to a plane by t-SNE or PCA",
            "picture",
            family="read",
            command="embed",
        ),
        Method(
            "neighbours",
            neighbours,
            "Krizhevsky, Sutskever, Hinton 2012, https://papers.nips.cc/paper/4824",
            "the nearest images by features, next to the nearest by pixels",
            "picture",
            family="read",
        ),
        Method(
            "patches",
            patches,
            "Girshick et al. 2014, https://arxiv.org/abs/1311.2524",
            "parts of many images that activate each channel most, with guided backprop",
            "picture",
            family="read",
        ),
        Method(
            "maximize",
            maximize,
            _SIMONYAN,
            "image that a class, a unit, a channel or a layer responds to most, by gradient ascent",
            "picture",
            family="make",
        ),
        Method(
            "maximize_code",
            maximize_code,
            "Nguyen et al. 2016, https://arxiv.org/abs/1605.09304",
            "the code of a layer that a target responds to most, decoded into an image",
            "picture",
            family="make",
            command="maximize",
        ),
        Method(
            "invert",
            invert,
            "Mahendran, Vedaldi 2015, https://arxiv.org/abs/1412.0035",
            "image with the same features in a layer as a photograph: what the layer preserves",
            "picture",
            family="make",
        ),
        Method(
            "deep_dream",
            deep_dream,
            "Mordvintsev, Olah, Tyka 2015, "
            "https://research.google/blog/inceptionism-going-deeper-into-neural-networks/",
            "photograph changed to amplify what a layer sees in it, or the features of another image",
            "picture",
            family="make",
            command="dream",
        ),
        Method(
            "fool",
            fool,
            "Szegedy et al. 2013, https://arxiv.org/abs/1312.6199",
            "smallest change of an image that makes the network see another class, by L-BFGS, sign or gradient steps",
            "picture",
            family="make",
        ),
        Method(
            "synthesize_texture",
            synthesize_texture,
            _EFROS,
            "a texture grown pixel by pixel from a sample",
            "picture",
            family="make",
            command="texture",
        ),
        Method(
            "fool_from_noise",
            fool_from_noise,
            _NGUYEN,
            "noise that the network classifies with high confidence, by gradient",
            "picture",
            family="make",
            command="fool",
        ),
        Method(
            "evolve",
            evolve,
            _NGUYEN,
            "patterns that the network classifies with high confidence, evolved without gradients",
            "picture",
            family="make",
            command="fool",
        ),
        Method(
            "fill_hole",
            fill_hole,
            _EFROS,
            "a hole in a picture filled from the rest of it",
            "picture",
            family="make",
            command="texture",
        ),
        Method(
            "neural_texture",
            neural_texture,
            "Gatys, Ecker, Bethge 2015, https://arxiv.org/abs/1505.07376",
            "a texture with the Gram matrices of a sample's features, from noise",
            "picture",
            family="make",
            command="texture",
        ),
        Method(
            "style_transfer",
            style_transfer,
            "Gatys, Ecker, Bethge 2015, https://arxiv.org/abs/1508.06576",
            "a picture with the content of one and the style of others",
            "picture",
            family="make",
            command="style",
        ),
    )
}
"""All methods by name, in the order in which they are shown."""

EXPLAINERS = {name: method for name, method in METHODS.items() if method.family == "explain"}
"""The attribution methods, which ``fastviz run`` offers."""
