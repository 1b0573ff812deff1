"""CAMs from changed maps of a layer: Ablation-CAM (channel by channel), Recipro-CAM (position by position).

Only the part of the network after the layer is recomputed, for many channels or positions in a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine.gradients import cam_layers
from fastviz.execution.after_layer import AfterLayer
from fastviz.execution.compiled import eager
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import as_map, map_dtype
from fastviz.images import tensors
from fastviz.methods.attribution import grad_cam
from fastviz.methods.attribution.map_fusion import map_size
from fastviz.targets.selection import Target

__all__ = ["ablation_cam", "recipro_cam"]

_MAX_VALUES = 1 << 24
"""The default for the number of values of changed maps in a pass."""

_MAX_MAPS = 1024
"""The default for the number of changed maps in a pass, however small they are."""


def ablation_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Maps weighted by the target's decrease without them, ``ReLU(Σ_k w_k A_k)`` with ``w_k = (S − S_k) / S``.

    S is the target's value, S_k its value with channel k of the layer set to zero. Desai, Ramaswamy 2020,
    "Ablation-CAM", https://doi.org/10.1109/WACV45572.2020.9093360. No gradient is used, so vanishing gradients do not
    matter. Channels that are already zero are skipped; their weight is zero. pytorch-grad-cam sets channels of layers
    with negative values to numbers below -1e7 instead of zero.

    Args:
        model, x, layer, size: as in :func:`fastviz.grad_cam`.
        target: as in :func:`fastviz.grad_cam`, but nothing inside the network. A negative score flips the signs through
            the division, as in the paper and in pytorch-grad-cam; ``fastviz.class_probability`` is never negative.
        batch_size: ablated maps in a pass through the rest of the network; None is as many as fit 64 MB.
        progress: show a progress bar on a terminal.

    Returns:
        [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled; zeros for a target of exactly 0.

    Raises:
        TypeError, ValueError: as :func:`fastviz.grad_cam`; a target inside the network.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> ablation_cam(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 6, 6])
    """

    def changed(maps: Tensor, number: Tensor) -> Tensor:
        many = maps.repeat(len(number), 1, 1, 1)
        many[torch.arange(len(number), device=number.device), number] = 0
        return many

    def combined(maps: Tensor, number: Tensor, before: Tensor, after: Tensor) -> Tensor:
        share = (before - after) / torch.where(before == 0, 1, before) * (before != 0)
        planes = as_map(maps[0, number])
        return torch.einsum("kt,khw->thw", share.to(planes.dtype), planes).relu()

    def active(maps: Tensor) -> Tensor:
        return maps[0].flatten(1).ne(0).any(1).nonzero()[:, 0]

    return _maps_from_changes(
        "Ablation-CAM", model, x, target, layer, size, batch_size, progress, active=active, changed=changed,
        combined=combined,
    )  # fmt: skip


