"""The scores of a batch, from a forward pass of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.targets.indices import class_scores

__all__ = ["Scores"]


class Scores:
    """Computes the scores [N, K] of images; they are returned on the CPU."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device

    def of(self, x: Tensor, *, needed: bool = True) -> Tensor | None:
        """The scores of ``x`` [N, C, H, W]; None if they are not ``needed`` and the model does not give scores.

        Raises:
            TypeError, ValueError: the model does not give scores.
        """
        with frozen_model(self._model), torch.no_grad():
            batches = Batches(self._model)
            parts = batches(batches.run_model, x.to(self._device))
        if not needed and not all(isinstance(part, Tensor) and part.dim() == 2 for part in parts):
            return None
        return torch.cat([class_scores(part) for part in parts]).cpu()
