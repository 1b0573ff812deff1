"""Memory that runs out: the errors of real allocators, in a process that may not have more."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastviz._util.memory import is_out_of_memory, keep_freed_memory

ROOT = Path(__file__).parents[2]

FAULTS = """
import ctypes, resource, sys
import torch
from fastviz._util.memory import keep_freed_memory, keep_small_blocks

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: large pages would hide most of the faults
said = keep_freed_memory() if sys.argv[1] == "keep" else None
if sys.argv[1] == "small":
    keep_small_blocks()
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(int(sys.argv[2])) for _ in range(4)]
    del maps
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(said, min(faults))
"""

AT_MOST = """
import ctypes, platform, resource, warnings
from contextlib import contextmanager
import torch
from torch import nn

torch.set_num_threads(1)
warnings.simplefilter("ignore")
if platform.libc_ver()[0] == "glibc":
    # M_MMAP_THRESHOLD: what is freed goes back, so that it does not depend on earlier blocks what fits.
    ctypes.CDLL(None).mallopt(-3, 1 << 20)


@contextmanager
def at_most(mebibytes):
    "No more than so much above what the process holds now."
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + int(mebibytes * (1 << 20)), resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
"""

LIMITED = """
import fastviz as fv
from fastviz.engine.incremental import sweep

# A thread in which oneDNN once got no memory for its code makes no further convolution. Whether that happens here
# depends on what the process holds by chance.
torch.backends.mkldnn.enabled = False
x = torch.randn(1, 3, 96, 96)
boxes = torch.tensor([[i % 8 * 8, i // 8 * 8, i % 8 * 8 + 48, i // 8 * 8 + 48] for i in range(64)])
for way in ("always", "never"):
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(nn.Conv2d(3, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 8, 3), pool, nn.Flatten()).eval()
    expected = sweep(model, x, boxes, batch_size=2, trace=way)
    with at_most(100):
        found = sweep(model, x, boxes, batch_size=64, memory=1 << 40, trace=way)
    difference = float((found.values - expected.values).abs().max())
    print(found.stats["path"], found.stats["retries"] > 0, difference < 1e-5)
fv.maximize(model, [0], size=96, steps=1)
with at_most(200):
    try:
        fv.maximize(model, [0] * 64, size=96, steps=1, batch_size=64)
    except MemoryError as error:
        print(error)
"""

NO_CODE = """
from fastviz._util.memory import is_out_of_memory

conv = nn.Conv2d(64, 16, 3)
conv(torch.randn(1, 64, 40, 40))
x = torch.randn(1, 64, 20, 20)  # few values more than torch convolves without oneDNN
with at_most(1 / 8):
    try:
        conv(x)
    except RuntimeError as error:
        print(error, is_out_of_memory(error), sep=": ")
"""

NO_BLOCK = """
from fastviz._util.memory import keep_small_blocks

with at_most(16):
    keep_small_blocks()
print("nothing")
"""


def limited(code: str) -> list[str]:
    """The lines that a process of its own printed, which may limit its memory."""
    done = subprocess.run([sys.executable, "-c", AT_MOST + code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


of_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to a limit of a process' memory")


@of_linux
def test_a_process_that_may_have_no_more() -> None:
    """Sweeps halve their batches, optimisations say what would fit.

    The words that a sweep looked for were those of another system: on Linux, no batch was ever halved.
    """
    traced, whole, optimised = limited(LIMITED)
    assert traced == "incremental True True"
    assert whole == "dense True True"
    assert optimised.startswith("out of memory: 64 images of 96x96 pixels at once do not fit on cpu, ")


@of_linux
def test_a_convolution_for_whose_code_there_is_no_memory() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    assert limited(NO_CODE) == ["could not create a primitive: True"]
    unsupported = RuntimeError("could not create a primitive descriptor for a convolution forward propagation")
    assert not is_out_of_memory(unsupported)


@of_linux
def test_a_block_that_cannot_be_had_is_not_freed() -> None:
    assert limited(NO_BLOCK) == ["nothing"]


def test_errors_of_real_allocators_are_known() -> None:
    for allocate in (lambda: torch.empty(1 << 60), lambda: np.empty(1 << 50), lambda: bytearray(1 << 60)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)


def faults(word: str, values: int) -> tuple[str, int]:
    """What was said, and the page faults of four blocks of this many float32 values that were freed before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, word, str(values)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    said, count = output.stdout.split()
    return said, int(count)


of_glibc = pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="for glibc")


@of_glibc
def test_freed_memory_is_kept_on_demand():
    """256 MiB come back without page faults, of which there are 65,536 otherwise."""
    said, count = faults("keep", 1 << 24)
    assert said == "True"
    assert count < 2_000
    assert faults("leave", 1 << 24)[1] > 10_000


@of_glibc
def test_small_blocks_are_kept():
    """24 MiB in blocks of 6 come back without page faults.

    Without the call, there are 6,144 or none: it depends on what torch freed while it was imported.
    """
    assert faults("small", 3 << 19)[1] < 500


def test_the_users_own_settings_of_malloc_stay(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert not keep_freed_memory()
