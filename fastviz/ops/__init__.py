"""The native operators: each runs on the CPU and on CUDA, with its fake implementation and its gradient."""

from fastviz.ops.operators import (
    Norm,
    Rule,
    gram,
    gram_loss,
    grow_texture,
    guided_relu,
    guided_relu_,
    instructions,
    libraries,
    occlude,
    patch_search,
    splice,
    total_variation,
    winograd_maps,
    winograd_tiles,
)

__all__ = [
    "Norm",
    "Rule",
    "gram",
    "gram_loss",
    "grow_texture",
    "guided_relu",
    "guided_relu_",
    "instructions",
    "libraries",
    "occlude",
    "patch_search",
    "splice",
    "total_variation",
    "winograd_maps",
    "winograd_tiles",
]
