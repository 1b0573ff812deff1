"""What to explain or to maximise: scores and probabilities of classes, units of any layer, and sums of them."""

from fastviz.targets.objectives import (
    Activations,
    Index,
    Objective,
    Selection,
    Target,
    channel,
    class_probability,
    class_score,
    gradients,
    layer,
    neuron,
    predicted,
    resolve,
    run,
)

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
