"""What to explain or to maximise: scores of classes, units, regions and boxes, any function, and sums of them."""

from fastviz.targets.boxes import box_score
from fastviz.targets.functions import output
from fastviz.targets.indices import Activations, Index, class_scores, predicted
from fastviz.targets.objectives import Objective, channel, class_probability, class_score, layer, neuron
from fastviz.targets.outputs import maps_of
from fastviz.targets.parsing import is_expression, parse_target, target_index
from fastviz.targets.part import part_of_output
from fastviz.targets.regions import pixel, region_score
from fastviz.targets.running import gradients, run
from fastviz.targets.selection import Selection, Target, resolve
from fastviz.targets.similarity import similarity

__all__ = [
    "Activations",
    "Index",
    "Objective",
    "Selection",
    "Target",
    "box_score",
    "channel",
    "class_probability",
    "class_score",
    "class_scores",
    "gradients",
    "is_expression",
    "layer",
    "maps_of",
    "neuron",
    "output",
    "parse_target",
    "part_of_output",
    "pixel",
    "predicted",
    "region_score",
    "resolve",
    "run",
    "similarity",
    "target_index",
]
