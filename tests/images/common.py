"""Pictures that the tests of reading and writing make: single pixels, photographs, PNG files by hand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastviz import images


def picture(*rows: tuple[tuple[int, int, int], ...]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def photograph(height: int = 60, width: int = 90) -> Image.Image:
    """Smooth colours with some noise: what a photograph is to a decoder."""
    generator = np.random.default_rng(5)
    ramps = np.stack(np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height)), axis=-1)
    colours = np.concatenate([ramps, ramps[..., :1] / 2], axis=-1) + generator.integers(0, 56, (height, width, 3))
    return Image.fromarray(colours.astype(np.uint8))


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def png(colour_type: int, depth: int, width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def found(paths: images.Paths, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in images.find_images(paths)]
