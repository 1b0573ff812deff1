"""The operators compared with eager and compiled torch and a copy: ``python -m benchmarks.ops.operators``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import parse, parser, row, side_by_side, write
from fastviz import ops

Rows = list[dict[str, Any]]


def eager_total_variation(x: Tensor, beta: float) -> Tensor:
    """The formula in plain torch."""
    vertical = x[..., 1:, :-1] - x[..., :-1, :-1]
    horizontal = x[..., :-1, 1:] - x[..., :-1, :-1]
    squares = vertical**2 + horizontal**2
    return (squares if beta == 2 else squares ** (beta / 2)).sum((1, 2, 3))


def with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """A call of the function and of its gradient."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()

    def call() -> Tensor:
        (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
        return gradient

    return call


def total_variation(device: torch.device) -> Rows:
    rows = []
    for shape in ((1, 3, 512, 512), (16, 3, 224, 224)):
        for beta in (2.0, 2.5):
            # All neighbours differ, because the eager gradient of the power is NaN at 0.
            x = torch.rand(shape, device=device)
            compiled = torch.compile(eager_total_variation, dynamic=False)
            calls = {
                "fastviz": with_gradient(lambda v, b=beta: ops.total_variation(v, beta=b), x),
                "eager": with_gradient(lambda v, b=beta: eager_total_variation(v, b), x),
                "compiled": with_gradient(lambda v, b=beta, f=compiled: f(v, b), x),
                # The minimum memory traffic: read x, write the gradient.
                "copy of x": lambda x=x: x.clone(),
            }
            case = f"{'x'.join(map(str, shape))} beta {beta}"
            rows.append(row("total_variation", case, side_by_side(calls, device), {"eager": 12, "compiled": 3}))
    return rows


def guided_relu(device: torch.device) -> Rows:
    """Only the backward pass, from what each alternative keeps of the forward pass."""
    x = torch.randn(8, 64, 112, 112, device=device)
    grad = torch.randn_like(x)
    output, mask = torch.ops.fastviz.guided_relu(x, "guided", None, True)
    positive = x > 0
    calls = {
        "fastviz": lambda: torch.ops.fastviz._guided_relu_backward(grad, mask, "guided", False),
        "eager clamp x mask": lambda: grad.clamp(min=0) * positive,
        "eager where": lambda: torch.where(positive & (grad > 0), grad, 0.0),
        "eager threshold_backward": lambda: torch.ops.aten.threshold_backward(grad.clamp(min=0), output, 0),
        "copy of grad": lambda: grad.clone(),
    }
    times = side_by_side(calls, device)
    best = min((name for name in times if name.startswith("eager")), key=lambda name: times[name]["median_ms"])
    targets = {"eager clamp x mask": 2.5, best: 1.2 if best != "eager clamp x mask" else 2.5}
    return [row("guided_relu backward", "8x64x112x112", times, targets, f"best eager composition: {best}")]


def gram(device: torch.device) -> Rows:
    rows = []
    for channels, places in ((256, 128 * 128), (512, 64 * 64), (512, 32 * 32)):
        features = torch.randn(1, channels, places, device=device)
        calls = {"fastviz": lambda f=features: ops.gram(f), "bmm": lambda f=features: torch.bmm(f, f.mT)}
        case = f"C {channels}, {places} places"
        rows.append(row("gram", case, side_by_side(calls, device), {"bmm": 1.4}))
        calls = {
            "fastviz": with_gradient(lambda f: ops.gram(f).square(), features),
            "bmm": with_gradient(lambda f: torch.bmm(f, f.mT).square(), features),
        }
        rows.append(row("gram with gradient", case, side_by_side(calls, device), {"bmm": 1.4}))
    return rows


VGG19_STYLE_LAYERS_512 = ((64, 512), (128, 256), (256, 128), (512, 64), (512, 32))


def gram_loss(device: torch.device) -> Rows:
    rows = []
    for channels, side in VGG19_STYLE_LAYERS_512:
        features = torch.randn(1, channels, side, side, device=device)
        target = ops.gram(torch.randn_like(features), "hw")

        def eager(f: Tensor, target: Tensor = target) -> Tensor:
            flat = f.flatten(2)
            return (torch.bmm(flat, flat.mT) / flat.shape[2] - target).square().sum((1, 2))

        calls = {
            "fastviz": with_gradient(lambda f, t=target: ops.gram_loss(f, t, "hw"), features),
            "eager": with_gradient(eager, features),
        }
        rows.append(
            row("gram_loss with gradient", f"{channels}x{side}x{side}", side_by_side(calls, device), {"eager": 1.5})
        )
    return rows


def occlude(device: torch.device) -> Rows:
    rows = []
    for order in (torch.contiguous_format, torch.channels_last):
        image = torch.rand(1, 3, 224, 224, device=device).contiguous(memory_format=order)
        tops = torch.arange(0, 209, 13, device=device)
        corners = torch.cartesian_prod(tops, tops)[:256]
        boxes = torch.cat([corners, corners + 16], 1)
        sides = boxes.tolist()
        pictures = torch.rand(len(boxes), 3, 224, 224, device=device).contiguous(memory_format=order)
        place = torch.arange(224, device=device)

        def loop(image: Tensor = image, sides: list[list[int]] = sides, order: torch.memory_format = order) -> Tensor:
            copies = image.expand(len(sides), -1, -1, -1).clone(memory_format=order)
            for copy, (top, left, bottom, right) in zip(copies, sides, strict=True):
                copy[:, top:bottom, left:right] = 0
            return copies

        def where(image: Tensor = image, boxes: Tensor = boxes, place: Tensor = place) -> Tensor:
            in_rows = (place >= boxes[:, :1]) & (place < boxes[:, 2:3])
            in_columns = (place >= boxes[:, 1:2]) & (place < boxes[:, 3:])
            return torch.where((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0, image)

        calls = {
            "fastviz": lambda image=image, boxes=boxes: ops.occlude(image, boxes),
            "eager loop": loop,
            "eager where": where,
            "copy of the output": lambda pictures=pictures: pictures.clone(memory_format=torch.preserve_format),
        }
        name = "channels_last" if order is torch.channels_last else "contiguous"
        times = side_by_side(calls, device)
        rows.append(row("occlude", f"{len(boxes)} windows of 3x224x224, {name}", times, {"copy of the output": 0.6}))
    return rows


def splice(device: torch.device) -> Rows:
    rows = []
    for order in (torch.contiguous_format, torch.channels_last):
        clean = torch.rand(1, 128, 112, 112, device=device).contiguous(memory_format=order)
        corners = torch.cartesian_prod(*[torch.arange(0, 84, 12, device=device)] * 2)
        dirty = torch.rand(len(corners), 128, 20, 20, device=device).contiguous(memory_format=order)
        windows = torch.rand(len(corners), 128, 24, 24, device=device).contiguous(memory_format=order)
        places = corners.tolist()

        def loop(clean: Tensor = clean, dirty: Tensor = dirty, places: list[list[int]] = places) -> Tensor:
            padded = torch.nn.functional.pad(clean, (2, 2, 2, 2))
            parts = []
            for crop, (top, left) in zip(dirty, places, strict=True):
                part = padded[0, :, top : top + 24, left : left + 24].clone()
                part[:, 2:22, 2:22] = crop
                parts.append(part)
            return torch.stack(parts)

        def index(clean: Tensor = clean, dirty: Tensor = dirty, corners: Tensor = corners) -> Tensor:
            padded = torch.nn.functional.pad(clean, (2, 2, 2, 2))
            place = torch.arange(24, device=clean.device)
            ys, xs = corners[:, :1] + place, corners[:, 1:] + place
            parts = padded[0][:, ys[:, :, None], xs[:, None, :]].movedim(0, 1).contiguous()
            parts[:, :, 2:22, 2:22] = dirty
            return parts

        calls = {
            "fastviz": lambda c=clean, d=dirty, at=corners: ops.splice(c, d, at, at - 2, (24, 24)),
            "eager loop": loop,
            "eager index": index,
            "copy of the output": lambda windows=windows: windows.clone(memory_format=torch.preserve_format),
        }
        name = "channels_last" if order is torch.channels_last else "contiguous"
        targets = {"copy of the output": 0.6}
        rows.append(row("splice", f"{len(corners)} windows of 128x24x24, {name}", side_by_side(calls, device), targets))
    return rows


def patch_search(device: torch.device) -> Rows:
    """One neighbourhood, as for a texture grown pixel by pixel, and 16, as in fastviz."""
    import cv2
    import numpy as np

    cv2.setNumThreads(torch.get_num_threads())
    rows = []
    side = 11
    bell = torch.exp(-((torch.arange(side) - side // 2).float() ** 2) / (2 * (side / 6.4) ** 2))
    weights = torch.outer(bell, bell)
    # Half of the pixels are known: those above and on the left.
    known = torch.arange(side * side).view(side, side) < side * side // 2
    used = weights * known
    for channels, size, count in ((1, 64, 1), (3, 64, 1), (3, 192, 1), (3, 64, 16)):
        sample, patches = torch.rand(channels, size, size), torch.rand(count, channels, side, side)
        given = [part.to(device) for part in (sample, patches, known.expand(count, -1, -1).contiguous(), weights)]
        # Precomputed for repeated searches: every window as a row, and the squares.
        windows = given[0].unfold(1, side, 1).unfold(2, side, 1).flatten(1, 2).transpose(0, 1).contiguous()
        squares = windows.square().sum(1).flatten(1)
        used_there = used.to(device)
        view = np.lib.stride_tricks.sliding_window_view(sample.numpy(), (side, side), axis=(1, 2))
        picture = sample.permute(1, 2, 0).contiguous().numpy()
        mask = used.sqrt()[..., None].expand(-1, -1, channels).contiguous().numpy()

        def eager(windows: Tensor = windows, patches: Tensor = given[1], used: Tensor = used_there) -> list[Tensor]:
            return [((windows - patch).square() * used).sum((1, 2, 3)) / used.sum() for patch in patches]

        def products(
            windows: Tensor = windows, squares: Tensor = squares, patches: Tensor = given[1], used: Tensor = used_there
        ) -> Tensor:
            """(s - n)^2 multiplied out; a distance of 0 is subject to rounding."""
            weighted = used * patches
            cross = windows.flatten(1) @ weighted.flatten(1).T
            return (squares @ used.flatten()[:, None] - 2 * cross + (weighted * patches).sum((1, 2, 3))) / used.sum()

        def numpy(view: Any = view, patches: Any = patches, used: Any = used) -> list[Any]:
            u = used.numpy()
            return [((view - patch[:, None, None]) ** 2 * u).sum((0, 3, 4)) / u.sum() for patch in patches.numpy()]

        def opencv(picture: Any = picture, patches: Any = patches, mask: Any = mask) -> list[Any]:
            templates = [patch.permute(1, 2, 0).contiguous().numpy() for patch in patches]
            return [cv2.matchTemplate(picture, template, cv2.TM_SQDIFF, mask=mask) for template in templates]

        calls = {
            "fastviz": lambda given=given: ops.patch_search(*given),
            "eager": eager,
            "matrix products": products,
            "NumPy windows": numpy,
            "OpenCV matchTemplate": opencv,
        }
        case = f"{count} of {channels}x11x11 in {channels}x{size}x{size}"
        reach = 10 if device.type == "cpu" else 100
        targets = {"NumPy windows": reach, "OpenCV matchTemplate": reach}
        rows.append(row("patch_search", case, side_by_side(calls, device), targets, "half of the pixels known"))
    return rows


def main() -> None:
    parts = {
        each.__name__: each for each in (occlude, splice, guided_relu, total_variation, gram, gram_loss, patch_search)
    }
    arguments = parser(__doc__, "operators")
    arguments.add_argument("--only", action="append", choices=parts, help="may be repeated")
    options = parse(arguments, "operators")
    rows: Rows = []
    for name in options.only or parts:
        rows += parts[name](options.device)
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