def recipro_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    gaussian: bool = True,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """The target's value for each single position of a layer: ``S(A ⊙ M_ij) − min_ij S(A ⊙ M_ij)``.

    M_ij keeps the maps A at position (i, j) and sets all others to zero, or, with ``gaussian``, weights the 3x3
    positions around it by ``[1 2 1; 2 4 2; 1 2 1] / 16``. Byun, Lee 2022, "Recipro-CAM",
    https://arxiv.org/abs/2209.14074. No gradient is used. The paper scales the result to 0 to 1.

    Positions change the score little, so a 16-bit model, which rounds its scores, gives a map of few levels (bfloat16
    keeps 8 binary digits). Use the model in float32 if this matters.

    Args:
        model, x, layer, size: as in :func:`fastviz.grad_cam`.
        target: as in :func:`fastviz.grad_cam`, but nothing inside the network; the paper uses
            ``fastviz.class_probability(k)``.
        gaussian: see above.
        batch_size: maps in a pass through the rest of the network; None is as many as fit 64 MB.
        progress: show a progress bar on a terminal.

    Returns:
        [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled.

    Raises:
        TypeError, ValueError: as :func:`fastviz.grad_cam`; a target inside the network.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> recipro_cam(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 6, 6])
    """
    if not isinstance(gaussian, bool):
        raise TypeError(f"gaussian should be True or False, got {gaussian!r}")

    def changed(maps: Tensor, number: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        rows = (torch.arange(height, device=maps.device) - (number // width)[:, None]).abs()
        columns = (torch.arange(width, device=maps.device) - (number % width)[:, None]).abs()
        weight = torch.tensor([0.5, 0.25] if gaussian else [1.0], dtype=maps.dtype, device=maps.device)
        weight = torch.cat([weight, weight.new_zeros(max(height, width))])
        mask = weight[rows][:, None, :, None] * weight[columns][:, None, None, :]
        return torch.where(mask == 0, 0, mask * maps)

    def combined(maps: Tensor, number: Tensor, before: Tensor, after: Tensor) -> Tensor:
        found: Tensor = (after - after.amin(0)).mT.unflatten(1, maps.shape[-2:])
        return found

    def places(maps: Tensor) -> Tensor:
        return torch.arange(maps.shape[-2:].numel(), device=maps.device)

    return _maps_from_changes(
        "Recipro-CAM", model, x, target, layer, size, batch_size, progress, active=places, changed=changed,
        combined=combined,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- helpers


def _maps_from_changes(
    title: str,
    model: nn.Module,
    x: Tensor,
    target: Target,
    layer: str | None,
    size: tuple[int, int] | None,
    batch_size: int | None,
    progress: bool,
    *,
    active: Callable[[Tensor], Tensor],
    changed: Callable[[Tensor, Tensor], Tensor],
    combined: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Maps [N, h, w] or [N, T, h, w] from changes of the maps [1, K, h, w] of each image.

    ``active`` returns the numbers of the changes, ``changed`` the maps for several of them, and ``combined`` the map
    [T, h, w] from the targets' values before, [1, T], and after each change, [P, T].
    """
    images = input_batch(model, x)
    model = eager(model)
    selection = targets.resolve(target, model)
    shape = map_size(size)
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    if selection.layers:
        raise ValueError(f"target should be about the output for {title}, got one about layer {selection.layers[0]!r}")
    name = grad_cam.layer_name(model, images, layer)
    found = []
    with frozen_model(model), torch.no_grad(), bar(progress, len(images), text=title, unit="images") as advance:
        for at in range(max(1, len(images))):
            rest = AfterLayer(model, name, images[at : at + 1] if len(images) else images.new_zeros(1, *x.shape[1:]))
            if rest.maps.dim() != 4:
                raise ValueError(
                    f"layer {name!r} should have maps [N, K, h, w] or [N, h, w, K] for {title}, "
                    f"got {list(rest.maps.shape)}"
                )
            order = cam_layers.planes(rest.maps, rest.layer_output, name, rest.axes)
            if not len(images):
                return selection.no_values(order, shape or order.shape[2:])
            one = selection.for_samples(torch.tensor([at], device=images.device), len(images))
            maps = _one_image(rest, order, one, batch_size, active, changed, combined)
            found.append(maps if selection.several else maps[0])
            advance(1)
    maps = torch.stack(found).to(map_dtype(images.dtype))
    return maps if shape is None else tensors.resize_maps(maps, *shape)


def _one_image(
    rest: AfterLayer,
    planes: Tensor,
    selection: targets.Selection,
    batch_size: int | None,
    active: Callable[[Tensor], Tensor],
    changed: Callable[[Tensor, Tensor], Tensor],
    combined: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """The map [T, h, w] of one image, whose layer maps [1, K, h, w] are ``planes``."""
    if selection.predicts:
        selection = selection.with_predicted(targets.predicted(rest.output))

    def values(output: object, count: int) -> Tensor:
        rows = selection.for_samples(torch.zeros(count, dtype=torch.int64, device=planes.device), 1)
        return rows.values(output, {}).reshape(count, -1)

    # from planes [1, K, h, w] back to the layer's own order of dimensions
    where = rest.axes.planes(rest.layer_output)
    if where is not None and where.tokens is not None:
        raise ValueError("layer should give maps [N, K, h, w] to change, and gives tokens; take a layer of maps")
    order = (0, 1, 2, 3) if where is None else where.order
    back = [order.index(dim) for dim in range(4)]
    before = values(rest.output, 1)
    numbers = active(planes)
    at_once = batch_size or max(1, min(_MAX_MAPS, _MAX_VALUES // planes.numel()))
    after = [
        values(rest(changed(planes, part).permute(back)), len(part)) for part in numbers.split(at_once) if len(part)
    ]
    return combined(planes, numbers, before, torch.cat(after) if after else before[:0])
