"""Targets in words, which tell targets apart and are the same in every process."""

from __future__ import annotations

import subprocess
import sys

import torch

import fastviz as fv
from fastviz.targets.words import shown

MASK = torch.arange(64).reshape(8, 8) > 20


def test_different_targets_differ() -> None:
    other = MASK.clone()
    other[0, 0] = True
    limit = 3
    targets = [
        fv.class_score(3),
        fv.class_score(4),
        fv.class_probability(3),
        fv.class_score(torch.tensor([3, 4])),
        fv.neuron("conv", 1, (2, 3)),
        fv.neuron("conv", 1),
        fv.channel("conv", 1),
        fv.layer("conv"),
        fv.region_score(1, MASK),
        fv.region_score(1, other),
        fv.pixel(1, 2, 3),
        fv.box_score(torch.tensor([0, 0, 4, 4])),
        fv.box_score(torch.tensor([0, 0, 4, 4]), overlap=0.3),
        fv.similarity(torch.arange(1.0, 30)),
        fv.similarity(torch.arange(1.0, 30), "conv"),
        fv.output(lambda output: output["out"].mean((1, 2, 3))),
        fv.output(lambda output: output["aux"].mean((1, 2, 3))),
        fv.output(lambda output: output["out"].mean((1, 2, 3)) * limit),
        2 * fv.class_score(3),
        fv.class_score(3) - fv.class_score(4),
    ]
    words = [repr(target) for target in targets]
    assert len(set(words)) == len(words)
    assert not any("0x" in each for each in words)
    assert repr(fv.region_score(1, MASK.clone())) == words[8]
    limit = 4
    assert repr(fv.output(lambda output: output["out"].mean((1, 2, 3)) * limit)) != words[17]


def test_the_same_in_another_process() -> None:
    code = (
        "import torch, fastviz as fv\n"
        "mask = torch.arange(64).reshape(8, 8) > 20\n"
        "print(repr(fv.region_score(1, mask) + fv.output(lambda output: output.amax(1))))"
    )
    first, second = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2))
    assert first.stdout == second.stdout != "", first.stderr


def test_functions_of_many_kinds() -> None:
    from functools import partial

    assert shown(partial(torch.mean, dim=1)) != shown(partial(torch.mean, dim=2))
    assert shown(torch.nn.ReLU()) == "torch.nn.modules.activation.ReLU"
