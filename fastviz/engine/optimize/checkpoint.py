"""Checkpoints: files from which a long optimisation can resume. They are written atomically."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from fastviz._util.files import whole_file

__all__ = ["load", "save"]

_FORMAT = "fastviz optimisation 1"


def save(path: Path, about: str, values: dict[str, Any]) -> None:
    """Write ``values`` (tensors, numbers, strings, and lists and dicts of them) of the optimisation ``about``.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    with whole_file(path) as stream:
        torch.save({"format": _FORMAT, "about": about, "values": values}, stream)


def load(path: Path, about: str, device: torch.device) -> dict[str, Any] | None:
    """What :func:`save` wrote, its tensors on ``device``; None if there is no file.

    Raises:
        ValueError: the file is damaged, is not a checkpoint, or belongs to another optimisation.
        OSError: it cannot be read.
    """
    if not path.exists():
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder of the checkpoint does not exist: {path.parent}")
        return None
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"the checkpoint {path} is damaged or no checkpoint: remove it to begin again") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise ValueError(f"the checkpoint {path} is no checkpoint of an optimisation")
    if found["about"] != about:
        raise ValueError(
            f"the checkpoint {path} belongs to other settings: remove it or give another file "
            f"(there: {found['about']}; here: {about})"
        )
    values: dict[str, Any] = found["values"]
    return values
