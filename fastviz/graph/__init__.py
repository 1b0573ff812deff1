"""The graph of a model: its calls and what each depends on, its layers' shapes and receptive fields."""

from fastviz.graph.model_graph import (
    Layer,
    NotTraceable,
    ReceptiveField,
    Trace,
    example_images,
    joined_field,
    layers,
    receptive_field,
    trace,
)

__all__ = [
    "Layer",
    "NotTraceable",
    "ReceptiveField",
    "Trace",
    "example_images",
    "joined_field",
    "layers",
    "receptive_field",
    "trace",
]
