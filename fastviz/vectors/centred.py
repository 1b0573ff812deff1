"""Vectors about their mean, a few at a time: products with them, without a centred copy of all."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Centred"]

_NUMBERS, _NUMBERS_ON_A_GPU = 1 << 20, 1 << 24
"""How many numbers are taken at a time: they fit into the cache of a CPU."""

_FAR = 3
"""Where squares about zero are more than so many times those about the mean, vectors are centred before they are
multiplied: products that cancel would cost digits."""


class Centred:
    """``A = X − mean``, [N, D], for what is computed of it from left to right.

    Products ``A V = X V − mean V`` and ``Aᵀ Y = Xᵀ Y − mean Σ Y`` need no centred copy. Parts of the vectors are taken
    in one order and of one size, whatever the number of threads.

    Attributes:
        x: the vectors, [N, D].
        mean: [D], in their dtype.
        total: float64, the sum of the squares of all of A.

    Raises:
        ValueError: vectors that are not finite.

    >>> found = Centred(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> found.mean.tolist(), float(found.total), found.projected(torch.eye(2)).tolist()
    ([2.0, 5.0], 2.0, [[-1.0, 0.0], [1.0, 0.0]])
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        numbers = _NUMBERS if x.device.type == "cpu" else _NUMBERS_ON_A_GPU
        self._rows = max(1, numbers // x.shape[1])
        sums = x.new_zeros(x.shape[1], dtype=torch.float64)
        squares = x.new_zeros((), dtype=torch.float64)
        for rows in x.split(self._rows):
            sums += rows.sum(0)
            squares += torch.linalg.vector_norm(rows, dim=1).double().square().sum()
        mean = sums / len(x)
        self.mean = mean.to(x.dtype)
        self.total = squares - len(x) * mean.square().sum()
        self._far = not (squares.isfinite() and _FAR * self.total >= squares)
        if self._far:
            finite = torch.cat([rows.isfinite().all(1) for rows in x.split(self._rows)])
            if not finite.all():
                raise ValueError(f"vectors should be finite, vector {int((~finite).nonzero()[0])} is not")
            self.total = torch.stack([rows.double().square().sum() for rows in self.parts()]).sum()

    @property
    def all_equal(self) -> bool:
        """Whether only the rounding of their mean remains of the vectors."""
        if not self._far:
            return bool(self.total == 0)
        low, high = self.x.aminmax()
        least = torch.finfo(self.x.dtype).eps * torch.maximum(-low, high).double()
        return bool(self.total <= self.x.numel() * least**2)

    def parts(self) -> Iterator[Tensor]:
        """A few rows of A at a time."""
        return (rows - self.mean for rows in self.x.split(self._rows))

    def projected(self, block: Tensor, out: Tensor | None = None) -> Tensor:
        """``A block``, [N, b] from [D, b]."""
        made = self.x.new_empty(len(self.x), block.shape[1]) if out is None else out
        offset = self.mean @ block
        for rows, into in zip(self.x.split(self._rows), made.split(self._rows), strict=True):
            self._project(rows, block, offset, into)
        return made

    def scattered(self, block: Tensor, out: Tensor | None = None) -> Tensor:
        """``Aᵀ A block``, [D, b] from [D, b], in one pass over the vectors; ``out`` keeps ``A block``, [N, b]."""
        total = torch.zeros_like(block)
        sums = block.new_zeros(block.shape[1])
        offset = self.mean @ block
        kept = block.new_empty(self._rows, block.shape[1])
        for at, rows in enumerate(self.x.split(self._rows)):
            start = at * self._rows
            into = kept[: len(rows)] if out is None else out[start : start + len(rows)]
            centred = self._project(rows, block, offset, into)
            total.addmm_(centred.T, into)
            sums += into.sum(0)
        return total if self._far else total.addr_(self.mean, sums, alpha=-1)

    def _project(self, rows: Tensor, block: Tensor, offset: Tensor, into: Tensor) -> Tensor:
        """Write the product of a few rows of A to ``into``; the rows as far as they were centred for it."""
        if self._far:
            rows = rows - self.mean
            torch.mm(rows, block, out=into)
        else:
            torch.addmm(offset, rows, block, beta=-1, out=into)
        return rows
