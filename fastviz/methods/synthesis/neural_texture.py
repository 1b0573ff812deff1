"""Textures with the statistics of a sample, from noise."""

from __future__ import annotations

from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.optimize import Network, Optimizer, by_name
from fastviz.engine.optimize.canvas import Canvas, frame_of
from fastviz.engine.optimize.loop import Preview
from fastviz.engine.optimize.style_loss import Layers, Losses, layer_weights, style_layers
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import Precision
from fastviz.methods.synthesis.style_transfer import Styled, made_in_levels, shrunk

__all__ = ["neural_texture"]

_SMALLEST = 64
"""Coarse levels with a shorter side than this, in pixels, are left out: networks see little in them."""


def neural_texture(
    model: nn.Module,
    sample: Tensor,
    size: int | tuple[int, int] | None = None,
    *,
    layers: Layers = None,
    variation_weight: float = 0.0,
    rescale: bool = True,
    start: str | Tensor = "noise",
    levels: int = 2,
    canvas: str | Canvas = "fourier",
    optimizer: str | Optimizer = "lbfgs",
    learning_rate: float | None = None,
    steps: int = 100,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    preview: Preview | None = None,
    preview_every: int = 10,
    progress: bool = False,
) -> Styled:
    """Pictures of any size that a network cannot tell from the texture in ``sample``.

    Gatys, Ecker, Bethge 2015, "Texture Synthesis Using Convolutional Neural Networks",
    https://arxiv.org/abs/1505.07376: from noise, the image minimises Σ_l w_l E_l, E_l = 1 / (4 N² M²) · Σ (G − A)²,
    over Gram matrices G = F Fᵀ, A that of the sample, of layers with N channels and M places. What a place is like
    stays, where it is does not.

    We depart from it as :func:`fastviz.style_transfer` does: the loss of each layer is divided by its scale
    (``rescale``), the texture may be larger or smaller than the sample, and is made small first, so that it has
    structure larger than what the network sees at once. The layers are relu1_1, … relu5_1 of VGG-19, not conv1_1 and
    the poolings.

    :func:`fastviz.synthesize_texture` makes textures without a network.

    Args:
        model: any module with maps; not changed.
        sample: [N, C, h, w], textures as the model takes them; each makes an image of its own.
        size: height and width of the images in pixels, one number for a square; None is the size of the sample.
        layers, variation_weight, rescale, optimizer, learning_rate: see :func:`fastviz.style_transfer`.
        levels: likewise, down to a shorter side of 64 pixels.
        start: ``"noise"``, ``"zeros"``, ``"grey"`` or images [1 or N, C, *size].
        canvas, steps, seed, batch_size, precision, preview, preview_every, progress: see there.

    Raises:
        TypeError, ValueError: arguments that do not fit; an unknown layer or one without maps; images on which the
            model cannot be run.
        MemoryError: the images do not fit into memory at once; says how many would.

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
    network = Network(model, list(weights), output=False, precision=precision, argument="sample")

    def losses(_: tuple[int, int], part: float) -> Losses:
        found = Losses(network, 0.0, 1.0, samples.new_zeros(len(samples)))
        found.take_styles([frame.image(shrunk(shown, part))], weights, [1.0], rescale=rescale)
        return found

    if isinstance(start, str):
        checks.one_of(start, "start", ("noise", "zeros", "grey"))
    return made_in_levels(
        model,
        losses,
        start,
        frame,
        levels=levels,
        smallest=_SMALLEST,
        canvas=canvas,
        optimizer=by_name(optimizer, learning_rate),
        steps=steps,
        variation_weight=variation_weight,
        seeds=[checks.whole_number(seed, "seed", minimum=0) + number for number in range(len(samples))],
        batch_size=batch_size,
        preview=preview,
        preview_every=preview_every,
        progress=progress,
    )
