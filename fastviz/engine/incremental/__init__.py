"""Incremental inference: what a network gives for images of which a window has changed, for many windows."""

from fastviz.engine.incremental.coarse_to_fine import drill_down
from fastviz.engine.incremental.job import sampled_error
from fastviz.engine.incremental.report import Plan, plan
from fastviz.engine.incremental.sweep import Sweep, sweep
from fastviz.engine.incremental.worth import counted, known

__all__ = ["Plan", "Sweep", "counted", "drill_down", "known", "plan", "sampled_error", "sweep"]
