"""Parameter randomisation compared with a plain loop, infidelity and max-sensitivity with captum:
``python -m benchmarks.evaluation.sanity``.

Parameter randomisation: ResNet-18, 8 images, Grad-CAM, cascading over all layers; the loop copies the network and
randomises its layers, with the same maps. captum's measures: SqueezeNet, 8 images, saliency, 10 perturbations each;
captum runs with batches of 8 and of 80 images, and the faster one counts.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

import fastviz as fv
from benchmarks.common import parse, parser, row, shares, side_by_side, write
from fastviz import evaluation

IMAGES, CLASS, SAMPLES = 8, 7, 10


def randomisation(device: torch.device, rounds: int) -> dict[str, Any]:
    model, x = fv.load_model("resnet18").to(device), torch.randn(IMAGES, 3, 224, 224, device=device)
    layers = evaluation.randomisable_layers(model, x)

    def loop() -> list[Tensor]:
        changed, maps = copy.deepcopy(model), [fv.grad_cam(model, x, CLASS, layer="layer4")]
        for name in layers:
            changed.get_submodule(name).reset_parameters()
            maps.append(fv.grad_cam(changed, x, CLASS, layer="layer4"))
        return [evaluation.rank_correlation(maps[0], each) for each in maps[1:]]

    def explain(network: Any, images: Tensor, target: Any) -> Tensor:
        return fv.grad_cam(network, images, target, layer="layer4")

    def ours() -> object:
        return evaluation.parameter_randomisation(model, x, explain, CLASS, similarities=("rank",))

    calls = {"fastviz": ours, "plain loop": loop}
    times = side_by_side(calls, device, rounds=rounds, least=0, warm_up=1)
    found = row("parameter randomisation", f"resnet18, {IMAGES} images, Grad-CAM", times, {"plain loop": 1.0})
    return {**found, "profile": shares(ours, device)}


def captums(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    from captum.attr import Saliency
    from captum.metrics import infidelity, sensitivity_max

    model, x = fv.load_model("squeezenet1_0").to(device), torch.randn(IMAGES, 3, 224, 224, device=device)
    maps = fv.input_gradient(model, x, CLASS)
    explain = Saliency(model).attribute

    def perturb(images: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.003 * torch.randn_like(images)
        return noise, images - noise

    def absolute(network: Any, images: Tensor, target: Any) -> Tensor:
        return fv.input_gradient(network, images, target).abs()

    whole = IMAGES * SAMPLES
    ours = {
        "infidelity": lambda: evaluation.infidelity(model, x, maps, CLASS, perturbation=perturb, samples=SAMPLES),
        "max-sensitivity": lambda: evaluation.max_sensitivity(model, x, absolute, CLASS, samples=SAMPLES),
    }
    theirs = {
        "infidelity": lambda size: infidelity(
            model, perturb, x, maps, target=CLASS, n_perturb_samples=SAMPLES, max_examples_per_batch=size
        ),
        "max-sensitivity": lambda size: sensitivity_max(
            explain, x.clone().requires_grad_(), target=CLASS, n_perturb_samples=SAMPLES, max_examples_per_batch=size
        ),
    }
    rows = []
    for name, call in ours.items():
        calls = {"fastviz": call}
        calls |= {f"captum, {size} at once": lambda s=size, n=name: theirs[n](s) for size in (IMAGES, whole)}
        times = side_by_side(calls, device, rounds=rounds, least=0, warm_up=1)
        targets = dict.fromkeys(list(calls)[1:], 1.2)
        found = row(name, f"squeezenet1_0, {IMAGES} images, {SAMPLES} samples", times, targets)
        rows.append({**found, "profile": shares(call, device)})
    return rows


def main() -> None:
    arguments = parser(__doc__, "evaluation-sanity")
    arguments.add_argument("--rounds", type=int, default=5)
    options = parse(arguments, "evaluation-sanity")
    rows = [randomisation(options.device, options.rounds), *captums(options.device, options.rounds)]
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
