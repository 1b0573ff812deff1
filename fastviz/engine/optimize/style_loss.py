"""The style transfer loss: target features and Gram matrices of some layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from fastviz import ops
from fastviz._util import checks
from fastviz.engine.optimize.network import FeatureNetwork
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.winograd import Winograd

__all__ = ["Layers", "StyleLoss", "layer_weights"]

Layers: TypeAlias = str | Sequence[str] | Mapping[str, float] | None
"""A layer name, several names (which share a weight of 1 equally), names with weights, or None for the defaults."""


def layer_weights(layers: Layers, argument: str, defaults: Sequence[str]) -> dict[str, float]:
    """The name and weight of each layer; ``defaults`` are the layers for None.

    Raises:
        TypeError: a name is not a string or a weight not a number.
        ValueError: no layer, a repeated layer, a weight below 0 or not finite, or only weights of 0.

    >>> layer_weights(["conv1", "conv2"], "layers", [])
    {'conv1': 0.5, 'conv2': 0.5}
    """
    if isinstance(layers, Mapping):
        found = {
            name: checks.number(weight, f"the weight of {name!r} in {argument}", low=0)
            for name, weight in layers.items()
        }
        if found and not any(found.values()):
            raise ValueError(f"{argument} should have a weight above 0, got {found}")
    else:
        names = list(defaults) if layers is None else checks.names(layers, argument)
        found = dict.fromkeys(names, 1 / max(1, len(names)))
        if len(found) < len(names):
            raise ValueError(f"{argument} should have every layer once, got {names}")
    if not found:
        raise ValueError(f"{argument} should have at least one layer, got none")
    for name in found:
        if not isinstance(name, str):
            raise TypeError(f"{argument} should be dotted module names, got {type(name).__name__}")
    return found


# ------------------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True, eq=False)
class _Region:
    """A layer's target Gram matrix [1 or N, C, C], divided by the number of positions, and its loss weight [1 or N].

    ``mask`` [1, 1, H, W] says where it applies; None is everywhere.
    """

    gram: Tensor
    weight: Tensor
    mask: Tensor | None


class StyleLoss:
    """The negative loss of images against a content and styles, to be increased: see :func:`fastviz.style_transfer`.

    After a call, :attr:`content` and :attr:`style`, [N], hold the two losses, without β, of the images in that call;
    entries of other images stay unchanged.

    Args:
        network: computes the features.
        style_weight: β.
        zeros: [N] zeros, in the dtype and on the device of the images.
    """

    def __init__(self, network: FeatureNetwork, style_weight: float, zeros: Tensor) -> None:
        self.network = network
        self._winograd = Winograd(keep=True)
        self.style_weight = style_weight
        self.content = self.style = zeros
        self._contents: dict[str, tuple[Tensor, Tensor]] = {}
        self._styles: dict[str, list[_Region]] = {}
        self._guides: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def set_content(self, images: Tensor, layers: Mapping[str, float]) -> None:
        """Set the content targets: the features of ``images`` [N, C, H, W] in the ``layers``, each with its weight."""
        found = self._features(images)
        for name, weight in layers.items():
            features = found[name]
            size = features.flatten(1).square().sum(1)
            self._contents[name] = features, weight / (2 * torch.where(size > 0, size, 1))

    def set_styles(
        self,
        styles: Sequence[Tensor],
        layers: Mapping[str, float],
        shares: Sequence[float],
        *,
        masks: Tensor | None = None,
    ) -> None:
        """Set the style targets: the Gram matrices of the ``styles`` [1 or N, C, h, w] in the ``layers``.

        They are blended with ``shares`` that sum to 1, or, with ``masks`` [S, H, W], each applies where its mask is.
        """
        each: list[dict[str, Tensor]] = []
        for images in styles:
            features = self._features(images)
            each.append({name: ops.gram(_maps(name, features[name]), "hw") for name in layers})
        for name, weight in layers.items():
            grams = [found[name] for found in each]
            if masks is None:
                blend = grams[0] * shares[0]
                for gram, share in zip(grams[1:], shares[1:], strict=True):
                    blend = blend + gram * share
                self._styles[name] = [_region(blend, weight, None)]
            else:
                self._styles[name] = [
                    _region(gram, weight * share * len(shares), mask[None, None])
                    for gram, share, mask in zip(grams, shares, masks, strict=True)
                ]

    def _features(self, images: Tensor) -> Mapping[str, Tensor]:
        with frozen_model(self.network.model), torch.no_grad(), self._winograd:
            return self.network(images)[1]

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """The negative loss [n] of each of the ``images`` [n, C, H, W], whose indices are ``rows``."""
        with self._winograd:
            _, found = self.network(images)
        content = style = images.new_zeros(len(images))
        for name, (features, weight) in self._contents.items():
            distance = (found[name] - _rows_of(features, rows)).flatten(1).square().sum(1)
            content = content + _rows_of(weight, rows) * distance
        for name, regions in self._styles.items():
            for number, region in enumerate(regions):
                features, weight = found[name], _rows_of(region.weight, rows)
                if region.mask is not None:
                    guide, part = self._guide(name, number, region.mask, features)
                    features, weight = features * guide, weight * part
                style = style + weight * ops.gram_loss(features, _rows_of(region.gram, rows), "hw")
        self.content = self.content.index_copy(0, rows, content.detach())
        self.style = self.style.index_copy(0, rows, style.detach())
        return -(content + self.style_weight * style)

    def _guide(self, name: str, number: int, mask: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """The factor for the features, [1, 1, h, w] with a mean square of 1, and the mask's mean square."""
        if (name, number) not in self._guides:
            guide = F.adaptive_avg_pool2d(mask.to(features), (features.shape[2], features.shape[3]))
            part = guide.square().mean()
            self._guides[name, number] = guide / part.sqrt(), part
        return self._guides[name, number]


def _region(gram: Tensor, weight: float, mask: Tensor | None) -> _Region:
    """The region whose loss is weight · ‖G / M − gram‖² / (4 (tr gram)²)."""
    size = gram.diagonal(dim1=1, dim2=2).sum(1)
    return _Region(gram, weight / (4 * torch.where(size > 0, size, 1).square()), mask)


def _rows_of(values: Tensor, rows: Tensor) -> Tensor:
    """The ``rows`` of ``values``, which may have a single row for all images."""
    return values if len(values) == 1 else values[rows]


def _maps(name: str, features: Tensor) -> Tensor:
    if features.dim() != 4:
        raise ValueError(
            f"layers of the style should give maps [N, C, H, W], layer {name!r} gives shape {list(features.shape)}"
        )
    return features
