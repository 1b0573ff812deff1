"""Reading state dicts from files and loading them into networks; independent of torchvision."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import pickle
import re
import types
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = [
    "FILE_TYPES",
    "NoWeightsYet",
    "check_finite",
    "chosen",
    "fill",
    "first_names",
    "new_row_count",
    "parameter_count",
    "program_kind",
    "read",
    "unpack",
]

FILE_TYPES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
"""The usual ends of the names of files of weights, in lower case."""

_COUNTER = "num_batches_tracked"
# Floating-point tensors of a state dict that are not parameters.
_BUFFERS = ("running_mean", "running_var", "relative_coords_table")


class NoWeightsYet(TorchFunctionMode):
    """Within the ``with`` block new modules get tensors without memory (device "meta"), for :func:`fill`. That is
    quicker than drawing random weights only to replace them, and draws no random numbers. Not a plain
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
    """The state dict in a file, on the CPU, whatever the file is called. No code in it runs.

    By its content, not its name, it is a safetensors file or one that ``torch.save`` wrote. Besides tensors, the latter
    may hold harmless objects that training scripts put there: ``argparse.Namespace``, NumPy's numbers and arrays,
    paths, ordered and default dictionaries. See :func:`unpack` for where the state dict may be.

    Raises:
        ValueError: no such file, another kind of file, a broken one, or one that wants to run code.
    """
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "there is no such file"
        raise ValueError(f"weights {str(path)!r} cannot be read: {found}")
    kind = _kind_of_file(path)
    if kind:
        raise ValueError(f"weights {str(path)!r} cannot be read: {kind}")
    from safetensors import SafetensorError

    try:
        loaded: object = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    # A broken file can raise anything, depending on the parser. To the caller it all means the same.
    except Exception as error:
        wanted = _REFUSED.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wanted:
            name = wanted[1].removeprefix("<class '").removesuffix("'>")
            raise ValueError(
                f"weights {str(path)!r} refused: it wants to run {name}, and only tensors and plain values are loaded. "
                "If you trust the file, where that class can be imported: "
                f"checkpoint = torch.load({str(path)!r}, weights_only=False), then torch.save(STATE, 'weights.pth') "
                "with STATE its state dict (checkpoint['state_dict'], or model.state_dict() of a whole model)"
            ) from error
        spoken = isinstance(error, (OSError, RuntimeError, SafetensorError))
        reason = re.split(r"\. |\n", str(error))[0] if spoken else "broken, or not a file of tensors"
        raise ValueError(f"weights {str(path)!r} cannot be read: {reason}") from error
    return unpack(loaded, str(path))


_REFUSED = re.compile(r"(?:GLOBAL|but got) ([\w.]+|<class .*?>)")


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: the length of a header, and the header, which is JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix.lower() == ".safetensors":
        return not start.startswith((b"PK", b"\x80"))
    return start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _kind_of_file(path: Path) -> str:
    """A description of a file that holds a program instead of weights, or only points to weights; else empty."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the weights themselves (git lfs pull)"
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not weights: download the file itself"
    if not start.startswith(b"PK"):
        return ""
    kind = program_kind(path)
    if kind == "TorchScript":
        return (
            "it is a TorchScript program (torch.jit.save), not weights: give it as the model, or "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth') takes them out of it"
        )
    if kind:
        return (
            "it is an exported program (torch.export.save), not weights: give it as the model, or "
            "torch.save(torch.export.load(FILE).state_dict, 'weights.pth') takes them out of it"
        )
    inside = _names_in(path)
    if inside and "data.pkl" not in inside:
        return "it is a ZIP archive without weights of torch: unpack it, and give the file inside"
    return ""


def program_kind(path: Path) -> str:
    """``"exported"`` or ``"TorchScript"`` for a file that holds a whole network as a program; else empty."""
    inside = _names_in(path)
    if "constants.pkl" in inside:
        return "TorchScript"
    starts = ("serialized_exported_program", "models/", "data/weights/")
    return "exported" if any(name.startswith(starts) for name in inside) else ""


def _names_in(path: Path) -> set[str]:
    """The names in a ZIP archive, without their first folder; empty if it is broken or no archive."""
    try:
        with zipfile.ZipFile(path) as file:
            return {name.partition("/")[2] or name for name in file.namelist()}
    except (OSError, zipfile.BadZipFile):
        return set()  # torch's own error will say what is wrong


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load, load_file

    try:
        str(path).encode()
    except UnicodeEncodeError:  # safetensors takes no path that is not UTF-8
        return load(path.read_bytes())
    return load_file(path)


def _read_torch(path: Path) -> object:
    """What ``torch.save`` wrote: tensors, and besides them only values of :func:`_harmless` classes."""
    # Given as an open file: for a path, torch would infer the content from the ending.
    with torch.serialization.safe_globals(_harmless()), path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _harmless() -> list[Any]:
    """Classes that training scripts leave in checkpoints and that can be built without side effects. The code of each
    was checked: namespaces, dictionaries and sets are containers; a path does nothing until it is used; NumPy's numbers
    and arrays are built from bytes (arrays of objects need a nested pickle, under the same rule).
    """
    import numpy as np

    multiarray: Any = (np._core if hasattr(np, "_core") else np.core).multiarray
    dtypes = {type(np.dtype(kind)) for kind in np.typecodes["All"].replace("O", "")}
    # NumPy 2 and Python 3.13 moved some classes; files may name the old or the new place.
    arrays = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in (("scalar", multiarray.scalar), ("_reconstruct", multiarray._reconstruct))
    ]
    kinds = (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath)
    paths = [(kind, f"{place}.{kind.__name__}") for kind in kinds for place in ("pathlib", "pathlib._local")]
    return [
        *(
            argparse.Namespace,
            types.SimpleNamespace,
            defaultdict,
            Counter,
            OrderedDict,
            set,
            frozenset,
            dict,
            list,
            int,
        ),
        *(float, complex, bytes, datetime.datetime, datetime.date, datetime.timedelta),
        *(np.ndarray, np.dtype, *dtypes),
        *arrays,
        *paths,
    ]


_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""Keys under which checkpoints keep the trained weights; the first that exists counts."""

