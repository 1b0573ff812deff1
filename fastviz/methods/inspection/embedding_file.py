"""Feature vectors on disk, with the names of their images and the data to check whether they are still valid.

A .safetensors file with ``vectors`` [N, D], ``pictures`` uint8 [N, 3, t, t], and JSON metadata: names, sources and
settings. This format, instead of Parquet, keeps the vectors as one contiguous tensor of their dtype, is read without
conversion from a table, and is needed for weights anyway.
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
"""The absolute path of an image, and the data to check whether it is unchanged."""


@dataclass(frozen=True, eq=False)
class Stored:
    """The content of a file: a row of ``vectors`` and ``pictures``, a name and an origin for each image.

    ``layer`` is the layer of the vectors, ``settings`` the settings they were made with.
    """

    vectors: Tensor
    pictures: Tensor
    names: list[str]
    origins: list[Origin]
    layer: str
    settings: dict[str, object]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model: its ``repr``, and the name, dtype, shape and bytes of all parameters and buffers."""
    digest = hashlib.sha256(f"{models.model_info(model).name}\n{model!r}".encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        if len(flat):
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def write(path: Path, stored: Stored) -> None:
    """Write a file atomically; missing folders are created."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "names": stored.names,
        "origins": [(place, *astuple(identity)) for place, identity in stored.origins],
        "layer": stored.layer,
        "settings": stored.settings,
    }
    tensors = {"vectors": stored.vectors.cpu().contiguous(), "pictures": stored.pictures.contiguous()}
    with whole_file(path) as file, _utf8_path(Path(file.name)) as name:
        save_file(tensors, name, {"fastviz": _FORMAT, **{key: json.dumps(value) for key, value in facts.items()}})
        # safetensors replaced the open file by another one that only its owner may read.
        with open(file.name, "rb+") as written:
            os.fchmod(written.fileno(), os.fstat(file.fileno()).st_mode)
            os.fsync(written.fileno())


@contextmanager
def _utf8_path(path: Path) -> Iterator[str]:
    """A path that safetensors accepts, which must be UTF-8: through a link to the folder if its name is not."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        if path.name.isascii():
            with tempfile.TemporaryDirectory() as folder:
                link = Path(folder, "link")
                link.symlink_to(path.parent.resolve())
                yield str(link / path.name)
                return
        raise ValueError(f"file {str(path)!r} should have a name in UTF-8") from None
    yield str(path)


def read(path: Path) -> Stored:
    """The content of a file, on the CPU.

    Raises:
        ValueError: there is no such file, or it is not an embedding written by this version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with _utf8_path(path) as name, safe_open(name, "pt") as file:
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
