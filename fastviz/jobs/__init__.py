"""Many images times many methods: settings, the runner, its folder on disk, and the pages that show it."""

from fastviz.jobs.runner import (
    Interrupted,
    Result,
    Settings,
    Summary,
    choose_device,
    choose_methods,
    explain,
    read_results,
    target_index,
)

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
