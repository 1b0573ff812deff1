"""The inputs of a job, streamed from files, tables, tar shards and datasets."""

from fastviz.jobs.inputs.items import Item, Shard
from fastviz.jobs.inputs.sources import Inputs

__all__ = ["Inputs", "Item", "Shard"]
