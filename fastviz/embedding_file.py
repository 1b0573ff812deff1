"""Feature vectors on disk, with the names of their images and what tells whether they still hold.

A .safetensors file: ``vectors`` [N, D], ``pictures`` uint8 [N, 3, t, t], and JSON in its metadata: names, sources and
settings. That format, and not Parquet: the vectors stay one contiguous tensor of their dtype, it is read without a copy
through a table, and the package needs it for weights anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastviz import images, models

__all__ = ["Origin", "Stored", "fingerprint", "origin", "read", "write"]

_FORMAT = "1"

Origin = tuple[str, int, int]
"""What identifies an image: its absolute path, its size in bytes, and when it was changed (ns since 1970)."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file holds: a row of ``vectors`` and ``pictures``, a name and an origin for each image.

    ``layer`` is where the vectors come from, ``settings`` what they were made with.
    """

    vectors: Tensor
    pictures: Tensor
    names: list[str]
    origins: list[Origin]
    layer: str
    settings: dict[str, object]


def origin(path: Path) -> Origin:
    """The origin of an image file; zeros for a file that is gone."""
    try:
        status = path.stat()
    except OSError:
        return os.path.abspath(path), 0, 0
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model: its modules in words, and the name, shape and bytes of all parameters and buffers."""
    digest = hashlib.sha256(f"{models.model_info(model).name}\n{model!r}".encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        if len(flat):
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def write(path: Path, stored: Stored) -> None:
    """Write a file whole or not at all; the folder is made if need be."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "names": stored.names,
        "origins": stored.origins,
        "layer": stored.layer,
        "settings": stored.settings,
    }
    tensors = {"vectors": stored.vectors.cpu().contiguous(), "pictures": stored.pictures.contiguous()}
    with images.whole_file(path) as file:
        save_file(tensors, file.name, {"fastviz": _FORMAT, **{key: json.dumps(value) for key, value in facts.items()}})
        # safetensors has put another file, that only its owner may read, in the place of the one that is open.
        with open(file.name, "rb+") as written:
            os.fchmod(written.fileno(), os.fstat(file.fileno()).st_mode)
            os.fsync(written.fileno())


def read(path: Path) -> Stored:
    """What a file holds, on the CPU.

    Raises:
        ValueError: there is no such file, or it is no embedding that this version wrote.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            facts: Mapping[str, str] = file.metadata() or {}
            if facts.get("fastviz") != _FORMAT:
                raise ValueError("it has no vectors of this version of fastviz")
            vectors, pictures = file.get_tensor("vectors"), file.get_tensor("pictures")
            names = json.loads(facts["names"])
            origins = [(str(place), int(size), int(time)) for place, size, time in json.loads(facts["origins"])]
            return Stored(vectors, pictures, names, origins, json.loads(facts["layer"]), json.loads(facts["settings"]))
    except FileNotFoundError:
        raise ValueError(f"file {str(path)!r} cannot be read: there is no such file") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"file {str(path)!r} is no embedding: {error}") from error
