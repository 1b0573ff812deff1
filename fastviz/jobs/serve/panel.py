"""The panel's pictures of a photograph, one per card, in the spirit of Yosinski et al.'s toolbox.

Yosinski, Clune, Nguyen, Fuchs, Lipson 2015, "Understanding neural networks through deep visualization",
https://arxiv.org/abs/1506.06579.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fastviz import images, targets
from fastviz._util.errors import one_line
from fastviz.engine.optimize import Optimization
from fastviz.images import drawing, overlays, tensors
from fastviz.images.pillow import data_url, encoded
from fastviz.jobs.arguments import target_index
from fastviz.jobs.serve.device_queue import Task
from fastviz.jobs.serve.known_photographs import KnownPhotographs
from fastviz.jobs.serve.networks import ServedNetwork
from fastviz.jobs.serve.uploads import LIMIT_PIXELS
from fastviz.methods.inspection.activations import activations
from fastviz.methods.inspection.patch_sheets import patch_pictures, patch_sheet
from fastviz.methods.inspection.patches import Patches, patches
from fastviz.methods.registry import EXPLAINERS
from fastviz.methods.synthesis.activation_maximization import maximize

__all__ = ["SLOW", "Panel", "PanelRequest"]

_GUESSES, _STRONGEST, _PATCHES = 5, 12, 9
_STEPS, _EVERY = 96, 12
_REMEMBERED = 200

SLOW = {
    name
    for name, method in EXPLAINERS.items()
    if {"stride", "segments", "masks", "steps", "samples"} & set(inspect.signature(method.function).parameters)
}
"""Methods with many forward passes, which are computed last."""

_QUICK: dict[str, dict[str, Any]] = {
    "smooth_grad": {"samples": 16},
    "smooth_grad_squared": {"samples": 16},
    "var_grad": {"samples": 16},
    "integrated_gradients": {"steps": 20},
    "gradient_shap": {"samples": 10},
    "shapley_sampling": {"permutations": 3},
    "kernel_shap": {"samples": 150},
    "lime": {"samples": 150},
    "rise": {"masks": 400},
}
"""Fewer samples than elsewhere: a page is waiting, and a cancelled method runs to its end."""


class PanelRequest(BaseModel):
    """A page's request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    page: str = Field(max_length=40)
    photo: str = Field(max_length=40)
    network: int = Field(0, ge=0)
    layer: str = Field(max_length=300)
    unit: int | None = Field(None, ge=0)
    explain: Literal["class", "unit"] = "class"
    target: str = Field("predicted", max_length=300)
    methods: list[str] = Field(default_factory=list, max_length=len(EXPLAINERS))
    pictures: list[Literal["unit", "class", "patches"]] = Field(default_factory=list, max_length=3)


@dataclass(frozen=True)
class _Scene:
    """A photograph with the network, layer and target to show."""

    request: PanelRequest
    network: ServedNetwork
    x: Tensor
    shown: Tensor
    task: Task
    target: int | None
    unit: int


