"""The native operators, one file each: public function, fake implementation and gradient.

All but :func:`fill_in`, :func:`grow_texture` and the Winograd transforms run on the CPU and on CUDA, in float32,
float64, float16 and bfloat16 (sums in float32 or wider), on contiguous and channels_last tensors without a copy (other
strides are made contiguous once), for any sizes including 0. The same input gives the same bits at any number of
threads. They compile (``torch.compile(fullgraph=True)``), export and can be captured in a CUDA graph. Derivatives of
second order are refused, except those of :func:`gram`.
"""

from fastviz.ops._library import libraries
from fastviz.ops._native import instructions
from fastviz.ops.fill_in import fill_in
from fastviz.ops.gram import gram, gram_loss
from fastviz.ops.grow_texture import grow_texture
from fastviz.ops.guided_relu import Rule, guided_relu, guided_relu_
from fastviz.ops.occlude import occlude
from fastviz.ops.patch_search import patch_search
from fastviz.ops.splice import splice
from fastviz.ops.total_variation import Norm, total_variation
from fastviz.ops.winograd import winograd_maps, winograd_tiles

__all__ = [
    "Norm",
    "Rule",
    "fill_in",
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
