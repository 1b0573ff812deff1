"""The networks that the panel offers, each loaded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastviz import graph, models
from fastviz.graph.model_graph import NotTraceable
from fastviz.jobs.explainer import enlarged
from fastviz.jobs.scores import Scores
from fastviz.methods.inspection.activations import activations
from fastviz.models.descriptions import Preprocessing

__all__ = ["ServedNetwork", "network_of", "of_job"]


@dataclass(frozen=True, eq=False)
class ServedNetwork:
    """A network and what a page needs to know of it.

    Attributes:
        name: its name on the page.
        model: the network, on its device and in evaluation mode.
        device: its device.
        seen: its preprocessing.
        shown: the preprocessing of pictures for people.
        layers: layer name → the shape of its output for one image, (C, h, w), for layers with maps.
        classes: names of the classes; None if it is not a classifier.
        scores: computes its scores.
    """

    name: str
    model: nn.Module
    device: torch.device
    seen: Preprocessing
    shown: Preprocessing
    layers: Mapping[str, tuple[int, ...]]
    classes: Sequence[str] | None
    scores: Scores

    def words(self) -> dict[str, Any]:
        """The network's data for the page, as JSON values."""
        return {
            "name": self.name,
            "layers": [{"name": name, "shape": list(shape)} for name, shape in self.layers.items()],
            "classes": None if self.classes is None else list(self.classes),
        }


def network_of(name: str, model: nn.Module, device: torch.device) -> ServedNetwork:
    """``model`` as a :class:`ServedNetwork`.

    Raises:
        ValueError: it has no layer with maps, or does not take images.
    """
    seen = models.preprocessing(model)
    scores = Scores(model, device)
    black = torch.zeros(1, len(seen.mean), *(seen.size or (224, 224)), device=device)
    answer = scores.of(black, needed=False)
    layers = _layers(model, black)
    if not layers:
        raise ValueError(f"model {name} should have a layer with maps, got none")
    classes: list[str] | None
    try:
        classes = models.class_names(model)
    except ValueError:
        classes = None if answer is None else [f"class {index}" for index in range(answer.shape[1])]
    return ServedNetwork(name, model, device, seen, enlarged(seen), layers, classes, scores)


def _layers(model: nn.Module, black: Tensor) -> dict[str, tuple[int, ...]]:
    """The layers whose output is maps of more than one pixel, in the order of their calls."""
    try:
        found = graph.layers(model, (black.shape[2], black.shape[3]), black.shape[1])
    except NotTraceable:
        maps = activations(model, black)
        return {name: tuple(each.shape[1:]) for name, each in maps.items() if each.dim() == 4}
    return {
        layer.name: layer.shape
        for layer in found
        if layer.name and len(layer.shape) == 3 and layer.layout in (None, (2, 3)) and layer.shape[1:] != (1, 1)
    }


def of_job(job: Mapping[str, Any], device: torch.device) -> ServedNetwork:
    """The network of a job, with the job's preprocessing.

    Raises:
        ValueError: the job ran a Python module, which cannot be loaded by name; or its weights are gone.
    """
    name = job["settings"]["model"]
    model = models.load_model(name, job["weights"]).to(device)
    told: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in job["settings"]["preprocessing"].items()
    }
    models.describe(model, preprocessing=Preprocessing(**told))
    return network_of(name, model, device)
