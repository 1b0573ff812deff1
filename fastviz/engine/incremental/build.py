"""Builds steps from the nodes of a recorded graph, with constants filled in."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fastviz.engine.incremental.convolution import Conv
from fastviz.engine.incremental.steps import (
    Activation,
    Call,
    Constant,
    Input,
    Mean,
    Norm,
    PadOrSlice,
    Pool,
    Shuffle,
    Slides,
    Step,
)
from fastviz.graph.batch_rules import SPLITS, is_pointwise
from fastviz.graph.calls import BATCH, call_arguments, call_name, shape_of
from fastviz.graph.locality import convolution_slides
from fastviz.graph.model_graph import NotTraceable, Trace, label
from fastviz.graph.reach import Layout

__all__ = ["StandaloneActivation", "build", "reachable"]


def build(traced: Trace, dtype: torch.dtype | None = None) -> list[Step]:
    """The steps of a traced model, on the device of its constants: the images first, the model's output last.

    Args:
        traced: from :func:`fastviz.graph.trace`.
        dtype: compute in this floating-point type; None is the model's own.

    Raises:
        NotTraceable: an operation that may mix the images of a batch, or an output that does not depend on the image.
    """
    return _Builder(traced, dtype).run()


_ACTIVATIONS: dict[str, Callable[[dict[str, Any]], Activation]] = {
    "relu": lambda a: Activation("relu", torch.relu_),
    "relu6": lambda a: Activation("hardtanh", lambda x: F.hardtanh_(x, 0.0, 6.0), (0.0, 6.0)),
    "hardtanh": lambda a: Activation(
        "hardtanh", lambda x: F.hardtanh_(x, a["min_val"], a["max_val"]), (a["min_val"], a["max_val"])
    ),
    "silu": lambda a: Activation("swish", lambda x: F.silu(x, inplace=True)),
    "hardswish": lambda a: Activation("hardswish", lambda x: F.hardswish(x, inplace=True)),
    "sigmoid": lambda a: Activation("sigmoid", torch.sigmoid_),
    "tanh": lambda a: Activation("tanh", torch.tanh_),
    "gelu": lambda a: Activation("gelu", lambda x: F.gelu(x, approximate=a["approximate"]), (), a["approximate"]),
    "leaky_relu": lambda a: Activation(
        "leaky_relu", lambda x: F.leaky_relu_(x, a["negative_slope"]), (a["negative_slope"],)
    ),
    "elu": lambda a: Activation("", lambda x: F.elu(x, a["alpha"], inplace=True)),
    "hardsigmoid": lambda a: Activation("", lambda x: F.hardsigmoid(x, inplace=True)),
    "mish": lambda a: Activation("", lambda x: F.mish(x, inplace=True)),
    "softplus": lambda a: Activation("", lambda x: F.softplus(x, a["beta"], a["threshold"])),
}

_SAME = {"alias", "clone", "contiguous", "detach", "dropout"}
_SIZED = {"view", "reshape", "_unsafe_view", "flatten", "unflatten"}
_FRESH = {"add", "cat", "div", "layer_norm", "linear", "mul", "stack", "sub"}


class StandaloneActivation(Step):
    """An activation that was not merged into another step."""

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0].clone()


class _Builder:
    """Visits the nodes; each becomes a step, a constant, or an alias of a step."""

    def __init__(self, traced: Trace, dtype: torch.dtype | None) -> None:
        self.traced = traced
        self.dtype = dtype
        self.steps: list[Step] = []
        self.made: dict[fx.Node, Step] = {}
        self.constants: dict[fx.Node, Any] = {}
        self.filled: dict[fx.Node, Tensor] = {}  # for one image

    def run(self) -> list[Step]:
        if self.traced.mixes:
            raise NotTraceable(self.traced.mixes)
        for node in self.traced.graph.nodes:
            if node.op != "output":
                self.visit(node)
                continue
            (last,) = node.all_input_nodes
            if last not in self.made:
                raise NotTraceable("the output does not depend on the image")
            if not _is_first(last, self.traced.reaches[last].images):
                raise NotTraceable("the output does not have one entry for each image in dimension 0")
            return reachable(self.steps, self.made[last])
        raise AssertionError("graphs end in an output")

    def visit(self, node: fx.Node) -> None:
        reach = self.traced.reaches[node]
        if node is self.traced.image:
            self.put(node, Input("", "image", [], shape_of(node)[1:], reach.layout))
        elif node.op == "placeholder":
            value = self.traced.constants.get(node.name)
            if value is None:
                raise NotTraceable(f"the graph's input {node.name} is no parameter and no image")
            self.constants[node] = self.cast(value)
        elif reach.kind in ("constant", "filled"):
            with torch.no_grad():
                self.constants[node] = value = self.call(node, [])([], list(shape_of(node)))
            if reach.kind == "filled":
                share = shape_of(node)[reach.images] // BATCH
                self.filled[node] = value.narrow(reach.images, 0, share)
        else:
            self.step(node)

    def cast(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if self.dtype is not None and value.is_floating_point() else value

    def put(self, node: fx.Node, step: Step) -> None:
        images = self.traced.reaches[node].images
        if not _is_first(node, images):
            step.images_first = False
            step.shape = tuple(size // BATCH if at == images else size for at, size in enumerate(shape_of(node)))
        self.steps.append(step)
        self.made[node] = step

    def step(self, node: fx.Node) -> None:
        name, arguments, reach = call_name(node), call_arguments(node), self.traced.reaches[node]
        sources = [self.made[source] for source in node.all_input_nodes if source in self.made]
        window = convolution_slides(node)
        if isinstance(node.meta["val"], (list, tuple)):
            return  # the getitem that takes a part of it decides what it means
        if name in _SAME or self.is_same(node, name):
            self.made[node] = sources[0]
        elif window is not None and arguments["weight"] in self.constants and sources == [sources[0]]:
            weight, bias = self.constants[arguments["weight"]], self.constants.get(arguments["bias"])
            shape = shape_of(node)[1:]
            conv = Conv(label(node), sources[0], shape, reach.layout, window, weight, bias, arguments["groups"])
            self.put(node, conv)
        elif node.target is operator.getitem:
            self.getitem(node)
        elif name in ("batch_norm", "_native_batch_norm_legit_no_training"):
            names = ("weight", "bias", "running_mean", "running_var")
            statistics = [self.constants.get(arguments[key]) for key in names]
            self.put(node, Norm(label(node), sources[0], statistics, arguments["eps"]))
        elif name in _ACTIVATIONS and len(sources) == 1 and (name != "elu" or arguments["scale"] == 1):
            step = StandaloneActivation(label(node), name, sources, shape_of(node)[1:], reach.layout)
            step.activation = _ACTIVATIONS[name](arguments)
            self.put(node, step)
        elif reach.kind == "windowed":
            self.windowed(node, name, arguments, sources[0])
        elif (shuffle := self.shuffle(node)) is not None:
            self.put(node, shuffle)
        elif _is_spatial_mean(node, name, arguments, sources[0]):
            self.put(node, Mean(label(node), sources[0], shape_of(node)[1:], self.alone(node)))
        else:
            self.other(node, name, arguments)

    def other(self, node: fx.Node, name: str, arguments: dict[str, Any]) -> None:
        """Any other call, run as it is; constants that vary with the position are cut like maps."""
        layout = self.traced.reaches[node].layout
        maps = self.maps_of_constants(node, name) if self.traced.reaches[node].positional else {}
        layout = None if maps is None else layout
        moving = [source for source in node.all_input_nodes if source in self.made]
        sources = [self.made[source] for source in moving] + list((maps or {}).values())
        call = self.call(node, [*moving, *(maps or {})])
        flops, fresh = _flops(node, name, arguments, layout), name in _FRESH
        operation = "scaled add" if name == "add" and arguments["alpha"] != 1 else name
        step = Call(label(node), operation, sources, shape_of(node)[1:], layout, call, flops=flops, fresh=fresh)
        self.put(node, step)

    def maps_of_constants(self, node: fx.Node, name: str) -> dict[fx.Node, Constant] | None:
        """The constants of a call that have rows and columns, as maps; None if they do not fit."""
        out, layout = shape_of(node), self.traced.reaches[node].layout
        if layout != tuple(range(2, len(out))) or not (is_pointwise(node.target) or name == "cat"):
            return None
        found = {}
        for source in node.all_input_nodes:
            value = self.filled.get(source, self.constants.get(source))
            if isinstance(value, Tensor) and value.dim() and (name == "cat" or max(value.shape[2 - len(out) :]) > 1):
                value = value.reshape(*[1] * (len(out) - value.dim()), *value.shape)
                found[source] = Constant(label(node), value.expand(-1, -1, *out[2:]).contiguous())
        self.steps += found.values()
        return found

    def is_same(self, node: fx.Node, name: str) -> bool:
        """Whether the call returns its only input unchanged, in the same dtype and shape."""
        inputs = [source for source in node.all_input_nodes if source in self.made]
        if len(inputs) != 1 or len(node.all_input_nodes) != 1 or shape_of(inputs[0]) != shape_of(node):
            return False
        if name == "slice":  # of all images, say, with their number as its end
            return True
        pointwise = self.traced.reaches[node].kind == "pointwise"
        same_dtype = inputs[0].meta["val"].dtype == node.meta["val"].dtype if name in ("to", "_to_copy") else False
        return pointwise and (name in ("view", "reshape", "expand") or "adaptive_avg_pool" in name or same_dtype)

    def getitem(self, node: fx.Node) -> None:
        """A part of a split; otherwise the first result of a call, which is that of its step."""
        source, index = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(index, int)
        name, arguments = call_name(source), call_arguments(source)
        if name not in SPLITS:
            moving = [each for each in source.all_input_nodes if each in self.made]
            steps, slides = [self.made[each] for each in moving], self.traced.reaches[source].slides
            if slides is not None and index == 0:
                self.windowed(node, "max_pool", arguments, steps[0], slides)
            else:
                layout, call = self.traced.reaches[node].layout, self.call(source, moving, index)
                self.put(node, Call(label(node), name, steps, shape_of(node)[1:], layout, call))
            return
        step = self.made[source.all_input_nodes[0]]
        parts = source.meta["val"]
        dim = arguments["dim"] % len(shape_of(source.all_input_nodes[0]))
        if name == "unbind":
            call = partial(lambda inputs, shape, dim, index: inputs[0].select(dim, index), dim=dim, index=index)
        else:
            start = sum(int(part.shape[dim]) for part in parts[:index])
            length = int(parts[index].shape[dim])
            call = partial(
                lambda inputs, shape, dim, start, length: inputs[0].narrow(dim, start, length),
                dim=dim, start=start, length=length,
            )  # fmt: skip
        layout = self.traced.reaches[node].layout
        self.put(node, Call(label(node), name, [step], shape_of(node)[1:], layout, call))

    def windowed(
        self,
        node: fx.Node,
        name: str,
        arguments: dict[str, Any],
        source: Step,
        slides: Slides | None = None,
    ) -> None:
        reach = self.traced.reaches[node]
        slides = slides or reach.slides
        assert slides is not None
        name_of, shape = label(node), shape_of(node)[1:]
        if "max_pool" in name:
            window = [[slide.kernel, slide.stride, slide.before, slide.dilation] for slide in slides]
            kernel, stride, padding, dilation = (list(pair) for pair in zip(*window, strict=True))
            ceil = slides[0].ceil
            pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(slides) - 1]

            def largest(x: Tensor) -> Tensor:
                return pool(x, kernel, stride, padding, dilation, ceil)

            self.put(node, Pool(name_of, source, shape, slides, maximum=True, whole=largest))
        elif "avg_pool" in name:
            whole = self.alone(node)
            divisor = self.divisor(name_of, source, shape, slides, arguments, whole)
            self.put(node, Pool(name_of, source, shape, slides, maximum=False, divisor=divisor, whole=whole))
        elif name == "pixel_unshuffle":
            call = self.call(node, [each for each in node.all_input_nodes if each in self.made])
            self.put(node, Call(name_of, name, [source], shape, reach.layout, call, slides=[slides]))
        else:
            assert reach.layout is not None
            value = float(arguments.get("value") or 0.0)
            self.put(node, PadOrSlice(name_of, name, source, shape, reach.layout, slides, self.alone(node), value))

    def divisor(
        self, name: str, source: Step, shape: tuple[int, ...], slides: Slides, arguments: dict[str, Any],
        whole: Callable[[Tensor], Tensor],
    ) -> int | Constant:  # fmt: skip
        """The divisor of a mean: one number, or a map of inverses if it differs near the border."""
        if arguments.get("divisor_override"):
            return int(arguments["divisor_override"])
        padded = any(slide.before for slide in slides) and not arguments.get("count_include_pad", True)
        if not padded and not any(slide.ceil for slide in slides):
            return math.prod(slide.kernel for slide in slides)
        image = self.traced.image.meta["val"]
        ones = torch.ones(1, source.shape[0], *source.size, device=image.device, dtype=torch.float64)
        sums = F.pad(ones[:, :1], [side for slide in reversed(slides) for side in (slide.before, slide.kernel)])
        for dim, slide in enumerate(slides, start=2):
            sums = sums.unfold(dim, slide.kernel, slide.stride).sum(-1).narrow(dim, 0, shape[dim - 1])
        # the mean of ones is (how many lie inside) / divisor
        inverse = whole(ones)[:, :1] / sums
        constant = Constant(name, inverse.to(self.dtype or image.dtype))
        self.steps.append(constant)
        return constant

    def shuffle(self, node: fx.Node) -> Shuffle | None:
        """A channel shuffle, if ``node`` ends the calls view, transpose, (clone,) view that implement it."""
        name, arguments = call_name(node), call_arguments(node)
        if name == "channel_shuffle":
            return Shuffle(label(node), self.made[arguments["self"]], arguments["groups"])
        layout = self.traced.reaches[node].layout
        if name not in ("view", "reshape", "_unsafe_view") or layout != tuple(range(2, len(shape_of(node)))):
            return None
        chain = [node]
        while call_name(chain[-1]) != "transpose" or len(chain) == 1:
            (before,) = chain[-1].all_input_nodes
            if before.op != "call_function" or call_name(before) not in ("clone", "contiguous", "transpose"):
                return None
            chain.append(before)
        (split,) = chain[-1].all_input_nodes
        turn = call_arguments(chain[-1])
        if (
            split.op != "call_function"
            or call_name(split) not in ("view", "reshape")
            or {turn["dim0"], turn["dim1"]} != {1, 2}
        ):
            return None
        (source,) = split.all_input_nodes
        before_split, inner = shape_of(source), shape_of(split)
        whole = len(inner) == len(before_split) + 1 and inner[1] * inner[2] == before_split[1]
        whole = whole and inner[3:] == before_split[2:]
        if not whole or shape_of(node) != before_split or source not in self.made:
            return None
        return Shuffle(label(node), self.made[source], inner[1])

    def alone(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        """The call as a function of its only input."""
        call = self.call(node, [source for source in node.all_input_nodes if source in self.made])
        shape = list(shape_of(node))
        return lambda x: call([x], [x.shape[0], *shape[1:]])

    def call(
        self, node: fx.Node, moving: Sequence[fx.Node], index: int | None = None
    ) -> Callable[[Sequence[Tensor], list[int]], Any]:
        """The call as a function of its inputs, and of the required shape of its output if that is a map.

        Args:
            node: the call.
            moving: the nodes that the inputs replace.
            index: the result to use if there are several; None is the call's own result.
        """
        places = {source: place for place, source in enumerate(moving)}
        target: Any = node.target
        name, arguments, reach = call_name(node), call_arguments(node), self.traced.reaches[node]
        is_map, first = reach.is_local, bool(moving) and _is_first(node, reach.images)
        if target is operator.getitem:
            return lambda inputs, shape: self.constants[node.args[0]][node.args[1]]  # type: ignore[index]

        def run(inputs: Sequence[Tensor], shape: list[int]) -> Any:
            count = self.count(moving[0], inputs[0]) if moving else BATCH
            if not is_map:
                shape = [count, *shape[1:]] if first else self.shape_for(node, count)
            if moving and name == "expand":
                return inputs[0].expand(shape)
            if moving and name in _SIZED:
                return inputs[0].reshape(shape)

            def value(source: fx.Node) -> Any:
                if source in places:
                    given = inputs[places[source]]
                    return given.expand(count, *given.shape[1:]) if source in self.constants else given
                filled = self.filled.get(source) if moving else None
                return self.constants[source] if filled is None else self.for_images(source, filled, count)

            given = dict(fx.node.map_arg(arguments, value))
            if name == "affine_grid_generator":
                given["size"] = [count, *given["size"][1:]]
            result = target(**given)
            result = result if index is None else result[index]
            # constants created in the graph, and casts in the model, keep their own dtypes
            return self.cast(result) if isinstance(result, Tensor) else result

        return run

    def count(self, source: fx.Node, value: Tensor) -> int:
        """The number of images in ``value``, which replaces ``source``."""
        images = self.traced.reaches[source].images
        return value.shape[images] * BATCH // shape_of(source)[images]

    def shape_for(self, node: fx.Node, count: int) -> list[int]:
        """The shape of the output for ``count`` images."""
        shape, reach = list(shape_of(node)), self.traced.reaches[node]
        if reach.kind != "constant":
            shape[reach.images] = shape[reach.images] // BATCH * count
        return shape

    def for_images(self, source: fx.Node, filled: Tensor, count: int) -> Tensor:
        """A value that is the same for each image, expanded to ``count`` of them."""
        images = self.traced.reaches[source].images
        times = [count if dim == images else 1 for dim in range(filled.dim())]
        if filled.shape[images] > 1:
            return filled.repeat(times)
        return filled.expand([count if dim == images else size for dim, size in enumerate(filled.shape)])


def _is_first(node: fx.Node, images: int) -> bool:
    """Whether dimension 0 holds the images, one entry for each."""
    return images == 0 and shape_of(node)[:1] == (BATCH,)


def _is_spatial_mean(node: fx.Node, name: str, arguments: dict[str, Any], source: Step) -> bool:
    ndim = len(source.shape) + 1
    if source.layout is None or source.layout != tuple(range(2, ndim)):
        return False
    if name.startswith("adaptive_avg_pool"):
        return len(shape_of(node)) == ndim and set(shape_of(node)[2:]) == {1}
    if name != "mean" or arguments.get("dtype") is not None:
        return False
    return {dim % ndim for dim in arguments.get("dim") or []} == set(source.layout)


def _flops(node: fx.Node, name: str, arguments: dict[str, Any], layout: Layout | None) -> float:
    """Operations of a call for one position of its map, or for one image's whole output if it is not a map."""
    shape = shape_of(node)
    values = float(math.prod(shape[1:]))
    if layout is not None:
        values /= math.prod(shape[dim] for dim in layout)
    return values * 2.0 * shape_of(arguments["weight"])[1] if name == "linear" else values


def reachable(steps: Sequence[Step], output: Step) -> list[Step]:
    """The steps that ``output`` needs and the images, in their order; ``output`` is the last."""
    needed = {output}
    for step in reversed(steps):
        if step in needed:
            needed.update(step.sources)
    return [step for step in steps if step in needed or isinstance(step, Input)]
