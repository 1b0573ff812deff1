"""What the ``pretrained_cfg`` of timm's networks says: how to prepare pictures, and the classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from torch import nn

from fastviz.models.preparation import Preprocessing, for_channels

__all__ = ["class_names", "imagenet_names", "of", "preprocessing"]

_IMAGENET_CLASSES = 1000


def of(model: nn.Module) -> Mapping[str, Any] | None:
    """The settings of a network that timm made; None of any other."""
    settings = getattr(model, "pretrained_cfg", None)
    needed = ("input_size", "mean", "std")
    return settings if isinstance(settings, Mapping) and all(settings.get(key) for key in needed) else None


def preprocessing(model: nn.Module, channels: int) -> Preprocessing | None:
    """How pictures are prepared for a network of timm; None for any other.

    As ``timm.data.create_transform(**resolve_model_data_config(model))`` does it for evaluation: the shorter side
    resized to ``floor(size / crop_pct)`` and a centre crop, or, where the mode is ``"squash"``, the whole picture
    resized to the size. For the few networks that pad at the border, or crop after squashing, that step is left out. A
    network made for another size of image than timm's own has that size.
    """
    settings = of(model)
    if settings is None:
        return None
    size = _own_size(model) or (int(settings["input_size"][1]), int(settings["input_size"][2]))
    resize = math.floor(max(size) / float(settings.get("crop_pct") or 0.875))
    squashed = settings.get("crop_mode") == "squash"
    interpolation: Literal["bilinear", "bicubic"] = (
        "bilinear" if settings.get("interpolation") == "bilinear" else "bicubic"
    )
    found = Preprocessing(
        size,
        None if squashed else max(resize, *size),
        tuple(map(float, settings["mean"])),
        tuple(map(float, settings["std"])),
        interpolation,
    )
    return for_channels(found, channels)


def _own_size(model: nn.Module) -> tuple[int, int] | None:
    """The size of image that a network of tokens was made for."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if not (isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(each, int) for each in size)):
        return None
    return size[0], size[1]


def class_names(model: nn.Module) -> tuple[str, ...] | None:
    """The names of the classes of a network of timm; None where they are not known."""
    settings = of(model)
    classes = getattr(model, "num_classes", None)
    if settings is None or not classes or classes != settings.get("num_classes"):
        return None
    told = settings.get("label_descriptions") or settings.get("label_names")
    if isinstance(told, Mapping) and settings.get("label_names"):
        told = [told.get(name, name) for name in settings["label_names"]]
    if isinstance(told, (list, tuple)) and len(told) == classes:
        return tuple(map(str, told))
    return imagenet_names() if classes == _IMAGENET_CLASSES else None


@lru_cache(maxsize=1)
def imagenet_names() -> tuple[str, ...] | None:
    """The names of ImageNet's 1000 classes, as torchvision has them, else as timm has; None where neither is there."""
    try:
        from torchvision.models import AlexNet_Weights

        return tuple(AlexNet_Weights.DEFAULT.meta["categories"])
    except ModuleNotFoundError:
        pass
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ModuleNotFoundError:
        return None
    words = ImageNetInfo().label_descriptions()
    return tuple(name.partition(",")[0] for name in words)
