"""Images of many units, and inversion, compared with lucent and eager torch: ``python -m
benchmarks.methods.synthesis.activation_maximization``.

torchvision's ImageNet SqueezeNet with ``--weights FILE`` (otherwise random weights, which take the same time). Lucent
is the package torch-lucent 0.1.8, measured if it is installed: one unit at a time, with its own defaults. ``--show
FOLDER`` writes pictures instead of measuring, and prints their scores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import fastviz as fv
from benchmarks.common import parse, parser, row, seconds, side_by_side, write
from benchmarks.ops.operators import eager_total_variation
from fastviz import images
from fastviz.engine.optimize import priors
from fastviz.engine.optimize.canvas import frame_of
from fastviz.images import tensors

Rows = list[dict[str, Any]]

SIZE = 128
"""Lucent's default side, in pixels."""
STEPS = 16
"""Number of steps for both tools; every step takes the same time."""
FEW = 2
"""Number of images for timing lucent, which makes them one by one; each takes the same time."""
CLASSES = (1, 9, 24, 71, 130, 145, 185, 281, 291, 292, 301, 323, 340, 386, 388, 417, 637, 779, 934, 951)
"""Twenty classes that are easy to recognise: goldfish, ostrich, grey owl, scorpion, flamingo, king penguin, …"""


def lucent() -> Any | None:
    """Lucent's modules, or None if it is not installed."""
    try:
        import kornia
        from lucent.optvis import objectives, param, render, transform
    except ImportError:
        return None
    # The last release of lucent, 0.1.8, uses kornia's older names.
    kornia.get_rotation_matrix2d = kornia.geometry.transform.get_rotation_matrix2d
    kornia.warp_affine = kornia.geometry.transform.warp_affine
    return SimpleNamespace(objectives=objectives, param=param, render=render, transform=transform)


def lucent_images(model: nn.Module, objectives: Sequence[Any], tool: Any, network_size: int | None) -> list[Any]:
    """Images by lucent with its own defaults, one at a time; the network sees them at ``network_size`` (None: 224)."""
    made = []
    for objective in objectives:
        made.append(
            tool.render.render_vis(
                model,
                objective,
                lambda: tool.param.image(SIZE),
                transforms=tool.transform.standard_transforms,
                thresholds=(STEPS,),
                fixed_image_size=network_size,
                show_image=False,
                progress=False,
            )
        )
        # Lucent leaves its hooks on the model, which would slow down the next image.
        for module in model.modules():
            module._forward_hooks.clear()
    return made


def units(model: nn.Module, count: int, device: torch.device) -> Rows:
    """Images of ``count`` channels and units of a layer: all at once, and one at a time with lucent."""
    tool = lucent()
    if tool is None:
        print("not measured: pip install --no-deps torch-lucent==0.1.8 decorator future ipython")
        return []
    rows = []
    # Without gradients of the weights, which lucent would compute needlessly.
    frozen = copy.deepcopy(model).requires_grad_(False)
    few = min(FEW, count)
    for layer in ("features.3", "features.7", "features.12"):
        index = torch.arange(count)
        for kind, target, make in (
            ("channels", fv.channel(layer, index), tool.objectives.channel),
            ("units", fv.neuron(layer, index), tool.objectives.neuron),
        ):
            wanted = [make(layer.replace(".", "_"), k) for k in range(few)]
            calls: dict[str, Callable[[], Any]] = {
                "fastviz": partial(fv.maximize, model, target, size=SIZE, steps=STEPS),
                "lucent": partial(lucent_images, frozen, wanted, tool, SIZE),
                "lucent as it comes": partial(lucent_images, frozen, wanted, tool, None),
            }
            case = f"{count} {kind} of {layer}, {SIZE}x{SIZE}, {STEPS} steps"
            with fv.cuda_graphs():  # nothing on a CPU
                times = side_by_side(calls, device, rounds=5, least=0, warm_up=1)
            for rival in ("lucent", "lucent as it comes"):
                times[rival] = {name: each * count / few for name, each in times[rival].items()}
            note = (
                f"lucent makes one image after the other: the time of {few}, times {count / few:g}; it enlarges to 224 "
                "by default, and the first rival is set to"
            )
            rows.append(row("maximize", case, times, {"lucent": 5 if device.type == "cpu" else 15}, note))
    return rows


class EagerVariation(priors.Prior):
    """Total variation in plain torch, differentiated by autograd."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def penalty(self, images: Tensor, rows: Tensor) -> Tensor:
        """See the class."""
        return self.weight * eager_total_variation(images, 2.0)


def prior_gradient(prior: priors.Prior, x: Tensor) -> Tensor:
    """The gradient of a prior's penalty."""
    leaf = x.detach().requires_grad_()
    penalty = prior.penalty(leaf, torch.arange(len(x), device=x.device))
    assert penalty is not None
    (found,) = torch.autograd.grad(penalty.sum(), leaf)
    return found


