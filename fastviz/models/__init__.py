"""Networks by name or from a file: their weights, how images are prepared for them, the names of their classes."""

from fastviz.models.loading import (
    ModelInfo,
    Preprocessing,
    class_names,
    describe,
    load_model,
    model_info,
    model_names,
    preprocessing,
)

__all__ = [
    "ModelInfo",
    "Preprocessing",
    "class_names",
    "describe",
    "load_model",
    "model_info",
    "model_names",
    "preprocessing",
]
