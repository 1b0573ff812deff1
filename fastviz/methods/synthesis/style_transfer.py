"""Style transfer: pictures with the content of one picture and the style of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.optimize import FeatureNetwork, Optimization, with_defaults
from fastviz.engine.optimize.canvas import Frame, frame_of
from fastviz.engine.optimize.default_layers import style_layers
from fastviz.engine.optimize.multiscale import Size, StyledPictures, optimize_in_levels, shrunk
from fastviz.engine.optimize.style_loss import Layers, StyleLoss, layer_weights
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import Precision
from fastviz.images import notebook, tensors

__all__ = ["Style", "Styled", "style_transfer"]

_SMALLEST = 160
"""Coarse levels whose shorter side is below this, in pixels, are left out: they would lose the content."""
_LUMINANCE = (0.299, 0.587, 0.114)
"""Y of YIQ: the brightness of red, green and blue."""


@dataclass(frozen=True, eq=False)
class Style:
    """A style for :func:`style_transfer`, with a weight and a mask.

    Attributes:
        images: [1 or N, C, h, w], as the model takes them, of any size.
        weight: relative to the weights of the other styles; 0 or more.
        mask: [H, W] of 0 to 1, in the size of the content: where this style applies. Either all styles have a mask or
            none.

    >>> import fastviz as fv
    >>> model, photo, ground = fv.load_model("demo"), torch.rand(1, 3, 64, 64), torch.zeros(64, 64)
    >>> ground[32:] = 1
    >>> grass = fv.Style(torch.rand(1, 3, 48, 48), mask=ground)
    >>> brick = fv.Style(torch.rand(1, 3, 64, 64), mask=1 - ground)
    >>> fv.style_transfer(model, photo, [grass, brick], steps=1).pictures.shape
    torch.Size([1, 3, 64, 64])
    """

    images: Tensor
    weight: float = 1.0
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Styled(notebook.NotebookResult):
    """The result of :func:`style_transfer` and :func:`fastviz.neural_texture`, one row per image.

    Attributes:
        images: [N, C, H, W] as the network takes them.
        pictures: [N, C, H, W] in 0 to 1.
        content_loss: [N], the final loss, with the weights of its layers; 0 for textures.
        style_loss: [N], the final loss, without β.
        history: [S, N], the total loss before each step, without total variation, the coarsest level first; NaN after
            an image has stopped.
        steps: int64 [N], the number of steps of each image over all levels.
        reasons: why each image stopped in the last level: see :class:`fastviz.engine.optimize.Optimized`.
        interrupted: whether Ctrl-C ended it early; the picture of a coarse level is then enlarged.

    >>> import fastviz as fv
    >>> model, x = fv.load_model("demo"), torch.rand(1, 3, 64, 64)
    >>> style_transfer(model, x, torch.rand(1, 3, 64, 64), steps=1).content_loss.shape
    torch.Size([1])
    """

    images: Tensor
    pictures: Tensor
    content_loss: Tensor
    style_loss: Tensor
    history: Tensor
    steps: Tensor
    reasons: tuple[str, ...]
    interrupted: bool

    @classmethod
    def of(cls, made: StyledPictures, pictures: Tensor, frame: Frame) -> Styled:
        """The result from pictures optimised in levels; ``pictures`` are those to return."""
        return cls(
            images=frame.image(pictures),
            pictures=pictures,
            content_loss=made.loss.content,
            style_loss=made.loss.style,
            history=made.history,
            steps=made.steps,
            reasons=made.reasons,
            interrupted=made.interrupted,
        )

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        return notebook.captioned(self.pictures, content=self.content_loss, style=self.style_loss)


def style_transfer(
    model: nn.Module,
    content: Tensor,
    style: Tensor | Style | Sequence[Tensor | Style],
    *,
    layers: Layers = None,
    content_layers: Layers = None,
    style_weight: float = 300.0,
    variation_weight: float = 0.01,
    preserve_colours: bool = False,
    levels: int = 2,
    steps: int = 100,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
    optimization: Optimization | None = None,
) -> Styled:
    """Pictures with the content of ``content`` in the style of ``style``.

    Gatys, Ecker, Bethge 2015, "A Neural Algorithm of Artistic Style", https://arxiv.org/abs/1508.06576. For a layer
    with N channels and M positions, F are the features [N, M] of the image, P those of the content, G = F Fᵀ is the
    Gram matrix of the image, and A that of the style (https://arxiv.org/abs/1505.07376). The image minimises

        α · L_content + β · Σ_l w_l E_l,  L_content = ½ Σ (F − P)²,  E_l = 1 / (4 N² M²) · Σ (G − A)².

    We depart from the paper as follows:

    - The style may have any size: with m positions, A is multiplied by M / m, which is 1 for the paper's equal sizes.
    - They rescaled VGG so that its mean activations are 1, and tuned α / β for one size. Instead, we divide the loss of
      each layer by its own scale: L_content by ‖P‖², and E_l by the square of the mean square of the style's features,
      (tr A / (N m))². The same weights then suit any network, layer and size. Multiplying a layer's weight by its scale
      gives the paper's loss.
    - The optimiser changes Fourier coefficients, with high frequencies damped by frequency^½, and with the colours of
      photographs (``canvas="fourier"``). Large areas then get the style's colours as quickly as details get its
      strokes; L-BFGS on pixels (``canvas="pixels"``) takes longer for that. Pictures stay between black and white.
    - A penalty on the total variation keeps pictures smooth, with the weight of
      :func:`fastviz.engine.optimize.priors.natural_image`; ``variation_weight=0`` leaves it out.
    - Pictures are optimised at half the size first (``levels``; Gatys et al. 2017, https://arxiv.org/abs/1611.07865),
      with content and style scaled down equally, so that the network sees strokes of twice the length.

    Several styles are blended: with shares v_s, Σ v_s = 1, the loss uses the mean Gram matrix Σ v_s A_s, which has the
    gradient of Σ_s v_s E_l(A_s) and costs no more than one style. With masks T_s (:class:`Style`) each style has its
    own region (Gatys et al. 2017): features are multiplied by T_s, so that G and M become Σ T_s² f fᵀ and Σ T_s² over
    the positions, and the loss is weighted by Σ T_s² / M. Where all masks are 0, only the content matters.

    Colours can be preserved (Gatys et al. 2016, https://arxiv.org/abs/1606.05897): the transfer works on grey pictures,
    with the style's mean and standard deviation matched to the content's, and the result gets the content's I and Q of
    YIQ. Of their two methods we chose this one because it preserves the colours exactly.

    All images are optimised together, but independently of each other. With VGG-19 (``weights="DEFAULT"``), the paper's
    network, the layers are those of the paper: relu1_1, relu2_1, … relu5_1 with a weight of 1/5 each, and relu4_2 for
    the content. On the CPU large convolutions run with fewer multiplications, which rounds differently: see
    :class:`fastviz.execution.fast_conv.winograd.Winograd`.

    Args:
        model: any module with maps; not changed.
        content: [N, C, H, W], photographs as the model takes them, of any size that it accepts: ``frame_of(model, (H,
            W)).image(pictures)`` of :mod:`fastviz.canvas`.
        style: [1 or N, C, h, w], a :class:`Style`, or a list of these, which may have different sizes. Tensors have a
            weight of 1. Strokes keep their size in pixels: a smaller style image makes them finer.
        layers: style layers: a name, several, or names with their w_l; None is
            :func:`fastviz.engine.optimize.default_layers.style_layers`.
        content_layers: the same for the content; the losses of several are summed. α is 1, or the weight given here:
            ``{"relu4_2": 0.1}``.
        style_weight: β, 0 or more.
        variation_weight: see above, 0 or more.
        preserve_colours: see above; for images of three channels.
        levels: the number of sizes, each half of the next; those with a shorter side below 160 pixels are left out, and
            1 is only the full size.
        steps: the maximum number of steps at each level.
        seed: for noise; image n has seed ``seed + n``.
        batch_size: images in a pass; None is all on a GPU, and on a CPU as many as fit its caches.
        precision: ``"bfloat16"`` runs the network under autocast: approximate, and faster where the processor supports
            it.
        progress: show a progress bar on a terminal. Ctrl-C returns the pictures so far.
        optimization: see :class:`fastviz.Optimization`. The defaults are L-BFGS over the Fourier canvas from
            ``"content"``; starts are ``"content"``, ``"style"`` (the first one, resized), ``"noise"``, or images [1 or
            N, C, H, W]. A preview gets the number of steps in the current level and its images, before colours are
            restored.

    Returns:
        A :class:`Styled` with N images, at least float32, on the device of ``content``.

    Raises:
        TypeError, ValueError: invalid arguments; an unknown layer; a layer of the style without maps; images on which
            the model cannot be run; a checkpoint, which is not supported with levels.
        MemoryError: the images do not fit into memory together; the message says how many would.

    >>> import fastviz as fv
    >>> photo, wall = torch.rand(1, 3, 64, 80), torch.rand(1, 3, 70, 70)
    >>> made = fv.style_transfer(fv.load_model("demo"), photo, wall, steps=2)
    >>> made.pictures.shape, bool(made.history[-1] < made.history[0])
    (torch.Size([1, 3, 64, 80]), True)
    """
    photos = input_batch(model, content, "content", wide=True).detach()
    styles = _styles(style)
    shares, regions = _shares(styles), _regions(styles, photos)
    beta = checks.number(style_weight, "style_weight", low=0)
    of_style, of_content = _layers(model, layers, content_layers, beta)
    frame = frame_of(model, (photos.shape[2], photos.shape[3]), photos.shape[1])
    original = shown = frame.picture(photos)
    samples = [frame.picture(_style_batch(each, photos)) for each in styles]
    if preserve_colours:
        shown, samples = _grey(shown, samples)
    network = FeatureNetwork(
        model, [*of_style, *of_content], output=False, precision=precision, argument="content and style"
    )

    def losses(size: Size, part: float) -> StyleLoss:
        found = StyleLoss(network, beta, photos.new_zeros(len(photos)))
        smaller = [frame.image(shrunk(each, part)) for each in samples]
        found.set_styles(smaller, of_style, shares, masks=regions)
        found.set_content(frame.image(tensors.resize(shown, *size, "bicubic")), of_content)
        return found

    made = optimize_in_levels(
        model,
        losses,
        frame,
        _with_start(with_defaults(optimization, optimizer="lbfgs", start="content"), shown, samples[0], frame),
        levels=levels,
        smallest=_SMALLEST,
        steps=steps,
        variation_weight=variation_weight,
        seeds=[checks.whole_number(seed, "seed", minimum=0) + number for number in range(len(photos))],
        batch_size=batch_size,
        progress=progress,
    )
    pictures = _recoloured(made.pictures, original).clamp(0, 1) if preserve_colours else made.pictures
    return Styled.of(made, pictures, frame)


def _with_start(options: Optimization, content: Tensor, style: Tensor, frame: Frame) -> Optimization:
    """``options`` with images instead of the words ``"content"`` and ``"style"``, from these pictures."""
    start = options.start
    if isinstance(start, str) and checks.one_of(start, "start", ("content", "style", "noise")) != "noise":
        shown = content if start == "content" else tensors.resize(style, *frame.size, "bicubic")
        return replace(options, start=frame.image(shown))
    return options


# ------------------------------------------------------------------------------------------------------- colours


def _luminance(shown: Tensor) -> Tensor:
    """Y of pictures [N, 3, H, W]: [N, 1, H, W]."""
    return (shown * shown.new_tensor(_LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)


def _grey(photos: Tensor, samples: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Grey pictures of the ``photos``, and of the ``samples`` with the brightness and contrast of each photo."""
    if photos.shape[1] != 3:
        raise ValueError(f"content should have three channels to preserve colours, got {photos.shape[1]}")
    light = _luminance(photos)
    mean, spread = light.mean((1, 2, 3), keepdim=True), light.std((1, 2, 3), keepdim=True, correction=0)
    found = []
    for sample in samples:
        own = _luminance(sample)
        size = own.std((1, 2, 3), keepdim=True, correction=0)
        even = (own - own.mean((1, 2, 3), keepdim=True)) / torch.where(size > 0, size, 1)
        found.append((even * spread + mean).expand(-1, 3, -1, -1))
    return light.expand_as(photos), found


def _recoloured(made: Tensor, photos: Tensor) -> Tensor:
    """The ``photos`` with the brightness of the pictures ``made``; I and Q stay unchanged."""
    return photos + _luminance(made) - _luminance(photos)


# ----------------------------------------------------------------------------------------------------- arguments


def _styles(given: Any) -> list[Style]:
    """The given styles as a list."""
    several = [given] if isinstance(given, (Tensor, Style)) else given
    if not isinstance(several, Sequence) or isinstance(several, str):
        raise TypeError(f"style should be a tensor, a Style or a list of them, got {type(given).__name__}")
    if not several:
        raise ValueError("style should be at least one image, got none")
    return [each if isinstance(each, Style) else Style(each) for each in several]


def _style_batch(style: Style, photos: Tensor) -> Tensor:
    """The images of a style, [1 or N, C, h, w], in the dtype of the photographs."""
    batch = checks.image_batch(style.images, "style").detach()
    if 0 in batch.shape[1:] or batch.shape[1] != photos.shape[1]:
        raise ValueError(f"style should have {photos.shape[1]} channels and a pixel, got {list(batch.shape)}")
    if len(batch) not in (1, len(photos)):
        raise ValueError(f"style should have 1 or {len(photos)} images, as content has, got {len(batch)}")
    if batch.device != photos.device:
        raise ValueError(f"style should be on the device of content, {photos.device}, got {batch.device}")
    return batch.to(photos.dtype)


def _layers(
    model: nn.Module, layers: Layers, content_layers: Layers, beta: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Layers and weights of style and content; no style layers if β is 0."""
    defaults = ([], []) if layers is not None and content_layers is not None else style_layers(model)
    of_style = layer_weights(layers, "layers", defaults[0]) if beta else {}
    return of_style, layer_weights(content_layers, "content_layers", defaults[1])


def _shares(styles: Sequence[Style]) -> list[float]:
    """The share of each style; they sum to 1."""
    weights = [checks.number(style.weight, "the weight of a style", low=0) for style in styles]
    if not sum(weights):
        raise ValueError(f"one style should have a weight above 0, got {weights}")
    return [weight / sum(weights) for weight in weights]


def _regions(styles: Sequence[Style], photos: Tensor) -> Tensor | None:
    """The masks, checked: [S, H, W] on the device and in the dtype of the photographs, or None."""
    masks = [style.mask for style in styles if style.mask is not None]
    if not masks:
        return None
    if len(masks) < len(styles):
        raise ValueError(f"either all styles should have a mask or none, got {len(masks)} for {len(styles)} styles")
    found = []
    for mask in masks:
        region = checks.tensor(mask, "the mask of a style", floating=False)
        if region.shape != photos.shape[2:]:
            raise ValueError(
                f"the mask of a style should have the size of content, {list(photos.shape[2:])}, "
                f"got {list(region.shape)}"
            )
        region = region.detach().to(photos)
        tensors.check_range(region, "the mask of a style")
        if not bool(region.any()):
            raise ValueError("the mask of a style should have a value above 0, got one that is 0 everywhere")
        found.append(region)
    return torch.stack(found)
