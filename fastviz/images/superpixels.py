"""Superpixels: connected parts of a picture with similar colours, by scikit-image's SLIC."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastviz._util import checks

__all__ = ["superpixels"]

_COMPACTNESS = 10.0
_SMOOTHING = 1.0
"""The usual values for SLIC and LIME: compactness 10 in CIELAB, after a Gaussian of one pixel."""


def superpixels(pictures: Tensor, count: int) -> Tensor:
    """About ``count`` superpixels of each picture, numbered from 0 without gaps, int64 [N, H, W] on the CPU.

    Achanta et al. 2012, "SLIC Superpixels", https://doi.org/10.1109/TPAMI.2012.120; in CIELAB for three channels.

    Args:
        pictures: [N, C, H, W]; each is scaled so that its values span 0 to 1, so a network's input will do.
        count: superpixels wanted, at least 1; SLIC gives about as many.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        ValueError: values that are not finite.

    >>> parts = superpixels(torch.rand(1, 3, 16, 16), 4)
    >>> parts.shape, int(parts.min())
    (torch.Size([1, 16, 16]), 0)
    """
    checks.whole_number(count, "segments", minimum=1)
    values = checks.image_batch(pictures, "pictures").detach().float().cpu()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("x should be finite to be cut into superpixels, got values that are not: give segments")
    if not len(values):
        return torch.zeros(0, *values.shape[2:], dtype=torch.int64)
    slic = _slic()
    low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    scaled = ((values - low) / (high - low).clamp(min=1e-12)).permute(0, 2, 3, 1).numpy()
    found = [
        slic(
            np.ascontiguousarray(picture),
            n_segments=count,
            compactness=_COMPACTNESS if picture.shape[-1] == 3 else _COMPACTNESS / 100,
            sigma=_SMOOTHING,
            start_label=0,
            convert2lab=picture.shape[-1] == 3,
            channel_axis=-1,
        )
        for picture in scaled
    ]
    numbered = [np.unique(parts, return_inverse=True)[1].reshape(parts.shape) for parts in found]
    return torch.from_numpy(np.stack(numbered)).long()


def _slic() -> Any:
    try:
        from skimage.segmentation import slic
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'superpixels need scikit-image: pip install "fastviz[perturbation]", or give segments', name="skimage"
        ) from error
    return slic
