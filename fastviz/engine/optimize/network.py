"""A model for optimisation: the features of some layers, and an objective for targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz.engine.gradients import unit_gradients
from fastviz.engine.optimize.host_cache import HostCache
from fastviz.execution import forward
from fastviz.execution.hooks import layer_module
from fastviz.execution.inputs import require_gradients
from fastviz.execution.precision import Precision, as_taken, checked_precision, in_dtype, map_dtype
from fastviz.models.descriptions import preprocessing
from fastviz.targets.indices import Activations
from fastviz.targets.objectives import Objective
from fastviz.targets.outputs import split_output

__all__ = ["FeatureNetwork", "TargetObjective", "target_objective"]


class FeatureNetwork:
    """Outputs of ``layers``, and of the model if ``output``, for batches of images, in their graph.

    Without ``output`` the forward pass ends after the last of the layers. If a layer runs several times, its last
    output is returned. Call it inside ``frozen_model``, as :func:`fastviz.engine.optimize.optimize` does.

    Args:
        model: any module; a 16-bit model gets the images in its dtype.
        layers: dotted names.
        output: whether the model's own output is needed.
        precision: ``"bfloat16"`` runs the model under autocast. In this case and for a 16-bit model outputs have the
            dtype of the images, but at least float32.
        argument: the name of the images in errors; None leaves the model's errors unchanged.

    Raises:
        ValueError: a layer does not exist or cannot be recorded; the message lists the closest names.

    >>> network = FeatureNetwork(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), ["1"], output=False)
    >>> output, activations = network(torch.zeros(2, 3, 8, 8))
    >>> activations["1"].shape
    torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        *,
        output: bool,
        precision: Precision = "model",
        argument: str | None = "images",
    ) -> None:
        checked_precision(precision)
        require_gradients(model)
        self.model = model
        self.layers = tuple(dict.fromkeys(layers))
        self.output = output
        self.argument = argument
        self.precision = precision
        self._calls: Mapping[str, int] | None = None
        for name in self.layers:
            layer_module(model, name)

    def __call__(self, images: Tensor) -> tuple[object, Activations]:
        """Output of the model (None without ``output``) and outputs by layer name, for ``images`` [N, C, H, W].

        Raises:
            ValueError: the model cannot take images of this size; see :func:`fastviz.execution.inputs.usable`.
        """
        # Copied because some models modify their input in place; convolutions are fastest with channels last.
        batch = as_taken(self.model, images.clone(memory_format=torch.channels_last))
        low = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            output, recorded = self._run(batch)
        wide = map_dtype(images.dtype)
        if low or batch.dtype != wide:
            recorded = {name: recorded[name].to(wide) for name in self.layers}
            output = in_dtype(output, wide)
        return (output if self.output else None), recorded

    def _run(self, batch: Tensor) -> tuple[object, Activations]:
        if not self.output and self._calls is None:
            size = preprocessing(self.model).size or (batch.shape[2], batch.shape[3])
            self._calls = unit_gradients.calls_of_layers(self.model, self.layers, size, channels=batch.shape[1])
        if self.output or self._calls is not None:
            return targets.run(self.model, batch, self.layers, calls=self._calls, argument=self.argument)
        return self._counting_run(batch)

    def _counting_run(self, batch: Tensor) -> tuple[object, Activations]:
        """A full pass that counts the calls of each layer, for models that cannot be traced."""
        with forward.noting(self.model, lambda output: None, self.layers) as noted:
            result = targets.run(self.model, batch, self.layers, argument=self.argument)
        calls = Counter(name for name, _ in noted)
        if calls.keys() == set(self.layers):
            self._calls = calls
        return result


class TargetObjective:
    """The objective of images with one target each; made by :func:`target_objective`.

    Called with images [n, C, H, W] and their indices int64 [n], in ascending order, it returns the values of their
    targets and the measures that a goal is compared with: the probability for the score or probability of a class, else
    the value itself. Image i has target ``i // repeats``.
    """

    def __init__(self, network: FeatureNetwork, parts: Sequence[tuple[Objective, int]], repeats: int) -> None:
        self.network = network
        self.parts = tuple(parts)
        self.repeats = repeats
        self.targets = sum(count for _, count in parts)
        """The number of targets."""
        self._groups = HostCache(self._grouped)

    def is_class(self) -> list[bool]:
        """For each image whether its target is the score or the probability of a class."""
        return [part.as_probability() is not None for part, count in self.parts for _ in range(count * self.repeats)]

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values and measures, [n] each."""
        output, activations = self.network(images)
        groups = self._groups(rows)
        # One split instead of one slice per target, so that its gradient is assembled once.
        sizes = [group.size for group in groups]
        outputs = split_output(output, sizes)
        maps = {name: activations[name].split(sizes) for name in self.network.layers}
        values, measures = [], []
        for i, group in enumerate(groups):
            mine = {name: split[i] for name, split in maps.items()}
            value = group.objective.values(outputs[i], mine)
            values.append(value)
            if group.probability is None:
                measures.append(value.detach())
            else:
                with torch.no_grad():
                    measures.append(group.probability.values(outputs[i], mine))
        return torch.cat(values), torch.cat(measures)

    def _grouped(self, rows: Tensor) -> list[_Group]:
        """The images ``rows`` grouped by target, without empty groups."""
        numbers = (rows // self.repeats).cpu()
        ends = [0, *accumulate(count for _, count in self.parts)]
        sizes = torch.searchsorted(numbers, torch.tensor(ends)).diff().tolist()
        groups = []
        for (objective, count), first, samples in zip(self.parts, ends, numbers.split(sizes), strict=False):
            if len(samples):
                probability = objective.as_probability()
                local = samples - first
                groups.append(
                    _Group(
                        len(samples),
                        objective.for_samples(local, count),
                        None if probability is None else probability.for_samples(local, count),
                    )
                )
        return groups


@dataclass(frozen=True)
class _Group:
    """The images of a batch with the same target: how many, their objective, and the probability for a goal."""

    size: int
    objective: Objective
    probability: Objective | None


def target_objective(
    model: nn.Module,
    target: targets.Target,
    *,
    repeats: int = 1,
    precision: Precision = "model",
    argument: str = "images",
) -> TargetObjective:
    """The objective for one image per target, or ``repeats`` of them.

    Unlike in attribution methods, several targets mean several images: a tensor of T classes, a list of T targets, or
    an objective with tensors of T numbers, such as ``fastviz.channel("conv1", torch.arange(64))``.

    Raises:
        TypeError: not a target.
        ValueError: a target that does not exist, an empty list, or the predicted class, which is unknown before there
            is an image.
    """
    if isinstance(target, Tensor) and target.dim() == 2:
        raise ValueError(f"target should have one class per image, [T], got shape {list(target.shape)}")
    if isinstance(target, Tensor) and target.dim() == 1 and not len(target):
        raise ValueError("target should have at least one class, got an empty tensor")
    selection = targets.resolve(target, model)
    if selection.predicts:
        raise ValueError(
            "target should say which class, such as 3: there is no image yet whose class could be predicted, got None"
        )
    parts = [(objective, objective.samples or 1) for objective in selection.objectives]
    network = FeatureNetwork(
        model, selection.layers, output=selection.reads_output, precision=precision, argument=argument
    )
    return TargetObjective(network, parts, repeats)
