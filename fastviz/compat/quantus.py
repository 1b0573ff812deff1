"""fastviz's methods for Quantus' metrics: ``metric(..., explain_func=fastviz.compat.quantus.explain)``.

Quantus passes and expects NumPy arrays; it need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.images.tensors import resize_maps
from fastviz.methods.registry import EXPLAINERS

__all__ = ["explain"]


def explain(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    method: str | Callable[..., Any] = "saliency",
    device: Any = None,
    **options: Any,
) -> np.ndarray[Any, Any]:
    """A map for each input; usable as Quantus' ``explain_func``.

    Args:
        model: the network.
        inputs: array [N, C, H, W] of the network's inputs; a single input may lack the first dimension.
        targets: array of classes [N], or one class for all.
        method: the name of an attribution method in ``fastviz.METHODS``, or a function (model, x, target, **options),
            such as a partial of ``fastviz.noise_tunnel``.
        device: the device; None is the model's device.
        options: further arguments of the method; in Quantus they all go into ``explain_func_kwargs``.

    Returns:
        float32 array [N, 1, H, W]. A layer's maps are resized to the input (bilinear), and channels are added up, as in
        Quantus' own function.

    Raises:
        TypeError, ValueError: the method is unknown (the nearest are listed), or as the method raises.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> explain(network, np.ones((5, 3, 2, 2), dtype="float32"), np.zeros(5, dtype=int)).shape
    (5, 1, 2, 2)
    """
    checks.module(model)
    parameter = next((each for each in model.parameters() if each.is_floating_point()), torch.zeros(0))
    place = parameter.device if device is None else checks.device(device)
    images = torch.as_tensor(np.asarray(inputs)).to(place, parameter.dtype)
    images = images[None] if images.dim() == 3 else images
    classes = torch.as_tensor(np.asarray(targets)).reshape(-1).long().expand(len(images))
    if isinstance(method, str):
        entry = EXPLAINERS[checks.nearest(method, "method", EXPLAINERS)]
        function, options = entry.function, dict(entry.defaults) | options
    elif callable(method):
        function = method
    else:
        raise TypeError(f"method should be a name or a function, got {type(method).__name__}")
    found = function(model, images, classes, **options)
    found = found if isinstance(found, Tensor) else found.attribution
    maps = (found.sum(1) if found.dim() == 4 else found).detach().float()
    if maps.shape[1:] != images.shape[2:]:
        maps = resize_maps(maps, images.shape[2], images.shape[3])
    return maps[:, None].cpu().numpy()
