"""The image in an item of a dataset, and the images in the batches of a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fastviz import images
from fastviz.models.descriptions import Preprocessing

__all__ = ["INPUTS", "Unbatched", "image_of", "items_of"]

_IMAGE_KEYS = ("image", "pixel_values", "img", "images", "x", "input", "inputs")
"""Keys under which an item that is a dictionary may hold its image; the first one found is used."""

INPUTS = {1: ("signals", "[C, L]"), 2: ("images", "[C, H, W]"), 3: ("volumes", "[C, D, H, W]")}
"""The name of inputs and their dimensions, by their number of axes."""


class Unbatched:
    """The images of a DataLoader one by one: the stream makes batches of its own size."""

    def __init__(self, loader: DataLoader[Any], axes: int = 2) -> None:
        self._loader, self._axes = loader, axes

    def __iter__(self) -> Iterator[Any]:
        for at, batch in enumerate(self._loader):
            if self._loader.batch_size is None and self._loader.batch_sampler is None:
                yield batch  # an image: batches are switched off
            else:
                yield from _images_of(batch, f"batch {at}", self._axes)


def items_of(source: DataLoader[Any] | IterableDataset[Any]) -> Iterable[Any]:
    """The items of a dataset that only iterates, or the images of a DataLoader's batches, one by one."""
    return Unbatched(source) if isinstance(source, DataLoader) else source


def image_of(item: Any, where: str, preprocessing: Preprocessing, axes: int = 2) -> Tensor:
    """The image in an item of a dataset, as the network takes it; ``where`` says which item, in words.

    Signals [C, L], of 1 of ``axes``, and volumes [C, D, H, W], of 3, are taken as they are.
    """
    image = _found(item, where)
    if axes != 2:
        return _as_it_is(image, where, axes)
    if images.is_picture(image):
        return _prepared(lambda: images.prepare(image, preprocessing))
    if type(image).__module__.partition(".")[0] == "numpy" and hasattr(image, "dtype"):
        image = _of_array(image, where)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"source should give images as tensors [C, H, W], Pillow pictures or NumPy arrays, alone, first in a tuple "
            f"or under {', '.join(map(repr, _IMAGE_KEYS[:3]))} in a dictionary; {where} is {_kind(item)}"
        )
    if image.dim() != 3:
        raise ValueError(f"source should give images [C, H, W], got {list(image.shape)}: {where}")
    if image.dtype != torch.uint8:
        if not image.is_floating_point():
            raise TypeError(
                f"source should give images of uint8 (pictures) or floating-point (the network's input), got "
                f"{image.dtype}: {where}"
            )
        if image.shape[0] > 4 and image.shape[2] in (1, 3):
            raise ValueError(
                f"source should give floating-point images [C, H, W], got {list(image.shape)}, which looks like "
                f"[H, W, C]: {where}"
            )
        return image.detach()
    if image.shape[0] not in (1, 3):
        raise ValueError(f"source should give uint8 images [3, H, W] or [1, H, W], got {list(image.shape)}: {where}")
    return _prepared(lambda: images.prepare(images.picture_of(image), preprocessing))


def _as_it_is(found: Any, where: str, axes: int) -> Tensor:
    """A signal or volume, of floating-point numbers."""
    kind, layout = INPUTS[axes]
    if type(found).__module__.partition(".")[0] == "numpy" and getattr(found, "dtype", None) is not None:
        found = torch.tensor(found)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        came = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"source should give {kind} as floating-point tensors {layout}, got {came}: {where}")
    if found.dim() != axes + 1 or not found.numel():
        raise ValueError(f"source should give {kind} {layout}, got {list(found.shape)}: {where}")
    return found.detach()


def _found(item: Any, where: str) -> Any:
    """What of an item is its image: itself, the first of a tuple or list, or what a dictionary has under a key."""
    if isinstance(item, Mapping):
        key = next((each for each in _IMAGE_KEYS if each in item), None)
        if key is None:
            keys = ", ".join(map(repr, item)) or "no keys"
            raise TypeError(
                f"source should give dictionaries with their image under one of {', '.join(map(repr, _IMAGE_KEYS))}, "
                f"got {keys}: {where}"
            )
        return _found(item[key], where)
    if isinstance(item, (tuple, list)) and item:
        return _found(item[0], where)
    return item


def _of_array(array: Any, where: str) -> Tensor:
    """A NumPy array as a tensor [C, H, W]: uint8 with its colours last, [H, W, 3], or grey, [H, W]; else as it is."""
    if array.dtype.kind not in "uif" or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
        raise TypeError(
            f"source should give arrays of uint8 [H, W, 3] or floating-point [C, H, W], got {array.dtype}: {where}"
        )
    tensor = torch.tensor(array)
    if tensor.dtype != torch.uint8:
        return tensor
    if tensor.dim() == 2:
        return tensor[None]
    if tensor.dim() == 3 and tensor.shape[2] in (1, 3):
        return tensor.permute(2, 0, 1)
    if tensor.dim() == 3 and tensor.shape[0] in (1, 3):
        return tensor
    raise ValueError(
        f"source should give uint8 arrays [H, W, 3], [H, W] or [3, H, W], got {list(tensor.shape)}: {where}"
    )


def _prepared(prepare: Callable[[], Tensor]) -> Tensor:
    try:
        return prepare()
    except ValueError as error:  # so narrow that it cannot be resized
        raise images.ImageError(str(error)) from error


def _kind(item: Any) -> str:
    """The type of an item, and of what is in it."""
    inside = item.values() if isinstance(item, Mapping) else item if isinstance(item, (tuple, list)) else ()
    types = ", ".join(type(each).__name__ for each in inside)
    return type(item).__name__ + (f" of {types}" if types else "")


def _images_of(batch: Any, where: str, axes: int) -> Iterator[Any]:
    """The images in a batch that a DataLoader gives: the rows of a tensor or array [N, ...], the items of a list."""
    found: Any = batch
    alone = (2, 3) if axes == 2 else (axes + 1,)  # dimensions of one image
    while isinstance(found, (Mapping, tuple, list)) and found:
        first = _inside(found) if isinstance(found, Mapping) else found[0]
        if not isinstance(found, Mapping) and _dimensions(first) in alone:
            break  # items as they are, collated by nothing
        found = first
    kind = f"{INPUTS[axes][0]} {INPUTS[axes][1].replace('[', '[N, ')}"
    if _dimensions(found) not in (*alone, axes + 2) and not (isinstance(found, (tuple, list)) and found):
        raise TypeError(f"source should give batches of {kind}, got {_kind(batch)}: {where}")
    if hasattr(found, "shape") and len(found.shape) != axes + 2:
        raise ValueError(f"source should give batches of {kind}, got {list(found.shape)}: {where}")
    yield from found


def _inside(value: Any) -> Any:
    """What a dictionary has under a key of images, or a tuple or list as its first; None for others."""
    if isinstance(value, Mapping):
        return next((value[key] for key in _IMAGE_KEYS if key in value), None)
    return value[0] if isinstance(value, (tuple, list)) and value else None


def _dimensions(item: Any) -> int:
    """Those of the image or batch in an item of any kind: 3 for a Pillow picture, 0 where there is none."""
    while isinstance(item, (Mapping, tuple, list)):
        item = _inside(item)
    return 3 if images.is_picture(item) else len(getattr(item, "shape", ()))
