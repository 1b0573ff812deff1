"""Models that ``torch.compile`` has compiled, wholly or in part."""

from __future__ import annotations

import copy

from torch import nn

from fastviz._util.modules import every_module

__all__ = ["eager", "has_compiled_parts", "is_compiled"]


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of ``module`` itself runs what ``torch.compile`` made of it."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def has_compiled_parts(model: nn.Module) -> bool:
    """Whether ``torch.compile`` has compiled ``model`` or some module in it."""
    return any(is_compiled(module) for module in every_module(model))


def eager(model: nn.Module) -> nn.Module:
    """``model`` without what ``torch.compile`` made of it or its parts: the same layers and weights, as Python code.

    Compiled code does not call hooks added after the compilation, and keeps calling earlier ones even if they were
    removed. A model without compiled parts is returned itself. A module around something compiled is copied, without
    its weights.
    """
    if not has_compiled_parts(model):
        return model
    known: dict[int, nn.Module] = {}

    def plain(module: nn.Module) -> nn.Module:
        if id(module) in known:
            return known[id(module)]
        inner = getattr(module, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            found = plain(inner)
        else:
            parts = {name: None if each is None else plain(each) for name, each in module._modules.items()}
            found = module
            if is_compiled(module) or any(each is not module._modules[name] for name, each in parts.items()):
                found = copy.copy(module)
                found.__dict__.update(_modules=parts, _compiled_call_impl=None)
        known[id(module)] = found
        return found

    return plain(model)
