"""The one loop behind all optimised images, its optimisers, and models as the loop sees them."""

from fastviz.optimize.loop import Objective, Optimized, optimize
from fastviz.optimize.network import Network, Toward, is_out_of_memory, toward, what_fits
from fastviz.optimize.optimizers import LBFGS, Adam, Ascent, Evaluation, Optimizer, by_name

__all__ = [
    "LBFGS",
    "Adam",
    "Ascent",
    "Evaluation",
    "Network",
    "Objective",
    "Optimized",
    "Optimizer",
    "Toward",
    "by_name",
    "is_out_of_memory",
    "optimize",
    "toward",
    "what_fits",
]
