"""Jobs: many methods over many images, the engines that run them, the tables on disk, and the pages that show them."""

from fastviz.jobs.arguments import choose_methods, target_index
from fastviz.jobs.job import Job
from fastviz.jobs.run import Interrupted, Summary, TooManyFailures, run
from fastviz.jobs.tables.results import Results, open

__all__ = [
    "Interrupted",
    "Job",
    "Results",
    "Summary",
    "TooManyFailures",
    "choose_methods",
    "open",
    "run",
    "target_index",
]
