"""The graph of a model: its calls, its layers with their shapes, receptive fields, and what each call depends on."""

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
