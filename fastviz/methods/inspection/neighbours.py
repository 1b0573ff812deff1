"""Nearest neighbours among many images: by the network's features, and by pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.images import captions, tensors
from fastviz.images.notebook import NotebookResult
from fastviz.methods.inspection.embedding import Embedding
from fastviz.vectors.nearest_neighbours import nearest

__all__ = ["Neighbours", "neighbour_sheet", "neighbours"]

_PIXELS = 32
"""Side, in pixels, of the pictures that are compared by pixels."""


@dataclass(frozen=True, eq=False, repr=False)
class Neighbours(NotebookResult):
    """The result of :func:`neighbours`; indices are rows of the embedding, the nearest first.

    Attributes:
        queries: int64 [Q], the images whose neighbours these are.
        features, feature_distances: int64 and float64 [Q, k], nearest by feature vectors.
        pixels, pixel_distances: the same, nearest by pixel values, 0 to 1, of the pictures at 32x32.

    >>> from fastviz.methods.inspection.embedding import embedding
    >>> found = neighbours(embedding(torch.nn.Flatten(), torch.rand(5, 3, 8, 8), ""), 2)
    >>> found.features.shape, found.part(slice(0, 1)).queries.tolist()
    (torch.Size([5, 2]), [0])
    """

    queries: Tensor
    features: Tensor
    feature_distances: Tensor
    pixels: Tensor
    pixel_distances: Tensor

    def part(self, some: slice) -> Neighbours:
        """The neighbours of some queries."""
        return Neighbours(*(getattr(self, each.name)[some] for each in fields(self)))


def neighbours(found: Embedding, k: int = 8, *, queries: Sequence[int | str] | None = None) -> Neighbours:
    """The ``k`` nearest neighbours of each image: by features, and by pixels.

    Exact Euclidean distances; no image is its own neighbour, and ties are in index order
    (:func:`fastviz.vectors.nearest_neighbours.nearest`). Images with similar features look alike to the network, images
    with similar pixels have the same colours in the same positions: Krizhevsky, Sutskever, Hinton 2012, figure 4,
    https://papers.nips.cc/paper/4824.

    Args:
        found: from :func:`embedding`, of at least ``k + 1`` images.
        k: neighbours per image.
        queries: rows or names of the images whose neighbours to find; None is all.

    Returns:
        A :class:`Neighbours` with indices [Q, k] and distances [Q, k], on the device of the vectors.

    Raises:
        TypeError, ValueError: ``k`` is too large; a row or name does not exist.

    >>> from fastviz.methods.inspection.embedding import embedding
    >>> found = embedding(torch.nn.Flatten(), torch.rand(5, 3, 8, 8), "")
    >>> neighbours(found, 3, queries=["0", "2"]).features.shape
    torch.Size([2, 3])
    """
    checks.instance(found, "found", Embedding)
    if queries is not None and (isinstance(queries, str) or not isinstance(queries, Sequence)):
        raise TypeError(f"queries should be a list of rows or names, got {queries!r}")
    checks.whole_number(k, "k", minimum=1)
    if len(found.names) < 2:
        raise ValueError(f"found should hold at least 2 images, to be neighbours of each other, got {len(found.names)}")
    if k >= len(found.names):
        raise ValueError(f"k should be at most {len(found.names) - 1}, one less than the number of images, got {k}")
    rows = range(len(found.names)) if queries is None else [_row(found, query) for query in queries]
    chosen = torch.tensor(rows, dtype=torch.int64)
    near, distances = nearest(found.vectors, k, queries=chosen)
    near_pixels, pixel_distances = nearest(_pixels(found), k, queries=chosen)
    return Neighbours(chosen.to(near.device), near, distances, near_pixels, pixel_distances)


def _pixels(found: Embedding) -> Tensor:
    """The thumbnails as vectors, scaled down batch by batch; higher resolution would not change the comparison much."""
    parts = []
    for some in found.pictures.split(256):
        values = some.to(found.vectors.device).float() / 255
        if max(values.shape[-2:]) > _PIXELS:
            values = tensors.resize(values, _PIXELS, _PIXELS, "bilinear")
        parts.append(values.flatten(1))
    return torch.cat(parts)


def _row(found: Embedding, query: int | str) -> int:
    if isinstance(query, str):
        return found.names.index(checks.nearest(query, "query", found.names))
    if checks.whole_number(query, "query", minimum=0) >= len(found.names):
        raise ValueError(f"query should be a row from 0 to {len(found.names) - 1} or a name, got {query}")
    return query


def neighbour_sheet(found: Embedding, near: Neighbours, *, tile: int = 96) -> Tensor:
    """A picture [3, H, W] of each query next to its neighbours: by features in the upper row, by pixels in the lower.

    Args:
        found: the embedding.
        near: from :func:`neighbours`; about 20 queries make a sheet of convenient length.
        tile: side of a neighbour in pixels; the query is twice as large.

    Returns:
        float32 [3, H, W] in 0 to 1, on the CPU.

    Raises:
        ValueError: no queries.

    >>> from fastviz.methods.inspection.embedding import embedding
    >>> found = embedding(torch.nn.Flatten(), torch.rand(5, 3, 8, 8), "")
    >>> neighbour_sheet(found, neighbours(found, 3, queries=[0]), tile=32).shape[0]
    3
    """
    checks.whole_number(tile, "tile", minimum=1)
    checks.instance(found, "found", Embedding)
    checks.instance(near, "near", Neighbours)
    if not len(near.queries):
        raise ValueError("near should have at least one query, got none")
    parts = []
    for query, features, pixels in zip(near.queries.tolist(), near.features, near.pixels, strict=True):
        side = 2 * tile + 3
        rows = tensors.grid(_shown(found, torch.cat([features, pixels]), tile), columns=len(features), padding=1)
        words = [found.names[query], "nearest by features (above) and by pixels (below)"]
        parts.append(
            captions.panels([(words[0], _shown(found, torch.tensor([query]), side)[0]), (words[1], rows)], height=side)
        )
    return torch.cat(parts, dim=1)


def _shown(found: Embedding, rows: Tensor, side: int) -> Tensor:
    """Thumbnails as squares of ``side`` pixels, 0 to 1."""
    return tensors.resize(found.pictures[rows.cpu()].float() / 255, side, side, "bilinear")
