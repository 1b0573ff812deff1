"""torch's settings of float32 on a GPU: off while a sweep runs, afterwards as they were, and always readable."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from fastviz.execution.full_precision import full_float32

CUDA = torch.device("cuda")
cudnn: Any = torch.backends.cudnn


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"
    cudnn.allow_tf32 = True


def state() -> tuple[object, ...]:
    try:
        allowed: object = cudnn.allow_tf32
    except RuntimeError:
        allowed = "torch refuses to say"
    return allowed, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, torch.backends.fp32_precision


def older(value: bool) -> None:
    cudnn.allow_tf32 = value


def newer(setting: Any, value: str) -> None:
    setting.fp32_precision = value


SETTINGS = {
    "torch's own": lambda: None,
    "allowed": lambda: older(True),
    "not allowed": lambda: older(False),
    "convolutions": lambda: newer(cudnn.conv, "ieee"),
    "convolutions in TF32": lambda: newer(cudnn.conv, "tf32"),
    "everything": lambda: newer(torch.backends, "tf32"),
    "everything exact": lambda: newer(torch.backends, "ieee"),
    "both": lambda: (older(False), newer(torch.backends, "tf32")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_off_inside_and_as_they_were_afterwards(name: str) -> None:
    SETTINGS[name]()
    before = state()
    with full_float32(CUDA):
        assert cudnn.conv.fp32_precision != "tf32"
        with full_float32(CUDA):
            assert cudnn.conv.fp32_precision != "tf32"
        assert cudnn.conv.fp32_precision != "tf32"
    assert state() == before
    with suppress(KeyboardInterrupt), full_float32(CUDA):
        raise KeyboardInterrupt
    assert state() == before


def test_the_older_setting_can_be_read_inside() -> None:
    """torch raised for whoever asked while a sweep ran."""
    with full_float32(CUDA):
        assert cudnn.allow_tf32 is False
    assert cudnn.allow_tf32 is True


def test_the_last_thread_sets_back() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with full_float32(CUDA):
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    with full_float32(CUDA):
        other.start()
        assert entered.wait(10)
    assert cudnn.allow_tf32 is False
    leave.set()
    other.join()
    assert cudnn.allow_tf32 is True


def test_nothing_changes_for_the_cpu() -> None:
    before = state()
    with full_float32(torch.device("cpu")):
        assert state() == before
