"""The operators as torch knows them: importing this module loads the native libraries."""

from __future__ import annotations

import torch

from fastviz.ops._library import INSTRUCTIONS, check_instructions, load

__all__ = ["instructions", "native"]

load()
native = torch.ops.fastviz


def instructions() -> tuple[str, str]:
    """The instruction set that the operators use on the CPU, and the best one that this processor has.

    Of ``"baseline"``, ``"avx2"`` (x86-64-v3) and ``"avx512"`` (x86-64-v4). They are the same unless the environment
    variable ``FASTVIZ_CPU`` named a lesser one when fastviz was imported.

    Returns:
        The name of the one that is used, and of the best one.

    Raises:
        ImportError: the CPU library could not be loaded, which importing fastviz says first.

    >>> used, best = instructions()
    >>> used in ("baseline", "avx2", "avx512")
    True
    """
    used, best = native._instructions()
    return INSTRUCTIONS[used], INSTRUCTIONS[best]


check_instructions(instructions()[1])
