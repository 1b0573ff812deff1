"""Holds a model in evaluation mode while it is used, then restores its modules' training flags."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastviz._util import checks
from fastviz._util.by_model import ByModel
from fastviz._util.modules import every_module

__all__ = ["frozen_model"]


_holders: ByModel[int] = ByModel(in_use=True)
"""Modules held in evaluation mode that were in training mode → number of ``with`` blocks that hold them."""
_lock = threading.Lock()


@contextmanager
def frozen_model(model: nn.Module, *, exporting: bool = False) -> Iterator[None]:
    """Keep ``model`` in evaluation mode within the ``with`` block, with gradients on and inference mode off.

    Each submodule gets its own training flag back when the last ``with`` that holds it ends, also in other threads and
    when the body raises. Neither ``train()`` nor ``eval()`` is called, so a model's own versions of them do not run.
    ``exporting`` says that ``torch.export`` may record the calls in the block; else it raises a ValueError there.

    >>> model = nn.Sequential(nn.Dropout())
    >>> with frozen_model(model):
    ...     model[0].training
    False
    >>> model[0].training
    True
    """
    held: list[nn.Module] = []
    if not exporting:
        checks.not_exporting()
    checks.devices(checks.module(model))
    try:
        with _lock:
            others = len(_holders) > 0
            for module in every_module(model):
                if getattr(module, "training", False) or (others and module in _holders):
                    held.append(module)
                    _holders[module] = (_holders.get(module) or 0) + 1
                    module.training = False
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        with _lock:
            for module in held:
                count = _holders.pop(module) or 0
                if count > 1:
                    _holders[module] = count - 1
                else:
                    module.training = True
