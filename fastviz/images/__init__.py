"""Images in and out: files, preprocessing and back, streams, colour maps, overlays, grids."""

from fastviz.images.arrays import draw_signal, draw_volume
from fastviz.images.numbers import read_array, read_mask
from fastviz.images.overlays import ColourMap, colour_map, overlay
from fastviz.images.paths import ImageError, find_images, find_named
from fastviz.images.pillow import LIMIT_PIXELS, is_picture, picture_of
from fastviz.images.preprocessing import prepare, preprocess, restore, settings_for
from fastviz.images.reading import load_images, read_image, read_prepared, read_views
from fastviz.images.tensors import grid, normalize
from fastviz.images.writing import picture_path, save_image

__all__ = [
    "LIMIT_PIXELS",
    "ColourMap",
    "ImageError",
    "colour_map",
    "draw_signal",
    "draw_volume",
    "find_images",
    "find_named",
    "grid",
    "is_picture",
    "load_images",
    "normalize",
    "overlay",
    "picture_of",
    "picture_path",
    "prepare",
    "preprocess",
    "read_array",
    "read_image",
    "read_mask",
    "read_prepared",
    "read_views",
    "restore",
    "save_image",
    "settings_for",
]
