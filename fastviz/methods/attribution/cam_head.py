"""How a network ends for CAM: in a global average of its last maps, and one linear layer.

Whether it does is seen by computing its scores that way: at once; or, where ``torch.export`` records the calls, as a
part of the program, since that makes the calls of its example for every input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastviz._util import checks
from fastviz.engine.gradients import cam_layers
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.model_outputs import scores_in
from fastviz.execution.precision import as_map
from fastviz.targets.objectives import Objective

__all__ = ["exported", "head", "weighted"]

_OTHERWISE = "model should end in a global average of its last maps and one linear layer for CAM; "


def head(model: nn.Module, name: str, maps: Tensor, scores: object) -> tuple[Tensor, Tensor]:
    """The maps [N, K, *places] and weights [classes, K] with ``scores = weights · mean(maps) + bias``.

    Args:
        model: any module.
        name: of the layer with the ``maps``, for errors.
        maps: [N, K, *places].
        scores: what the model gave for them.

    Raises:
        ValueError: the network ends otherwise; the message names its layers.
    """
    if isinstance(scores, Tensor) and not torch.isfinite(scores).all():
        raise ValueError(
            "model should give finite scores for CAM, which are compared with its maps; got NaN or infinity"
        )
    if isinstance(scores, Tensor):
        for linear in _linears(model, maps, scores):
            for each in (maps, maps.relu()):
                if bool(_fits(linear, each, scores)):
                    return each.detach().to(linear.weight.dtype), linear.weight.detach()
    raise _ends_otherwise(model, name, maps)


def weighted(maps: Tensor, weights: Tensor) -> Tensor:
    """``Σ_k w_k A_k`` of the maps [N, K, *places] with weights [N, K] or [N, T, K]: [N, *places] or [N, T, *places]."""
    found = torch.einsum("n...k,nkp->n...p", as_map(weights), as_map(maps.flatten(2)))
    return found.reshape(*found.shape[:-1], *maps.shape[2:])


def exported(model: nn.Module, x: Tensor, target: object, precision: str) -> Tensor:
    """CAM for a program of ``torch.export``: no call depends on a value, so that those for the example suit any input.

    Args:
        model, x: as in :func:`fastviz.cam`.
        target: None, classes by number (ints or a tensor), or a list of those.
        precision: ``"model"``.

    Returns:
        [N, *places], or [N, T, *places]. The program fails on inputs whose scores are not made as CAM needs it.

    Raises:
        TypeError: another target.
        ValueError: another precision; a network that cannot end as CAM needs it.
    """
    images = checks.image_batch(x, "x", axes=(1, 2, 3))
    if precision != "model":
        raise ValueError(f"precision should be 'model' where fastviz.cam is exported, got {precision!r}")
    with frozen_model(model, exporting=True):
        name, maps, output = cam_layers.last_maps(model, images)
    scores = scores_in(output)
    found: Tensor | None = None
    known: Tensor | None = None
    if scores is not None:
        for linear in _linears(model, maps, scores):
            weights = _weights(target, linear.weight, scores)
            for each in (maps, maps.relu()):
                fits, candidate = _fits(linear, each, scores), weighted(each, weights)
                # the first that fits, as in head()
                found = candidate if known is None or found is None else torch.where(known, found, candidate)
                known = fits if known is None else known | fits
    if found is None or known is None:
        raise _ends_otherwise(model, name, maps)
    torch._assert_async(known, f"{_OTHERWISE}the mean of {name!r} does not give its scores")
    return found.detach()


def _linears(model: nn.Module, maps: Tensor, scores: Tensor) -> Iterator[nn.Linear]:
    """The linear layers that could make the ``scores`` of means of the ``maps``, the last first."""
    if not scores.is_floating_point():
        return
    for module in reversed([each for each in model.modules() if isinstance(each, nn.Linear)]):
        if module.in_features == maps.shape[1] and scores.shape[1:] == (module.out_features,):
            yield module


def _fits(linear: nn.Linear, maps: Tensor, scores: Tensor) -> Tensor:
    """Whether a linear layer gives the ``scores`` for the mean of the ``maps``, bool []."""
    mean = maps.flatten(2).mean(2).to(linear.weight.dtype)
    rebuilt = functional.linear(mean, linear.weight, linear.bias)
    # Rounding differs with the order of the sum; another architecture differs in the first digit.
    near = torch.finfo(scores.dtype).eps ** 0.5 * scores.abs().max()
    # weights of zero give the scores of any maps
    fits: Tensor = ((rebuilt - scores.to(rebuilt.dtype)).abs() <= near).all() & linear.weight.any()
    return fits


def _ends_otherwise(model: nn.Module, name: str, maps: Tensor) -> ValueError:
    linears = [each for each, module in model.named_modules() if isinstance(module, nn.Linear)]
    last = f"linear layer {linears[-1]!r}" if linears else "no linear layer"
    return ValueError(
        f"{_OTHERWISE}the mean of {name!r} {list(maps.shape)}, and {last}, do not give its scores; use grad_cam"
    )


def _weights(target: object, weight: Tensor, scores: Tensor) -> Tensor:
    """The weights of the ``target`` of each sample, [N, K], or [N, T, K] of several."""
    if isinstance(target, Sequence) and not isinstance(target, str) and target:
        return torch.stack([_weights(each, weight, scores) for each in target], 1)
    if target is None:
        return weight[scores.argmax(1)]
    if isinstance(target, Tensor) and target.dtype == torch.int64 and target.dim() in (1, 2):
        return weight[target]
    # of an objective, only what is a score alone
    number = target.class_index if isinstance(target, Objective) and target.scores_read is not None else target
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(
            "target should be None, or classes by number, where fastviz.cam is exported, got "
            f"{target if isinstance(target, Objective) else type(target).__name__}"
        )
    if not 0 <= number < len(weight):
        raise ValueError(f"target should be a class from 0 to {len(weight) - 1}, got {number}")
    return weight[number].expand(scores.shape[0], -1)
