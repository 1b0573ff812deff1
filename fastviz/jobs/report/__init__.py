"""The pages that show a job's results, and the demo's page."""

from fastviz.jobs.report.demo_page import Scene, Section, demo_page
from fastviz.jobs.report.page import percent, render
from fastviz.jobs.report.pictures import drawn
from fastviz.jobs.report.write import write

__all__ = ["Scene", "Section", "demo_page", "drawn", "percent", "render", "write"]
