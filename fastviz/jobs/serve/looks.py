"""What the panel shows of a photograph, card by card, in the spirit of Yosinski et al.'s toolbox.

Yosinski, Clune, Nguyen, Fuchs, Lipson 2015, "Understanding neural networks through deep visualization",
https://arxiv.org/abs/1506.06579.
"""

from __future__ import annotations

import base64
import inspect
import io
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
from fastviz.engine.optimize import Optimization
from fastviz.images import drawing, tensors
from fastviz.jobs.arguments import target_index
from fastviz.jobs.serve.desk import Order
from fastviz.jobs.serve.known import Known
from fastviz.jobs.serve.networks import Network
from fastviz.jobs.serve.uploads import LIMIT_PIXELS
from fastviz.methods.inspection.activations import activations
from fastviz.methods.inspection.patch_sheets import patch_pictures, patch_sheet
from fastviz.methods.inspection.patches import Patches, patches
from fastviz.methods.registry import EXPLAINERS
from fastviz.methods.synthesis.activation_maximization import maximize

__all__ = ["SLOW", "Look", "Looks"]

_GUESSES, _STRONGEST, _PATCHES = 5, 12, 9
_STEPS, _EVERY = 96, 12
_REMEMBERED = 200

SLOW = {
    name
    for name, method in EXPLAINERS.items()
    if {"stride", "segments", "masks", "steps", "samples"} & set(inspect.signature(method.function).parameters)
}
"""Methods of many passes: they come last."""

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
"""Fewer samples than elsewhere: a page waits, and nobody waits for what is outdated before it has ended."""


class Look(BaseModel):
    """What a page asks for."""

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
    """A photograph before a network."""

    look: Look
    network: Network
    x: Tensor
    shown: Tensor
    order: Order
    target: int | None
    unit: int


