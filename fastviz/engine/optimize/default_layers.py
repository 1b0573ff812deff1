"""Default layers of methods, chosen by the sizes of their feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.optimize.canvas import parameter_of
from fastviz.execution import forward
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.inputs import output_of
from fastviz.models.descriptions import preprocessing

__all__ = ["dream_layer", "style_layers"]


def dream_layer(model: nn.Module) -> str:
    """The default layer of DeepDream: the last stage before the coarsest maps.

    It is deep enough for eyes and faces, and fine enough for many of them: ``features.10`` of SqueezeNet 1.0,
    ``layer3`` of a ResNet, the last rectifier of VGG-16. Maps of one pixel do not count; of nested layers the outermost
    is chosen.

    Raises:
        ValueError: the network does not have maps [N, C, H, W] of two sizes, as in transformers.

    >>> import fastviz as fv
    >>> dream_layer(fv.load_model("demo"))
    'relu5_1'
    """
    seen = [(name, places) for name, places in _map_sizes(model) if places > 1]
    sizes = sorted({places for _, places in seen})
    if len(sizes) < 2:
        raise ValueError("layer should be named for this model, which has no maps [N, C, H, W] of two sizes")
    names = [name for name, places in seen if places == sizes[1]]
    outermost = min(name.count(".") for name in names)
    return [name for name in names if name.count(".") == outermost][-1]


def style_layers(model: nn.Module) -> tuple[list[str], list[str]]:
    """The default layers for style and for content.

    In a chain of layers separated by pooling (VGG, AlexNet, SqueezeNet, the built-in network), the style layers are the
    first rectified maps of each stage, at most five, and the content layer is the second (or only) one of the stage
    before the coarsest: relu1_1 … relu5_1 and relu4_2 of VGG, as in Gatys et al. In other networks they are the last
    layers of each map size.

    Raises:
        ValueError: the network does not have maps [N, C, H, W] of two sizes, as in transformers.

    >>> import fastviz as fv
    >>> style_layers(fv.load_model("demo"))
    (['relu1', 'relu2_1', 'relu3_1', 'relu4_1', 'relu5_1'], ['relu4_2'])
    """
    stages = _chain(checks.module(model))
    if len(stages) < 3:
        stages = _last_of_each_size(model)
    if len(stages) < 2:
        raise ValueError("layers should be named for this model, which has no maps [N, C, H, W] of two sizes")
    stages = stages[:5]
    return [stage[0] for stage in stages], stages[-2][1:2] or stages[-2][:1]


def _chain(model: nn.Module) -> list[list[str]]:
    """The rectified layers between the pooling layers of a network that is a chain; few or none if it is not."""
    body = getattr(model, "features", model)
    if not isinstance(body, nn.Sequential):
        return []
    prefix = "" if body is model else "features."
    stages: list[list[str]] = [[]]
    for name, module in body.named_children():
        if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            stages.append([])
        elif isinstance(module, nn.Flatten):
            break
        elif any(isinstance(part, nn.ReLU) for part in module.modules()):
            stages[-1].append(f"{prefix}{name}")
    return [stage for stage in stages if stage]


def _last_of_each_size(model: nn.Module) -> list[list[str]]:
    """The last of the outermost layers of each map size above one position, the largest maps first."""
    sizes = dict(_map_sizes(model))  # of several calls of a layer, the last one counts
    layers: dict[int, list[str]] = {}
    for name, _ in model.named_modules():
        if sizes.get(name, 0) > 1:
            layers.setdefault(sizes[name], []).append(name)
    stages = []
    for size in sorted(layers, reverse=True):
        depth = min(name.count(".") for name in layers[size])
        stages.append([[name for name in layers[size] if name.count(".") == depth][-1]])
    return stages


def _map_sizes(model: nn.Module) -> list[tuple[str, int]]:
    """Layer name and positions h · w of the output of each call, in the order in which calls end; 0 for other
    outputs."""

    def places(output: object) -> int:
        return output.shape[2] * output.shape[3] if isinstance(output, Tensor) and output.dim() == 4 else 0

    known = preprocessing(model)
    images = parameter_of(model).new_zeros(1, len(known.mean), *(known.size or (224, 224)))
    with frozen_model(model), torch.no_grad(), forward.noting(model, places) as found:
        output_of(model, images, "images")
    return found
