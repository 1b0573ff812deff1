"""lucent's names of layers: torch's names with underscores instead of dots."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

__all__ = ["get_model_layers"]


def get_model_layers(model: nn.Module, getLayerRepr: bool = False) -> list[str] | OrderedDict[str, str]:
    """The names of the layers of ``model``, or with ``getLayerRepr`` name → ``repr`` of the layer.

    >>> get_model_layers(nn.Sequential(nn.Sequential(nn.ReLU())))
    ['0', '0_0']
    """
    layers = [(name.replace(".", "_"), module) for name, module in model.named_modules(remove_duplicate=False) if name]
    if getLayerRepr:
        return OrderedDict((name, repr(module)) for name, module in layers)
    return [name for name, _ in layers]
