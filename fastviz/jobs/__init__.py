"""Many images times many methods: settings, the runner, its folder on disk, and the pages that show it."""

from fastviz._util.device import choose_device
from fastviz.jobs.arguments import choose_methods, target_index
from fastviz.jobs.results import Result, Settings, read_results
from fastviz.jobs.runner import Interrupted, Summary, explain

__all__ = [
    "Interrupted",
    "Result",
    "Settings",
    "Summary",
    "choose_device",
    "choose_methods",
    "explain",
    "read_results",
    "target_index",
]
