"""The part of a model after a layer, run for many maps of that layer at once; the part before it runs only once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastviz.execution.elementwise import tensors_in
from fastviz.execution.fast_conv.memory_format import in_fast_order
from fastviz.execution.hooks import floating_output, hooked
from fastviz.execution.inputs import output_of
from fastviz.execution.map_axes import Axes
from fastviz.execution.model_outputs import join_tensors, tensors_in_output

__all__ = ["AfterLayer"]

_JOINS = frozenset({torch.cat, torch.concat, torch.concatenate, torch.stack})


class AfterLayer:
    """The part of a model after the last call of a layer, for one image.

    The first pass records the result of every call before the layer. Later passes run the model's own code, but calls
    before the layer are answered from the record, and the layer returns the given maps. There may be many of them;
    results from before the layer that reach them through a shortcut are then the same for all.

    To be used in evaluation mode and without gradients.

    Args:
        model: any module; not changed.
        layer: dotted name of a layer that gives one tensor.
        image: [1, C, H, W].

    Attributes:
        maps: what the layer gives, [1, ...].
        layer_output: the same tensor as ``axes`` knows it; later calls may have changed its values in place.
        axes: which dimensions of it are rows, columns and channels.
        output: what the model gives.
        together: whether several maps go through the rest of the model at once.

    >>> model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 2, bias=False)).eval()
    >>> with torch.no_grad():
    ...     rest = AfterLayer(model, "1", torch.ones(1, 1, 2, 2))
    ...     found = rest(torch.cat([rest.maps, 3 * rest.maps]))
    >>> torch.allclose(found, torch.cat([rest.output, 3 * rest.output]))
    True
    """

    def __init__(self, model: nn.Module, layer: str, image: Tensor) -> None:
        self._model, self._layer, self._image = model, layer, image
        self.axes = Axes()
        self._calls = 0
        found: list[tuple[Tensor, Tensor]] = []

        def note(module: nn.Module, inputs: object, output: object) -> None:
            self._calls += 1
            tensor = floating_output(layer, output)
            found[:] = [(tensor.clone(), tensor)]

        with hooked(model, {layer: note}), self.axes:
            begun = image.clone()
            self.output = output_of(model, self.axes.images(begun) if begun.dim() > 2 else begun)
        if not found:
            raise ValueError(f"layer {layer!r} was not called in the forward pass, so it has no output")
        self.maps, self.layer_output = found[0]
        self._fast: Callable[[Tensor], Any] = self._run
        where = self.axes.planes(self.layer_output)
        if self.maps.dim() == 4 and (where is None or where.order == (0, 1, 2, 3)):
            self._fast = in_fast_order(model, "model", self._run, None)
        self._notes: _Notes | None = _Notes(image)
        self.together = self._is_together()
        if not (self._notes.unchanged() and self._same(self._run(self.maps), self.output)):
            # The rest of the model changes results from before the layer in place, so the whole model has to run each
            # time.
            self._notes = None
            self.together = self._is_together()

    def __call__(self, maps: Tensor) -> Any:
        """The model's output for each of the ``maps`` [P, ...]; together if that is possible, else one by one."""
        if len(maps) == 1 or self.together:
            return self._fast(maps)
        return join_tensors([self._run(maps[at : at + 1]) for at in range(len(maps))])

    def _run(self, maps: Tensor) -> Any:
        calls = 0

        def replace(module: nn.Module, inputs: object, output: object) -> Tensor | None:
            nonlocal calls
            calls += 1
            if calls < self._calls:
                return None
            if self._notes is not None:
                self._notes.end()
            return maps.clone()  # later calls may work in place

        with hooked(self._model, {self._layer: replace}), _Joined():
            if self._notes is None:
                return self._model(self._image.clone())
            with self._notes:
                return self._model(self._notes.start())

    def _is_together(self) -> bool:
        """Whether three maps at once give the same results as each of them alone."""
        if isinstance(self.output, (list, tuple)):  # one entry per image, or a tensor: too few images tell them apart
            return False
        maps = torch.cat([self.maps, 0.5 * self.maps, self.maps.flip(-1)])
        alone = join_tensors([self._run(maps[at : at + 1]) for at in range(len(maps))])
        try:
            return self._same(self._run(maps), alone)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False  # a shortcut, or a fixed number of images; one at a time the maps have just passed

    @staticmethod
    def _same(output: object, expected: object) -> bool:
        got, wanted = tensors_in_output(output), tensors_in_output(expected)
        return len(got) == len(wanted) > 0 and all(map(_near, got, wanted))


def _near(output: Tensor, expected: Tensor) -> bool:
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return False
    if not expected.is_floating_point() or not expected.numel():
        return torch.equal(output, expected)
    near = min(1e3 * torch.finfo(expected.dtype).eps, 0.05) * float(expected.abs().max())
    return torch.allclose(output, expected, rtol=0, atol=near, equal_nan=True)


class _Notes(TorchFunctionMode):
    """Replays in later passes what the calls before a layer gave in the first."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._image = image.clone()
        self._noted: list[tuple[Callable[..., Any], Any]] = []
        self._versions: list[tuple[Tensor, int]] | None = None
        self._at = 0
        self._in_front = False

    def start(self) -> Tensor:
        """Begin a pass. Returns its image, as the calls before the layer left it."""
        self._at, self._in_front = 0, True
        return self._image

    def end(self) -> None:
        """The layer has been reached in this pass."""
        self._in_front = False
        if self._versions is None:
            tensors = [self._image, *(each for _, result in self._noted for each in tensors_in((result,), {}))]
            self._versions = [(each, each._version) for each in tensors]

    def unchanged(self) -> bool:
        """Whether no recorded result has been changed in place since the first pass reached the layer."""
        return all(each._version == version for each, version in self._versions or ())

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._in_front and self._versions is None:
            self._noted.append((func, func(*args, **kwargs)))
            return self._noted[-1][1]
        if self._in_front and self._at < len(self._noted) and self._noted[self._at][0] == func:
            self._at += 1
            return self._noted[self._at - 1][1]
        self._in_front = False  # after the layer, or on another path than the first pass
        return func(*args, **kwargs)


class _Joined(TorchFunctionMode):
    """Within the ``with`` block, tensors of one image may be joined with tensors of several."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (
            func in _JOINS
            and args
            and isinstance(args[0], (tuple, list))
            and not _along_images(func, args, kwargs or {})
        ):
            given = list(args[0])
            most = max((len(each) for each in given if each.dim()), default=1)
            if most > 1 and any(each.dim() > 1 and len(each) == 1 for each in given):
                given = [each.expand(most, *each.shape[1:]) if len(each) == 1 else each for each in given]
                args = (given, *args[1:])
        return func(*args, **(kwargs or {}))


def _along_images(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether tensors are put one behind another along their first dimension, where their lengths may differ."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    return func is not torch.stack and (dim == 0 or any(dim == -each.dim() for each in args[0]))
