"""Incremental inference: what a network gives for images of which a window has changed, for many windows."""

from fastviz.incremental.drill import drill_down
from fastviz.incremental.job import sampled_error
from fastviz.incremental.report import Plan, plan
from fastviz.incremental.sweep import Sweep, sweep

__all__ = ["Plan", "Sweep", "drill_down", "plan", "sampled_error", "sweep"]
