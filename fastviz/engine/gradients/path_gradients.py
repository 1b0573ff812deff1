"""Weighted sums of gradients along straight lines from one image to another, in batches of bounded size.

Apart from its bias, a network's first convolution is linear. So its outputs along a line lie on a line, and the
gradient for its input is a linear function of that for its output: it runs twice for each line and is differentiated
once, however many points there are. That holds if nothing else reads the images, which a pass checks
(:mod:`fastviz.execution.first_layer`); otherwise full passes run. Both agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz.execution import cuda_graphs
from fastviz.execution.batches import Batches, Mixes
from fastviz.execution.compiled import eager, has_compiled_parts
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.memory_format import fast_convolutions, image_gradients, in_fast_order
from fastviz.execution.first_layer import FirstConvolution, FirstConvolutionFinder, FirstConvolutionReplaced
from fastviz.execution.inputs import require_gradients
from fastviz.targets.selection import Selection

__all__ = ["AT_ONCE", "line_gradients"]

AT_ONCE = {"cpu": 16, "cuda": 64}
"""The default number of images in a pass: more are not faster and take more memory."""


def line_gradients(
    model: nn.Module,
    start: Tensor,
    end: Tensor,
    selection: Selection,
    places: Tensor,
    weights: Tensor,
    *,
    batch_size: int | None = None,
    mixing: Literal["alone", "refused"] = "alone",
    advance: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """``Σ_k weights[k] · ∂S/∂x`` at ``x = start + places[k] · (end − start)``.

    Args:
        model: as :func:`fastviz.execution.inputs.input_batch` checks it, with its images.
        start, end: [N, C, H, W], both ends of each line.
        selection: one or T targets per line, with predicted classes filled in.
        places, weights: [K].
        batch_size: images in a pass; None is :data:`AT_ONCE`.
        mixing: whether models that may mix the images of a batch get one image at a time, or are refused.
        advance: called with the number of finished images.

    Raises:
        Mixes: the model may mix images, and that is refused.

    Returns:
        [N, C, H, W], or [N, T, C, H, W], in float32 at least.
    """
    require_gradients(model)
    if not len(start):
        return selection.no_values(start, start.shape[1:])
    if selection.layers:
        model = eager(model)
    if selection.several and has_compiled_parts(model):
        # Compiled code may free its memory in a backward pass, so there cannot be a second one.
        parts = (
            line_gradients(model, start, end, each, places, weights, batch_size=batch_size, advance=advance)
            for each in selection.split_targets()
        )
        return torch.stack(list(parts), dim=1)
    with frozen_model(model):
        lines = _Lines(
            model, selection, len(start), batch_size or AT_ONCE[start.device.type], advance, mixing == "alone"
        )
        lines.look(start[:1], mixing)
        found = []
        for numbers in torch.arange(len(start)).split(lines.at_once):
            chosen = slice(int(numbers[0]), int(numbers[-1]) + 1)
            found.append(lines.weighted_sum(start[chosen], end[chosen], numbers, places.tolist(), weights.tolist()))
        return torch.cat(found)


@dataclass(eq=False)
class _Lines:
    """Computes the lines of one call; ``words`` says whether errors of the model are explained."""

    model: nn.Module
    selection: Selection
    count: int
    at_once: int
    advance: Callable[[int], object]
    words: bool
    first: FirstConvolution | None = field(default=None, init=False)

    def look(self, image: Tensor, mixing: str) -> None:
        """Run the model to find out whether it works on batches and whether the first layer can be skipped."""
        batches, layers = Batches(self.model), self.selection.layers
        noted: list[FirstConvolution | None] = []

        def forward(images: Tensor) -> object:
            with FirstConvolutionFinder(images) as finder:
                found = targets.run(self.model, images, layers)
            noted.append(finder.found)
            return found

        # copies, because the model may modify its images in place
        together = batches.together(image.expand(2, -1, -1, -1), forward) > 1
        if not together:
            if mixing == "refused":
                raise Mixes(batches.reason)
            self.at_once = 1
        elif noted and not has_compiled_parts(self.model) and cuda_graphs.recordings(image) is None:
            self.first = noted[-1]

    def weighted_sum(
        self, start: Tensor, end: Tensor, numbers: Tensor, places: list[float], weights: list[float]
    ) -> Tensor:
        """The weighted sum for lines that fit into a batch together; their ``numbers``, int64 [n]."""
        n = len(start)
        steps = max(1, self.at_once // n)
        begin, finish = start.detach(), end.detach()
        if self.first is not None:
            with torch.no_grad():
                begin, finish = self.first(begin), self.first(finish)
        span = finish - begin
        # without the first layer the inputs are not images, so errors are not explained in terms of images
        run = in_fast_order(self.model, "model", self._gradients, "x" if self.first is None and self.words else None)
        total: Tensor | None = None
        for first in range(0, len(places), steps):
            some = places[first : first + steps]
            points = torch.cat([torch.add(begin, span, alpha=place) for place in some])
            chosen = self.selection.for_samples(numbers.repeat(len(some)), self.count)
            gradients = run(points, start, chosen)
            each = gradients.view(len(some), n, *gradients.shape[1:])
            if total is None:
                total = torch.zeros_like(each[0])
            for gradient, weight in zip(each, weights[first : first + steps], strict=True):
                total.add_(gradient, alpha=weight)
            self.advance(len(points))
        assert total is not None
        return total if self.first is None else self._through_first(total, start)

    def _gradients(self, points: Tensor, start: Tensor, chosen: Selection) -> Tensor:
        """The gradients for ``points``, images or the first layer's outputs for them: [B, ...], or [B, T, ...]."""
        leaf = (points.clone() if points.is_inference() else points.detach()).requires_grad_()
        layers = self.selection.layers
        with fast_convolutions(self.model, len(points)):
            if self.first is None:
                # The copy is for models that modify their input in place.
                output, recorded = targets.run(self.model, leaf.clone(), layers)
            else:
                images = start[:1].expand(len(points), -1, -1, -1)
                with FirstConvolutionReplaced(images, leaf.clone()):
                    output, recorded = targets.run(self.model, images, layers)
            values = chosen.values(output, recorded)
            return targets.gradients(values, {"x": leaf})[0].contiguous()

    def _through_first(self, gradient: Tensor, start: Tensor) -> Tensor:
        """The gradient for the images, from that for the first layer's outputs, [n, ...] or [n, T, ...]."""
        assert self.first is not None
        columns = gradient.unbind(1) if self.selection.several else (gradient,)
        # in the dtype of the layer, which is that of the images
        leaf = start.detach().clone().requires_grad_()
        with image_gradients(self.model), torch.enable_grad():
            maps = self.first(leaf, bias=False)
            found = [torch.autograd.grad(maps, leaf, each.to(maps), retain_graph=True)[0].to(each) for each in columns]
        return torch.stack(found, dim=1) if self.selection.several else found[0]
