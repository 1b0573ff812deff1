"""Maps drawn over the photograph they explain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastviz import pictures

__all__ = ["LEGENDS", "draw"]

LEGENDS = {
    "heat": "dark or blue: nothing; bright or red: much",
    "signed": "red: speaks for the class; blue: against it; grey: neither",
    "gradient": "grey: nothing; lighter: a higher value there raises the score; darker: lowers it",
}
"""What the colours of each kind of drawing mean, in words; the kinds are those of the registry."""

# One bright pixel would otherwise leave the rest of a map dark.
_PERCENTILE = 99.0


def draw(draws: str, attribution: Tensor, photo: Tensor, *, coarse: bool = False) -> Tensor:
    """Picture [3, H, W] in 0 to 1 of a map, made for people.

    Values are scaled so that the 99th percentile of their magnitudes is full colour, and the map is resized to the
    photograph (bilinear).

    Args:
        draws: ``"heat"`` lays a map of 0 or more over the photograph; ``"signed"`` lays a map of both signs over a grey
            photograph, red above zero and blue below; ``"gradient"`` shows a picture of both signs about middle grey.
        attribution: [h, w], or [1 or 3, h, w] for ``"gradient"``; floating-point.
        photo: [3, H, W] in 0 to 1.
        coarse: whether a heat map has a layer's resolution (it is laid over the photograph evenly, "jet") and not that
            of the input (bright on dark, "inferno").
    """
    attribution = attribution.float()
    if draws == "gradient":
        scaled = pictures.normalise(attribution[None], symmetric=True, percentile=_PERCENTILE, dims=3)[0]
        return _resized(scaled, photo).expand(3, -1, -1).contiguous()
    signed = draws == "signed"
    scaled = pictures.normalise(attribution[None], symmetric=signed, percentile=_PERCENTILE)
    if draws == "heat" and coarse:
        return pictures.overlay(photo[None], scaled, alpha=0.5, name="jet")[0]
    value = _resized(scaled, photo)[0]
    grey = photo.mean(0, keepdim=True).expand(3, -1, -1)
    if signed:
        weight = 0.8 * (2 * value - 1).abs() ** 0.8
        return torch.lerp(0.5 + 0.5 * (grey - 0.5), pictures.colour_map(value, "seismic"), weight)
    return torch.lerp(0.3 * grey, pictures.colour_map(value, "inferno"), value.sqrt())


def _resized(maps: Tensor, photo: Tensor) -> Tensor:
    """``maps`` [C, h, w], in 0 to 1, at the height and width of ``photo``."""
    size = (photo.shape[-2], photo.shape[-1])
    return functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0].clamp(0, 1)
