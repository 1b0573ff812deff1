"""Drop-in replacement for lucent's ``render_vis``: the same pictures from the same random numbers, computed faster.

Use ``from fastviz.compat.lucent import objectives, param, render, transform`` instead of ``from lucent.optvis import
...``. :func:`render_vis_many` renders several objectives together. lucent need not be installed; its own objectives,
parametrisations and transforms work too. What is faster, and what differs on purpose, is listed in docs/compat.md.
"""

from fastviz.compat.lucent import modelzoo, objectives, param, render, transform
from fastviz.compat.lucent.modelzoo import get_model_layers
from fastviz.compat.lucent.render import render_vis, render_vis_many
from fastviz.compat.lucent.transform import jitter, normalize, pad, random_rotate, random_scale, standard_transforms

__all__ = [
    "get_model_layers",
    "jitter",
    "modelzoo",
    "normalize",
    "objectives",
    "pad",
    "param",
    "random_rotate",
    "random_scale",
    "render",
    "render_vis",
    "render_vis_many",
    "standard_transforms",
    "transform",
]
