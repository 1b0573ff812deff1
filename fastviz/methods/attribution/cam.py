"""CAM: class activation maps of networks that end in a global average and one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz.engine.gradients import cam_layers
from fastviz.execution.batches import Batches
from fastviz.execution.compiled import eager
from fastviz.execution.forward import layer_outputs
from fastviz.execution.inputs import input_batch, output_of
from fastviz.execution.map_axes import Axes
from fastviz.execution.model_outputs import scores_in
from fastviz.execution.precision import Precision, as_map, reduced_precision
from fastviz.methods.attribution import cam_head
from fastviz.methods.attribution.grad_cam import in_batches, resized
from fastviz.methods.attribution.map_fusion import map_size
from fastviz.targets.selection import Target

__all__ = ["cam"]


def cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    size: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """Positions of the last maps that support or oppose a class: ``Σ_k w_k A_k``, w the class's weights.

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", https://arxiv.org/abs/1512.04150. Only
    for networks that end in a global average of the maps A (or of their positive part, as DenseNet does) and one linear
    layer: ResNet, GoogLeNet, DenseNet, Inception, MobileNet v2, … This is tested by computing the scores that way. The
    mean of a map is the score minus the bias.

    A module that calls it can be exported (``torch.export.export``, not strict), for classes by number: the program
    has a map for each input, and fails on one whose scores are not made that way.

    Args:
        model, x, size, batch_size, precision: as in :func:`fastviz.grad_cam`.
        target: as in :func:`fastviz.grad_cam`, but nothing inside the network. If it is a function of scores (a
            probability, a sum), each class is weighted by the gradient of the target for its score.

    Returns:
        [N, h, w] ([N, T, h, w] for T targets per sample), signed, not scaled.

    Raises:
        TypeError, ValueError: as :func:`fastviz.grad_cam`; a network with another ending (the message names its last
            layers).

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5, bias=False))
    >>> x = torch.ones(1, 1, 8, 8)
    >>> torch.allclose(cam(model, x, target=4).mean(), model(x)[0, 4])
    True
    """
    if torch.compiler.is_exporting():
        shape = map_size(size, x.dim() - 2)
        found = cam_head.exported(model, x, target, precision)
        return found if shape is None else resized(found, shape)
    images = input_batch(model, x, axes=(1, 2, 3))
    model = eager(model)
    selection = targets.resolve(target, model)
    shape = map_size(size, images.dim() - 2)
    if selection.layers:
        raise ValueError(f"target should be about classes for CAM, got one about layer {selection.layers[0]!r}")

    def compute(names: list[str], confirm: bool) -> Tensor:
        return _maps(model, images, selection, names, batch_size, precision, confirm)

    _, found = cam_layers.at_layers(None, model, images, None, compute)
    return found if shape is None else resized(found, shape)


def _maps(
    model: nn.Module,
    images: Tensor,
    selection: targets.Selection,
    names: list[str],
    batch_size: int | None,
    precision: Precision,
    confirm: bool,
) -> Tensor:
    """The maps of the one layer in ``names``; ``confirm`` as in ``cam_layers.at_layers``."""
    batches = Batches(model)
    (name,) = names

    def compute(batch: Tensor, part: targets.Selection | None) -> Tensor:
        axes = Axes()
        run = cam_layers.confirming(lambda x: (output_of(model, x),), model, names, axes, confirm)
        with torch.no_grad(), layer_outputs(model, names) as recorded:
            with reduced_precision(batch, precision), axes:
                (output,) = batches.watched(run, axes.images(batch.clone()))
            planes = cam_layers.planes(recorded[name], recorded[name], name, axes)
            maps, weight = cam_head.head(model, name, planes, scores_in(output))
        output = targets.class_scores(output)
        if part is None:
            return maps[:, 0]
        scores = output.detach().to(weight.dtype).requires_grad_()
        share = targets.gradients(part.values(scores, {}), {"the scores": scores})[0]
        with torch.no_grad():
            return cam_head.weighted(maps, share @ as_map(weight))

    (found,) = in_batches(batches, images, selection, batch_size, precision, lambda *part: [compute(*part)])
    return found
