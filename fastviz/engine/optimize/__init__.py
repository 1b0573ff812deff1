"""Gradient-based optimisation of images: one loop, its optimisers, and the interface to models."""

from fastviz.engine.optimize.loop import ImageObjective, optimize
from fastviz.engine.optimize.network import FeatureNetwork, TargetObjective, target_objective
from fastviz.engine.optimize.optimizers import LBFGS, Adam, Ascent, Evaluation, Optimizer, by_name
from fastviz.engine.optimize.options import Optimization, with_defaults
from fastviz.engine.optimize.state import Optimized

__all__ = [
    "LBFGS",
    "Adam",
    "Ascent",
    "Evaluation",
    "FeatureNetwork",
    "ImageObjective",
    "Optimization",
    "Optimized",
    "Optimizer",
    "TargetObjective",
    "by_name",
    "optimize",
    "target_objective",
    "with_defaults",
]
