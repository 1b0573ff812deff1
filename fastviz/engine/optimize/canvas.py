"""Parametrisations of an optimised image: pixels, Fourier coefficients, or the code of a generator.

A canvas maps parameters, which the optimiser changes, to images [N, C, H, W] as the network takes them. It holds no
state, so one canvas can serve any number of calls. Parameters have one row per image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.execution.precision import as_map, weights_dtype
from fastviz.models.descriptions import preprocessing, preprocessing_of

__all__ = [
    "Canvas",
    "Fourier",
    "Frame",
    "Generator",
    "Pixels",
    "canvas_by_name",
    "frame_of",
    "image_like",
    "parameter_of",
    "start_parameters",
]

# Principal axes of the colours (red, green, blue) of photographs: one axis per column (brightness, red against blue,
# green against both), scaled to the standard deviation along it, the longest 1. Measured on 63 photographs, each around
# its own mean colour.
_COLOUR_AXES = ((0.568, 0.200, 0.046), (0.580, -0.019, -0.109), (0.584, -0.176, 0.064))

# Pictures are clamped this far from 0 and 1 before the inverse sigmoid, which would be infinite there.
_MARGIN = 1e-3


@dataclass(frozen=True)
class Frame:
    """The image format of a network: height and width in pixels, mean and standard deviation of each channel.

    Mean and standard deviation refer to pictures with values 0 to 1: an image is ``(picture − mean) / std``.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def picture(self, images: Tensor) -> Tensor:
        """The pictures in 0 to 1 (not clipped) for ``images`` [N, C, H, W]."""
        return images * _column(self.std, images) + _column(self.mean, images)

    def image(self, pictures: Tensor) -> Tensor:
        """The network's images for ``pictures`` [N, C, H, W] in 0 to 1."""
        return (pictures - _column(self.mean, pictures)) / _column(self.std, pictures)


def frame_of(model: nn.Module, size: int | tuple[int, int] | None = None, channels: int | None = None) -> Frame:
    """The frame of ``model``'s images; ``size`` (one number for a square) overrides the model's own.

    ``channels`` is that of a given batch of images, see :func:`fastviz.models.preprocessing_of`.

    Raises:
        TypeError, ValueError: ``size`` is not one or two whole numbers of at least 1, or is None for a model whose
            preprocessing has no size.

    >>> frame_of(nn.Conv2d(3, 1, 1), 32).size
    (32, 32)
    """
    known = preprocessing(model) if channels is None else preprocessing_of(model, channels)
    if size is None:
        if known.size is None:
            raise ValueError("size should be given for a model whose preprocessing has no size, got None")
        return Frame(known.size, known.mean, known.std)
    sides = size if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size should be one number or (height, width), got {size!r}")
    height, width = (checks.whole_number(side, "size", minimum=1) for side in sides)
    return Frame((height, width), known.mean, known.std)


