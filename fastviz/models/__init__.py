"""Networks by name or from a file: their weights, how images are prepared for them, the names of their classes."""

from fastviz.models.descriptions import (
    ModelInfo,
    Preprocessing,
    class_names,
    describe,
    guess_channels,
    model_info,
    preprocessing,
    preprocessing_of,
)
from fastviz.models.loading import load_model, model_names

__all__ = [
    "ModelInfo",
    "Preprocessing",
    "class_names",
    "describe",
    "guess_channels",
    "load_model",
    "model_info",
    "model_names",
    "preprocessing",
    "preprocessing_of",
]
