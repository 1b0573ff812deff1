"""What targets read in a model's output: its maps, boxes and vectors, and parts for some of the images, whatever holds
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fastviz.execution.model_outputs import split_tensors

__all__ = ["detections", "maps_of", "output_kind", "split_output"]

_MAPS = ("out", "logits", "masks", "output")
"""Keys under which networks return their maps: the first is that of torchvision's segmentation networks."""


def output_kind(output: object) -> str:
    """The kind of ``output`` in words, for errors."""
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)} of {output.dtype}"
    if isinstance(output, Mapping):
        return f"a dictionary of {', '.join(map(repr, output)) or 'nothing'}"
    if isinstance(output, (list, tuple)):
        inside = f" of {output_kind(output[0])}" if output else ""
        return f"a {type(output).__name__} of {len(output)}{inside and ', the first' + inside[3:]}"
    return f"a {type(output).__name__}"


def maps_of(output: object) -> Tensor:
    """The maps of scores [N, K, ...] of a segmentation network.

    The output itself; ``"out"`` or ``"logits"`` of a dictionary or an object, else its only floating-point tensor; the
    first of a tuple.

    Raises:
        TypeError: nothing of the sort.
        ValueError: it has no positions.
    """
    found: object = output
    if isinstance(output, (tuple, list)) and output and not hasattr(output, "logits"):
        found = output[0]
    elif isinstance(output, Mapping):
        named = [output[key] for key in _MAPS if isinstance(output.get(key), Tensor)]
        floats = [each for each in output.values() if isinstance(each, Tensor) and each.is_floating_point()]
        found = named[0] if named else floats[0] if len(floats) == 1 else output
    elif not isinstance(output, Tensor):
        found = next((value for key in _MAPS if isinstance(value := getattr(output, key, None), Tensor)), output)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise TypeError(
            f"model should return maps of scores [N, K, H, W] for this target, got {output_kind(output)}; "
            "fastviz.output(function) takes them out of anything"
        )
    if found.dim() < 3:
        raise ValueError(
            f"model should return maps of scores [N, K, H, W] for this target, got {output_kind(found)}: "
            "explain a class"
        )
    return found


def detections(output: object) -> list[Mapping[str, Tensor]]:
    """The boxes of each image, as torchvision's detection networks give them: ``boxes`` [M, 4], ``scores`` [M], ….

    Raises:
        TypeError: nothing of the sort.
    """
    if (
        isinstance(output, Sequence)
        and not isinstance(output, str)
        and all(isinstance(each, Mapping) and {"boxes", "scores"} <= each.keys() for each in output)
    ):
        return list(output)
    raise TypeError(
        'model should return a list of one dictionary per image with "boxes" [M, 4] and "scores" [M] for this target, '
        f"got {output_kind(output)}; fastviz.output(function) takes them out of anything"
    )


def split_output(output: Any, sizes: Sequence[int]) -> list[Any]:
    """The output for the first images, the next ones, and so on: tensors in it are cut along dimension 0.

    A list with one entry per image that holds no plain tensors, such as that of a detection network, is cut itself.
    """
    total = sum(sizes)
    if isinstance(output, list) and len(output) == total and not any(isinstance(each, Tensor) for each in output):
        parts, start = [], 0
        for size in sizes:
            parts.append(output[start : start + size])
            start += size
        return parts
    return split_tensors(output, sizes)
