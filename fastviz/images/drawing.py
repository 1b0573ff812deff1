"""Maps drawn over the photograph they explain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastviz.images import captions, overlays, tensors

__all__ = ["LEGENDS", "draw", "laid", "outlined"]

LEGENDS = {
    "heat": "dark or blue: nothing; bright or red: much",
    "signed": "red: speaks for the class; blue: against it; grey: neither",
    "gradient": "grey: nothing; lighter: a higher value there raises the score; darker: lowers it",
    "mask": "bright, with an outline: the object; the thin line: its box",
}
"""The meaning of the colours, in words, for each kind of drawing in the registry."""

_OUTLINE, _BOX = torch.tensor([1.0, 0.1, 0.8]).view(3, 1, 1), torch.tensor([1.0, 0.9, 0.2]).view(3, 1, 1)

# Otherwise a single bright pixel would leave the rest of the map dark.
_PERCENTILE = 99.0


def draw(draws: str, attribution: Tensor, photo: Tensor, *, coarse: bool = False) -> Tensor:
    """A picture [3, H, W] in 0 to 1 of a map, for people to look at.

    Values are scaled so that the 99th percentile of their magnitudes is full colour, and the map is resized to the
    photograph (bilinear). For a map of zeros: the photograph in grey, with words that say so.

    Args:
        draws: ``"heat"`` lays a map of 0 or more over the photograph; ``"signed"`` lays a map of both signs over a grey
            photograph, red above zero and blue below; ``"gradient"`` shows a picture of both signs about middle grey;
            ``"mask"`` outlines what is above one half, see :func:`outlined`.
        attribution: [h, w], or [C, h, w] for ``"gradient"``, of other than three channels their mean; floating-point.
            Of several channels that are not drawn as a gradient their sum counts.
        photo: [3, H, W] in 0 to 1; [1, H, W] is grey, of four channels or more the first three are shown.
        coarse: whether a heat map has a layer's resolution (it is laid over the photograph evenly, "jet") and not that
            of the input (bright on dark, "inferno").
    """
    attribution, photo = attribution.float(), tensors.coloured(photo)
    if draws != "gradient" and attribution.dim() == 3:
        attribution = attribution.sum(0)
    size = (photo.shape[-2], photo.shape[-1])
    if draws != "mask" and not attribution.any():
        return captions.over(photo.mean(0, keepdim=True).expand(3, -1, -1) * 0.6, "a map of zeros")
    if draws == "mask":
        return outlined(photo, tensors.resize_maps(attribution[None], *size)[0] > 0.5)
    if draws == "gradient":
        scaled = tensors.normalize(attribution[None], symmetric=True, percentile=_PERCENTILE, dims=3)[0]
        scaled = scaled if len(scaled) == 3 else scaled.mean(0, keepdim=True)
        return tensors.resize_maps(scaled, *size).expand(3, -1, -1).contiguous()
    signed = draws == "signed"
    scaled = tensors.normalize(attribution[None], symmetric=signed, percentile=_PERCENTILE)
    if draws == "heat" and coarse:
        return overlays.overlay(photo[None], scaled, alpha=0.5, name="jet")[0]
    return laid(draws, tensors.resize_maps(scaled, *size)[0], photo)


def laid(draws: str, value: Tensor, photo: Tensor) -> Tensor:
    """A ``"heat"`` or ``"signed"`` map [H, W], already scaled to 0 to 1, in colours over ``photo`` [3, H, W]."""
    grey = photo.mean(0, keepdim=True).expand(3, -1, -1)
    if draws == "signed":
        weight = 0.8 * (2 * value - 1).abs() ** 0.8
        return torch.lerp(0.5 + 0.5 * (grey - 0.5), overlays.colour_map(value, "seismic"), weight)
    return torch.lerp(0.3 * grey, overlays.colour_map(value, "inferno"), value.sqrt())


def outlined(photo: Tensor, mask: Tensor) -> Tensor:
    """A picture [3, H, W] of an object: the photograph, darkened outside the object, with its outline and bounding box.

    Args:
        photo: [3, H, W] in 0 to 1.
        mask: bool [H, W], where the object is; none at all leaves the photograph dark.
    """
    width = max(1, round(min(mask.shape) / 150))
    inside = mask.to(photo.dtype)
    outline = _grown(inside, width).bool() & ~mask
    picture = torch.where(mask, photo, 0.35 * photo)
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if len(rows):
        box = torch.zeros_like(mask)
        box[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = True
        frame = _grown(box.to(photo.dtype), max(1, width // 2)).bool() & ~box
        picture = torch.where(frame, _BOX.to(photo), picture)
    return torch.where(outline, _OUTLINE.to(photo), picture)


def _grown(mask: Tensor, by: int) -> Tensor:
    """A mask [H, W] of 0 and 1, grown by ``by`` pixels."""
    return functional.max_pool2d(mask[None], 2 * by + 1, stride=1, padding=by)[0]
