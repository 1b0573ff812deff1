"""How concentrated maps are: sparseness (Gini index) and complexity (entropy)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastviz._util import checks

__all__ = ["complexity", "sparseness"]


def sparseness(maps: Tensor) -> Tensor:
    """The Gini index of the absolute values of each map, [N]: 0 if all are equal, near 1 if one value dominates.

    ``Σ_i (2i − n − 1) a_i / (n Σ_i a_i)`` over the n values in ascending order. Chalasani et al. 2020, "Concise
    Explanations of Neural Networks using Adversarial Training", https://arxiv.org/abs/1810.06583. Quantus'
    ``Sparseness`` adds 1e-7 to every value. Maps are measured at their own resolution: resize coarse maps first to
    compare them with fine ones.

    Args:
        maps: [N, ...], floating-point and finite; all values of a map count.

    Returns:
        [N]; NaN for a map of zeros.

    Raises:
        TypeError, ValueError: not a floating-point tensor, no values, values that are not finite.

    >>> sparseness(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0]]))
    tensor([0.0000, 0.7500])
    """
    values = _magnitudes(maps).sort(dim=1).values
    n = values.shape[1]
    weights = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=values.device) - n - 1
    total = values.sum(1)
    gini = (values * weights).sum(1) / (n * torch.where(total > 0, total, 1))
    return torch.where(total > 0, gini, torch.nan).to(_wide(maps))


def complexity(maps: Tensor) -> Tensor:
    """The entropy of each map's normalised absolute values, [N], in nats, 0 to ln n: low for a simple map.

    ``−Σ p ln p`` with ``p = |a| / Σ|a|``. Bhatt, Weller, Moura 2020, "Evaluating and Aggregating Feature-based Model
    Explanations", https://arxiv.org/abs/2005.00631. Quantus' ``Complexity`` is the same. Arguments, NaN and errors as
    in :func:`sparseness`.

    Returns:
        [N], 0 or more, of the dtype of the maps.

    >>> complexity(torch.tensor([[1.0, 1.0], [0.0, 5.0]]))
    tensor([0.6931, 0.0000])
    """
    values = _magnitudes(maps)
    total = values.sum(1, keepdim=True)
    shares = values / torch.where(total > 0, total, 1)
    # + 0.0 turns the −0 of a map with one value into 0
    entropy = torch.special.entr(shares).sum(1) + 0.0
    return torch.where(total[:, 0] > 0, entropy, torch.nan).to(_wide(maps))


def _wide(maps: Tensor) -> torch.dtype:
    return torch.promote_types(maps.dtype, torch.float32)


def _magnitudes(maps: object) -> Tensor:
    """Absolute values in float64, [N, n]."""
    found = checks.tensor(maps, "maps")
    if found.dim() < 2 or (len(found) and not found[0].numel()):
        raise ValueError(f"maps should have shape [N, ...] with at least one value each, got {list(found.shape)}")
    if not bool(found.isfinite().all()):
        raise ValueError("maps should be finite, got NaN or infinity")
    return found.detach().double().abs().flatten(1)
