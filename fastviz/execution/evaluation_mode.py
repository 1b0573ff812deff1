"""A model in evaluation mode for as long as it is used, and as it was before afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastviz._util import checks

__all__ = ["frozen_model"]


_frozen: dict[nn.Module, int] = {}  # modules held in evaluation mode that were in training mode → number of holders
_frozen_lock = threading.Lock()


@contextmanager
def frozen_model(model: nn.Module) -> Iterator[None]:
    """Keep ``model`` in evaluation mode while inside, with gradients on and inference mode off.

    Each submodule gets its own training flag back when the last ``with`` that holds it ends, also in other threads and
    when the body raises. Neither ``train()`` nor ``eval()`` is called, so what a model overrides there does not run.

    >>> model = nn.Sequential(nn.Dropout())
    >>> with frozen_model(model):
    ...     model[0].training
    False
    >>> model[0].training
    True
    """
    held: list[nn.Module] = []
    checks.devices(checks.module(model))
    try:
        with _frozen_lock:
            for module in model.modules():
                if getattr(module, "training", False) or module in _frozen:
                    held.append(module)
                    _frozen[module] = _frozen.get(module, 0) + 1
                    module.training = False
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        with _frozen_lock:
            for module in held:
                _frozen[module] -= 1
                if not _frozen[module]:
                    del _frozen[module]
                    module.training = True
