"""Encodings of evolving images: direct pixels, or compositional pattern-producing networks (CPPN).

Genomes are dicts of tensors with one row per image. They stay on the CPU, so that a seed gives the same images on every
device; pictures are rendered on the device of the network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["CPPN", "Direct", "Encoding", "Genomes"]

Genomes: TypeAlias = dict[str, Tensor]


class Encoding(ABC):
    """How genomes are initialised, mutated and rendered."""

    @abstractmethod
    def start(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Genomes:
        """``count`` initial genomes, for pictures of the ``shape`` (C, H, W)."""

    @abstractmethod
    def mutated(self, genomes: Genomes, generator: torch.Generator) -> Genomes:
        """Mutated copies, each independent of the others."""

    @abstractmethod
    def pictures(self, genomes: Genomes, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        """The pictures [n, C, H, W] in 0 to 1, in the dtype and on the device of ``like``."""


@dataclass(frozen=True)
class Direct(Encoding):
    """Every value of the picture is a gene from 0 to 255, initially uniform noise.

    A mutation changes a tenth of the values, by polynomial mutation (Deb 2001): each change δ, as a fraction of the
    range, has the density (η + 1)/2 · (1 − |δ|)^η, here with η = 15.

    Attributes:
        rate: the fraction of values that change.
        eta: larger values give smaller changes.
    """

    rate: float = 0.1
    eta: float = 15.0

    def start(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Genomes:
        """Uniform noise."""
        return {"levels": torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)}

    def mutated(self, genomes: Genomes, generator: torch.Generator) -> Genomes:
        """Copies with some values changed."""
        levels = genomes["levels"].float()
        u = torch.rand(levels.shape, generator=generator)
        power = 1 / (self.eta + 1)
        change = torch.where(u < 0.5, (2 * u) ** power - 1, 1 - (2 - 2 * u).clamp(min=0) ** power)
        changes = torch.rand(levels.shape, generator=generator) < self.rate
        moved = (levels + 255 * change * changes).round().clamp(0, 255)
        return {"levels": moved.to(torch.uint8)}

    def pictures(self, genomes: Genomes, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        """The values themselves."""
        return genomes["levels"].to(like) / 255


_FUNCTIONS = 5
"""Sine, Gaussian, sigmoid, linear, absolute value."""
_INPUTS = 4
"""x, y, distance from the centre, one."""


@dataclass(frozen=True)
class CPPN(Encoding):
    """A compositional pattern-producing network: a small network from a pixel's position to its colour.

    Stanley 2007, "Compositional pattern producing networks", https://doi.org/10.1007/s10710-007-9028-8. Its inputs are
    the position x and y (−1 to 1 on the shorter side), the distance from the centre, and 1; its nodes are sine,
    Gaussian, sigmoid, identity and absolute value of weighted sums of inputs and earlier nodes; its outputs are the
    channels, each |sin| of such a sum, so that pictures use the whole range. A genome is the matrix of all weights, 0
    where there is no connection, so that different networks are rendered by the same matrix products; evolution starts
    with few connections and adds more, as in NEAT. Unlike in NEAT, there is no crossover, and the number of nodes is
    bounded.

    Attributes:
        nodes: the maximum number of nodes between inputs and outputs.
        grow: the probability that a mutation adds a connection, and that it changes the function of a node.
        spread: standard deviation of the change of a weight.
    """

    nodes: int = 12
    grow: float = 0.4
    spread: float = 0.6

    def start(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Genomes:
        """Random networks with a quarter of all possible connections."""
        rows, columns = self.nodes + shape[0], _INPUTS + self.nodes
        weights = 2 * torch.randn(count, rows, columns, generator=generator)
        connected = torch.rand(count, rows, columns, generator=generator) < 0.25
        return {
            "weights": weights * connected * self._earlier(shape[0]),
            "functions": torch.randint(_FUNCTIONS, (count, self.nodes), generator=generator),
        }

    def mutated(self, genomes: Genomes, generator: torch.Generator) -> Genomes:
        """Copies with some weights changed, and perhaps a connection added or removed, or a function changed."""
        weights, functions = genomes["weights"], genomes["functions"]
        chance = torch.rand(5, len(weights), generator=generator)
        change = self.spread * torch.randn(weights.shape, generator=generator)
        # Changes 5 % to 100 % of the weights, so that both small and large changes are tried.
        part = 0.05 + 0.95 * chance[0].square()
        moves = torch.rand(weights.shape, generator=generator) < part[:, None, None]
        moved = weights + change * moves * (weights != 0)
        new = 2 * torch.randn(weights.shape, generator=generator)
        free = self._earlier(weights.shape[1] - self.nodes) * (weights == 0)
        moved = torch.where(_one_of(free > 0, chance[1] < self.grow, generator), new, moved)
        moved = torch.where(_one_of(weights != 0, chance[2] < self.grow / 2, generator), 0.0, moved)
        other = torch.randint(_FUNCTIONS, functions.shape, generator=generator)
        switched = _one_of(torch.ones_like(functions, dtype=torch.bool), chance[3] < self.grow, generator)
        return {"weights": moved, "functions": torch.where(switched, other, functions)}

    def pictures(self, genomes: Genomes, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        """Renders all positions of all pictures together, node by node."""
        weights, functions = genomes["weights"].to(like), genomes["functions"].tolist()
        places = _places(shape[1:], like)
        values = like.new_zeros(len(weights), _INPUTS + self.nodes, places.shape[1])
        values[:, :_INPUTS] = places
        used = (genomes["weights"] != 0).any(1)  # nodes that nothing reads are skipped
        for node in range(self.nodes):
            at = _INPUTS + node
            for row in used[:, at].nonzero()[:, 0].tolist():
                total = weights[row, node, :at] @ values[row, :at]
                values[row, at] = _applied(functions[row][node], total)
        return (weights[:, self.nodes :] @ values).sin().abs().view(len(weights), *shape)

    def _earlier(self, channels: int) -> Tensor:
        """1 where a connection is possible: to a node from inputs and earlier nodes, to an output from all of them."""
        return torch.ones(self.nodes + channels, _INPUTS + self.nodes).tril(_INPUTS - 1)


def _one_of(possible: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """A mask with one random ``possible`` entry in each of the ``rows`` (bool [n])."""
    drawn = torch.rand(possible.shape, generator=generator) * possible
    flat = drawn.flatten(1)
    return ((flat == flat.amax(1, keepdim=True)) & (flat > 0) & rows[:, None]).view_as(possible)


def _places(size: tuple[int, ...], like: Tensor) -> Tensor:
    """The inputs of every pixel, [4, H * W]."""
    height, width = size
    shorter = max(1, min(size) - 1)
    down = (2 * torch.arange(height).to(like) - (height - 1)) / shorter
    across = (2 * torch.arange(width).to(like) - (width - 1)) / shorter
    y, x = torch.meshgrid(down, across, indexing="ij")
    return torch.stack([x, y, (x * x + y * y).sqrt() * math.sqrt(2), torch.ones_like(x)]).flatten(1)


def _applied(function: int, total: Tensor) -> Tensor:
    """The node function of this number."""
    if function == 0:
        return total.sin()
    if function == 1:
        return (-total.square()).exp()
    if function == 2:
        return total.sigmoid()
    return total if function == 3 else total.abs()
