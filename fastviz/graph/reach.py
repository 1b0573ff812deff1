"""What the output of one call depends on: the result of :func:`fastviz.graph.locality.classify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastviz.graph.sliding_window import Slide

__all__ = ["Kind", "Layout", "Reach"]

Layout = tuple[int, ...]
"""The dimensions of a tensor that are the axes of a map: rows and columns of an image, the one axis of a signal, or
slices, rows and columns of a volume."""

Kind = Literal["constant", "filled", "pointwise", "windowed", "joining", "global", "opaque"]


@dataclass(frozen=True)
class Reach:
    """What the output of one call depends on.

    Attributes:
        kind: ``"constant"``: not on the input; ``"filled"``: on the number of images alone, the same for each;
            ``"pointwise"``: each position on the same one of one map; ``"joining"``: on the same one of several maps;
            ``"windowed"``: on a window; ``"global"``: on everything of its own image; ``"opaque"``: perhaps on other
            images of the batch, or on chance.
        layout: which dimensions are axes of the map; None for constant, filled, global and opaque ones.
        slides: the window along each of them; None unless ``"windowed"``.
        positional: whether a constant takes part whose values differ from position to position.
        images: the dimension that holds the images; 0 for maps.
        ahead: how often the whole batch is repeated in it; 1 for maps.
    """

    kind: Kind
    layout: Layout | None = None
    slides: tuple[Slide, ...] | None = None
    positional: bool = False
    images: int = 0
    ahead: int = 1

    @property
    def is_local(self) -> bool:
        """Whether the output is a map whose positions depend on parts of the input map only."""
        return self.layout is not None
