"""Drop-in replacement for ``pystiche.gram_matrix`` and ``pystiche.loss.functional.total_variation_loss``.

Calls that the operators do not support (integers, tensors inside ``torch.func`` transforms, losses per pixel, wrong
arguments) are delegated to pystiche. Second derivatives of the loss raise an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastviz import ops
from fastviz.compat._tensors import native

__all__ = ["gram_matrix", "total_variation_loss"]

_gram_matrix: Any = None
_total_variation_loss: Any = None
try:
    from pystiche import gram_matrix as _gram_matrix
    from pystiche.loss.functional import total_variation_loss as _total_variation_loss
except ImportError:
    # pystiche 1.0 may be installed but fail to import, because it uses names that newer versions of torchvision lack.
    pass


def gram_matrix(x: Tensor, normalize: bool = False) -> Tensor:
    """Gram matrices of feature maps, like ``pystiche.gram_matrix``: G_ij = Σ_k F_ik F_jk, with half the products.

    Args:
        x: [N, C, ...].
        normalize: divide by the number of positions.

    Returns:
        [N, C, C], in the dtype of ``x``.

    Raises:
        Exception: pystiche's own, for wrong arguments.
        ImportError: pystiche would have to take the call, and cannot be imported.

    >>> gram_matrix(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
    tensor([[[5., 2.],
             [2., 1.]]])
    """
    if not native(x) or x.dim() < 3 or not x.numel():
        return _require(_gram_matrix)(x, normalize)  # type: ignore[no-any-return]
    return ops.gram(x if x.dim() == 4 else x.flatten(2), "hw" if normalize else "none")


def total_variation_loss(input: Tensor, exponent: float = 2.0, reduction: str = "mean") -> Tensor:
    """Total variation of images, like ``pystiche.loss.functional.total_variation_loss``: (v² + h²)^(exponent / 2).

    v and h are the differences to the neighbours below and to the right, where both exist.

    Args:
        input: [N, C, H, W].
        exponent: above 0.
        reduction: ``"mean"`` or ``"sum"`` over all values, or ``"none"``.

    Returns:
        A scalar, or [N, C, H − 1, W − 1], in the dtype of ``input``.

    Raises:
        Exception: pystiche's own, for wrong arguments.
        ImportError: pystiche would have to take the call, and cannot be imported.

    >>> total_variation_loss(torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]]))
    tensor(25.)
    """
    if not native(input) or input.dim() != 4 or 0 in input[:, :, 1:, 1:].shape or reduction not in ("mean", "sum"):
        return _require(_total_variation_loss)(input, exponent, reduction)  # type: ignore[no-any-return]
    if not isinstance(exponent, (int, float)) or not 0 < exponent < torch.inf:
        return _require(_total_variation_loss)(input, exponent, reduction)  # type: ignore[no-any-return]
    value = ops.total_variation(input, beta=float(exponent))
    total = value.sum()
    if reduction == "mean":
        total = total / input[:, :, 1:, 1:].numel()
    return total.to(input.dtype)


def _require(theirs: Any) -> Any:
    if theirs is None:
        raise ImportError("this call needs pystiche itself, which cannot be imported")
    return theirs
