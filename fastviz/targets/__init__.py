"""What to explain or to maximise: scores and probabilities of classes, units of any layer, and sums of them."""

from fastviz.targets.indices import Activations, Index, predicted
from fastviz.targets.objectives import Objective, channel, class_probability, class_score, layer, neuron
from fastviz.targets.running import gradients, run
from fastviz.targets.selection import Selection, Target, resolve

__all__ = [
    "Activations",
    "Index",
    "Objective",
    "Selection",
    "Target",
    "channel",
    "class_probability",
    "class_score",
    "gradients",
    "layer",
    "neuron",
    "predicted",
    "resolve",
    "run",
]
