"""The one loop behind all optimised images, its optimisers, and models as the loop sees them."""

from fastviz.engine.optimize.loop import Objective, Optimized, optimize
from fastviz.engine.optimize.network import Network, Toward, toward, what_fits
from fastviz.engine.optimize.optimizers import LBFGS, Adam, Ascent, Evaluation, Optimizer, by_name

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
    "optimize",
    "toward",
    "what_fits",
]
