"""A network's last steps on vectors: many windows are collected first, since each batch reads all the weights again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastviz.engine.incremental.execute import run_whole
from fastviz.engine.incremental.network import Network

__all__ = ["Tail"]

_AT_ONCE = 256
"""The number of windows that linear layers process at once."""


class Tail:
    """Collects the results of a network's head for windows, and passes on the outputs.

    Args:
        made: the network.
        put: called with the outputs [B, ...], in the dtype of the model, with NaN for entries that the network leaves
            out, and the numbers of the windows.
        dtype: the dtype of the model.
    """

    def __init__(self, made: Network, put: Callable[[Tensor, Tensor], object], dtype: torch.dtype) -> None:
        split = len(made.steps) - made.tail
        self.head, self.steps = made.steps[:split], made.steps[split:]
        self._outputs, self._shape = made.outputs, made.shape
        self.put, self._dtype = put, dtype
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, value: Tensor, windows: Tensor) -> None:
        """Add the results of the head, [B, ...], for the windows with these numbers."""
        if sum(len(waiting) for _, waiting in self._waiting) >= (_AT_ONCE if self.steps else 1):
            self.flush()
        self._waiting.append((value, windows))

    def flush(self) -> None:
        """Process all waiting windows."""
        if not self._waiting:
            return
        values, windows = (torch.cat(each) for each in zip(*self._waiting, strict=True))
        output = self.output(values)  # if memory runs out here, all windows are still waiting
        self._waiting = []
        self.put(output, windows)

    def output(self, value: Tensor) -> Tensor:
        """The output for the results of the head."""
        if self.steps:
            value, _ = run_whole(self.steps, {self.head[-1]: value})
        return self.all_entries(value.to(self._dtype))

    def all_entries(self, output: Tensor) -> Tensor:
        """The ``output`` expanded to all entries of the model's output."""
        if self._outputs is None:
            return output
        whole = output.new_full((len(output), *self._shape), torch.nan)
        whole[:, list(self._outputs)] = output
        return whole