_AVERAGED_KEYS = (
    *("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema", "ema_model", "params_ema"),
    *("averaged_model", "swa_model", "swa_state_dict", "shadow"),
)
"""Keys under which checkpoints keep a running mean of the weights. It is used if there are no others; else a warning
names it."""

_WRAPPERS = ("module.", "model.", "_orig_mod.", "net.", "network.", "encoder.", "backbone.", "_fsdp_wrapped_module.")


def unpack(loaded: object, source: str) -> dict[str, Tensor]:
    """The state dict in what a file held, which may be a whole training checkpoint.

    A checkpoint has it under ``"state_dict"``, ``"model_state_dict"``, ``"model"``, ``"module"``, ``"net"``,
    ``"network"``, ``"weights"`` or ``"params"``, the first that is there, also one inside another; or under a name of
    its own, if only one holds a state dict. Where there is also a running mean of the weights (``"model_ema"``,
    ``"state_dict_ema"``, ``"ema"`` and the like), a warning says that the plain weights are taken; where there is only
    that, it is taken, and a warning says so. Prefixes that wrappers add to every name are removed: ``"module."`` (data
    parallel, averaged), ``"_orig_mod."`` (compiled), ``"model."``, ``"net."`` (Lightning), in any combination; and the
    counter of an averaged model.

    Raises:
        ValueError: there is no state dict; names ``source``.
    """
    loaded = _state_dict(loaded, source)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"weights {source!r} should hold a state dict, got a {type(loaded).__name__}")
    kept = {key: value for key, value in loaded.items() if not str(key).endswith(_EXTRA_STATE)}
    if not kept or not _is_state_dict(kept):
        found = first_names([str(key) for key in loaded]) or "nothing"
        several = [str(key) for key, value in loaded.items() if _is_state_dict(value)]
        way = (
            f"; save one of {', '.join(several)} by itself: torch.save(checkpoint[{several[0]!r}], FILE)"
            if several
            else ""
        )
        raise ValueError(f"weights {source!r} should hold a state dict (names and tensors), got {found}{way}")
    return _unwrapped(kept)


_EXTRA_STATE = "_extra_state"


def _state_dict(loaded: object, source: str) -> object:
    """The state dict inside a checkpoint, at any depth."""
    trail: list[str] = []
    mean = left = ""
    while isinstance(loaded, Mapping) and not _is_state_dict(loaded):
        plain = next((key for key in _STATE_KEYS if _holds_tensors(loaded.get(key))), None)
        averaged = next((key for key in _AVERAGED_KEYS if _holds_tensors(loaded.get(key))), None)
        only = [key for key, value in loaded.items() if _is_state_dict(value)]
        key = plain or averaged or (only[0] if len(only) == 1 else None)
        if key is None:
            break
        if averaged is not None and plain is not None:
            left = left or averaged
        elif averaged is not None:
            mean = averaged
        trail.append(str(key))
        loaded = loaded[key]
    if left or mean:
        taken = ", a running mean," if mean else ""
        rest = f"; {left!r}, their running mean, is left (to take that, save it by itself)" if left else ""
        warnings.warn(f"weights {source!r}: those under {'.'.join(trail)!r}{taken} are taken{rest}", stacklevel=6)
    return loaded


def _is_state_dict(value: object) -> bool:
    """Whether all keys are names, all values are tensors, and there is one."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(key, str) and isinstance(each, Tensor) for key, each in value.items())


def _holds_tensors(value: object) -> bool:
    """Whether tensors lie in a mapping, or in one inside it."""
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(each, Tensor) or _holds_tensors(each) for each in value.values())


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without the counter of an averaged model and without wrappers' prefixes."""
    state = {key: value for key, value in state.items() if key != "n_averaged"}
    while state:
        prefix = next((each for each in _WRAPPERS if all(key.startswith(each) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    # Data parallelism and compiled blocks also wrap modules inside the network.
    return {
        re.sub(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.", r"\1", key): value
        for key, value in state.items()
    }


def chosen(state: dict[str, Tensor], expected: Iterable[str], source: str) -> dict[str, Tensor]:
    """The part of ``state`` that has all ``expected`` names behind one prefix, if it is a part; else all of it.

    A module of a trainer keeps other tensors beside the network: the weights of a loss, metrics, a running mean. A
    warning names what is left.
    """
    names = [name for name in expected if not name.endswith(_COUNTER)]
    if all(name in state for name in names):
        return state
    for prefix in _WRAPPERS:
        if all(prefix + name in state for name in names):
            left = [key for key in state if not key.startswith(prefix)]
            warnings.warn(
                f"weights {source!r}: those that begin with {prefix!r} are taken; left out: {first_names(left)}",
                stacklevel=4,
            )
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Warn, by name, of tensors with NaN or infinite values: a network's outputs are meaningless with them."""
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        warnings.warn(f"weights {source!r} hold NaN or infinite values: {first_names(bad)}", stacklevel=4)


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
    return "; ".join(f"{word}{', '.join(names)}" for word, names in parts.items() if names)


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