def _column(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """One number per channel, in a shape that broadcasts with images."""
    return _filled(numbers, like).view(-1, 1, 1)


def _filled(numbers: Sequence[float], like: Tensor) -> Tensor:
    """``numbers`` [n] in the dtype and on the device of ``like``, without a copy from the host, which would wait."""
    return torch.cat([like.new_full((1,), number) for number in numbers])


class Canvas(ABC):
    """A mapping from parameters [N, ...] to images [N, C, H, W]."""

    @abstractmethod
    def images(self, parameters: Tensor, frame: Frame) -> Tensor:
        """Images as the network takes them, in the graph of ``parameters``."""

    @abstractmethod
    def parameters(self, images: Tensor, frame: Frame) -> Tensor:
        """Parameters whose images are as close to ``images`` [N, C, H, W] as the canvas allows.

        Raises:
            ValueError: the canvas has no inverse.
        """

    def noise(self, frame: Frame, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
        """Random parameters, one row from each of the ``generators``, in the dtype and on the device of ``like``."""
        raise ValueError(f"{type(self).__name__} has no noise to start from: give a start")

    def bounds(self, frame: Frame, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Lower and upper bounds of the parameters, in shapes that broadcast with theirs; None if unbounded."""
        return None

    def penalty(self, parameters: Tensor) -> Tensor | None:
        """One number per image [N] that is subtracted from the objective; None for 0."""
        return None


@dataclass(frozen=True)
class Pixels(Canvas):
    """The parameters are the pixels.

    Attributes:
        clip: keep every pixel between black and white, so that the optimised image can be displayed as it is. Without
            it (as in Simonyan, Vedaldi, Zisserman 2014, https://arxiv.org/abs/1312.6034) only priors bound the pixels.
        decorrelate: use coordinates along the principal axes of the colours of photographs as parameters, and a sigmoid
            to keep pictures within 0 to 1. Channels then change together as they do in photographs.
    """

    clip: bool = True
    decorrelate: bool = False

    def images(self, parameters: Tensor, frame: Frame) -> Tensor:
        """The parameters [N, C, H, W], or the images of these colour coordinates."""
        return frame.image(_pictures_of(parameters)) if self.decorrelate else parameters

    def parameters(self, images: Tensor, frame: Frame) -> Tensor:
        """The pixels of ``images``, or their colour coordinates."""
        return _coordinates_of(frame.picture(images)) if self.decorrelate else images

    def noise(self, frame: Frame, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
        """Normal noise of standard deviation 0.1, grey on average."""
        return 0.1 * _normal((len(frame.mean), *frame.size), generators, like)

    def bounds(self, frame: Frame, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Black and white, if pixels are clipped."""
        if self.decorrelate or not self.clip:
            return None
        ones = like.new_ones(1, len(frame.mean), 1, 1)
        return frame.image(0 * ones), frame.image(ones)


@dataclass(frozen=True)
class Fourier(Canvas):
    """The parameters are Fourier coefficients, and a sigmoid keeps pictures within 0 to 1.

    Picture = sigmoid(A · F⁻¹(c / f^decay)): c are the parameters [N, C, H, W // 2 + 1, 2] (real and imaginary parts), f
    the frequency of each coefficient in cycles per pixel (at least one cycle per image), F⁻¹ the orthonormal inverse
    Fourier transform, A the principal axes of the colours of photographs. An equal step in all parameters then changes
    low frequencies more than high ones, as in photographs. Olah, Mordvintsev, Schubert 2017, "Feature Visualization",
    https://distill.pub/2017/feature-visualization. Images are periodic: the left edge continues at the right, the top
    at the bottom.

    Attributes:
        decay: exponent of the frequency; photographs have about 1; larger values make smoother images.
        decorrelate: see :class:`Pixels`; False treats red, green and blue independently.
    """

    decay: float = 1.0
    decorrelate: bool = True

    def __post_init__(self) -> None:
        checks.number(self.decay, "decay")

    def images(self, parameters: Tensor, frame: Frame) -> Tensor:
        """The images of these coefficients."""
        if not len(parameters):  # Fourier transforms refuse empty batches
            return parameters.new_zeros(0, parameters.shape[1], *frame.size)
        spectrum = torch.view_as_complex(parameters) * self._scale(frame, parameters)
        waves = torch.fft.irfft2(spectrum, s=frame.size, norm="ortho")
        return frame.image(_pictures_of(waves) if self.decorrelate else waves.sigmoid())

    def parameters(self, images: Tensor, frame: Frame) -> Tensor:
        """The Fourier coefficients of ``images``; pictures are clamped to 0.001 to 0.999."""
        if not len(images):
            return images.new_zeros(0, images.shape[1], images.shape[2], images.shape[3] // 2 + 1, 2)
        pictures = frame.picture(images)
        waves = _coordinates_of(pictures) if self.decorrelate else pictures.clamp(_MARGIN, 1 - _MARGIN).logit()
        spectrum = torch.fft.rfft2(waves, norm="ortho") / self._scale(frame, waves)
        return torch.view_as_real(spectrum)

    def noise(self, frame: Frame, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
        """Faint clouds: normal noise of standard deviation 0.01 in each coefficient."""
        height, width = frame.size
        return 0.01 * _normal((len(frame.mean), height, width // 2 + 1, 2), generators, like)

    def _scale(self, frame: Frame, like: Tensor) -> Tensor:
        height, width = frame.size
        down = torch.fft.fftfreq(height, device=like.device, dtype=like.dtype)
        across = torch.fft.rfftfreq(width, device=like.device, dtype=like.dtype)
        frequency = (down[:, None].square() + across.square()).sqrt()
        scale: Tensor = frequency.clamp(min=1 / max(height, width)).pow(-self.decay)
        return scale


@dataclass(frozen=True, eq=False)
class Generator(Canvas):
    """The parameters are codes of a generator that makes the pictures: the prior of Nguyen et al. 2016.

    "Synthesizing the preferred inputs for neurons in neural networks via deep generator networks",
    https://arxiv.org/abs/1605.09304: argmax over z of the objective of G(z) − decay · ‖z‖².

    Attributes:
        module: any module that maps codes [N, ...] to pictures [N, C, H, W]; it should be in evaluation mode.
        code: the shape of one code, for example ``(4096,)``.
        output: what the module returns: ``"picture"`` with values 0 to 1, ``"tanh"`` with values −1 to 1, or
            ``"image"`` as the network takes it.
        decay: weight of the squared length of the code.
        limits: smallest and largest value of the code's numbers; None leaves them unbounded.
    """

    module: nn.Module
    code: tuple[int, ...]
    output: str = "picture"
    decay: float = 0.0
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        checks.module(self.module, "module")
        checks.one_of(self.output, "output", ("picture", "tanh", "image"))
        if not isinstance(self.code, Sequence) or isinstance(self.code, str):
            raise TypeError(f"code should be the shape of one code, such as (4096,), got {self.code!r}")
        for side in self.code:
            checks.whole_number(side, "code", minimum=1)
        checks.number(self.decay, "decay", low=0)
        if self.limits is not None:
            pair = isinstance(self.limits, Sequence) and len(self.limits) == 2
            if not pair or not checks.number(self.limits[0], "limits") <= checks.number(self.limits[1], "limits"):
                raise ValueError(f"limits should be the smallest and the largest number, got {self.limits!r}")

    def images(self, parameters: Tensor, frame: Frame) -> Tensor:
        """The generator's pictures of these codes, which it gets in the dtype of its parameters.

        Raises:
            TypeError: the generator does not return a floating-point tensor.
            ValueError: its shape does not fit the frame.
        """
        own = weights_dtype(self.module)
        made = self.module(parameters if own is None else parameters.to(own))
        if not isinstance(made, Tensor) or not made.is_floating_point():
            what = made.dtype if isinstance(made, Tensor) else type(made).__name__
            raise TypeError(f"the generator should return a floating-point tensor of pictures, got {what}")
        wanted = (len(parameters), len(frame.mean), *frame.size)
        if tuple(made.shape) != wanted:
            raise ValueError(
                f"the generator should return pictures of shape {list(wanted)} for codes of shape "
                f"{list(parameters.shape)}, got {list(made.shape)}; give size=(height, width) if the network takes that"
            )
        made = made.to(parameters.dtype)
        if self.output == "image":
            return made
        return frame.image(made if self.output == "picture" else (made + 1) / 2)

    def parameters(self, images: Tensor, frame: Frame) -> Tensor:
        """Raises, because a generator has no inverse."""
        raise ValueError("a generator's canvas cannot be set to an image: start from noise, or from a code")

    def noise(self, frame: Frame, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
        """Normal noise of standard deviation 1."""
        return _normal(tuple(self.code), generators, like)

    def bounds(self, frame: Frame, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """The limits of the code."""
        return None if self.limits is None else (like.new_full((), self.limits[0]), like.new_full((), self.limits[1]))

    def penalty(self, parameters: Tensor) -> Tensor | None:
        """The weighted squared length of each code."""
        return self.decay * parameters.flatten(1).square().sum(1) if self.decay else None


def canvas_by_name(canvas: str | Canvas) -> Canvas:
    """The canvas of this name (``"pixels"``, ``"fourier"``), or the one given."""
    if isinstance(canvas, Canvas):
        return canvas
    if not isinstance(canvas, str):
        raise TypeError(f"canvas should be a name or a Canvas, got {type(canvas).__name__}")
    return Pixels() if checks.one_of(canvas, "canvas", ("fourier", "pixels")) == "pixels" else Fourier()


def parameter_of(model: nn.Module) -> Tensor:
    """A floating-point parameter of ``model``, for its dtype and device; float32 on the CPU if there is none.

    >>> parameter_of(nn.Conv2d(3, 8, 3).double()).dtype
    torch.float64
    """
    return next((value.detach() for value in model.parameters() if value.is_floating_point()), torch.empty(0))


def image_like(model: nn.Module) -> Tensor:
    """A tensor with the device of ``model``, and the dtype of images that are made for it.

    16 bits lose small steps, and Fourier transforms do not support them.

    Args:
        model: any module; one without parameters counts as float32 on the CPU.

    Returns:
        A parameter of ``model``, of any shape, without its graph; at least float32.

    >>> image_like(nn.Conv2d(3, 8, 3).bfloat16()).dtype
    torch.float32
    """
    return as_map(parameter_of(model))


def start_parameters(
    model: nn.Module, start: str | Tensor | None, canvas: Canvas, frame: Frame, seeds: Sequence[int]
) -> Tensor:
    """Initial parameters, one row for each of the ``seeds``; ``start`` as in :class:`fastviz.Optimization`.

    They have the device and dtype of :func:`image_like`.
    """
    N = len(seeds)
    like = image_like(model)
    if start is None:
        start = "noise" if isinstance(canvas, Generator) else "zeros"
    if isinstance(start, Tensor):
        shape = canvas.code if isinstance(canvas, Generator) else (len(frame.mean), *frame.size)
        if start.dim() != 1 + len(shape) or tuple(start.shape[1:]) != tuple(shape) or len(start) not in (1, N):
            rows = "1" if N == 1 else f"1 or {N}"
            raise ValueError(f"start should have shape [{rows}, {', '.join(map(str, shape))}], got {list(start.shape)}")
        checks.tensor(start, "start")
        checks.device(checks.tensor(start, "start").device, "start")
        given = start.detach().to(like).expand(N, *shape)
        return given if isinstance(canvas, Generator) else canvas.parameters(given, frame)
    if checks.one_of(start, "start", ("zeros", "grey", "noise")) == "noise":
        return canvas.noise(frame, [torch.Generator().manual_seed(seed) for seed in seeds], like)
    zeros = like.new_zeros(N, len(frame.mean), *frame.size)
    return canvas.parameters(zeros if start == "zeros" else frame.image(zeros + 0.5), frame)


def _normal(shape: tuple[int, ...], generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Normal noise [N, *shape], each row from its own generator (on the CPU, so that all devices get the same)."""
    rows = [torch.empty(shape, dtype=torch.float64).normal_(generator=generator) for generator in generators]
    return (torch.stack(rows) if rows else torch.empty(0, *shape)).to(like)


def _colour_axes(like: Tensor) -> Tensor | None:
    """The colour axes [3, 3]; None for images without three channels."""
    return _filled([number for row in _COLOUR_AXES for number in row], like).view(3, 3) if like.shape[1] == 3 else None


def _pictures_of(coordinates: Tensor) -> Tensor:
    """Pictures in 0 to 1 from colour ``coordinates`` [N, C, H, W]."""
    axes = _colour_axes(coordinates)
    values = coordinates if axes is None else _times_matrix(axes, coordinates)
    return values.sigmoid()


def _coordinates_of(pictures: Tensor) -> Tensor:
    """Colour coordinates of ``pictures``: the inverse of :func:`_pictures_of`."""
    values = pictures.clamp(_MARGIN, 1 - _MARGIN).logit()
    axes = _colour_axes(values)
    return values if axes is None else _times_matrix(torch.linalg.inv(axes), values)


def _times_matrix(matrix: Tensor, values: Tensor) -> Tensor:
    """The channels of ``values`` [N, 3, H, W] multiplied by a ``matrix`` [3, 3]."""
    return (matrix @ values.flatten(2)).view_as(values)
