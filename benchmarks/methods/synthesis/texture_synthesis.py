"""Textures grown by fastviz and by a typical loop with OpenCV.

``python -m benchmarks.methods.synthesis.texture_synthesis``
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.common import parse, parser, row, side_by_side, write
from fastviz.methods import synthesize_texture

WINDOW, EPSILON, SIZE = 11, 0.1, 96


def opencv_loop(sample: Tensor, size: int) -> Any:
    """The algorithm of Efros and Leung pixel by pixel, with ``cv2.matchTemplate`` for the search and NumPy."""
    import cv2
    import numpy as np

    picture = np.ascontiguousarray(sample.permute(1, 2, 0).numpy())
    H, W, C = picture.shape
    reach = WINDOW // 2
    bell = np.exp(-((np.arange(WINDOW) - reach) ** 2) / (2 * (WINDOW / 6.4) ** 2))
    weights = np.outer(bell, bell).astype(np.float32)
    generator = np.random.default_rng(0)
    values = np.zeros((size + 2 * reach, size + 2 * reach, C), np.float32)
    known = np.zeros(values.shape[:2], bool)
    top, left = generator.integers(H - 2), generator.integers(W - 2)
    middle = slice((size - 3) // 2 + reach, (size - 3) // 2 + reach + 3)
    values[middle, middle] = picture[top : top + 3, left : left + 3]
    known[middle, middle] = True
    inner = np.zeros_like(known)
    inner[reach:-reach, reach:-reach] = True
    while not known[inner].all():
        neighbours = cv2.boxFilter(
            known.astype(np.float32), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT
        )
        pixels = generator.permutation(np.argwhere((neighbours > 0) & ~known & inner))
        for y, x in pixels[np.argsort(-neighbours[pixels[:, 0], pixels[:, 1]], kind="stable")]:
            around = slice(y - reach, y + reach + 1), slice(x - reach, x + reach + 1)
            used = weights * known[around]
            mask = np.sqrt(used)[..., None].repeat(C, 2)
            # matchTemplate uses a Fourier transform, so rounding can make a distance of 0 negative.
            distances = np.maximum(cv2.matchTemplate(picture, values[around], cv2.TM_SQDIFF, mask=mask), 0)
            good = np.flatnonzero(distances <= (1 + EPSILON) * distances.min())
            row, column = divmod(int(generator.choice(good)), distances.shape[1])
            if distances[row, column] / used.sum() / C < 0.3:
                values[y, x] = picture[row + reach, column + reach]
                known[y, x] = True
    return values[reach:-reach, reach:-reach]


def main() -> None:
    options = parse(parser(__doc__, "texture"), "texture")
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    rows = []
    for channels in (1, 3):
        # Smoothed noise: every window is different, as in a photograph.
        noise = torch.rand(1, channels, 66, 66)
        sample = torch.nn.functional.avg_pool2d(noise, 3, stride=1)[0]
        there = sample.to(options.device)
        calls = {
            "fastviz": lambda there=there: synthesize_texture(there, SIZE, window=WINDOW, epsilon=EPSILON),
            "OpenCV, a pixel at a time": lambda sample=sample: opencv_loop(sample, SIZE),
        }
        times = side_by_side(calls, options.device, rounds=5, warm_up=1)
        targets = {"OpenCV, a pixel at a time": 10 if options.device.type == "cpu" else 100}
        rows.append(row("synthesize_texture", f"{channels}x64x64 to {SIZE}x{SIZE}, window {WINDOW}", times, targets))
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
