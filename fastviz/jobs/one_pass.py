"""Several methods of a job from one forward and one backward pass: gradients, and CAMs of one layer, with the scores.

The pass is that of :func:`fastviz.input_gradient`, whose target also reads the layer of the CAMs; or that of
:func:`fastviz.cams`, if only CAMs are wanted. Maps equal those of each method alone to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util.memory import is_out_of_memory
from fastviz.engine.gradients import cam_layers
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.forward import layer_outputs
from fastviz.execution.inputs import output_of
from fastviz.execution.map_axes import Axes
from fastviz.execution.precision import map_dtype
from fastviz.methods.attribution.cam_formulas import GRADIENT as CAMS
from fastviz.methods.attribution.grad_cam import warn_of_zero
from fastviz.methods.attribution.grad_cam_variants import cams
from fastviz.methods.attribution.gradients import OF_GRADIENT
from fastviz.methods.registry import EXPLAINERS
from fastviz.targets.indices import Activations, class_scores
from fastviz.targets.objectives import Objective, class_score

__all__ = ["OnePass"]

_ALONE = ("guided_backprop", "deconvnet")
"""Methods that run the whole network exactly once on the unchanged images, but change its backward pass."""


class OnePass:
    """The methods of a job that one pass can serve.

    Args:
        model: the network.
        options: method → its options, of the methods that run on batches.
        image: [1, C, H, W], any image of the usual size, with which the layer of the CAMs is found.

    Attributes:
        methods: their names, in the order of ``options``; empty if there are none.
    """

    def __init__(self, model: nn.Module, options: Mapping[str, Mapping[str, Any]], image: Tensor) -> None:
        self._model = model
        self._gradients = [name for name in options if name in OF_GRADIENT and not options[name]]
        layers = {name: options[name].get("layer") for name in options if _is_plain_cam(name, options[name])}
        self._layer = _layer_of_maps(model, next(iter(layers.values()), None), image) if layers else None
        self._cams = [name for name, layer in layers.items() if self._layer and layer in (None, self._layer)]
        alone = [name for name in options if name in _ALONE]
        shared = {*self._gradients, *self._cams} or {*alone[:1]}
        self.methods = [name for name in options if name in shared]
        self._options = {name: dict(options[name]) for name in alone}

    def __call__(self, x: Tensor, target: int | None) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The scores [N, K] of ``x`` [N, C, H, W] on the CPU, and method → maps, for ``target`` (None: predicted).

        None if the pass could not serve them; the same methods then find out, one by one, for which image they fail.
        """
        noted = _NotedScore(target, [self._layer] if self._layer and self._gradients and self._cams else [])
        try:
            maps = self._maps(x, noted)
        except (ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            return None
        scores = torch.cat(noted.scores) if noted.scores else torch.zeros(0, 1)
        return (scores.cpu(), maps) if len(scores) == len(x) else None

    def _maps(self, x: Tensor, noted: _NotedScore) -> dict[str, Tensor]:
        if self._gradients:
            gradient = EXPLAINERS["input_gradient"].function(self._model, x, noted)
            found = {name: OF_GRADIENT[name](gradient, x) for name in self._gradients}
            return found | {name: noted.cam(name) for name in self._cams}
        if self._cams:
            assert self._layer is not None
            maps = cams(self._model, x, noted, methods=self._cams, layers=[self._layer])
            return {name: maps[name][self._layer] for name in self._cams}
        (name,) = self.methods
        return {name: EXPLAINERS[name].function(self._model, x, noted, **self._options[name])}


def _is_plain_cam(name: str, options: Mapping[str, Any]) -> bool:
    return name in CAMS and name in EXPLAINERS and not options.keys() - {"layer"}


def _layer_of_maps(model: nn.Module, layer: str | None, image: Tensor) -> str | None:
    """The layer of the CAMs, if its output has the images first and then channels, rows and columns; or None."""
    axes = Axes()
    try:
        name = layer or cam_layers.default_layer(model, image)
        with frozen_model(model), torch.no_grad(), layer_outputs(model, [name]) as recorded, axes:
            output_of(model, axes.images(image.clone()))
        maps = recorded[name]
        laid = cam_layers.planes(maps, maps, name, axes)
        as_it_is = maps.dim() == 4 and laid.shape == maps.shape and laid.stride() == maps.stride()
    except (TypeError, ValueError, RuntimeError):
        return None  # the methods give the error, or find another layer
    return name if as_it_is else None


class _NotedScore(Objective):
    """The score of a class, which notes all scores, and a layer's maps and the score's gradients for them."""

    def __init__(self, target: int | None, layers: Sequence[str]) -> None:
        self.scores: list[Tensor] = []
        self.layers = tuple(layers)
        self._maps: list[Tensor] = []
        self._slopes: list[Tensor] = []
        self._score = class_score(target)

    def values(self, output: object, activations: Activations) -> Tensor:
        self.scores.append(class_scores(output).detach())
        for name in self.layers:
            activations[name].register_hook(self._slopes.append)
            self._maps.append(activations[name].detach())
        return self._score.values(output, activations)

    def cam(self, method: str) -> Tensor:
        """The maps of a method of the CAM family, [N, h, w]."""
        if len(self._maps) != len(self._slopes):
            raise ValueError(f"the target should depend on layer {self.layers[0]!r}, but has no gradient for it")
        found = []
        for maps, slopes in zip(self._maps, self._slopes, strict=True):
            warn_of_zero(slopes, self.layers[0])
            wide = map_dtype(slopes.dtype)
            found.append(CAMS[method](maps.to(wide), slopes.to(wide)))
        return torch.cat(found)
