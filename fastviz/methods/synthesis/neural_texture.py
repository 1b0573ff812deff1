"""Neural textures: pictures with the feature statistics of a sample, optimised from noise."""

from __future__ import annotations

from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.optimize import FeatureNetwork, Optimization, with_defaults
from fastviz.engine.optimize.canvas import frame_of
from fastviz.engine.optimize.default_layers import style_layers
from fastviz.engine.optimize.multiscale import Size, optimize_in_levels, shrunk
from fastviz.engine.optimize.style_loss import Layers, StyleLoss, layer_weights
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import Precision
from fastviz.methods.synthesis.style_transfer import Styled

__all__ = ["neural_texture"]

_SMALLEST = 64
"""Coarse levels whose shorter side is below this, in pixels, are left out: they are too small for networks."""


def neural_texture(
    model: nn.Module,
    sample: Tensor,
    size: int | tuple[int, int] | None = None,
    *,
    layers: Layers = None,
    levels: int = 2,
    steps: int = 100,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
    optimization: Optimization | None = None,
) -> Styled:
    """Pictures of any size with the same texture statistics in a network as ``sample``.

    Gatys, Ecker, Bethge 2015, "Texture Synthesis Using Convolutional Neural Networks",
    https://arxiv.org/abs/1505.07376: starting from noise, the image minimises Σ_l w_l E_l, E_l = 1 / (4 N² M²) · Σ (G −
    A)², with Gram matrices G = F Fᵀ of the image and A of the sample, for layers with N channels and M positions. Gram
    matrices describe which features a texture has and how often they occur together, but not where they are.

    We depart from it as :func:`fastviz.style_transfer` does: the loss of each layer is divided by its scale, the
    texture may have another size than the sample, and it is optimised from coarse to fine, so that it has structure
    larger than the receptive fields. The layers are relu1_1, … relu5_1 of VGG-19, instead of conv1_1 and the pooling
    layers.

    :func:`fastviz.synthesize_texture` makes textures without a network.

    Args:
        model: any module with maps; not changed.
        sample: [N, C, h, w], textures as the model takes them; each gives one image.
        size: height and width of the images in pixels, one number for a square; None is the size of the sample.
        layers: see :func:`fastviz.style_transfer`.
        levels: see there; down to a shorter side of 64 pixels.
        steps, seed, batch_size, precision, progress: see there.
        optimization: see :class:`fastviz.Optimization`. The defaults are L-BFGS over the Fourier canvas from
            ``"noise"``; starts are ``"noise"``, ``"zeros"``, ``"grey"`` or images [1 or N, C, *size].

    Returns:
        A :class:`fastviz.Styled` with N images, at least float32, on the device of ``sample``.

    Raises:
        TypeError, ValueError: invalid arguments; an unknown layer or one without maps; images on which the model cannot
            be run; a checkpoint, which is not supported with levels.
        MemoryError: the images do not fit into memory together; the message says how many would.

    >>> import fastviz as fv
    >>> import torch
    >>> made = fv.neural_texture(fv.load_model("demo"), torch.rand(1, 3, 64, 64), (64, 96), steps=2)
    >>> made.pictures.shape, bool(made.history[-1] < made.history[0])
    (torch.Size([1, 3, 64, 96]), True)
    """
    samples = input_batch(model, sample, "sample", wide=True).detach()
    frame = frame_of(model, (samples.shape[2], samples.shape[3]) if size is None else size, samples.shape[1])
    shown = frame.picture(samples)
    weights = layer_weights(layers, "layers", () if layers is not None else style_layers(model)[0])
    network = FeatureNetwork(model, list(weights), output=False, precision=precision, argument="sample")

    def losses(_: Size, part: float) -> StyleLoss:
        found = StyleLoss(network, 1.0, samples.new_zeros(len(samples)))
        found.set_styles([frame.image(shrunk(shown, part))], weights, [1.0])
        return found

    options = with_defaults(optimization, optimizer="lbfgs", start="noise")
    if isinstance(options.start, str):
        checks.one_of(options.start, "start", ("noise", "zeros", "grey"))
    made = optimize_in_levels(
        model,
        losses,
        frame,
        options,
        levels=levels,
        smallest=_SMALLEST,
        steps=steps,
        variation_weight=0.0,
        seeds=[checks.whole_number(seed, "seed", minimum=0) + number for number in range(len(samples))],
        batch_size=batch_size,
        progress=progress,
    )
    return Styled.of(made, made.pictures, frame)
