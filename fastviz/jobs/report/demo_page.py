"""The demo's page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from fastviz.images import tensors
from fastviz.images.pillow import data_url, encoded, picture_of
from fastviz.jobs.report.page import render

__all__ = ["Scene", "Section", "demo_page"]


@dataclass(frozen=True)
class Scene:
    """A photograph of the demo.

    Attributes:
        name: its file name.
        photo: the crop that the network saw, [3, H, W] in 0 to 1.
        overlays: method → its picture, as JPEG.
        guesses: the most probable classes with their probabilities, most probable first.
    """

    name: str
    photo: Tensor
    overlays: Mapping[str, bytes]
    guesses: list[tuple[str, float]]


@dataclass(frozen=True)
class Section:
    """A section of the demo's page below the photographs.

    Attributes:
        title: its heading.
        text: one or two sentences that describe the pictures.
        pictures: (caption, picture) pairs; the caption may be empty, the picture is [3, H, W] in 0 to 1.
        paper: short citation and link, or empty.
        pixelated: whether to enlarge the pictures without smoothing, for small ones whose pixels matter.
    """

    title: str
    text: str
    pictures: Sequence[tuple[str, Tensor]]
    paper: str = ""
    pixelated: bool = False


def demo_page(
    out: str | os.PathLike[str],
    scenes: Sequence[Scene],
    *,
    unfit: Mapping[str, str],
    sections: Sequence[Section],
    facts: Mapping[str, str],
) -> Path:
    """Write ``index.html``: the demo's pictures, one row per method, in one self-contained file.

    Args:
        out: an existing folder.
        scenes: its photographs.
        unfit: methods without pictures → the reason.
        sections: the sections below the photographs.
        facts: name → value, for the bottom of the page.

    Returns:
        The path of the page.
    """
    out = Path(out)
    render(
        out / "index.html",
        "demo.html",
        scenes=scenes,
        unfit=unfit,
        sections=sections,
        jpeg=lambda content: data_url(content, "jpeg"),
        photo=lambda picture: _inline(picture_of(tensors.eight_bits(picture)), "JPEG"),
        drawn=lambda picture: _inline(picture_of(tensors.eight_bits(picture)), "PNG"),
        facts=facts,
    )
    return out / "index.html"


def _inline(picture: Image.Image, kind: str) -> str:
    """A picture as a ``data:`` URL."""
    return data_url(encoded(picture, kind, **({"quality": 92} if kind == "JPEG" else {})), kind.lower())
