"""Textures with the statistics of a sample, from noise."""

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
"""Coarse levels with a shorter side than this, in pixels, are left out: networks see too little in them."""


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
    """Pictures of any size that a network cannot tell from the texture in ``sample``.

    Gatys, Ecker, Bethge 2015, "Texture Synthesis Using Convolutional Neural Networks",
    https://arxiv.org/abs/1505.07376: from noise, the image minimises Σ_l w_l E_l, E_l = 1 / (4 N² M²) · Σ (G − A)²,
    over Gram matrices G = F Fᵀ, A that of the sample, of layers with N channels and M places. They keep what a texture
    is made of and how often its parts are together, and forget where they are.

    We depart from it as :func:`fastviz.style_transfer` does: the loss of each layer is divided by its scale, the
    texture may be larger or smaller than the sample, and it is made small first, so that it has structure larger than
    what the network sees at once. The layers are relu1_1, … relu5_1 of VGG-19, not conv1_1 and the poolings.

    :func:`fastviz.synthesize_texture` makes textures without a network.

    Args:
        model: any module with maps; not changed.
        sample: [N, C, h, w], textures as the model takes them; each makes an image of its own.
        size: height and width of the images in pixels, one number for a square; None is the size of the sample.
        layers: see :func:`fastviz.style_transfer`.
        levels: likewise, down to a shorter side of 64 pixels.
        steps, seed, batch_size, precision, progress: see there.
        optimization: see :class:`fastviz.Optimization`. The defaults are L-BFGS over the Fourier canvas from
            ``"noise"``; starts are ``"noise"``, ``"zeros"``, ``"grey"`` or images [1 or N, C, *size].

    Returns:
        A :class:`fastviz.Styled` with N images in the dtype of ``sample``, on its device.

    Raises:
        TypeError, ValueError: invalid arguments; an unknown layer or one without maps; images on which the model cannot
            be run; a checkpoint, which pictures in levels cannot have.
        MemoryError: the images do not fit into memory together; the message says how many would.

    >>> import fastviz as fv
    >>> import torch
    >>> made = fv.neural_texture(fv.load_model("demo"), torch.rand(1, 3, 64, 64), (64, 96), steps=2)
    >>> made.pictures.shape, bool(made.history[-1] < made.history[0])
    (torch.Size([1, 3, 64, 96]), True)
    """
    samples = input_batch(model, sample, "sample", narrows=True).detach()
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
