"""Feature vectors on disk, with the names of their images and what tells whether they still hold.

A .safetensors file: ``vectors`` [N, D], ``pictures`` uint8 [N, 3, t, t], and JSON in its metadata: names, sources and
settings. That format, and not Parquet: the vectors stay one contiguous tensor of their dtype, it is read without a copy
through a table, and the package needs it for weights anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastviz import models
from fastviz._util.files import whole_file
from fastviz.images.paths import Identity

__all__ = ["Origin", "Stored", "fingerprint", "read", "write"]

_FORMAT = "2"

Origin = tuple[str, Identity]
"""Where an image lies, its absolute path, and what tells whether it is still the same."""


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
        "origins": [(place, *astuple(identity)) for place, identity in stored.origins],
        "layer": stored.layer,
        "settings": stored.settings,
    }
    tensors = {"vectors": stored.vectors.cpu().contiguous(), "pictures": stored.pictures.contiguous()}
    with whole_file(path) as file, _in_words(Path(file.name)) as name:
        save_file(tensors, name, {"fastviz": _FORMAT, **{key: json.dumps(value) for key, value in facts.items()}})
        # safetensors has put another file, that only its owner may read, in the place of the one that is open.
        with open(file.name, "rb+") as written:
            os.fchmod(written.fileno(), os.fstat(file.fileno()).st_mode)
            os.fsync(written.fileno())


@contextmanager
def _in_words(path: Path) -> Iterator[str]:
    """A path that safetensors takes, which must be UTF-8: another way to the same folder where it is not."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        if path.name.isascii():
            with tempfile.TemporaryDirectory() as folder:
                way = Path(folder, "way")
                way.symlink_to(path.parent.resolve())
                yield str(way / path.name)
                return
        raise ValueError(f"file {str(path)!r} should have a name in UTF-8") from None
    yield str(path)


def read(path: Path) -> Stored:
    """What a file holds, on the CPU.

    Raises:
        ValueError: there is no such file, or it is no embedding that this version wrote.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with _in_words(path) as name, safe_open(name, "pt") as file:
            facts: Mapping[str, str] = file.metadata() or {}
            if facts.get("fastviz") != _FORMAT:
                raise ValueError("it has no vectors of this version of fastviz")
            vectors, pictures = file.get_tensor("vectors"), file.get_tensor("pictures")
            names = json.loads(facts["names"])
            origins = [
                (str(place), Identity(int(size), int(modified), int(changed), str(digest)))
                for place, size, modified, changed, digest in json.loads(facts["origins"])
            ]
            return Stored(vectors, pictures, names, origins, json.loads(facts["layer"]), json.loads(facts["settings"]))
    except FileNotFoundError:
        raise ValueError(f"file {str(path)!r} cannot be read: there is no such file") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"file {str(path)!r} is no embedding: {error}") from error
