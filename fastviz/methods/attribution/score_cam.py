"""Score-CAM: maps weighted by the target's value for the image masked with each of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz import targets
from fastviz._util import checks
from fastviz._util.progress import Advance, bar
from fastviz.engine.gradients import cam_layers
from fastviz.engine.incremental.whole import WholeImages
from fastviz.execution.compiled import eager
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.forward import layer_outputs
from fastviz.execution.inputs import input_batch, output_of
from fastviz.execution.map_axes import Axes
from fastviz.execution.precision import as_map, map_dtype
from fastviz.images import tensors
from fastviz.methods.attribution import grad_cam
from fastviz.methods.attribution.map_fusion import map_size
from fastviz.targets.selection import Target

__all__ = ["mask_values", "score_cam"]


def score_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Maps weighted by the target for the masked image: ``ReLU(Σ_k w_k A_k)``, ``w = softmax_k S(x ⊙ M_k)``.

    M_k is the map A_k resized to the image (bilinear, ``align_corners=True``) and scaled to 0 to 1. Wang et al. 2020,
    "Score-CAM", https://arxiv.org/abs/1910.01279; the paper also subtracts the score of a black image, which the
    softmax cancels. Results equal pytorch-grad-cam's; torch-cam resizes with ``align_corners=False``.

    Every channel whose map is not constant takes a forward pass; constant maps share the pass of a black image.

    Args:
        model, x, target, layer, size: as in :func:`fastviz.grad_cam`.
        batch_size: masked images in a pass; None chooses it automatically.
        progress: show a progress bar on a terminal.

    Returns:
        [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled.

    Raises:
        TypeError, ValueError: as :func:`fastviz.grad_cam`.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> score_cam(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 6, 6])
    """
    images = input_batch(model, x)
    model = eager(model)
    selection = targets.resolve(target, model)
    shape = map_size(size)
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    name = grad_cam.layer_name(model, images, layer)
    found = []
    with frozen_model(model), torch.no_grad():
        black = images.new_zeros(1, *images.shape[1:])
        layers = [_maps(model, name, images[at : at + 1]) for at in range(len(images))]
        if not layers:
            return selection.no_values(images, shape or _maps(model, name, black).shape[2:])
        total = sum(int(_varies(each).sum()) + 1 for each in layers)
        run = WholeImages(model, images[:1], total)
        with bar(progress, total, text="Score-CAM", unit="images") as advance:
            for at, maps in enumerate(layers):
                one = selection.for_samples(torch.tensor([at], device=images.device), len(images))
                if one.predicts:
                    (output,) = run(images[at : at + 1])
                    one = one.with_predicted(targets.predicted(output))
                values = mask_values(
                    partial(_values, model, run, one),
                    images[at : at + 1],
                    maps,
                    batch_size=batch_size or run.batch_size,
                    advance=advance,
                )
                planes = as_map(maps[0])
                weights = values.to(planes.dtype).softmax(0)
                found.append(torch.einsum("kt,khw->thw", weights, planes).relu())
    result = torch.stack([each if selection.several else each[0] for each in found]).to(map_dtype(images.dtype))
    return result if shape is None else tensors.resize_maps(result, *shape)


def mask_values(
    values: Callable[[Tensor], Tensor],
    image: Tensor,
    maps: Tensor,
    *,
    batch_size: int,
    advance: Advance = lambda steps, text=None: None,
) -> Tensor:
    """The target's values for an image masked with each of its maps: [K, T].

    Args:
        values: maps images [P, C, H, W] to values [P, T].
        image: [1, C, H, W].
        maps: [1, K, h, w].
        batch_size: images per call of ``values``.
        advance: called with the number of finished passes, one per map that is not constant and one for all that are.
    """
    height, width = image.shape[2:]
    numbers = _varies(maps).nonzero()[:, 0]
    found = []
    for part in numbers.split(batch_size) if len(numbers) else ():
        masks = F.interpolate(maps[0, part, None], (height, width), mode="bilinear", align_corners=True)
        low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        found.append(values(image * ((masks - low) / (high - low + 1e-8)).to(image.dtype)))
        advance(len(part))
    # the mask of a constant map is zero everywhere
    every = values(torch.zeros_like(image)).expand(maps.shape[1], -1).clone()
    advance(1)
    if found:
        every[numbers] = torch.cat(found)
    return every


def _values(model: nn.Module, run: WholeImages, selection: targets.Selection, images: Tensor) -> Tensor:
    """The values [P, T] of one sample's target for changed copies of it."""
    if selection.layers:
        found = []
        for one in images.split(1):
            output, recorded = targets.run(model, one.clone(), selection.layers)
            found.append(selection.values(output, recorded).reshape(1, -1))
        return torch.cat(found)
    outputs = run(images)
    if len(outputs) > 1:
        return torch.cat([selection.values(output, {}).reshape(1, -1) for output in outputs])
    rows = selection.for_samples(torch.zeros(len(images), dtype=torch.int64, device=images.device), 1)
    return rows.values(outputs[0], {}).reshape(len(images), -1)


def _maps(model: nn.Module, name: str, image: Tensor) -> Tensor:
    """The maps [1, K, h, w] of a layer for one image."""
    axes = Axes()
    with layer_outputs(model, [name]) as recorded, axes:
        output_of(model, axes.images(image.clone()))
    return cam_layers.planes(recorded[name].detach(), recorded[name], name, axes).clone()


def _varies(maps: Tensor) -> Tensor:
    """Which of the maps [1, K, h, w] are not constant, bool [K]."""
    flat = maps[0].flatten(1)
    return flat.amax(1) > flat.amin(1)
