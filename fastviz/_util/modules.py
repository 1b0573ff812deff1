"""All modules of a model, quickly: small sweeps ask for them several times per call."""

from __future__ import annotations

from torch import nn

__all__ = ["every_module"]


def every_module(model: nn.Module) -> list[nn.Module]:
    """``model`` and all modules in it, each once, in the order of ``model.modules()``.

    That makes up a name for each on the way, which takes several times as long.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    >>> every_module(model) == list(model.modules())
    True
    """
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting += [part for part in reversed(module._modules.values()) if part is not None]
    return list(found.values())
