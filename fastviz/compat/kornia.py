"""Drop-in replacement for ``kornia.losses.total_variation`` and ``TotalVariation``: one pass forward, one backward.

Calls that the operator does not support (integers, tensors inside ``torch.func`` transforms, wrong arguments) are
delegated to kornia. Second derivatives, which are zero where they exist, raise an error.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastviz import ops
from fastviz.compat._tensors import native

__all__ = ["TotalVariation", "total_variation"]

_theirs: Any = None
_Base: Any = nn.Module
try:
    from kornia.losses import TotalVariation as _Base
    from kornia.losses import total_variation as _theirs
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "kornia":
        raise


def total_variation(img: Tensor, reduction: str = "sum") -> Tensor:
    """Total variation of the last two dimensions, like ``kornia.losses.total_variation``: Σ |v| + |h|.

    v and h are the differences between neighbours in a column and in a row.

    Args:
        img: [..., H, W].
        reduction: ``"sum"``; ``"mean"`` divides each direction by the number of its differences, then adds them.

    Returns:
        [...], in the dtype of ``img``.

    Raises:
        Exception: kornia's own errors, for wrong arguments.
        ImportError: the call needs kornia, which is not installed.

    >>> import torch
    >>> total_variation(torch.tensor([[0.0, 3.0], [4.0, 0.0]]))
    tensor(14.)
    """
    if not native(img) or img.dim() < 2 or reduction not in ("sum", "mean"):
        if _theirs is None:
            raise ImportError('this call needs kornia itself: pip install "fastviz[kornia]"')
        return _theirs(img, reduction)  # type: ignore[no-any-return]
    planes = img.reshape(-1, 1, *img.shape[-2:]) if img.numel() else img.new_zeros(img.shape[:-2].numel(), 1, 1, 1)
    value = ops.total_variation(
        planes, norm="l1", border="zero", reduction="pixel_mean" if reduction == "mean" else "none"
    )
    return value.to(img.dtype).view(img.shape[:-2])


class TotalVariation(_Base):
    """``kornia.losses.TotalVariation``: :func:`total_variation` with ``reduction="sum"`` as a module."""

    def forward(self, img: Tensor) -> Tensor:
        """[...] for ``img`` [..., H, W]."""
        return total_variation(img)
