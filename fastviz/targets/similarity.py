"""The similarity of an image's features to a given vector."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from fastviz._util import checks
from fastviz.targets.indices import Activations
from fastviz.targets.objectives import Objective
from fastviz.targets.outputs import output_kind

__all__ = ["similarity"]


class _Similarity(Objective):
    def __init__(self, vector: Tensor, layer: str | None) -> None:
        self.vector = vector
        self.layers = () if layer is None else (layer,)

    @property
    def reads_output(self) -> bool:
        return not self.layers

    @property
    def samples(self) -> int | None:
        return len(self.vector) if self.vector.dim() == 2 else None

    def values(self, output: object, activations: Activations) -> Tensor:
        if self.layers:
            return self._cosine(activations[self.layers[0]], f"layer {self.layers[0]!r}")
        return self._cosine(self.part(output), "model")

    @property
    def parts(self) -> Mapping[Hashable, Objective] | None:
        return None if self.layers else {"features": self}

    def part(self, output: object) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise TypeError(
                f"model should return features [N, D] for a similarity, got {output_kind(output)}: name a layer"
            )
        return output

    def of_parts(self, parts: Mapping[Hashable, Tensor]) -> Tensor:
        return self._cosine(parts["features"], "model")

    def _cosine(self, features: Tensor, what: str) -> Tensor:
        vector = self._beside(self.vector, features).to(features.dtype)
        if vector.dim() == 2 and len(vector) != len(features):
            raise ValueError(f"vector should be [D], or one per sample, {len(features)}, got {list(vector.shape)}")
        return functional.cosine_similarity(_pooled(features, vector.shape[-1], what), vector, dim=1, eps=1e-12)

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        vector = self.vector
        if vector.dim() == 2:
            if len(vector) != of:
                raise ValueError(f"vector should be [D], or one per sample, {of}, got {list(vector.shape)}")
            vector = vector[samples.to(vector.device)]
        return _Similarity(vector, self.layers[0] if self.layers else None)


def _pooled(features: Tensor, length: int, what: str) -> Tensor:
    """One vector [N, length] a sample, as :func:`fastviz.embedding` makes them."""
    if features.dim() == 2 and features.shape[1] == length:
        return features
    # tokens [N, L, D] have their features last, maps [N, C, H, W] first
    for dim in (2, 1) if features.dim() == 3 else (1, features.dim() - 1):
        if features.dim() > 2 and features.shape[dim] == length:
            return features.movedim(dim, 1).flatten(2).mean(2)
    if features.dim() > 2 and features[0].numel() == length:
        return features.flatten(1)
    raise ValueError(
        f"vector should have as many numbers as the features of the {what}, {list(features.shape)}, got {length}"
    )


def similarity(vector: Tensor, layer: str | None = None) -> Objective:
    """The cosine similarity of an image's features to ``vector``, ``cos(f, v) = f · v / (‖f‖ ‖v‖)``: it explains what
    makes two images alike.

    Args:
        vector: [D], or [N, D], one per sample, such as a row of ``fastviz.embedding(model, images, layer).vectors``.
        layer: the dotted name of the layer whose output is f; None is the output [N, D] of the model itself. Of maps
            [N, D, H, W] and tokens [N, L, D] the mean over the places is taken, or all values where ``vector`` has as
            many.

    Returns:
        An objective with one value per sample, [N], from -1 to 1.

    Raises:
        TypeError: ``vector`` is no floating-point tensor, ``layer`` no name.
        ValueError: another shape, a vector of zeros or not finite; when it is used, one of another length.

    >>> similarity(torch.tensor([0.0, 2.0])).values(torch.tensor([[3.0, 4.0]]), {})
    tensor([0.8000])
    """
    checks.tensor(vector, "vector", dims=(1, 2), layout="[D] or [N, D]")
    if layer is not None and not isinstance(layer, str):
        raise TypeError(f"layer should be a dotted module name, got {type(layer).__name__}")
    known = vector.detach()
    if not bool(torch.isfinite(known).all()) or not bool(known.reshape(-1, known.shape[-1]).any(1).all()):
        raise ValueError("vector should be finite and not zero")
    return _Similarity(known, layer)
