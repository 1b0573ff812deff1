"""Drop-in replacement for torchmetrics' ``total_variation`` and ``TotalVariation``: one pass over the images.

Calls that the operator does not support (integers, tensors inside ``torch.func`` transforms, wrong arguments) are
delegated to torchmetrics. Second derivatives, which are zero where they exist, raise an error.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from fastviz import ops
from fastviz.compat._tensors import native

__all__ = ["TotalVariation", "total_variation"]

_theirs: Any = None
_Base: Any = object
try:
    from torchmetrics.functional.image import total_variation as _theirs
    from torchmetrics.image import TotalVariation as _Base
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "torchmetrics":
        raise


def total_variation(img: Tensor, reduction: Literal["mean", "sum", "none"] | None = "sum") -> Tensor:
    """Total variation of images, like ``torchmetrics.functional.image.total_variation``: Σ |v| + |h| over the channels.

    v and h are the differences between neighbours in a column and in a row.

    Args:
        img: [N, C, H, W].
        reduction: ``"sum"`` or ``"mean"`` over the images; ``"none"`` or None for one value each.

    Returns:
        A scalar, or [N], in the dtype of ``img``.

    Raises:
        RuntimeError, ValueError: torchmetrics' own errors, for wrong arguments.
        ImportError: the call needs torchmetrics, which is not installed.

    >>> import torch
    >>> total_variation(torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]]))
    tensor(14.)
    """
    if not native(img) or img.dim() != 4 or not len(img) or reduction not in ("sum", "mean", "none", None):
        if _theirs is None:
            raise ImportError('this call needs torchmetrics itself: pip install "fastviz[torchmetrics]"')
        return _theirs(img, reduction)  # type: ignore[no-any-return]
    score = ops.total_variation(img, norm="l1", border="zero", reduction=reduction or "none")
    return score.to(img.dtype)


class TotalVariation(_Base):
    """``torchmetrics.image.TotalVariation``: :func:`total_variation` over batches, as a metric.

    Raises:
        ImportError: torchmetrics is not installed.
    """

    def __init__(self, reduction: Literal["mean", "sum", "none"] | None = "sum", **kwargs: Any) -> None:
        if _theirs is None:
            raise ImportError('a metric needs torchmetrics: pip install "fastviz[torchmetrics]"')
        super().__init__(reduction=reduction, **kwargs)

    def update(self, img: Tensor) -> None:
        """Add the images [N, C, H, W] of a batch."""
        score = total_variation(img, "none")
        if self.reduction in (None, "none"):
            self.score_list.append(score)
        else:
            self.score += score.sum()
        self.num_elements += len(img)
