"""Time to a good style transfer, compared with the plain loop of Gatys et al.: ``python -m
benchmarks.methods.synthesis.time_to_style SHARED``.

The convolutions of a trained VGG-16 (``SHARED/models/vgg16_trunk_hed.safetensors``), a photograph of
``SHARED/images`` and two CC0 textures of scikit-image as styles, at ``--size`` pixels. The loop is PyTorch's
``torch.optim.LBFGS`` on pixels from the content, in channels_last memory. fastviz has its defaults. Both are judged by
the style loss of the paper, computed outside of the measured time; the result is how long fastviz takes until its style
loss is that of the loop's last picture. ``--pictures`` writes the pictures of both after equal numbers of passes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastviz as fv
from benchmarks.common import parse, parser, row, write
from benchmarks.methods.attribution.approximate import vgg16_trunk

STYLE, CONTENT = (1, 6, 11, 18, 25), 20
"""relu1_1 … relu5_1 and relu4_2 of VGG-16."""
STYLES = ("brick", "grass")

Trace = list[tuple[float, Tensor]]
"""Seconds since the start, and the image then."""


class Losses:
    """The losses of :func:`fastviz.style_transfer`, in plain torch."""

    def __init__(self, network: nn.Sequential, content: Tensor, style: Tensor, beta: float) -> None:
        self.network, self.beta = network, beta
        with torch.no_grad():
            self.content = self.features(content)[CONTENT]
            self.styles = {number: self.gram(maps) for number, maps in self.features(style).items() if number in STYLE}
            self.scales = {number: float(gram.diagonal().mean()) ** 2 for number, gram in self.styles.items()}

    def features(self, image: Tensor) -> dict[int, Tensor]:
        """The maps of the layers that count."""
        found = {}
        for number, layer in enumerate(self.network):
            image = layer(image)
            if number in (*STYLE, CONTENT):
                found[number] = image
        return found

    @staticmethod
    def gram(maps: Tensor) -> Tensor:
        """[C, C], divided by the number of positions."""
        rows = maps.flatten(2)[0]
        return rows @ rows.T / rows.shape[1]

    def style(self, found: dict[int, Tensor]) -> Tensor:
        """Σ_l 1/5 E_l, each divided by its scale."""
        parts = [
            F.mse_loss(self.gram(found[number]), wanted) / 4 / self.scales[number]
            for number, wanted in self.styles.items()
        ]
        return torch.stack(parts).mean()

    def total(self, image: Tensor) -> Tensor:
        """The loss that is minimised."""
        found = self.features(image)
        content = 0.5 * F.mse_loss(found[CONTENT], self.content, reduction="sum") / self.content.square().sum()
        return content + self.beta * self.style(found)


def plain_loop(losses: Losses, content: Tensor, passes: int) -> Trace:
    """L-BFGS on pixels, as PyTorch's tutorial has it."""
    image = content.clone(memory_format=torch.contiguous_format).requires_grad_()  # L-BFGS wants flat gradients
    optimizer = torch.optim.LBFGS([image], max_iter=passes, max_eval=passes, tolerance_grad=0, tolerance_change=0)
    trace: Trace = []
    began = time.perf_counter()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = losses.total(image)
        loss.backward()
        trace.append((time.perf_counter() - began, image.detach().clone()))
        return loss

    optimizer.step(closure)
    return trace


def ours(model: nn.Module, content: Tensor, style: Tensor, steps: int) -> tuple[Trace, Any]:
    """fastviz with its defaults; its pictures at every fifth step."""
    trace: Trace = []
    began = time.perf_counter()
    watched = fv.Optimization(
        preview=lambda step, images: trace.append((time.perf_counter() - began, images.clone())), preview_every=5
    )
    made = fv.style_transfer(model, content, style, steps=steps, optimization=watched)
    return [*trace, (time.perf_counter() - began, made.images)], made


def compared(shared: Path, size: int, passes: int, name: str, pictures: Path | None) -> dict[str, Any]:
    import skimage.data

    trunk = vgg16_trunk(shared)[0]
    assert isinstance(trunk, nn.Sequential)
    trunk = trunk[: STYLE[-1] + 1].requires_grad_(False)
    photo = fv.images.read_image(shared / "images" / "golden_retriever.jpg")[None]
    texture = torch.from_numpy(getattr(skimage.data, name)()).float() / 255
    texture = texture.expand(1, 3, *texture.shape) if texture.dim() == 2 else texture.permute(2, 0, 1)[None]
    frame = fv.canvas.frame_of(fv.load_model("squeezenet1_0"), (size, size))
    content, style = (
        frame.image(F.interpolate(each, (size, size), mode="bicubic").clamp(0, 1)) for each in (photo, texture)
    )
    last = trunk.to(memory_format=torch.channels_last)
    losses = Losses(last, content, style, beta=300.0)
    theirs = plain_loop(losses, content, passes)
    mine, made = ours(trunk, content, style, passes // 2)
    with torch.no_grad():
        goal = float(losses.style(losses.features(theirs[-1][1])))
        reached = [
            (seconds, float(losses.style(losses.features(image)))) for seconds, image in mine if image.shape[-1] == size
        ]
    print(f"{name}: style loss of the loop {goal:.4g}; of fastviz {[f'{s:.0f} s {v:.3g}' for s, v in reached]}")
    taken = next((seconds for seconds, value in reached if value <= goal), float("inf"))
    times = {
        "fastviz": {"median_ms": taken * 1000, "spread_ms": 0.0},
        "plain L-BFGS loop": {"median_ms": theirs[-1][0] * 1000, "spread_ms": 0.0},
    }
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        shown = [
            frame.picture(each).clamp(0, 1)[0] for each in (content, style, theirs[-1][1].contiguous(), made.images)
        ]
        fv.images.save_image(torch.cat(shown, -1), pictures / f"{name}.png")
    case = f"VGG-16, {size}x{size}, {name}, {passes} passes"
    found = row("style_transfer, time to equal style loss", case, times, {"plain L-BFGS loop": 2.0})
    return {**found, "details": {"loop_style_loss": goal, "fastviz": reached}}


def main() -> None:
    arguments = parser(__doc__, "time-to-style")
    arguments.add_argument("shared", type=Path)
    arguments.add_argument("--size", type=int, default=512)
    arguments.add_argument("--passes", type=int, default=200, help="of the loop")
    arguments.add_argument("--only", choices=STYLES)
    arguments.add_argument("--pictures", type=Path, help="write the pictures into this folder")
    options = parse(arguments, "time-to-style")
    rows = [
        compared(options.shared, options.size, options.passes, name, options.pictures)
        for name in STYLES
        if options.only in (None, name)
    ]
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
