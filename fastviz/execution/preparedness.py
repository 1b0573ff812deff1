"""Warns if a batch of images does not look prepared for its network."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from fastviz import models
from fastviz._util.by_model import ByModel
from fastviz.models.descriptions import is_described

__all__ = ["say_unprepared"]

_said: ByModel[bool] = ByModel()
"""Models that were warned about. Those on a GPU are also noted once checked, because checking waits for the GPU."""

# A range this wide is that of a picture, not of a black image.
_PICTURE = 0.3
# Normalised pictures stay far below this.
_LARGE = 32


def say_unprepared(model: nn.Module, images: Tensor, argument: str) -> None:
    """Warn, once per model, of ``images`` with values 0 to 1 for one that takes them normalised, or with 0 to 255.

    Only models whose preprocessing is known are meant by the first; by the second, of the others, only those that get
    whole numbers.

    Warns:
        UserWarning: the images look so.
    """
    # Traces have no values to look at.
    traced = torch.compiler.is_compiling() or type(images) not in (Tensor, nn.Parameter)
    if traced or _said.get(model) or not images.numel() or images.device.type not in ("cpu", "cuda"):
        return
    if images.is_cuda:
        _said[model] = True
    low, high = (float(value) for value in images.detach().aminmax())
    described = is_described(model)
    settings = models.preprocessing(model)
    normalised = min(-mean / std for mean, std in zip(settings.mean, settings.std, strict=True)) < 0
    range_of = ""
    if _LARGE < high <= 255 and low >= 0 and (described or bool((images == images.round()).all())):
        largest = max((1 - mean) / std for mean, std in zip(settings.mean, settings.std, strict=True))
        range_of = "0 to 255" if largest < _LARGE else ""
    elif described and normalised and low >= 0 and high <= 1 and high - low > _PICTURE:
        range_of = "0 to 1"
    if not range_of:
        return
    _said[model] = True
    name = models.model_info(model).name
    takes = f"takes pictures normalised, with mean {_words(settings.mean)} and std {_words(settings.std)}"
    unknown = "is not described, and most networks take less (fastviz.describe sets what it takes)"
    warnings.warn(
        f"{argument} looks unprepared: its values are {range_of}, and {name} {takes if described else unknown}; "
        f"fastviz.load_images(..., model=model) or fastviz.images.preprocess(picture, "
        "fastviz.models.preprocessing(model)) prepares pictures",
        UserWarning,
        stacklevel=4,
    )


def _words(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)
