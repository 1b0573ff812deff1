"""State dicts in files, and how they go into a network: the half of ``fastviz.models`` that knows no torchvision."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["FILE_TYPES", "NoWeightsYet", "fill", "first_names", "new_row_count", "parameter_count", "read", "unpack"]

FILE_TYPES = (".safetensors", ".pth", ".pt")
"""The ends of the names of files that :func:`read` takes, in lower case."""

_COUNTER = "num_batches_tracked"
# Floating-point tensors of a state dict that are not parameters.
_BUFFERS = ("running_mean", "running_var", "relative_coords_table")


class NoWeightsYet(TorchFunctionMode):
    """Inside it new modules get tensors without memory (device "meta"), for :func:`fill`.

    Quicker than random weights that are thrown away, and no random number is drawn. Not a plain
    ``torch.device("meta")``, because RegNet computes its layers' sizes with tensors.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pth or .pt file, on the CPU. No code in the file runs.

    Raises:
        ValueError: no such file, another kind of file, a broken one, or one that wants to run code.
    """
    if path.suffix.lower() not in FILE_TYPES:
        raise ValueError(f"weights should be a {', '.join(FILE_TYPES)} file, got {str(path)!r}")
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "there is no such file"
        raise ValueError(f"weights {str(path)!r} cannot be read: {found}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix.lower() == ".safetensors":
            loaded: object = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    # What a broken file raises is up to the parser that meets it; all of it means the same to the caller.
    except Exception as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wanted:
            raise ValueError(
                f"weights {str(path)!r} refused: it wants to run {wanted[1]}, and only tensors are loaded "
                "(save model.state_dict())"
            ) from error
        spoken = isinstance(error, (OSError, RuntimeError, SafetensorError))
        reason = re.split(r"\. |\n", str(error))[0] if spoken else "broken, or not a file of tensors"
        raise ValueError(f"weights {str(path)!r} cannot be read: {reason}") from error
    return unpack(loaded, str(path))


def unpack(loaded: object, source: str) -> dict[str, Tensor]:
    """The names and tensors in what a file held: a state dict, or the one inside a training checkpoint.

    A checkpoint has it under ``"state_dict"`` or ``"model"``; ``"module."`` before every name, which data parallel
    training leaves, is taken away.

    Raises:
        ValueError: there is no state dict; names ``source``.
    """
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"weights {source!r} should hold a state dict, got a {type(loaded).__name__}")
    if not loaded or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()):
        found = first_names([str(key) for key in loaded]) or "nothing"
        raise ValueError(f"weights {source!r} should hold a state dict (names and tensors), got {found}")
    prefix = "module." if all(key.startswith("module.") for key in loaded) else ""
    return {key.removeprefix(prefix): value for key, value in loaded.items()}


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Give ``model``, built inside :class:`NoWeightsYet`, copies of the tensors of ``state`` in the model's dtypes.

    Returns what does not fit, in words, or ``""``. Counters of batches, which evaluation does not use and old files
    lack, may be missing or left over.
    """
    expected: Any = model.state_dict()
    differing = [
        f"{key} is {_kind(state[key])} instead of {_kind(tensor)}"
        for key, tensor in expected.items()
        if key in state
        and (state[key].shape != tensor.shape or state[key].is_floating_point() != tensor.is_floating_point())
    ]
    missing, unexpected = list(expected.keys() - state.keys()), list(state.keys() - expected.keys())
    if not differing:
        copies = OrderedDict(
            (key, value.to(expected[key].dtype if key in expected else value.dtype, copy=True).contiguous())
            for key, value in state.items()
        )
        # Submodules without a version take old names too (as in torchvision's ViT files); MNASNet insists on its own.
        copies._metadata = {"": {"version": model._version}}  # type: ignore[attr-defined]
        missing, unexpected = model.load_state_dict(copies, strict=False, assign=True)
    places = {key: place for place, key in enumerate((*expected, *state))}
    missing = sorted((key for key in missing if not key.endswith(_COUNTER)), key=places.__getitem__)
    unexpected = sorted((key for key in unexpected if not key.endswith(_COUNTER)), key=places.__getitem__)
    parts = {"missing ": missing, "unexpected ": unexpected, "": differing}
    return "; ".join(f"{word}{first_names(names)}" for word, names in parts.items() if names)


def new_row_count(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], rows: int) -> int:
    """The number of classes of the weights ``state`` for a network with the tensors ``expected`` and ``rows`` classes.

    Not ``rows`` where all tensors of another shape have ``rows`` rows there and one common number of rows here, and
    nothing else differs.
    """
    counts = set()
    for key, tensor in expected.items():
        if key in state and state[key].shape != tensor.shape:
            if tensor.dim() == 0 or len(tensor) != rows or state[key].shape[1:] != tensor.shape[1:]:
                return rows
            counts.add(state[key].shape[0] if state[key].dim() else 0)
    return counts.pop() if len(counts) == 1 and 0 not in counts else rows


def parameter_count(state: Mapping[str, Tensor]) -> int:
    """How many numbers of ``state`` are parameters, judged by the names and dtypes."""
    return sum(
        tensor.numel() for key, tensor in state.items() if tensor.is_floating_point() and not key.endswith(_BUFFERS)
    )


def first_names(names: Sequence[str], count: int = 3) -> str:
    """The first ``count`` names, and how many more there are."""
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
