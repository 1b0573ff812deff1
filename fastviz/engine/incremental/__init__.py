"""Incremental inference: network outputs for images with a changed window, or with a sequence of changes."""

from fastviz.engine.incremental.chain import Chain, Changes, outputs_of_changes
from fastviz.engine.incremental.coarse_to_fine import drill_down
from fastviz.engine.incremental.job import in_batches, in_whole_order, sampled_error, whole_passes
from fastviz.engine.incremental.report import Plan, plan
from fastviz.engine.incremental.sweep import Sweep, sweep
from fastviz.engine.incremental.work import counted, known

__all__ = [
    "Chain",
    "Changes",
    "Plan",
    "Sweep",
    "counted",
    "drill_down",
    "in_batches",
    "in_whole_order",
    "known",
    "outputs_of_changes",
    "plan",
    "sampled_error",
    "sweep",
    "whole_passes",
]
