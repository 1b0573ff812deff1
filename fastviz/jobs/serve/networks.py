"""The networks that the panel offers, each loaded once, and what it tells of them."""

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

__all__ = ["Network", "network_of", "of_job"]


@dataclass(frozen=True, eq=False)
class Network:
    """A network and what a page needs to know of it.

    Attributes:
        name: as the page calls it.
        model: on its device, in evaluation mode.
        device: where it is.
        seen: how photographs are prepared for it.
        shown: how they are prepared to look at.
        layers: name → the shape of its output for one image, (C, h, w); those with maps.
        classes: names of the classes; None for what is no classifier.
        scores: what it answers to images.
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
        """What the page is told, as JSON values."""
        return {
            "name": self.name,
            "layers": [{"name": name, "shape": list(shape)} for name, shape in self.layers.items()],
            "classes": None if self.classes is None else list(self.classes),
        }


def network_of(name: str, model: nn.Module, device: torch.device) -> Network:
    """The network ``model`` as the panel takes it.

    Raises:
        ValueError: it has no layer with maps, or takes no images.
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
    return Network(name, model, device, seen, enlarged(seen), layers, classes, scores)


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


def of_job(job: Mapping[str, Any], device: torch.device) -> Network:
    """The network of a job, prepared as the job prepared it.

    Raises:
        ValueError: it was a module in Python, which cannot be loaded by its name; or its weights are gone.
    """
    name = job["settings"]["model"]
    model = models.load_model(name, job["weights"]).to(device)
    told: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in job["settings"]["preprocessing"].items()
    }
    models.describe(model, preprocessing=Preprocessing(**told))
    return network_of(name, model, device)