class Looks:
    """Computes what pages ask for; one thread at a time.

    Args:
        networks: those that are offered.
        known: photographs among which patches are searched for.
    """

    def __init__(self, networks: Sequence[Network], known: Known) -> None:
        self.networks, self._known = list(networks), known
        self._remembered: OrderedDict[Any, Any] = OrderedDict()

    def see(self, look: Look, name: str, content: bytes, order: Order) -> None:
        """Give every card of ``look`` to ``order`` as it is ready, the quick ones first."""
        try:
            self._see(look, name, content, order)
        except (ValueError, TypeError, RuntimeError, MemoryError, NotImplementedError) as error:
            title = "This photograph cannot be shown"
            order.emit({"card": "guesses", "title": title, "state": "failed", "error": _sentence(error)})
        order.emit({"end": True})

    def _see(self, look: Look, name: str, content: bytes, order: Order) -> None:
        network = self.networks[look.network]
        x, shown = images.read_views(content, [network.seen, network.shown], limit_pixels=LIMIT_PIXELS, name=name)
        x = x[None].to(network.device)
        target = self._guesses(look, network, x, order)
        unit = self._activations(look, network, x, order)
        scene = _Scene(look, network, x, shown, order, target, unit)
        with self._card(order, "unit", f"Channel {unit} on the photograph") as put:
            put(self._unit(scene), f"where channel {unit} of {look.layer} answers to the photograph")
        for method in sorted(look.methods, key=lambda each: each in SLOW):
            with self._card(order, f"map-{method}", method.replace("_", " ")) as put:
                put(
                    self._map(scene, method), f"{method.replace('_', ' ')}: {drawing.LEGENDS[EXPLAINERS[method].draws]}"
                )
        if "unit" in look.pictures:
            with self._card(order, "image-unit", f"What channel {unit} likes most") as put:
                self._image(scene, put, (look.layer, unit))
        if "class" in look.pictures and network.classes is not None and target is not None:
            with self._card(order, "image-class", f"What {network.classes[target]} looks like to the network") as put:
                self._image(scene, put, target)
        if "patches" in look.pictures:
            title = f"What excites channel {unit} most in {len(self._known)} known photographs"
            with self._card(order, "patches", title) as put:
                put(self._patches(scene), f"the {_PATCHES} strongest places of channel {unit}, guided backprop below")

    @contextmanager
    def _card(self, order: Order, card: str, title: str) -> Iterator[Callable[[Tensor, str], None]]:
        """Says that a card is worked on, then gives its picture, or why there is none."""
        order.emit({"card": card, "title": title, "state": "working"})
        began = time.perf_counter()

        def put(picture: Tensor, words: str, state: str = "done") -> None:
            seconds = round(time.perf_counter() - began, 3)
            told = {"card": card, "title": title, "state": state, "alt": words, "seconds": seconds}
            order.emit(told | {"picture": _url(picture)} | ({"note": str(noted[0].message)} if noted else {}))

        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            try:
                yield put
            except (ValueError, TypeError, RuntimeError, MemoryError, NotImplementedError) as error:
                order.emit({"card": card, "title": title, "state": "failed", "error": _sentence(error)})

    # -------------------------------------------------------------------------------------------------- the cards

    def _guesses(self, look: Look, network: Network, x: Tensor, order: Order) -> int | None:
        """Tells what the network thinks of the photograph; the class that is explained."""
        scores = network.scores.of(x, needed=False)
        if scores is None or network.classes is None:
            return None
        probabilities = scores[0].double().softmax(0)
        most = probabilities.topk(min(_GUESSES, len(probabilities)))
        guesses = [
            {"name": network.classes[index], "probability": round(value, 5)}
            for value, index in zip(most.values.tolist(), most.indices.tolist(), strict=True)
        ]
        told = {"card": "guesses", "state": "done", "title": "What the network thinks", "guesses": guesses}
        target: int | None
        try:
            target = target_index(look.target.strip() or "predicted", network.classes)
        except ValueError as error:
            target = None
            told["error"] = _sentence(error)
        if target is None and "error" not in told:
            target = int(most.indices[0])
        order.emit(told)
        return target

    def _activations(self, look: Look, network: Network, x: Tensor, order: Order) -> int:
        """Tells what the channels of the layer answer; the channel that is looked at."""
        maps = activations(network.model, x, look.layer)[0].float().cpu()
        strongest = maps.flatten(1).amax(1)
        best = strongest.topk(min(_STRONGEST, len(strongest)))
        unit = int(best.indices[0]) if look.unit is None else min(look.unit, len(maps) - 1)
        C, height, width = maps.shape
        columns = max(1, round((C * height / width) ** 0.5 + 0.499))
        sheet = tensors.grid(tensors.colour_map(tensors.normalize(maps), "inferno"), columns=columns, padding=1)
        told = {"card": "activations", "state": "done", "title": f"Activations of {look.layer}", "picture": _url(sheet)}
        order.emit(
            told
            | {
                "alt": f"the maps of {C} channels, each from its least to its largest value; strongest: channel "
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
        maps = activations(scene.network.model, scene.x, scene.look.layer)[0, scene.unit].float().cpu()
        return drawing.draw("signed" if bool((maps < 0).any()) else "heat", maps, scene.shown, coarse=True)

    def _map(self, scene: _Scene, name: str) -> Tensor:
        method = EXPLAINERS[name]
        target: Any = targets.channel(scene.look.layer, scene.unit)
        if scene.look.explain == "class":
            if scene.target is None:
                raise ValueError("There is no class to explain: choose one of the network's, or explain the channel.")
            target = torch.tensor([scene.target], device=scene.network.device)
        options = dict(method.defaults) | _QUICK.get(name, {})
        if name == "occlusion":  # a window of an eighth: coarse, and there at once
            side = max(1, min(scene.x.shape[-2:]) // 8)
            options |= {"window": side, "stride": max(1, side // 2)}
        found = method.function(scene.network.model, scene.x, target, **options)
        found = found if isinstance(found, Tensor) else found.attribution
        found = found.detach().float().cpu()[0]
        coarse = tuple(found.shape[-2:]) != tuple(scene.x.shape[-2:])
        return drawing.draw(method.draws, found, scene.shown, coarse=coarse)

    def _image(self, scene: _Scene, put: Callable[..., None], what: int | tuple[str, int]) -> None:
        """The image that a class, or the unit at the centre of a channel's map, likes most; also on its way."""
        words = "made by gradient ascent from nothing, for no photograph"
        key = ("image", scene.look.network, what)
        if key not in self._remembered:

            def preview(step: int, pictures: Tensor) -> None:
                put(images.restore(pictures[0].float().cpu(), scene.network.seen), f"{words}; step {step}", "working")

            target: Any = what if isinstance(what, int) else targets.neuron(*what)
            going = Optimization(preview=preview, preview_every=_EVERY)
            made = maximize(scene.network.model, target, steps=_STEPS, optimization=going)
            self._remember(key, made.pictures[0].float().cpu())
        put(self._remembered[key], words)

    def _patches(self, scene: _Scene) -> Tensor:
        model, layer = scene.network.model, scene.look.layer
        known = self._known.checked(scene.order.check)
        if not len(known):
            raise ValueError("There are no known photographs: start fastviz serve with a job or with --photos.")
        where = ("patches", scene.look.network, layer, len(known))
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
    buffer = io.BytesIO()
    images.picture_of(tensors.eight_bits(picture)).save(buffer, "PNG", compress_level=4)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