def variation(model: nn.Module, device: torch.device) -> Rows:
    """Inversion of the first layer with the native and the eager total variation, and the prior alone."""
    rows = []
    frame = frame_of(model)
    power, native = priors.natural_image(frame)
    assert isinstance(native, priors.TotalVariation)
    both = {"fastviz": native, "eager prior": EagerVariation(native.weight)}
    for n in (1, 8):
        x = torch.randn(n, 3, *frame.size, device=device)
        inversion = partial(
            fv.invert, model, x, "features.1", steps=10, optimization=fv.Optimization(canvas="pixels", optimizer="adam")
        )
        whole = {name: partial(inversion, priors=[power, prior]) for name, prior in both.items()}
        times = side_by_side(whole, device, rounds=7, least=0, warm_up=1)
        rows.append(row("invert", f"features.1, {n} of 224x224, 10 Adam steps", times, {}))
        alone = {name: partial(prior_gradient, prior, x) for name, prior in both.items()}
        case = f"{n} of 224x224, with gradient"
        rows.append(row("total variation in invert", case, side_by_side(alone, device), {"eager prior": 12}))
    return rows


# ----------------------------------------------------------------------------------------------------------- pictures


def show(model: nn.Module, photos: Path | None, out: Path) -> None:
    """Write the pictures and print their scores."""
    out.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    goal: list[fv.Maximized] = []
    taken = seconds(
        lambda: goal.append(
            fv.maximize(
                model,
                torch.tensor(CLASSES),
                goal=0.99,
                transforms=(),
                priors=(),
                steps=200,
                optimization=fv.Optimization(canvas="pixels"),
            )
        ),
        device,
    )
    reached = int((goal[0].probability >= 0.99).sum())
    print(
        f"{reached} of {len(CLASSES)} classes at 99 % from a zero image, half of them after "
        f"{int(goal[0].steps.median())} steps, all after {int(goal[0].steps.max())}: {taken:.1f} s"
    )
    made = fv.maximize(model, torch.tensor(CLASSES), progress=True)
    images.save_image(tensors.grid(made.pictures, columns=5), out / "classes.png")
    yosinski = [priors.L2(1e-3), priors.Blur(every=4, sigma=0.7)]
    made = fv.maximize(
        model,
        torch.tensor(CLASSES),
        priors=yosinski,
        steps=160,
        progress=True,
        optimization=fv.Optimization(canvas="pixels", optimizer="ascent"),
    )
    images.save_image(tensors.grid(made.pictures, columns=5), out / "classes_yosinski.png")
    if photos is None:
        return
    x, _ = fv.load_images([photos / f"{name}.jpg" for name in ("tabby", "monarch", "macaw")], model=model)
    x = x.to(device)
    columns = [frame_of(model).picture(x).clamp(0, 1)]
    for inverted in fv.invert_all(model, x, progress=True).values():
        halves = [float(inverted.history[at].mean()) for at in (len(inverted.history) // 10, -1)]
        print(
            f"{inverted.layer:14s} error {100 * float(inverted.error.mean()):6.2f} %  "
            f"({100 * halves[0]:.2f} % after a tenth of the steps)  "
            f"PSNR {', '.join(f'{each:.1f}' for each in inverted.psnr.tolist())} dB"
        )
        columns.append(inverted.pictures)
    strip = torch.stack(columns, 1).flatten(0, 1)
    images.save_image(tensors.grid(strip, columns=len(columns)), out / "inversion.png")
    starts = fv.invert(model, x[1:2], "features.9", starts=4)
    images.save_image(tensors.grid(starts.pictures, columns=4), out / "starts.png")
    spread = (starts.pictures - starts.pictures.mean(0)).square().mean().sqrt()
    errors = ", ".join(f"{100 * each:.1f} %" for each in starts.error.tolist())
    print(f"4 starts for one code of features.9: errors {errors}; they differ by {float(spread):.3f} (rms)")


def main() -> None:
    arguments = parser(__doc__, "optimize")
    arguments.add_argument("--weights", help="a file of SqueezeNet 1.0's weights")
    arguments.add_argument("--count", type=int, default=64, help="channels and units")
    arguments.add_argument("--only", choices=("units", "variation"), help="measure one part")
    arguments.add_argument("--show", type=Path, help="write pictures into this folder instead of measuring")
    arguments.add_argument("--photos", type=Path, help="photographs to invert, for --show")
    options = parse(arguments, "optimize")
    model = fv.load_model("squeezenet1_0", weights=options.weights).to(options.device)
    if options.show:
        show(model, options.photos, options.show)
        return
    rows = units(model, options.count, options.device) if options.only != "variation" else []
    if options.only != "units":
        rows += variation(model, options.device)
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