class Panel:
    """Computes the cards that pages request. Not thread-safe.

    Args:
        networks: the networks that are offered.
        known: the photographs that are searched for patches.
    """

    def __init__(self, networks: Sequence[ServedNetwork], known: KnownPhotographs) -> None:
        self.networks, self._known = list(networks), known
        self._remembered: OrderedDict[Any, Any] = OrderedDict()

    def see(self, request: PanelRequest, name: str, content: bytes, task: Task) -> None:
        """Emit every card of ``request`` to ``task`` as soon as it is ready, the fast ones first."""
        try:
            self._see(request, name, content, task)
        except (ValueError, TypeError, RuntimeError, MemoryError, NotImplementedError) as error:
            title = "This photograph cannot be shown"
            task.emit({"card": "guesses", "title": title, "state": "failed", "error": one_line(error)})
        task.emit({"end": True})

    def _see(self, request: PanelRequest, name: str, content: bytes, task: Task) -> None:
        network = self.networks[request.network]
        x, shown = images.read_views(content, [network.seen, network.shown], limit_pixels=LIMIT_PIXELS, name=name)
        x = x[None].to(network.device)
        target = self._guesses(request, network, x, task)
        unit = self._activations(request, network, x, task)
        scene = _Scene(request, network, x, shown, task, target, unit)
        with self._card(task, "unit", f"Channel {unit} on the photograph") as put:
            put(self._unit(scene), f"where channel {unit} of {request.layer} responds to the photograph")
        for method in sorted(request.methods, key=lambda each: each in SLOW):
            with self._card(task, f"map-{method}", method.replace("_", " ")) as put:
                put(
                    self._map(scene, method), f"{method.replace('_', ' ')}: {drawing.LEGENDS[EXPLAINERS[method].draws]}"
                )
        if "unit" in request.pictures:
            with self._card(task, "image-unit", f"What activates channel {unit} most") as put:
                self._image(scene, put, (request.layer, unit))
        if "class" in request.pictures and network.classes is not None and target is not None:
            with self._card(task, "image-class", f"What {network.classes[target]} looks like to the network") as put:
                self._image(scene, put, target)
        if "patches" in request.pictures:
            title = f"Patches of {len(self._known)} known photographs that activate channel {unit} most"
            with self._card(task, "patches", title) as put:
                put(
                    self._patches(scene),
                    f"the {_PATCHES} strongest patches of channel {unit}, with guided backprop below",
                )

    @contextmanager
    def _card(self, task: Task, card: str, title: str) -> Iterator[Callable[[Tensor, str], None]]:
        """Emit that a card is being computed, then its picture or the reason why there is none."""
        task.emit({"card": card, "title": title, "state": "working"})
        began = time.perf_counter()

        def put(picture: Tensor, words: str, state: str = "done") -> None:
            seconds = round(time.perf_counter() - began, 3)
            told = {"card": card, "title": title, "state": state, "alt": words, "seconds": seconds}
            task.emit(told | {"picture": _url(picture)} | ({"note": str(noted[0].message)} if noted else {}))

        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            try:
                yield put
            except (ValueError, TypeError, RuntimeError, MemoryError, NotImplementedError) as error:
                task.emit({"card": card, "title": title, "state": "failed", "error": one_line(error)})

    # -------------------------------------------------------------------------------------------------- the cards

    def _guesses(self, request: PanelRequest, network: ServedNetwork, x: Tensor, task: Task) -> int | None:
        """Emit the most probable classes; returns the class to explain."""
        scores = network.scores.of(x, needed=False)
        if scores is None or network.classes is None:
            return None
        probabilities = scores[0].double().softmax(0)
        most = probabilities.topk(min(_GUESSES, len(probabilities)))
        guesses = [
            {"name": network.classes[index], "probability": round(value, 5)}
            for value, index in zip(most.values.tolist(), most.indices.tolist(), strict=True)
        ]
        told = {"card": "guesses", "state": "done", "title": "Predicted classes", "guesses": guesses}
        target: int | None
        try:
            target = target_index(request.target.strip() or "predicted", network.classes)
        except ValueError as error:
            target = None
            told["error"] = one_line(error)
        if target is None and "error" not in told:
            target = int(most.indices[0])
        task.emit(told)
        return target

    def _activations(self, request: PanelRequest, network: ServedNetwork, x: Tensor, task: Task) -> int:
        """Emit the activations of the layer; returns the selected channel."""
        maps = activations(network.model, x, request.layer)[0].float().cpu()
        strongest = maps.flatten(1).amax(1)
        best = strongest.topk(min(_STRONGEST, len(strongest)))
        unit = int(best.indices[0]) if request.unit is None else min(request.unit, len(maps) - 1)
        C, height, width = maps.shape
        columns = max(1, round((C * height / width) ** 0.5 + 0.499))
        sheet = tensors.grid(overlays.colour_map(tensors.normalize(maps), "inferno"), columns=columns, padding=1)
        told = {
            "card": "activations",
            "state": "done",
            "title": f"Activations of {request.layer}",
            "picture": _url(sheet),
        }
        task.emit(
            told
            | {
                "alt": f"the maps of {C} channels, each scaled from its minimum to its maximum; strongest: channel "
                f"{int(best.indices[0])}",
                "unit": unit,
                "channels": C,
                "columns": columns,
                "rows": -(-C // columns),
                "strongest": [
                    [index, float(f"{value:.3g}")]
                    for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                ],
            }
        )
        return unit

    def _unit(self, scene: _Scene) -> Tensor:
        maps = activations(scene.network.model, scene.x, scene.request.layer)[0, scene.unit].float().cpu()
        return drawing.draw("signed" if bool((maps < 0).any()) else "heat", maps, scene.shown, coarse=True)

    def _map(self, scene: _Scene, name: str) -> Tensor:
        method = EXPLAINERS[name]
        target: Any = targets.channel(scene.request.layer, scene.unit)
        if scene.request.explain == "class":
            if scene.target is None:
                raise ValueError("There is no class to explain: choose one of the network's classes, or the channel.")
            target = torch.tensor([scene.target], device=scene.network.device)
        options = dict(method.defaults) | _QUICK.get(name, {})
        if name == "occlusion":  # windows of an eighth of the side: coarse but fast
            side = max(1, min(scene.x.shape[-2:]) // 8)
            options |= {"window": side, "stride": max(1, side // 2)}
        found = method.function(scene.network.model, scene.x, target, **options)
        found = found if isinstance(found, Tensor) else found.attribution
        found = found.detach().float().cpu()[0]
        coarse = tuple(found.shape[-2:]) != tuple(scene.x.shape[-2:])
        return drawing.draw(method.draws, found, scene.shown, coarse=coarse)

    def _image(self, scene: _Scene, put: Callable[..., None], what: int | tuple[str, int]) -> None:
        """The image that maximizes a class, or the unit at the centre of a channel's map, with previews."""
        words = "made by gradient ascent, independent of the photograph"
        key = ("image", scene.request.network, what)
        if key not in self._remembered:

            def preview(step: int, pictures: Tensor) -> None:
                put(images.restore(pictures[0].float().cpu(), scene.network.seen), f"{words}; step {step}", "working")

            target: Any = what if isinstance(what, int) else targets.neuron(*what)
            going = Optimization(preview=preview, preview_every=_EVERY)
            made = maximize(scene.network.model, target, steps=_STEPS, optimization=going)
            self._remember(key, made.pictures[0].float().cpu())
        put(self._remembered[key], words)

    def _patches(self, scene: _Scene) -> Tensor:
        model, layer = scene.network.model, scene.request.layer
        known = self._known.checked(scene.task.check)
        if not len(known):
            raise ValueError("There are no known photographs: start fastviz serve with a job or with --photos.")
        where = ("patches", scene.request.network, layer, len(known))
        if where not in self._remembered:
            self._remember(where, patches(model, known, layer, k=_PATCHES))
        key = (*where, scene.unit)
        if key not in self._remembered:
            found: Patches = self._remembered[where]
            made = patch_pictures(model, found, known, [scene.unit])
            self._remember(key, patch_sheet(made, scene.unit))
        sheet: Tensor = self._remembered[key]
        return sheet

    def _remember(self, key: object, value: object) -> None:
        self._remembered[key] = value
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)


def _url(picture: Tensor) -> str:
    """A picture [3, H, W] in 0 to 1 as a ``data:`` URL."""
    return data_url(encoded(images.picture_of(tensors.eight_bits(picture)), "PNG", compress_level=4), "png")
