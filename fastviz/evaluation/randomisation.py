"""Sanity check: do maps change when the network's parameters are randomised?"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.batch_size import images_at_once
from fastviz._util.progress import bar
from fastviz.evaluation._explain import AT_ONCE, Explain, explained_in_batches, single_objective
from fastviz.evaluation._maps import own_maps, resized
from fastviz.evaluation.similarity import SIMILARITIES
from fastviz.execution import forward
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.hooks import layer_module
from fastviz.execution.inputs import input_batch
from fastviz.images.notebook import NotebookResult, signed
from fastviz.targets.selection import Target

__all__ = ["Initial", "Randomisation", "parameter_randomisation", "randomisable_layers"]

Initial = Literal["reset", "normal", "permutation"]
"""How parameters are randomised: by the layer's own initialisation (its ``reset_parameters``); from a normal
distribution with the mean and standard deviation of the trained parameters; or by permuting the trained parameters."""


@dataclass(frozen=True, eq=False, repr=False)
class Randomisation(NotebookResult):
    """The result of :func:`parameter_randomisation`.

    Attributes:
        layers: the layers that each of the S steps randomises; with ``"cascading"`` those of earlier steps stay
            randomised.
        maps: [S + 1, N, h, w] or [S + 1, N, C, h, w]: of the original network, then after each step.
        similarity: name → [S, N], of the map after each step to that of the original network: lower is better. NaN
            where it is undefined, such as the rank correlation of a constant map.

    >>> from fastviz.methods.attribution.gradients import saliency
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> parameter_randomisation(model, torch.rand(1, 1, 4, 4), saliency, 1, similarities=["rank"]).maps.shape
    torch.Size([2, 1, 4, 4])
    """

    layers: tuple[tuple[str, ...], ...]
    maps: Tensor
    similarity: Mapping[str, Tensor]

    def shown(self) -> list[tuple[str, Tensor]]:
        """The maps of each image: of the original network, then after each step."""
        steps = ["as it is", *(", ".join(names) for names in self.layers)]
        maps = self.maps.sum(2) if self.maps.dim() == 5 else self.maps
        return [
            (f"{number}: {step}", signed(one))
            for number, rows in enumerate(maps.unbind(1))
            for step, one in zip(steps, rows, strict=True)
        ]


def parameter_randomisation(
    model: nn.Module,
    x: Tensor,
    explain: Explain,
    target: Target = None,
    *,
    order: Literal["cascading", "independent"] = "cascading",
    layers: Sequence[str | Sequence[str]] | None = None,
    steps: int | None = None,
    initial: Initial = "reset",
    similarities: Sequence[str] = ("rank", "ssim"),
    size: tuple[int, int] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Randomisation:
    """Maps of a network whose layers are randomised one by one, and their similarity to the original: lower is better.

    Adebayo et al. 2018, "Sanity Checks for Saliency Maps", https://arxiv.org/abs/1810.03292: cascading from the top
    (the last layer, then the last two, …), or each layer alone. A map that stays the same does not show what the
    network has learned. A predicted target is that of the original network. The model is copied once, and not changed.

    Numbers of other tools: Quantus' ``ModelParameterRandomisation`` takes as ``layers`` all modules with a
    ``reset_parameters``, from the last to the first, and has its own correlation; its ``seed`` gives other random
    numbers.

    Args:
        model: maps ``x`` to scores [N, K], or to anything, for targets inside the network.
        x: [N, C, H, W], as the model takes it.
        explain: a method such as :func:`fastviz.grad_cam`, or any function of a model, images and a target.
        target: one per sample; see :data:`fastviz.Target`.
        order: ``"cascading"`` or ``"independent"``.
        layers: dotted names in the order in which they are randomised; a nested sequence of names is one step. None:
            every convolution, linear layer and the like (with a parameter of at least two dimensions) that the model
            calls, the last called first; normalisation layers stay unchanged.
        steps: group the layers into this many steps of about equal size; None is one step per layer.
        initial: see :data:`fastviz.evaluation.Initial`.
        similarities: names among ``rank``, ``rank_absolute``, ``ssim``, ``hog`` and ``top_k``; see
            :func:`fastviz.evaluation.agreement`.
        size: height and width to which maps are resized before they are compared; None keeps their own.
        seed: for the new parameters. torch's global random state is restored.
        batch_size: images in a call of the method; None is 8.
        progress: show a progress bar on a terminal.

    Returns:
        A :class:`Randomisation`: maps for S + 1 networks, and similarities [S, N] by name.

    Raises:
        TypeError: the model cannot be copied.
        ValueError: a layer that does not exist, has no parameters, or no ``reset_parameters`` where it is needed;
            several targets per sample.

    >>> from fastviz.methods.attribution.gradients import saliency
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    >>> found = parameter_randomisation(model, torch.rand(1, 1, 4, 4), saliency, target=1, similarities=["rank"])
    >>> found.layers, found.similarity["rank"].shape
    ((('2',), ('0',)), torch.Size([2, 1]))
    """
    images = input_batch(model, x).detach()
    checks.one_of(order, "order", ("cascading", "independent"))
    checks.one_of(initial, "initial", ("reset", "normal", "permutation"))
    functions = {name: SIMILARITIES[checks.nearest(name, "similarity", SIMILARITIES)] for name in similarities}
    checks.whole_number(seed, "seed", minimum=0)
    at_once = images_at_once(batch_size, AT_ONCE)
    groups = _groups(model, images, layers, steps)
    objective = single_objective(model, images, target, at_once)
    changed = _copied(model)

    def maps_of(network: nn.Module) -> Tensor:
        return explained_in_batches(explain, network, images, objective, at_once)

    with bar(progress, len(groups) + 1, text="parameter randomisation", unit="networks") as advance:
        maps = [maps_of(model)]
        advance(1)
        for number, group in enumerate(groups):
            saved = _saved_parameters(changed, group)
            with _seeded(seed + number):
                for name in group:
                    _randomise(layer_module(changed, name), name, initial)
            maps.append(maps_of(changed))
            if order == "independent":
                _restore(changed, saved)
            advance(1)
    clean = _compared(maps[0], size)
    similarity = {
        name: torch.stack([function(clean, _compared(each, size)) for each in maps[1:]])
        for name, function in functions.items()
    }
    return Randomisation(groups, torch.stack(maps), similarity)


def randomisable_layers(model: nn.Module, x: Tensor) -> list[str]:
    """The layers with a parameter of at least two dimensions that ``model`` calls for ``x``, the last called first.

    Args:
        model: any module that takes ``x``; not changed.
        x: [N, C, H, W]; the first image is run.

    Returns:
        Dotted names.

    Raises:
        TypeError, ValueError: the model does not take ``x``.

    >>> randomisable_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), torch.rand(1, 1, 4, 4))
    ['2', '0']
    """
    with frozen_model(model), torch.no_grad():
        called = forward.called(model, x[:1].clone(), (nn.Module,))
    modules = dict(model.named_modules())
    wide = [name for name in called if name and any(p.dim() > 1 for p in modules[name].parameters(recurse=False))]
    return wide[::-1]


def _groups(
    model: nn.Module, images: Tensor, layers: Sequence[str | Sequence[str]] | None, steps: int | None
) -> tuple[tuple[str, ...], ...]:
    if layers is None:
        if not len(images):
            raise ValueError("layers should be given if x has no image, since they are found by running one")
        found: list[tuple[str, ...]] = [(name,) for name in randomisable_layers(model, images)]
        if not found:
            raise ValueError("layers should be given for this model, which calls none with weights")
    else:
        found = [(each,) if isinstance(each, str) else tuple(each) for each in layers]
        if not found or not all(found):
            raise ValueError("layers should have at least one name in each step, got none")
    for name in (name for group in found for name in group):
        if not any(True for _ in layer_module(model, name).parameters()):
            raise ValueError(f"layers should have parameters, got {name!r}, which has none")
    if steps is None or steps >= len(found):
        return tuple(found)
    checks.whole_number(steps, "steps", minimum=1)
    ends = [round(len(found) * step / steps) for step in range(steps + 1)]
    return tuple(tuple(name for group in found[start:end] for name in group) for start, end in pairwise(ends))


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"model should be one that copy.deepcopy can copy, and is not: {error}") from error


def _saved_parameters(model: nn.Module, group: Sequence[str]) -> dict[str, Tensor]:
    """Copies of the parameters and buffers of the layers of ``group``, by full name."""
    return {
        f"{name}.{key}": value.detach().clone()
        for name in group
        for key, value in layer_module(model, name).state_dict().items()
    }


def _restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in saved.items():
            layer, _, key = name.rpartition(".")
            getattr(model.get_submodule(layer), key).copy_(value)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global CPU generator, the only one that ``reset_parameters`` uses, and restores it afterwards."""
    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(state)


