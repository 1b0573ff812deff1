"""Full float32 on a GPU, for passes that must agree up to rounding."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["full_float32"]

_lock = threading.Lock()
_holders = 0
_before: tuple[bool | None, str, str] = (None, "", "")


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Convolutions on a GPU in float32, not in TF32, whose 10 bits are too few for "the same numbers"; else nothing.

    The setting is torch's own, of the whole process: from the first ``with`` that is entered, in whatever thread, to
    the last that is left, convolutions of other threads run so, too. Both of torch's ways to ask for it
    (``allow_tf32`` and ``fp32_precision``) keep answering inside, and what was set before is set again.
    """
    global _holders
    if device.type != "cuda":
        yield
        return
    with _lock:
        if not _holders:
            _switch_off()
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders:
                _restore()


def _switch_off() -> None:
    global _before
    cudnn: Any = torch.backends.cudnn
    try:
        allowed: bool | None = cudnn.allow_tf32
    except RuntimeError:  # the newer setting is used, for convolutions alone: torch refuses to answer the older one
        allowed = None
    _before = allowed, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    if allowed:
        # both settings together: the newer one alone makes torch refuse the older one
        cudnn.allow_tf32 = False
    if cudnn.conv.fp32_precision == "tf32":
        cudnn.conv.fp32_precision = "ieee"


def _restore() -> None:
    cudnn: Any = torch.backends.cudnn
    allowed, convolutions, recurrent = _before
    if allowed is not None:
        cudnn.allow_tf32 = allowed
    for setting, before in ((cudnn.conv, convolutions), (cudnn.rnn, recurrent)):
        if setting.fp32_precision != before:
            setting.fp32_precision = before
