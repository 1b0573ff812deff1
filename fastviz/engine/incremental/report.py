"""The plan of a sweep in readable form: which steps run on rectangles, their sizes, and the savings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastviz._util import checks
from fastviz.engine.incremental.network import network
from fastviz.engine.incremental.plan import Line, group_windows, plan_lines, predicted
from fastviz.engine.incremental.window_grid import grid
from fastviz.graph.model_graph import NotTraceable, example_images

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """The plan of a sweep over a grid of windows; ``str()`` gives a table.

    Attributes:
        windows: the number per image.
        groups: groups of windows that run together.
        lines: the steps in order; none if the model runs without steps.
        dense_flops: floating-point operations per image.
        flops: floating-point operations per window.
        predicted_gain: in operations and bytes moved, counted.
        reason: why the model runs without steps; otherwise empty.
    """

    windows: int
    groups: int
    lines: tuple[Line, ...]
    dense_flops: float
    flops: float
    predicted_gain: float
    reason: str = ""

    def __str__(self) -> str:
        """The steps, one per line, followed by the sums."""
        if self.reason:
            return f"{self.windows} windows, each on the whole image: {self.reason}"
        head = ["layer", "operation", "map", "rectangle", "of windows", "GFLOP dense", "GFLOP", "MB dense", "MB"]
        rows = [head, *(_cells(line) for line in self.lines)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        text = [
            "  ".join(
                cell.ljust(width) if at < 2 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        text.append(
            f"{self.windows} windows in {self.groups} groups; operations per window: {self.dense_flops / 1e9:.3f} → "
            f"{self.flops / 1e9:.3f} GFLOP ({self.dense_flops / self.flops:.2f}x); "
            f"gain in all work, bytes included: {self.predicted_gain:.2f}x"
        )
        return "\n".join(line.rstrip() for line in text)


def _cells(line: Line) -> list[str]:
    whole = line.incremental == 0
    return [
        line.label or "(model)",
        line.operation,
        "x".join(map(str, line.shape)),
        "all" if whole else "x".join(f"{extent:.1f}" for extent in line.rectangle),
        "" if whole else f"{100 * line.incremental:.0f} %",
        f"{line.dense_flops / 1e9:.4f}",
        f"{line.flops / 1e9:.4f}",
        f"{line.dense_bytes / 1e6:.2f}",
        f"{line.bytes / 1e6:.2f}",
    ]


def plan(
    model: nn.Module,
    input_size: tuple[int, ...] | None = None,
    window: int | tuple[int, ...] | None = None,
    stride: int | tuple[int, ...] | None = None,
    *,
    centred: bool = False,
) -> Plan:
    """What :func:`fastviz.engine.incremental.sweep` would do for a grid of windows.

    Args:
        model: the network; not touched.
        input_size: height and width of the image in pixels, (length,) of a signal, or depth, height and width of a
            volume; None uses :func:`fastviz.models.preprocessing`, which also gives the number of channels.
        window, stride, centred: as in :func:`fastviz.occlusion`; None is the default of a sweep.

    Raises:
        ValueError: a window larger than the image, a stride larger than the window, or a number below 1.

    >>> plan(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), (64, 64), window=16).windows
    49
    """
    images = example_images(checks.module(model), input_size, 1)
    boxes = grid(tuple(images.shape[2:]), window, stride, centred=centred).boxes
    try:
        steps = network(model, images).steps
    except NotTraceable as error:
        return Plan(len(boxes), 1, (), 0.0, 0.0, 1.0, str(error))
    value_bytes = images.element_size()
    groups = group_windows(steps, boxes, value_bytes, device=images.device.type)
    lines = plan_lines(steps, groups, value_bytes)
    sums = predicted(steps, groups, value_bytes)
    return Plan(len(boxes), len(groups), tuple(lines), sums["dense_flops"], sums["flops"], sums["predicted_gain"])
