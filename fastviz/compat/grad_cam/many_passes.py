"""pytorch-grad-cam's ``AblationCAM`` and ``ScoreCAM``, which run the model on many changed maps or images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastviz.compat.grad_cam._base import CamBase, Targets, projected
from fastviz.compat.grad_cam._tool import base, tool
from fastviz.engine.incremental.whole import WholeImages
from fastviz.execution.after_layer import AfterLayer
from fastviz.methods.attribution.score_cam import mask_values

__all__ = ["AblationCAM", "ScoreCAM"]

_MAX_VALUES = 1 << 24
"""Number of values of changed maps that are in memory at a time."""

_ABLATION_OFFSET = 1e7
"""pytorch-grad-cam sets ablated channels this far below the smallest value, for layers with negative values."""


class ScoreCAM(CamBase, base("ScoreCAM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``ScoreCAM``, see :func:`fastviz.score_cam`; arguments of :class:`GradCAM`.

    Constant maps share one pass. ``batch_size``, if set on the object, limits the images in a pass.
    """

    uses_gradients = False
    _name = "ScoreCAM"

    def _layer_map(
        self, images: Tensor, number: int, targets: Targets, A: Tensor, G: Tensor | None, eigen_smooth: bool
    ) -> Tensor:
        if self._overrides(("get_cam_weights", "get_cam_image")):
            return super()._layer_map(images, number, targets, A, G, eigen_smooth)
        run = WholeImages(self.model, images[:1], A.shape[0] * A.shape[1])
        at_once = min(run.batch_size, int(getattr(self, "batch_size", run.batch_size)))
        weights = []
        for image, target, maps in zip(images.split(1), targets, A.split(1), strict=False):

            def values(versions: Tensor, target: Callable[[Any], Tensor] = target) -> Tensor:
                rows = [target(row).reshape(1) for output in run(versions) for row in output]
                return torch.cat(rows)[:, None]

            weights.append(mask_values(values, image, maps, batch_size=at_once)[:, 0].float().softmax(0))
        return _weighted(torch.stack(weights), A, eigen_smooth)


class AblationCAM(CamBase, base("AblationCAM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``AblationCAM``; arguments of :class:`GradCAM` and:

    Args:
        ablation_layer: with any layer other than the default one, the call is delegated to pytorch-grad-cam.
        batch_size: only affects the values of ablated channels of layers with negative values: within a batch each is
            1e7 below the previous one, as in pytorch-grad-cam.
        ratio_channels_to_ablate: below 1, the channels are chosen by pytorch-grad-cam.
    """

    uses_gradients = False
    _name = "AblationCAM"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        ablation_layer: Any = None,
        batch_size: int = 32,
        ratio_channels_to_ablate: float = 1.0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if ablation_layer is None and tool is not None:
            ablation_layer = tool.AblationLayer()
        self.ablation_layer = ablation_layer
        self.batch_size = batch_size
        self.ratio_channels_to_ablate = ratio_channels_to_ablate

    def _options(self) -> dict[str, Any]:
        return {
            "ablation_layer": self.ablation_layer,
            "batch_size": self.batch_size,
            "ratio_channels_to_ablate": self.ratio_channels_to_ablate,
        }

    def _delegates(self, input_tensor: Tensor, eigen_smooth: bool) -> bool:
        other = tool is not None and type(self.ablation_layer) is not tool.AblationLayer
        names = {id(module) for module in self.model.modules()}
        inside = all(id(layer) in names for layer in self.target_layers)
        return (
            super()._delegates(input_tensor, eigen_smooth) or other or self.reshape_transform is not None or not inside
        )

    def _layer_map(
        self, images: Tensor, number: int, targets: Targets, A: Tensor, G: Tensor | None, eigen_smooth: bool
    ) -> Tensor:
        if self._overrides(("get_cam_weights", "get_cam_image")):
            return super()._layer_map(images, number, targets, A, G, eigen_smooth)
        layer = self.target_layers[number]
        name = next(name for name, module in self.model.named_modules() if module is layer)
        weights = [
            self._weights(AfterLayer(self.model, name, image), target, maps)
            for image, target, maps in zip(images.split(1), targets, A, strict=False)
        ]
        return _weighted(torch.stack(weights), A, eigen_smooth)

    def _weights(self, rest: AfterLayer, target: Callable[[Any], Tensor], maps: Tensor) -> Tensor:
        """``(S − S_k) / S`` for each channel of one image's ``maps`` [K, h, w]; 0 for those that are not ablated."""
        score = target(rest.output[0]).reshape(())
        chosen = self._channels(maps)
        lowest = rest.maps.min()
        if float(lowest) == 0:
            fills = lowest.expand(len(chosen))
            active = rest.maps[0, chosen].flatten(1).ne(0).any(1)
            chosen, fills = chosen[active], fills[: int(active.sum())]
        else:
            steps = [lowest - _ABLATION_OFFSET]
            for _ in range(1, min(self.batch_size, len(chosen))):
                steps.append(steps[-1] - _ABLATION_OFFSET)
            fills = torch.stack(steps)[torch.arange(len(chosen), device=maps.device) % self.batch_size]
        weights = torch.zeros(len(maps), dtype=score.dtype, device=maps.device)
        at_once = max(1, _MAX_VALUES // rest.maps.numel())
        for part, fill in zip(chosen.split(at_once), fills.split(at_once), strict=True):
            if not len(part):
                break
            changed = rest.maps.repeat(len(part), *(1 for _ in rest.maps.shape[1:]))
            changed[torch.arange(len(part), device=maps.device), part] = fill.reshape(
                -1, *(1 for _ in rest.maps.shape[2:])
            )
            after = torch.stack([target(output).reshape(()) for output in rest(changed)])
            weights[part] = (score - after) / score
        return weights

    def _channels(self, maps: Tensor) -> Tensor:
        """The channels to ablate."""
        every = torch.arange(len(maps), device=maps.device)
        if self.ratio_channels_to_ablate == 1.0:
            return every
        theirs = self.ablation_layer.activations_to_be_ablated(maps.cpu().numpy(), self.ratio_channels_to_ablate)
        return torch.as_tensor(np.asarray(theirs, dtype=np.int64), device=maps.device)


def _weighted(weights: Tensor, A: Tensor, eigen_smooth: bool) -> Tensor:
    """The map of a layer, from the weights of its channels [N, K]."""
    found = weights.to(A.dtype)[:, :, None, None] * A
    return projected(found) if eigen_smooth else found.sum(1)
