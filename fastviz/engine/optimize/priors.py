"""Priors that keep optimised images natural: penalties on the objective, and changes after a step.

A prior sees images [n, C, H, W] as the network takes them: 0 is the mean colour, 1 a standard deviation. ``rows``,
int64 [n], are their indices in the whole batch; images that have stopped are left out.

The four of Yosinski et al. 2015, "Understanding Neural Networks Through Deep Visualization",
https://arxiv.org/abs/1506.06579: :class:`L2`, :class:`Blur`, :class:`ClipNorm`, :class:`ClipContribution`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from fastviz import ops
from fastviz._util import checks
from fastviz.images import tensors

if TYPE_CHECKING:
    from fastviz.engine.optimize.canvas import Frame

__all__ = ["L2", "LP", "Blur", "ClipContribution", "ClipNorm", "Prior", "TotalVariation", "natural_image"]

_PIXEL_RANGE = 2.0
"""B of Mahendran, Vedaldi 2015: the absolute value of a pixel near black or white, in standard deviations."""
_PIXEL_DIFFERENCE = 0.3
"""V of the same paper, B / 6.5: the difference of neighbouring pixels in a photograph."""


class Prior:
    """A penalty, a change after each step, or both."""

    changes_images: bool = False
    """Whether :meth:`changed` does anything."""
    needs_gradients: bool = False
    """Whether :meth:`changed` reads the gradients of the images."""

    def penalty(self, images: Tensor, rows: Tensor) -> Tensor | None:
        """One number per image [n] that is subtracted from the objective, in the graph of ``images``; None for 0."""
        return None

    def changed(self, images: Tensor, gradients: Tensor | None, rows: Tensor, step: int) -> Tensor:
        """The images to use after step number ``step`` (1 for the first), which followed ``gradients``."""
        return images


@dataclass(frozen=True)
class L2(Prior):
    """Penalty ``weight · Σ x²``: λ‖I‖² of Simonyan, Vedaldi, Zisserman 2014, https://arxiv.org/abs/1312.6034.

    Plain gradient ascent with learning rate η then shrinks each pixel by the factor 1 − 2 · η · weight in every step:
    the "L2 decay" of Yosinski et al. 2015.

    >>> import torch
    >>> L2(0.5).penalty(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([0]))
    tensor([2.5000])
    """

    weight: float = 1e-4

    def __post_init__(self) -> None:
        checks.positive(self.weight, "weight")

    def penalty(self, images: Tensor, rows: Tensor) -> Tensor:
        """See the class."""
        return self.weight * images.square().flatten(1).sum(1)


@dataclass(frozen=True)
class LP(Prior):
    """Penalty ``weight · Σ |x|^alpha``: λ_α‖x‖_α^α of Mahendran, Vedaldi 2015, https://arxiv.org/abs/1412.0035.

    A large exponent leaves small values alone and bounds large ones.

    >>> import torch
    >>> LP(6, weight=0.5).penalty(torch.tensor([[[[2.0, -1.0]]]]), torch.tensor([0]))
    tensor([32.5000])
    """

    alpha: float = 6.0
    weight: float = 1e-5

    def __post_init__(self) -> None:
        checks.positive(self.alpha, "alpha")
        checks.positive(self.weight, "weight")

    def penalty(self, images: Tensor, rows: Tensor) -> Tensor:
        """See the class."""
        # An even integer exponent, the common case, needs neither absolute values nor a general power function.
        power = images.abs().pow(self.alpha) if self.alpha % 2 else images.square().pow(int(self.alpha) // 2)
        penalty: Tensor = self.weight * power.sum((1, 2, 3))
        return penalty


@dataclass(frozen=True)
class TotalVariation(Prior):
    """Penalty ``weight · Σ (v² + h²)^(beta/2)``, v and h the differences to the pixels below and to the right.

    λ_β TV^β of Mahendran, Vedaldi 2015, https://arxiv.org/abs/1412.0035, by :func:`fastviz.ops.total_variation`.

    >>> import torch
    >>> TotalVariation(weight=2).penalty(torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]]), torch.tensor([0]))
    tensor([50.])
    """

    beta: float = 2.0
    weight: float = 1e-3

    def __post_init__(self) -> None:
        checks.positive(self.beta, "beta")
        checks.positive(self.weight, "weight")

    def penalty(self, images: Tensor, rows: Tensor) -> Tensor:
        """See the class."""
        return self.weight * ops.total_variation(images, beta=self.beta)


@dataclass(frozen=True)
class Blur(Prior):
    """After every ``every`` steps the images are blurred by a Gaussian of standard deviation ``sigma`` pixels.

    The outermost pixels are repeated beyond the border.
    """

    every: int = 4
    sigma: float = 0.5
    changes_images = True

    def __post_init__(self) -> None:
        checks.whole_number(self.every, "every", minimum=1)
        checks.positive(self.sigma, "sigma")

    def changed(self, images: Tensor, gradients: Tensor | None, rows: Tensor, step: int) -> Tensor:
        """See the class."""
        return images if step % self.every else tensors.gaussian_blur(images, self.sigma)


@dataclass(frozen=True)
class ClipNorm(Prior):
    """After each step, pixels with a small norm over the channels become 0, the mean colour.

    Attributes:
        fraction: the fraction of pixels that is clipped: those with the smallest norm in each image.
    """

    fraction: float = 0.3
    changes_images = True

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def changed(self, images: Tensor, gradients: Tensor | None, rows: Tensor, step: int) -> Tensor:
        """See the class."""
        return _clipped(images, images.square().sum(1, keepdim=True), self.fraction)


@dataclass(frozen=True)
class ClipContribution(Prior):
    """After each step, pixels with a small contribution |Σ_c x_c · ∂objective/∂x_c| become 0, the mean colour.

    Attributes:
        fraction: the fraction of pixels that is clipped: those with the smallest contribution in each image.
    """

    fraction: float = 0.3
    changes_images = True
    needs_gradients = True

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def changed(self, images: Tensor, gradients: Tensor | None, rows: Tensor, step: int) -> Tensor:
        """See the class."""
        assert gradients is not None
        return _clipped(images, (images * gradients).sum(1, keepdim=True).abs(), self.fraction)


def natural_image(frame: Frame, range_weight: float = 0.1, variation_weight: float = 0.01) -> tuple[Prior, ...]:
    """The two priors of Mahendran, Vedaldi 2015, with weights that do not depend on the size of the images.

    ``LP(6, range_weight / (CHW · B⁶))`` and ``TotalVariation(2, variation_weight / (CHW · V²))``, with B = 2 standard
    deviations and V = 0.3, as in their later work (2016, https://arxiv.org/abs/1512.02017): a picture at the limits of
    the range costs about ``range_weight``, one with the variation of a photograph about ``variation_weight``.

    Args:
        frame: size and channels of the images: ``frame_of(model)`` of :mod:`fastviz.engine.optimize.canvas`.
        range_weight, variation_weight: 0 or more; 0 leaves the prior out.

    Raises:
        TypeError, ValueError: a weight is not a finite number of 0 or more; the message names the argument.

    >>> from fastviz.engine.optimize.canvas import Frame
    >>> natural_image(Frame((10, 10), (0.0,), (1.0,)), 0, 0.09)
    (TotalVariation(beta=2.0, weight=0.01),)
    """
    values = len(frame.mean) * frame.size[0] * frame.size[1]
    found: list[Prior] = []
    if checks.number(range_weight, "range_weight", low=0):
        found.append(LP(6.0, range_weight / (values * _PIXEL_RANGE**6.0)))
    if checks.number(variation_weight, "variation_weight", low=0):
        found.append(TotalVariation(2.0, variation_weight / (values * _PIXEL_DIFFERENCE**2.0)))
    return tuple(found)


def _check_fraction(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"fraction should be a number between 0 and 1, got {value!r}")


def _clipped(images: Tensor, size: Tensor, fraction: float) -> Tensor:
    """``images`` with 0 where ``size`` [n, 1, H, W] is not above its ``fraction`` quantile in that image."""
    flat = size.flatten(1)
    count = int(fraction * flat.shape[1])
    if not count:
        return images
    threshold = flat.kthvalue(count, dim=1).values
    return images * (size > threshold.view(-1, 1, 1, 1))
