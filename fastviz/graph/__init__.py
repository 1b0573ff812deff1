"""The graph of a model: its calls and what each depends on, its layers' shapes and receptive fields."""

from fastviz.graph.layers import Layer, layers, receptive_field
from fastviz.graph.model_graph import NotTraceable, Trace, example_images, trace
from fastviz.graph.receptive_field import ReceptiveField, fields_of_nodes

__all__ = [
    "Layer",
    "NotTraceable",
    "ReceptiveField",
    "Trace",
    "example_images",
    "fields_of_nodes",
    "layers",
    "receptive_field",
    "trace",
]
