"""Image parametrisations: functions that return parameters and a function that turns them into images.

Random numbers are drawn as in lucent, so equal seeds give equal start images. Parametrisations that are not defined
here, such as ``upconvGAN``, come from lucent if it is installed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["CompositeActivation", "cppn", "fft_image", "image", "pixel_image", "rfft2d_freqs", "to_valid_rgb"]

Parametrisation: TypeAlias = tuple[Iterable[Tensor], Callable[[], Tensor]]
"""Parameters, and a function that turns them into images [N, C, H, W]."""

# The correlation of colours in photographs, one row per colour (red, green, blue), as in lucid.
_COLOURS = np.asarray([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], dtype="float32")
_COLOURS /= np.linalg.norm(_COLOURS, axis=0).max()

_SATURATION = 4.0
"""The divisor of the amplitudes, as in lucid; larger values make paler colours."""


def _device() -> torch.device:
    """The device on which lucent creates parameters."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def __getattr__(name: str) -> Any:
    """lucent's other parametrisations."""
    if not name.startswith("_"):
        try:
            from lucent.optvis import param
        except ImportError:
            pass
        else:
            if hasattr(param, name):
                return getattr(param, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def image(
    w: int,
    h: int | None = None,
    sd: float | None = None,
    batch: int | None = None,
    decorrelate: bool = True,
    fft: bool = True,
    channels: int | None = None,
) -> Parametrisation:
    """Pictures in 0 to 1, parametrised by a Fourier basis or by pixels.

    Args:
        w: width in pixels.
        h: height in pixels; None is the width.
        sd: standard deviation of the initial parameters; None is 0.01.
        batch: number of images; None is one.
        decorrelate: use decorrelated colours; has no effect with ``channels``.
        fft: the parameters are Fourier amplitudes, see :func:`fft_image`; otherwise pixels.
        channels: number of channels; None is three colours.

    Returns:
        The parameters, and a function without arguments that returns float32 [batch, channels, h, w] with gradients for
        them.

    >>> parameters, pictures = image(32, batch=2)
    >>> pictures().shape
    torch.Size([2, 3, 32, 32])
    """
    shape = [batch or 1, channels or 3, h or w, w]
    parameters, made = (fft_image if fft else pixel_image)(shape, sd=sd)
    return parameters, to_valid_rgb(made, decorrelate=decorrelate and not channels)


def pixel_image(shape: Sequence[int], sd: float | None = None) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Normal noise with standard deviation ``sd`` (None is 0.01) and this ``shape`` [N, C, H, W], unbounded.

    >>> pixel_image([1, 3, 8, 8])[1]().shape
    torch.Size([1, 3, 8, 8])
    """
    pixels = (torch.randn(*shape) * (sd or 0.01)).to(_device()).requires_grad_(True)
    return [pixels], lambda: pixels


def rfft2d_freqs(h: int, w: int) -> np.ndarray[Any, Any]:
    """The frequencies of the Fourier basis in cycles per pixel, [h, w // 2 + 1]; as in lucent, an odd width gives one
    column more."""
    columns = w // 2 + 1 + w % 2
    frequencies: np.ndarray[Any, Any] = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[:columns])
    return frequencies


def fft_image(
    shape: Sequence[int], sd: float | None = None, decay_power: float = 1
) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Unbounded images in a Fourier basis with larger scales for low frequencies: see :class:`fastviz.canvas.Fourier`.

    Args:
        shape: [N, C, H, W].
        sd: standard deviation of the initial amplitudes; None is 0.01.
        decay_power: exponent of the frequency by which amplitudes are divided.

    Returns:
        The amplitudes [N, C, H, W // 2 + 1, 2], and a function that turns them into images.

    >>> fft_image([1, 3, 8, 8])[0][0].shape
    torch.Size([1, 3, 8, 5, 2])
    """
    _, _, height, width = shape
    frequencies = rfft2d_freqs(height, width)
    waves = (torch.randn(*shape[:2], *frequencies.shape, 2) * (sd or 0.01)).to(_device()).requires_grad_(True)
    scale = 1 / np.maximum(frequencies, 1 / max(width, height)) ** decay_power
    scales = torch.tensor(scale / _SATURATION, dtype=torch.float32, device=waves.device)[:, :, None]

    def images() -> Tensor:
        made: Tensor = torch.fft.irfft2(torch.view_as_complex(waves * scales), s=(height, width), norm="ortho")
        return made

    return [waves], images


def to_valid_rgb(image_f: Callable[[], Tensor], decorrelate: bool = False) -> Callable[[], Tensor]:
    """A function that maps the images of ``image_f`` to 0 to 1 with a sigmoid.

    With ``decorrelate`` the three channels are coordinates along the principal axes of colours in photographs.

    >>> to_valid_rgb(lambda: torch.zeros(1, 3, 1, 1))().flatten()
    tensor([0.5000, 0.5000, 0.5000])
    """
    matrix = torch.from_numpy(_COLOURS)

    def pictures() -> Tensor:
        images = image_f()
        if decorrelate:
            images = torch.einsum("dc,nchw->ndhw", matrix.to(images), images)
        return images.sigmoid()

    return pictures


class CompositeActivation(nn.Module):
    """arctan x / 0.67 and its square / 0.6, concatenated: twice as many channels."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x.atan()
        return torch.cat([x / 0.67, (x * x) / 0.6], 1)


def cppn(
    size: int,
    num_output_channels: int = 3,
    num_hidden_channels: int = 24,
    num_layers: int = 8,
    activation_fn: Callable[[], nn.Module] = CompositeActivation,
    normalize: bool = False,
) -> Parametrisation:
    """A compositional pattern-producing network (CPPN): a small network from pixel coordinates to colours.

    Args:
        size: side length in pixels.
        num_output_channels: channels of the picture.
        num_hidden_channels, num_layers: size of the network, whose layers are 1x1 convolutions.
        activation_fn: makes the activation after each layer but the last; it doubles the channels.
        normalize: add instance normalisation after each layer.

    Returns:
        The parameters of the network, and a function that returns float32 [1, C, size, size] in 0 to 1.

    >>> cppn(16)[1]().shape
    torch.Size([1, 3, 16, 16])
    """
    steps = torch.linspace(-(3**0.5), 3**0.5, size)
    places = torch.stack(torch.meshgrid(steps, steps, indexing="ij"))[None].to(_device())
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(num_layers):
        last = number == num_layers - 1
        channels = num_output_channels if last else num_hidden_channels
        layers[f"conv{number}"] = nn.Conv2d(num_hidden_channels * 2 if number else 2, channels, 1)
        if normalize:
            layers[f"norm{number}"] = nn.InstanceNorm2d(channels)
        layers["output" if last else f"actv{number}"] = nn.Sigmoid() if last else activation_fn()
    network = nn.Sequential(layers).to(places.device)
    convolutions = [module for module in network if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        nn.init.normal_(convolution.weight, 0, convolution.in_channels**-0.5)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
    nn.init.zeros_(convolutions[-1].weight)  # grey at the start
    return network.parameters(), lambda: network(places)
