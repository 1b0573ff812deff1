"""What the layers of a network answer to an image: their outputs, and the maps as a grid of pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastviz._util import checks
from fastviz.execution import forward
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.hooks import Hook, floating_output
from fastviz.execution.inputs import input_batch
from fastviz.images import tensors
from fastviz.images.tensors import ColourMap

__all__ = ["activation_grid", "activations"]

_BATCH = 32
_SIDE = 1200
"""About how many pixels a grid of maps is wide."""

_IMAGE = 448
"""Height of the image beside it, in pixels, if the grid is as high."""


def activations(
    model: nn.Module,
    x: Tensor,
    layers: str | Sequence[str] | None = None,
    *,
    batch_size: int = _BATCH,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """The outputs of ``layers`` for the images ``x``, from one forward pass: layer name → [N, C, H, W].

    Layers that are no convolution may give other shapes, [N, D] or [N, L, D]. A layer is recorded as it leaves its
    module, before an in-place rectifier behind it, and at its last call where it is called several times. From the
    second batch on the pass ends at the last layer that is asked for. As grids of maps: Yosinski et al. 2015,
    https://arxiv.org/abs/1506.06579.

    Args:
        model: any module that takes ``x``.
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0.
        layers: one dotted name or several; None is every 2-d convolution that the model calls, in the order of calls,
            found by running the first image once more.
        batch_size: images the network sees at once; beside the result, only the activations of so many are in memory.
        device: where the results are kept; None is the device of ``x``. ``"cpu"`` spares the memory of a GPU.

    Raises:
        TypeError: ``x`` is no floating-point tensor; a layer returns something else than one floating-point tensor.
        ValueError: wrong shape or device of ``x``; no layers, or one that does not exist or is not called.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    >>> {name: list(maps.shape) for name, maps in activations(model, torch.ones(2, 3, 8, 8), ["0", "2"]).items()}
    {'0': [2, 4, 6, 6], '2': [2, 5, 4, 4]}
    """
    images = input_batch(model, x)
    checks.whole_number(batch_size, "batch_size", minimum=1)
    names = _names(model, images, layers)
    place = images.device if device is None else checks.device(device)
    noted: dict[str, Tensor] = {}

    def noting(name: str) -> Hook:
        def note(module: nn.Module, inputs: Any, output: object) -> None:
            # A copy: what comes behind may change the output in place.
            noted[name] = floating_output(name, output).detach().to(place, copy=True)

        return note

    found: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    hooks = {name: noting(name) for name in names}
    with frozen_model(model), torch.no_grad():
        if not len(images):  # shapes come from the network
            forward.run(model, images.new_zeros((1, *images.shape[1:])), hooks, calls)
            return {name: noted[name][:0] for name in names}
        at_once = Batches(model).together(images, lambda batch: forward.outputs(model, batch, names, calls))
        batch_size = min(batch_size, at_once)
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            forward.run(model, batch.clone(), hooks, calls)
            for name, maps in noted.items():
                if name not in found:
                    found[name] = maps.new_empty((len(images), *maps.shape[1:]))
                if maps.shape != (len(batch), *found[name].shape[1:]):
                    raise ValueError(
                        f"layer {name!r} should have outputs of one shape, one an image, got {list(maps.shape)} for "
                        f"{len(batch)} images"
                    )
                found[name][start : start + batch_size] = maps
    return {name: found[name] for name in names}


def _names(model: nn.Module, images: Tensor, layers: str | Sequence[str] | None) -> list[str]:
    """The layers that are asked for, each once."""
    if layers is None:
        one = images[:1].clone() if len(images) else images.new_zeros((1, *images.shape[1:]))
        with frozen_model(model), torch.no_grad():
            names = forward.called(model, one, (nn.Conv2d,))
        if not names:
            raise ValueError("layers should be given for this model: it calls no 2-d convolution")
        return names
    names = list(dict.fromkeys(checks.names(layers, "layers")))
    if not names:
        raise ValueError("layers should be a name or several, got none")
    return names


def activation_grid(
    maps: Tensor,
    *,
    image: Tensor | None = None,
    scale: Literal["each", "together"] = "each",
    colours: ColourMap = "grey",
    columns: int | None = None,
) -> Tensor:
    """A picture [3, H, W] of the maps of one image, enlarged without smoothing, with the ``image`` to their left.

    Args:
        maps: [C, h, w], one image of what :func:`activations` returns.
        image: what the network saw, [3, H, W] in 0 to 1 (:func:`fastviz.images.restore`); None leaves it out.
        scale: ``"each"`` stretches every map from its least (black) to its largest value (white), which shows what is
            where; ``"together"`` all with one scale, which shows what maps answer strongly. A constant map is black.
        colours: see :func:`fastviz.images.colour_map`.
        columns: maps in a row; None is ⌈√C⌉.

    Raises:
        TypeError: ``maps`` is no floating-point tensor.
        ValueError: another shape, values that are not finite, an unknown word.

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
    grid = tensors.grid(tensors.colour_map(larger, colours), columns=columns, padding=4)
    return grid if image is None else _beside(image, grid)


def _beside(image: Tensor, grid: Tensor) -> Tensor:
    """The ``image`` at the top to the left of the ``grid``."""
    checks.tensor(image, "image", dims=(3,), layout="[3, H, W]")
    if image.shape[0] != 3 or not image.numel():
        raise ValueError(f"image should have shape [3, H, W], got {list(image.shape)}")
    height = max(1, min(_IMAGE, grid.shape[1] - 8))
    width = max(1, round(image.shape[2] * height / image.shape[1]))
    column = grid.new_ones(3, grid.shape[1], width + 4)
    column[:, 4 : 4 + height, 4:] = tensors.resize(image[None].to(grid), height, width, "bilinear")[0]
    return torch.cat([column, grid], dim=2)
