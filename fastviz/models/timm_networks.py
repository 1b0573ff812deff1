"""timm's networks: their construction, their weights through timm's own loading code, or from a file."""

from __future__ import annotations

import logging
import os
import socket
import sys
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.models import timm_settings, weight_files
from fastviz.models.descriptions import Description, ModelInfo, guess_channels, remember

__all__ = ["PREFIX", "load", "names"]

PREFIX = "timm/"
"""The prefix of the names of timm's networks."""


def names() -> list[str]:
    """The names of timm's networks behind :data:`PREFIX`, in alphabetical order; empty without timm."""
    timm = _timm()
    return [] if timm is None else [PREFIX + str(name) for name in sorted(timm.list_models())]


def load(name: str, weights: str | os.PathLike[str] | None) -> nn.Module:
    """The network ``name``, as timm calls it behind :data:`PREFIX`, with ``weights``, see :func:`fastviz.load_model`.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: an unknown name, or weights that do not fit.
        OSError: weights could not be downloaded.
    """
    timm = _timm()
    if timm is None:
        raise ModuleNotFoundError(f'model {name!r} needs timm: pip install "fastviz[timm]"')
    called = name.removeprefix(PREFIX)
    architecture, _, tag = called.partition(".")
    checks.nearest(PREFIX + architecture, "model", names())
    if tag:
        checks.nearest(tag, f"the weights {PREFIX}{architecture}.TAG: TAG", _tags(architecture))
    if weights is None:
        return _finish(timm.create_model(called), name, None)
    if weights == "DEFAULT":
        return _finish(_pretrained(timm, called), name, "DEFAULT")
    path = Path(os.path.expanduser(weights))
    if not (path.suffix.lower() in weight_files.FILE_TYPES or path.exists() or isinstance(weights, os.PathLike)):
        raise ValueError(
            f"weights of {name} should be 'DEFAULT', or the path of a {', '.join(weight_files.FILE_TYPES)} file, "
            f"got {weights!r}" + (f"; its published weights are {', '.join(_tags(architecture))}: {name}.TAG with "
            "'DEFAULT'" if _tags(architecture) else "")
        )  # fmt: skip
    return _finish(_filled(lambda **options: timm.create_model(called, **options), name, path), name, str(path))


def _timm() -> Any | None:
    """The package, or None where it is not installed."""
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        return None
    return timm


def _tags(architecture: str) -> list[str]:
    """The names of an architecture's published weights: what timm writes after the dot."""
    from timm.models import list_pretrained

    found = (str(name).partition(".") for name in list_pretrained(f"{architecture}*"))
    return [tag for of, _, tag in found if of == architecture and tag]


def _filled(make: Callable[..., nn.Module], name: str, path: Path) -> nn.Module:
    """The network with the weights in a file, built for their number of classes and channels."""
    state, source = weight_files.read(path), str(path)
    with torch.random.fork_rng([]):
        model = make()
    state = weight_files.chosen(state, model.state_dict(), source)
    found, problem = _fitted(make, model, state)
    if problem:
        state = _converted(model, state) or {}
        found, rest = _fitted(make, model, state) if state else (found, problem)
        if rest:
            raise ValueError(f"weights {source!r} do not fit {name}: {problem}")
        warnings.warn(
            f"weights {source!r} are of another layout than {name} ({problem[:200]}): timm's own conversion of them is "
            "taken",
            stacklevel=4,
        )
    weight_files.check_finite(state, source)
    return found


def _fitted(make: Callable[..., nn.Module], model: nn.Module, state: dict[str, Tensor]) -> tuple[nn.Module, str]:
    """The network filled with ``state``, rebuilt if its sizes differ from ``model``'s, and what does not fit."""
    options = _sizes(model, state)
    if options:
        with torch.random.fork_rng([]):
            model = make(**options)
    return model, weight_files.fill(model, state)


def _sizes(model: nn.Module, state: dict[str, Tensor]) -> dict[str, int]:
    """The numbers of classes and of channels that ``state`` has and ``model`` has not."""
    settings: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    own, found = model.state_dict(), {}
    first = settings.get("first_conv")
    key = f"{first}.weight" if isinstance(first, str) else ""
    if key in own and key in state and own[key].dim() == state[key].dim() == 4:
        channels = int(state[key].shape[1])
        if channels != own[key].shape[1]:
            found["in_chans"] = channels
            own.pop(key)
    rows = int(getattr(model, "num_classes", 0))
    classes = weight_files.new_row_count(state, own, rows) if rows else rows
    return found | ({"num_classes": classes} if classes != rows else {})


def _converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """``state`` converted by timm's own code from the authors' published layout; None if timm has no such code."""
    rewrite = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rewrite is None:
        return None
    try:
        found = rewrite(dict(state), model)
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError):
        return None
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def _pretrained(timm: Any, called: str) -> nn.Module:
    """The network with the weights that timm publishes, which it downloads once."""
    with torch.random.fork_rng([]), _short_words() as offline:
        try:
            model: nn.Module = timm.create_model(called, pretrained=True)
        except (OSError, RuntimeError, ValueError) as error:  # no network, no space, no published weights
            said = " ".join(str(error).split()).partition(". ")[0]
            if isinstance(error, RuntimeError) and not isinstance(error, OSError) and "pretrained" in said.lower():
                raise ValueError(f"there are no published weights of {PREFIX}{called}: give a file ({said})") from error
            why = "the hub cannot be reached from here, and they are not in its cache" if offline else said
            raise OSError(
                f"weights of {PREFIX}{called} could not be downloaded: {why}; a file that is already there can be "
                "given by its path"
            ) from error
    return model


@contextmanager
def _short_words() -> Iterator[bool]:
    """Within the ``with`` block the hub is not retried if its name cannot be resolved; yields whether that is so."""
    from huggingface_hub import constants

    offline = not urllib.request.getproxies() and not _has_address(str(constants.ENDPOINT))
    log, before = logging.getLogger("huggingface_hub"), constants.HF_HUB_OFFLINE
    level = log.level
    try:
        if offline:
            constants.HF_HUB_OFFLINE = True
            log.setLevel(logging.CRITICAL)
        yield offline
    finally:
        constants.HF_HUB_OFFLINE = before
        log.setLevel(level)


def _has_address(url: str) -> bool:
    host = url.partition("://")[2].partition("/")[0].partition(":")[0]
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _finish(model: nn.Module, name: str, source: str | None) -> nn.Module:
    """``model`` in evaluation mode and described by timm's own settings."""
    preprocessing = timm_settings.preprocessing(model, guess_channels(model) or 3)
    assert preprocessing is not None, "timm gives its settings to all of its networks"
    remember(model, Description(ModelInfo(name, source), preprocessing, timm_settings.class_names(model)))
    return model.eval()