def _randomise(layer: nn.Module, name: str, initial: Initial) -> None:
    """Randomise a layer and the layers inside it, in place; numbers are drawn on the CPU for every device."""
    with torch.no_grad():
        for inner, module in layer.named_modules():
            own = list(module.parameters(recurse=False))
            if not own:
                continue
            if initial == "reset":
                fresh = copy.deepcopy(module).cpu()
                reset = getattr(fresh, "reset_parameters", None) or getattr(fresh, "_reset_parameters", None)
                if reset is None:
                    full = f"{name}.{inner}".rstrip(".")
                    raise ValueError(
                        f"layer {full!r} ({type(module).__name__}) has no reset_parameters; "
                        'choose initial="normal" or "permutation", or other layers'
                    )
                reset()
                module.load_state_dict(fresh.state_dict())
                continue
            for parameter in own:
                if initial == "permutation":
                    flat = parameter.flatten()
                    shuffled = flat[torch.randperm(len(flat)).to(flat.device)]
                    parameter.copy_(shuffled.reshape(parameter.shape))
                elif parameter.numel() > 1:
                    deviation, mean = torch.std_mean(parameter.float(), correction=0)
                    drawn = torch.empty_like(parameter, device="cpu").normal_()
                    parameter.copy_(drawn.to(parameter.device) * deviation + mean)


def _compared(maps: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Maps [N, h, w] prepared for comparison."""
    found = own_maps(maps.nan_to_num(0.0, 0.0, 0.0), len(maps))
    return found if size is None else resized(found, found.new_empty(0, 1, *size))
