"""What all tests share: the shared folder, random states put back, tests that need a GPU, few threads."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


def pytest_configure() -> None:
    # Tests are small, and often run several at a time; OMP_NUM_THREADS asks for even fewer.
    torch.set_num_threads(min(2, torch.get_num_threads()))
    # pytest-xdist sets it; tables on the command line would be as narrow.
    os.environ.pop("COLUMNS", None)
    # What a shell starts in the background ignores Ctrl-C, and so would the commands that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None or torch.cuda.is_available():
        return
    if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
        pytest.fail("FAIL_WITHOUT_CUDA=1 promises a GPU, and torch finds none")
    pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(autouse=True)
def _random_states() -> Iterator[None]:
    """The generators of torch, NumPy and Python as they were, whatever a test draws."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    yield
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photographs and weights beside the checkout, which is no part of the package."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"there is no folder {folder}")
    return folder


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are traced for sweeps however little work there is."""
    monkeypatch.setattr("fastviz.engine.incremental.worth.refusal", lambda *known, **more: "")
