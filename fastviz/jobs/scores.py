"""The scores of a batch, from a separate forward pass or from the pass that a gradient method makes anyway."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util.memory import is_out_of_memory
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.methods.registry import EXPLAINERS
from fastviz.targets.indices import Activations, class_scores
from fastviz.targets.objectives import Objective, class_score

__all__ = ["Scores"]

_SHARED_PASS = ("saliency", "input_gradient", "gradient_times_input", "guided_backprop", "deconvnet")
"""Methods that run the whole network exactly once, on the unchanged images."""


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

    def can_share_pass(self, method: str) -> bool:
        """Whether :meth:`with_maps` works for this method."""
        return method in _SHARED_PASS

    def with_maps(
        self, method: str, x: Tensor, target: int | None, options: dict[str, Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The scores of ``x`` and the maps of ``method`` for ``target`` (None: predicted), from one pass.

        Returns:
            Scores and maps; None for what this pass could not give.
        """
        recorded = _RecordedScore(target)
        try:
            maps = EXPLAINERS[method].function(self._model, x.to(self._device), recorded, **options)
        except (ValueError, RuntimeError) as error:  # raised again for the right image when each runs alone
            if is_out_of_memory(error):
                raise
            return None, None
        found = torch.cat(recorded.scores) if recorded.scores else torch.zeros(0, 1)
        return (found.cpu() if len(found) == len(x) else None), maps


class _RecordedScore(Objective):
    """The score of a class; it also records all scores."""

    def __init__(self, target: int | None) -> None:
        self.scores: list[Tensor] = []
        self._score = class_score(target)

    def values(self, output: object, activations: Activations) -> Tensor:
        self.scores.append(class_scores(output).detach())
        return self._score.values(output, activations)
