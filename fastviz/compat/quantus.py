"""fastviz's methods as Quantus' measures call them: ``metric(..., explain_func=fastviz.compat.quantus.explain)``.

Quantus hands over arrays and takes arrays back; nothing of it is needed here.
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
    """A map an input, as Quantus wants an ``explain_func`` to give them.

    Args:
        model: the network.
        inputs: array [N, C, H, W], as the network takes them; a single one may lack the first dimension.
        targets: array of classes [N], or one for all.
        method: a name of ``fastviz.METHODS`` that explains, or a function (model, x, target, **options) such as
            ``fastviz.noise_tunnel`` with its method filled in.
        device: where to compute; None is where the model is.
        options: further arguments of the method; with Quantus all of them go into ``explain_func_kwargs``.

    Returns:
        float32 array [N, 1, H, W]: maps of a layer resized to the input (bilinear), those of several channels added up,
        as Quantus' own function does.

    Raises:
        TypeError, ValueError: an unknown method (the nearest are listed); as the method does.

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
