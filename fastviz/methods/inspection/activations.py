"""Activations: the outputs of layers for images, and maps as a grid of pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastviz._util import checks
from fastviz._util.batch_size import images_at_once
from fastviz.engine.gradients.cam_layers import layout
from fastviz.execution import forward
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.hooks import Hook, floating_output, hooked
from fastviz.execution.inputs import input_batch, output_of
from fastviz.execution.map_axes import Axes
from fastviz.execution.precision import Precision, checked_precision
from fastviz.images import overlays, tensors
from fastviz.images.overlays import ColourMap

__all__ = ["activation_grid", "activations"]

_SIDE = 1200
"""The approximate width of a grid of maps in pixels."""

_IMAGE = 448
"""Height of the image next to the grid, in pixels, if the grid is high enough."""


@overload
def activations(
    model: nn.Module,
    x: Tensor,
    layer: str,
    *,
    layers: None = None,
    as_maps: bool = False,
    batch_size: int | None = None,
    precision: Precision = "model",
    device: torch.device | str | None = None,
) -> Tensor: ...
@overload
def activations(
    model: nn.Module,
    x: Tensor,
    layer: None = None,
    *,
    layers: Sequence[str] | None = None,
    as_maps: bool = False,
    batch_size: int | None = None,
    precision: Precision = "model",
    device: torch.device | str | None = None,
) -> dict[str, Tensor]: ...
def activations(
    model: nn.Module,
    x: Tensor,
    layer: str | None = None,
    *,
    layers: Sequence[str] | None = None,
    as_maps: bool = False,
    batch_size: int | None = None,
    precision: Precision = "model",
    device: torch.device | str | None = None,
) -> Tensor | dict[str, Tensor]:
    """The output of a layer, or of several from one forward pass, for the images ``x``.

    Outputs are recorded as the module returns them, before a following in-place rectifier changes them, and at the
    module's last call if it is called several times. From the second batch on, the pass ends after the last requested
    layer. Grids of maps: Yosinski et al. 2015, https://arxiv.org/abs/1506.06579.

    Args:
        model: any module that takes ``x``.
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0. Or signals [N, C, L], or volumes
            [N, C, D, H, W].
        layer: dotted name of one layer.
        layers: several names instead of ``layer``. If both are None: every convolution that the model calls, in call
            order, found by running the first image again.
        as_maps: return every output as maps [N, K, h, w], for signals [N, K, l], for volumes [N, K, d, h, w]: also
            outputs with channels last, and tokens, without class and register tokens. This takes another pass of the
            first image, which traces the dimensions from the image.
        batch_size: images in a pass; None is 32. Besides the result, only the activations of one batch are in memory.
        precision: see :func:`fastviz.input_gradient`.
        device: where the results are stored; None is the device of ``x``. ``"cpu"`` saves GPU memory.

    Returns:
        [N, C, H, W] for ``layer``, or whatever shape it gives ([N, D], [N, L, D]), in its dtype; otherwise a
        dictionary, layer name → such a tensor.

    Raises:
        TypeError: ``x`` is not a floating-point tensor; a layer does not return one floating-point tensor.
        ValueError: wrong shape or device of ``x``; no layers, or one that does not exist or is not called, or, with
            ``as_maps``, has no maps.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    >>> activations(model, torch.ones(2, 3, 8, 8), "0").shape
    torch.Size([2, 4, 6, 6])
    >>> found = activations(model, torch.ones(2, 3, 8, 8), layers=["0", "2"])
    >>> {name: list(maps.shape) for name, maps in found.items()}
    {'0': [2, 4, 6, 6], '2': [2, 5, 4, 4]}
    """
    images = input_batch(model, x, axes=(1, 2, 3))
    most = images_at_once(batch_size)
    checked_precision(precision)
    names = checks.layer_names(layer, layers) or _convolutions(model, images)
    place = images.device if device is None else checks.device(device)
    noted: dict[str, Tensor] = {}
    lay = _layouts(model, images, names) if as_maps else {}

    def noting(name: str) -> Hook:
        def note(module: nn.Module, inputs: Any, output: object) -> None:
            # Copied, because later modules may change the output in place.
            maps = floating_output(name, output).detach()
            maps = lay[name](maps) if as_maps else maps
            noted[name] = _in_dtype(maps, images, precision).to(place, copy=True)

        return note

    found: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    hooks = {name: noting(name) for name in names}
    with frozen_model(model), torch.no_grad():
        if not len(images):  # shapes come from the network
            forward.run(model, _one_image(images), hooks, calls, precision)
            found = {name: noted[name][:0] for name in names}
        at_once = Batches(model).together(images, lambda batch: forward.outputs(model, batch, names, calls, precision))
        most = min(most, at_once)
        for start in range(0, len(images), most):
            batch = images[start : start + most]
            forward.run(model, batch.clone(), hooks, calls, precision)
            for name, maps in noted.items():
                if name not in found:
                    found[name] = maps.new_empty((len(images), *maps.shape[1:]))
                if maps.shape != (len(batch), *found[name].shape[1:]):
                    raise ValueError(
                        f"layer {name!r} should have outputs of one shape, one per image, got {list(maps.shape)} for "
                        f"{len(batch)} images"
                    )
                found[name][start : start + most] = maps
    return found[layer] if layer is not None else {name: found[name] for name in names}


def _layouts(model: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions that convert the output of each layer to maps, from one pass of the first image."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    axes = Axes()

    def note(name: str) -> Hook:
        def look(module: nn.Module, inputs: Any, output: object) -> None:
            found[name] = layout(floating_output(name, output), name, axes)

        return look

    hooks = {name: note(name) for name in names}
    with frozen_model(model), torch.no_grad(), hooked(model, hooks), axes:
        output_of(model, axes.images(_one_image(images)))
    return found


def _one_image(images: Tensor) -> Tensor:
    """A copy of the first of the ``images``; a black one if there is none."""
    return images[:1].clone() if len(images) else images.new_zeros((1, *images.shape[1:]))


def _in_dtype(maps: Tensor, images: Tensor, precision: Precision) -> Tensor:
    """``maps``, in the dtype of the images if autocast gave them another one."""
    return maps if precision == "model" else maps.to(images.dtype)


def _convolutions(model: nn.Module, images: Tensor) -> list[str]:
    """The convolutions that ``model`` calls."""
    with frozen_model(model), torch.no_grad():
        names = forward.called(model, _one_image(images), (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if not names:
        raise ValueError("layer or layers should be given for this model: it calls no convolution")
    return names


def activation_grid(
    maps: Tensor,
    *,
    image: Tensor | None = None,
    scale: Literal["each", "together"] = "each",
    colours: ColourMap = "grey",
    columns: int | None = None,
) -> Tensor:
    """A picture [3, H, W] of the maps of one image, enlarged without smoothing, with the ``image`` on the left.

    Args:
        maps: [C, h, w], one image of the result of :func:`activations`.
        image: the network's input as a picture, [3, H, W] in 0 to 1 (:func:`fastviz.images.restore`); None leaves it
            out.
        scale: ``"each"`` stretches every map from its smallest (black) to its largest value (white), which shows its
            spatial structure; ``"together"`` uses one scale for all, which shows which maps are strong. A constant map
            is black.
        colours: see :func:`fastviz.images.colour_map`.
        columns: maps per row; None is ⌈√C⌉.

    Returns:
        float32 [3, H, W] in 0 to 1, about 1,200 pixels wide without the ``image``.

    Raises:
        TypeError: ``maps`` is not a floating-point tensor.
        ValueError: a wrong shape, values that are not finite, an unknown word.

    >>> activation_grid(torch.rand(16, 13, 13)).shape
    torch.Size([3, 1216, 1216])
    """
    checks.tensor(maps, "maps", dims=(3,), layout="[C, h, w]")
    checks.one_of(scale, "scale", ("each", "together"))
    if columns is not None:
        checks.whole_number(columns, "columns", minimum=1)
    values = tensors.normalize(maps.detach().float(), dims=2 if scale == "each" else 3)
    C, h, w = values.shape
    across = max(1, round(C**0.5 + 0.499)) if columns is None else columns
    factor = max(1, min(_SIDE // (across * w), _SIDE // max(h, w)))
    larger = functional.interpolate(values[:, None], scale_factor=factor, mode="nearest")[:, 0]
    grid = tensors.grid(overlays.colour_map(larger, colours), columns=columns, padding=4)
    return grid if image is None else _beside(image, grid)


def _beside(image: Tensor, grid: Tensor) -> Tensor:
    """The ``grid`` with the ``image`` to its left, at the top."""
    checks.tensor(image, "image", dims=(3,), layout="[3, H, W]")
    if image.shape[0] != 3 or not image.numel():
        raise ValueError(f"image should have shape [3, H, W], got {list(image.shape)}")
    height = max(1, min(_IMAGE, grid.shape[1] - 8))
    width = max(1, round(image.shape[2] * height / image.shape[1]))
    column = grid.new_ones(3, grid.shape[1], width + 4)
    column[:, 4 : 4 + height, 4:] = tensors.resize(image[None].to(grid), height, width, "bilinear")[0]
    return torch.cat([column, grid], dim=2)
