"""Numbers in files: arrays, and masks as pictures or arrays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastviz.images.reading import read_image

__all__ = ["read_array", "read_mask"]


def read_array(path: str | os.PathLike[str]) -> Tensor:
    """The numbers in a NumPy file (.npy), in their own dtype.

    Args:
        path: the file; of objects, which could run code, none is read.

    Returns:
        A tensor on the CPU.

    Raises:
        ValueError: there is no such file, or it holds no numbers. Names the file.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "numbers.npy")
    >>> np.save(path, np.arange(3))
    >>> read_array(path)
    tensor([0, 1, 2])
    """
    file = Path(os.path.expanduser(path))
    try:
        values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "there is no such file" if not file.exists() else str(error).splitlines()[0]
        raise ValueError(f"{file} cannot be read as a NumPy array: {reason}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub" or values.dtype.hasobject:
        came = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{file} should hold numbers, got {came}")
    little = values.astype(values.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(little).reshape(values.shape))


def read_mask(path: str | os.PathLike[str]) -> Tensor:
    """A mask in a file: a picture, of which all that is brighter than one half counts, or a NumPy array.

    Args:
        path: a .npy file, or a picture.

    Returns:
        bool [H, W] of a picture; what the array holds, bool or numbers, of any shape.

    Raises:
        ValueError: it cannot be read.

    >>> import pathlib, tempfile
    >>> from PIL import Image
    >>> path = pathlib.Path(tempfile.mkdtemp(), "mask.png")
    >>> Image.new("L", (6, 4), 255).save(path)
    >>> read_mask(path).shape, read_mask(path).all()
    (torch.Size([4, 6]), tensor(True))
    """
    file = Path(os.path.expanduser(path))
    return read_array(file) if file.suffix == ".npy" else read_image(file).mean(0) > 0.5
