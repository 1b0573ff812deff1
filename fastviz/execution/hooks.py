"""Hooks on a model's layers that act in one thread only and are removed afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util import checks

__all__ = [
    "Hook",
    "OwnHook",
    "floating_output",
    "has_hooks",
    "hookable",
    "hooked",
    "is_of_another_thread",
    "layer_module",
]


Hook = Callable[[nn.Module, Any, object], "Tensor | None"]
"""Called after a module, with the module, its inputs and its output. A returned tensor replaces the output."""


def layer_module(model: nn.Module, name: str) -> nn.Module:
    """The module of ``model`` that torch calls ``name`` (its dotted name in ``named_modules()``; ``""`` is the model).

    What ``torch.compile`` wraps also has the names that it has without the wrapper.

    Raises:
        TypeError: ``model`` is not a module or ``name`` not a string.
        ValueError: no module has this name; the message lists the nearest.
    """
    checks.module(model)
    if not isinstance(name, str):
        raise TypeError(f"layer should be a dotted module name, got {type(name).__name__}")
    if name and isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"layer {name!r} should not be inside a scripted module, where nothing can be recorded")
    with suppress(AttributeError):
        if not isinstance(model, torch.jit.ScriptModule):  # scripts lack get_submodule
            return model.get_submodule(name)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for full, module in list(modules.items()):
        modules.setdefault(full.replace("_orig_mod.", ""), module)
    plain = name.replace("_orig_mod.", "")
    return modules[plain if plain in modules else checks.nearest(name, "layer", modules)]


def hookable(model: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module) -> list[str]:
    """The names of the modules of these ``kinds`` that can have hooks: those that are not scripted.

    ``""``, the model itself, is among them.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and not isinstance(module, torch.jit.ScriptModule)
    ]


class OwnHook:
    """A hook of fastviz's own: it acts only in the thread that made it, and that thread removes it when it is done.

    Models with foreign hooks take slower paths; fastviz's own hooks for another thread do not require that.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook
        self._thread = threading.get_ident()

    def __call__(self, *args: Any) -> Any:
        """What the hook returns; None in other threads."""
        return self._hook(*args) if threading.get_ident() == self._thread else None


def has_hooks(module: nn.Module, *, backward: bool = True) -> bool:
    """Whether ``module`` itself has forward hooks, or backward ones, that are not fastviz's own for another thread."""
    hooks = [module._forward_hooks, module._forward_pre_hooks]
    if backward:
        hooks += [module._backward_hooks, module._backward_pre_hooks]
    # Copied to lists, because another thread may add or remove hooks.
    return any(not is_of_another_thread(hook) for each in hooks for hook in list(each.values()))


def is_of_another_thread(hook: object) -> bool:
    """Whether a hook is fastviz's own, for what another thread computes."""
    return isinstance(hook, OwnHook) and hook._thread != threading.get_ident()


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Call a hook after every call of its layer made inside, by the thread that entered.

    ``hooks`` goes from layer name to what is called with the module, its inputs and its output, as the layer gave it:
    an in-place rectifier behind the layer may change it afterwards.

    Raises:
        ValueError: a layer does not exist or is scripted.
    """
    modules = {name: layer_module(model, name) for name in hooks}
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"layer {name!r} should not be inside a scripted module, where nothing can be recorded")
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(OwnHook(hooks[name])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def floating_output(name: str, output: object) -> Tensor:
    """The ``output`` of layer ``name``, if it is one floating-point tensor; else a TypeError."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        what = str(output.dtype) if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"layer {name!r} should return one floating-point tensor, got {what}")
    return output
