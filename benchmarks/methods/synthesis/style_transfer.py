"""Style transfer on VGG-19 compared with the loop of Gatys et al. in plain PyTorch: ``python -m
benchmarks.methods.synthesis.style_transfer``.

Both start from the content and use Adam with the same losses, whose difference is printed. The loop runs a frozen copy
of the network that ends at the last layer, in contiguous and in channels_last memory. Times are for whole calls,
including the targets. Random weights take the same time as trained ones.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastviz as fv
from benchmarks.common import parse, parser, row, side_by_side, write
from fastviz.engine.optimize.canvas import Pixels

STYLE, CONTENT = (1, 6, 11, 20, 29), 22
"""relu1_1 … relu5_1 and relu4_2."""
BETA, RATE = 1e3, 0.001
"""A small learning rate: Adam's first steps follow the signs of gradients, which near 0 depend on rounding."""

Made = tuple[list[float], Tensor]


def gram(maps: Tensor) -> Tensor:
    rows = maps.flatten(2)[0]
    return rows @ rows.T


def plain_loop(network: nn.Sequential, content: Tensor, style: Tensor, steps: int) -> Made:
    """The loss before each step, and the image: the paper in plain torch."""

    def features(image: Tensor) -> dict[int, Tensor]:
        found = {}
        for number, layer in enumerate(network):
            image = layer(image)
            if number in STYLE or number == CONTENT:
                found[number] = image
        return found

    with torch.no_grad():
        wanted = features(content)[CONTENT]
        grams = {number: gram(maps) for number, maps in features(style).items() if number in STYLE}
    image = content.clone(memory_format=torch.preserve_format).requires_grad_()
    adam = torch.optim.Adam([image], lr=RATE)
    history = []
    for _ in range(steps):
        adam.zero_grad()
        found = features(image)
        loss = 0.5 * F.mse_loss(found[CONTENT], wanted, reduction="sum")
        for number in STYLE:
            maps = found[number]
            weight = BETA / len(STYLE) / (4 * maps.shape[1] ** 2 * maps[0, 0].numel() ** 2)
            loss = loss + weight * F.mse_loss(gram(maps), grams[number], reduction="sum")
        loss.backward()
        adam.step()
        history.append(loss.item())
    return history, image.detach()


@torch.no_grad()
def papers_weights(network: nn.Sequential, content: Tensor, style: Tensor) -> dict[str, dict[str, float]]:
    """The paper's weights, each multiplied by the scale that fastviz divides the loss of its layer by."""
    of_style, of_content = {}, {}
    painted, shown = style, content
    for number, layer in enumerate(network):
        painted, shown = layer(painted), layer(shown)
        if number in STYLE:
            of_style[f"features.{number}"] = float(painted.square().mean()) ** 2 / len(STYLE)
        if number == CONTENT:
            of_content[f"features.{number}"] = float(shown.square().sum())
    return {"layers": of_style, "content_layers": of_content}


def transfer(
    model: nn.Module, content: Tensor, style: Tensor, steps: int, weights: dict[str, dict[str, float]]
) -> Made:
    """The same with fastviz."""
    made = fv.style_transfer(
        *(model, content, style),
        style_weight=BETA,
        variation_weight=0,
        levels=1,
        steps=steps,
        **weights,
        optimization=fv.Optimization(canvas=Pixels(clip=False), optimizer="adam", learning_rate=RATE),
    )
    return made.history[:, 0].tolist(), made.images


def main() -> None:
    arguments = parser(__doc__, "style")
    arguments.add_argument("--size", type=int, default=512, help="height and width in pixels")
    arguments.add_argument("--steps", type=int, default=10, help="iterations in a call")
    arguments.add_argument("--rounds", type=int, default=5)
    options = parse(arguments, "style")
    model = fv.load_model("vgg19").to(options.device)
    # A typical copy: in-place rectifiers, no gradients of the weights.
    network = copy.deepcopy(model.features)[: STYLE[-1] + 1].requires_grad_(False)
    reordered = copy.deepcopy(network).to(memory_format=torch.channels_last)
    # Smooth pictures, a bright and a dark one, so that their features differ like those of photographs.
    content, style = (
        F.interpolate(torch.rand(1, 3, side, side) ** power, (options.size,) * 2, mode="bicubic").to(options.device)
        for side, power in ((32, 1), (64, 4))
    )
    weights = papers_weights(network, content, style)
    last = [each.to(memory_format=torch.channels_last) for each in (content, style)]
    calls = {
        "fastviz": lambda: transfer(model, content, style, options.steps, weights),
        "plain PyTorch loop": lambda: plain_loop(network, content, style, options.steps),
        "the loop in channels_last": lambda: plain_loop(reordered, *last, options.steps),
    }
    made, _ = calls["fastviz"]()
    wanted, _ = calls["plain PyTorch loop"]()
    off = max(abs(mine - theirs) / abs(theirs) for mine, theirs in zip(made, wanted, strict=True))
    print(f"losses of {options.steps} steps: at most {off:.1e} apart (relative)")
    times = side_by_side(calls, options.device, rounds=options.rounds, least=0, warm_up=0)
    target = 1.3 if options.device.type == "cpu" else 2.0
    case = f"VGG-19, {options.size}x{options.size}, {options.steps} iterations"
    rows = [row("style_transfer", case, times, {"plain PyTorch loop": target}, f"losses {off:.1e} apart")]
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
