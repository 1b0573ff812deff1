"""Inputs that are objects in this process: datasets, lists of images, tensors, DataLoaders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from fastviz.jobs.inputs.items import UNKNOWN, DatasetPlace, Item, Shard

__all__ = ["LABELS", "check_object", "label_of", "shards_of"]

LABELS = ("label", "class", "class_name", "target", "class_index", "cls", "category")
"""Common names of label columns and keys, in lower case."""


def shards_of(source: Any, size: int) -> Iterator[Shard]:
    """The items of a dataset, a list, a tensor or a DataLoader; their ids are their indices."""
    from fastviz.images.items import items_of

    if isinstance(source, (DataLoader, IterableDataset)):
        items = enumerate(items_of(source))
        while chunk := list(islice(items, size)):
            yield _python_shard(source, [index for index, _ in chunk], [item for _, item in chunk])
        return
    for first in range(0, len(source), size):
        yield _python_shard(source, list(range(first, min(first + size, len(source)))), None)


def check_object(source: Any) -> None:
    """Raise if ``source`` cannot hold images."""
    if isinstance(source, (DataLoader, IterableDataset)):
        return
    if not (hasattr(source, "__getitem__") and hasattr(source, "__len__")) or isinstance(source, dict):
        raise TypeError(
            "inputs should be paths, tables, tar shards, a tensor [N, C, H, W], a list of images, a torch Dataset or "
            f"DataLoader, got {type(source).__name__}"
        )
    if not len(source):
        raise ValueError("inputs should hold at least one image, got none")


def _python_shard(source: Any, indices: Sequence[int], items: Sequence[Any] | None) -> Shard:
    ids = [str(index) for index in indices]

    def make(at: int) -> Item:
        item = None if items is None else items[at]
        return Item(ids[at], ids[at], indices[at], DatasetPlace(source, indices[at], item), label_of(item), UNKNOWN)

    return Shard(ids, np.zeros((len(ids), 3), dtype=np.int64), make)


def label_of(item: Any) -> str | None:
    """The label in an item of a DataLoader or of an iterable dataset."""
    if isinstance(item, (tuple, list)) and len(item) > 1:
        value = item[1]
    elif isinstance(item, dict):
        value = next((item[name] for name in LABELS if name in item), None)
    else:
        return None
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    return str(value) if isinstance(value, (int, str)) else None
