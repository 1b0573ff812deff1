"""Colour maps, and maps laid over their images in colours."""

from __future__ import annotations

from typing import Literal

import torch  # noqa: F401 - for the examples
from torch import Tensor

from fastviz._util import checks
from fastviz.images import colour_tables, tensors

__all__ = ["ColourMap", "colour_map", "overlay"]

ColourMap = Literal["viridis", "inferno", "jet", "grey", "seismic"]


def colour_map(values: Tensor, name: ColourMap = "viridis") -> Tensor:
    """Colours [..., 3, H, W] (red, green, blue, 0 to 1) of ``values``, on the same device, in the same dtype.

    256 colours: colour floor(256 v), and the last one for v = 1, as in matplotlib.

    Args:
        values: [..., H, W] in 0 to 1, see :func:`fastviz.images.normalize`.
        name: ``"viridis"`` and ``"inferno"`` (evenly brighter), ``"jet"`` (blue, green, red), ``"grey"``, ``"seismic"``
            (blue, white at 0.5, red: for symmetric maps).

    Returns:
        [..., 3, H, W], 0 to 1.

    Raises:
        TypeError: ``values`` is not a floating-point tensor.
        ValueError: fewer than two dimensions, values outside 0 to 1, an unknown name.

    >>> colour_map(torch.tensor([[0.0, 1.0]]), "grey")[0].tolist()
    [[0.0, 1.0]]
    """
    checks.one_of(name, "name", colour_tables.NAMES)
    checks.tensor(values, "values")
    if values.dim() < 2:
        raise ValueError(f"values should have shape [..., H, W], got {list(values.shape)}")
    tensors.check_range(values, "values")
    index = (values.detach().float() * 256).long().clamp_(0, 255)
    return colour_tables.table(name).to(values.device, values.dtype)[index].movedim(-1, -3).contiguous()


def overlay(image: Tensor, heat: Tensor, *, alpha: float = 0.5, name: ColourMap = "jet") -> Tensor:
    """``heat`` in colours over ``image``: (1 - alpha) · image + alpha · colour, [N, 3, H, W] in 0 to 1.

    Args:
        image: [N, 3, H, W] in 0 to 1, see :func:`fastviz.images.restore`; of one channel grey, of four or more the
            first three.
        heat: [N, h, w] in 0 to 1, see :func:`fastviz.images.normalize`; resized bilinearly to H×W (antialiased if it
            is larger).
        alpha: 0 shows the image alone, 1 the colours alone.
        name: see :func:`colour_map`.

    Returns:
        [N, 3, H, W], 0 to 1, in the dtype and on the device of ``image``.

    Raises:
        TypeError: not floating-point tensors.
        ValueError: other shapes, values outside 0 to 1, an unknown name.

    >>> overlay(torch.zeros(1, 3, 8, 8), torch.ones(1, 2, 2), alpha=1.0, name="grey").unique()
    tensor([1.])
    """
    image = tensors.coloured(checks.image_batch(image, "image"))
    checks.tensor(heat, "heat", dims=(3,), layout="[N, h, w]")
    tensors.check_range(image, "image")
    tensors.check_range(heat, "heat")
    if len(heat) != len(image):
        raise ValueError(f"heat should have {len(image)} maps, one per image, got {len(heat)}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha should be 0 to 1, got {alpha}")
    resized = tensors.resize(heat[:, None], image.shape[-2], image.shape[-1], "bilinear")[:, 0]
    return (1 - alpha) * image + alpha * colour_map(resized, name).to(image)
