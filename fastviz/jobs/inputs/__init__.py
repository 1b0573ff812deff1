"""What a job is about: files, tables, tar shards and datasets, as a stream of inputs that fills no memory."""

from fastviz.jobs.inputs.items import Item, Shard
from fastviz.jobs.inputs.sources import Inputs

__all__ = ["Inputs", "Item", "Shard"]
