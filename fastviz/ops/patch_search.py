"""How far each window of a sample is from a neighbourhood of which only some pixels are known."""

from __future__ import annotations

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.ops._checks import called, check_like, check_supported
from fastviz.ops._native import native
from fastviz.ops._registration import refuse_derivative, sum_dtype

__all__ = ["patch_search"]


def patch_search(sample: Tensor, neighbourhood: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """How far each window of a sample is from a neighbourhood of which only some pixels are known.

    With u_ij = ``weights[i, j]`` where ``mask[i, j]``, else 0, the distance of the window that begins at (y, x) is

        Σ_ij u_ij Σ_c (sample[c, y+i, x+j] − neighbourhood[c, i, j])² / Σ_ij u_ij,

    the inner loop of Efros and Leung 1999, https://doi.org/10.1109/ICCV.1999.790383: a weighted mean over the known
    pixels, summed over the channels. It is 0 for every window where no weight is left, and exactly 0 for a window that
    equals the neighbourhood; differences are squared directly: a correlation would lose this to rounding. Pixels with
    u_ij = 0 are never read, so they may be NaN. Not differentiable.

    Args:
        sample: [C, H, W].
        neighbourhood: [C, h, w], or several [B, C, h, w]; at most the size of the sample.
        mask: [h, w] or [B, h, w], bool: which pixels are known.
        weights: [h, w], 0 or more, finite; others raise on the CPU, and give NaN on CUDA.

    Returns:
        [H − h + 1, W − w + 1] or [B, H − h + 1, W − w + 1], contiguous; float64 for a float64 sample, else float32.

    Raises:
        TypeError, ValueError: a shape, dtype or device that does not fit, with the name of the argument.

    Example:
        >>> sample = torch.tensor([[[0.0, 1.0, 3.0]]])
        >>> mask = torch.tensor([[True, False]])
        >>> patch_search(sample, torch.tensor([[[1.0, 9.0]]]), mask, torch.ones(1, 2)).tolist()
        [[1.0, 0.0]]
    """
    checks.tensor(sample, "sample", dims=(3,), layout="[C, H, W]")
    check_supported(sample, "sample")
    checks.tensor(neighbourhood, "neighbourhood", dims=(3, 4), layout="[C, h, w] or [B, C, h, w]")
    check_like(neighbourhood, "neighbourhood", sample, "sample")
    channels, h, w = neighbourhood.shape[-3:]
    if channels != sample.shape[0]:
        raise ValueError(f"neighbourhood should have the {sample.shape[0]} channels of sample, got {channels}")
    if not (0 < h <= sample.shape[1] and 0 < w <= sample.shape[2]):
        raise ValueError(
            f"neighbourhood should have at least one pixel and at most the {list(sample.shape[1:])} of sample, "
            f"got {[h, w]}"
        )
    checks.tensor(mask, "mask", floating=False)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask should be a tensor of bool, got {mask.dtype}")
    wanted = [*neighbourhood.shape[:-3], h, w]
    if list(mask.shape) != wanted:
        raise ValueError(f"mask should have shape {wanted}, got {list(mask.shape)}")
    if mask.device != sample.device:
        raise ValueError(f"mask should be on the device of sample, {sample.device}, got {mask.device}")
    checks.tensor(weights, "weights", dims=(2,), layout=f"[{h}, {w}]")
    check_like(weights, "weights", sample, "sample")
    if weights.shape != (h, w):
        raise ValueError(f"weights should have shape [{h}, {w}], got {list(weights.shape)}")
    if neighbourhood.dim() == 4:
        return called(native.patch_search, sample, neighbourhood, mask, weights)
    return called(native.patch_search, sample, neighbourhood[None], mask[None], weights)[0]


@torch.library.register_fake("fastviz::patch_search")
def _patch_search_fake(sample: Tensor, neighbourhood: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    h, w = neighbourhood.shape[2:]
    shape = (neighbourhood.shape[0], sample.shape[1] - h + 1, sample.shape[2] - w + 1)
    return sample.new_empty(shape, dtype=sum_dtype(sample))


refuse_derivative("patch_search")
