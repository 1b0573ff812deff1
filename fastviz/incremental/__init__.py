"""Incremental inference: what a network gives for images of which a window has changed, for many windows."""

from fastviz.incremental.drill import drill_down
from fastviz.incremental.job import sampled_error
from fastviz.incremental.report import Plan, plan
from fastviz.incremental.sweep import Sweep, sweep
from fastviz.incremental.worth import counted, known

__all__ = ["Plan", "Sweep", "counted", "drill_down", "known", "plan", "sampled_error", "sweep"]
