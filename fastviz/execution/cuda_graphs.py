"""CUDA graphs: passes that a GPU repeats with the same shapes are recorded once and replayed without Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, TypeAlias
from warnings import warn

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from fastviz._util.by_model import ByModel
from fastviz.execution.differentiation import differentiate
from fastviz.execution.hooks import has_hooks

__all__ = ["CapturedPasses", "circumstances", "cuda_graphs", "paused", "proved", "recordings"]

Outputs: TypeAlias = tuple[Any, ...]

_EAGER = 2
"""Calls with the same shapes before one is recorded; recording earlier would cost more than it saves."""
_WARM_UPS = 2
"""Warm-up runs before recording, in which libraries choose algorithms and allocate memory."""
_MOST = 32
"""The most recordings at a time; each keeps the memory of a pass."""

_current: ContextVar[CapturedPasses | None] = ContextVar("fastviz_cuda_graphs", default=None)


@contextmanager
def cuda_graphs() -> Iterator[None]:
    """Within the ``with`` block, passes on a GPU that repeat with the same shapes are recorded once as CUDA graphs and
    replayed.

    The same kernels run on the same numbers, without Python and launches in between. It pays if those take longer than
    the kernels: for few or small images and deep networks. It holds for the gradient methods (not for Grad-CAM and the
    like, whose gradients begin at a layer), for images that are optimised towards targets or codes
    (:func:`fastviz.maximize`, :func:`fastviz.invert`, :func:`fastviz.fool`) and for occlusion sweeps. Third and later
    passes are replayed. Each recorded shape, 32 at most, keeps the memory of a pass until the end of the ``with``, or
    until the model is freed or forgotten (:func:`fastviz.forget`). Further shapes, and models with hooks, run normally.
    So does a pass that cannot be recorded, such as that of a model that reads values from the GPU; a ``RuntimeWarning``
    says why. On a CPU nothing changes.

    The model may get new weights inside, in place or not, but should not be changed otherwise: its Python code does not
    run again.

    Returns:
        A context manager, for ``with``.

    Raises:
        Nothing of its own: what cannot be recorded runs as outside.

    >>> from fastviz.models import load_model
    >>> from fastviz.methods.attribution.gradients import saliency
    >>> model = load_model("demo")
    >>> with cuda_graphs():
    ...     maps = [saliency(model, torch.rand(2, 3, 64, 64), 3) for _ in range(4)]
    """
    token = _current.set(CapturedPasses())
    try:
        yield
    finally:
        _current.reset(token)


def recordings(*inputs: Tensor) -> CapturedPasses | None:
    """The recordings of the enclosing :func:`cuda_graphs`, if the ``inputs`` are on a GPU."""
    return _current.get() if all(_on_gpu(each) for each in inputs) else None


@contextmanager
def paused() -> Iterator[None]:
    """Within the ``with`` block nothing is recorded or replayed."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def proved(model: nn.Module) -> set[object]:
    """Notes about ``model`` that last as long as the ``with`` block of :func:`cuda_graphs`; outside of one, a new
    set."""
    current = _current.get()
    return set() if current is None else current.proved.setdefault(model, set)


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def circumstances(model: nn.Module, device: torch.device) -> tuple[Hashable, ...] | None:
    """Everything besides the inputs that a pass of ``model`` on a ``device`` depends on and that can change within a
    ``with`` block. None for a model with hooks, whose passes are not recorded because a replay does not call hooks.
    """
    if any(has_hooks(module) for module in model.modules()):
        return None
    weights = tuple(value.data_ptr() for value in chain(model.parameters(), model.buffers()))
    modes = tuple((type(mode), getattr(mode, "rule", None)) for mode in _get_current_function_mode_stack())
    lower = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return weights, modes, lower, torch.is_grad_enabled()


class CapturedPasses:
    """Recorded passes, found by everything that they depend on.

    ``shared_memory`` is for functions without gradients: one graph's memory is used by the next.
    """

    def __init__(self, *, shared_memory: bool = False) -> None:
        # Passes of a model are kept until it is freed or forgotten, those of other functions as long as this object.
        self._of_functions: dict[Hashable, int | _CapturedPass] = {}
        self._of_models: ByModel[dict[Hashable, int | _CapturedPass]] = ByModel()
        self.proved: ByModel[set[object]] = ByModel()
        self._pool = torch.cuda.graph_pool_handle() if shared_memory else None

    def replayed(
        self, key: Hashable, function: Callable[..., Outputs], *inputs: Tensor, model: nn.Module | None = None
    ) -> Outputs:
        """``function(*inputs)``, replayed if there have been calls with this ``key`` and inputs of these shapes.

        The outputs and gradients belong to the caller, but gradients have to be computed before the next call with the
        same key and shapes.

        Args:
            key: all that the outputs depend on beside the values of the ``inputs``.
            function: of tensors, gives tensors and None. Its inputs get gradients if they require them, and nothing
                else does.
            inputs: on a GPU.
            model: which the ``function`` runs; what is recorded is freed with it. The ``key`` must not refer to it.
        """
        kept = self._of_functions if model is None else self._of_models.setdefault(model, dict)
        whole = (key, tuple(_signature(each) for each in inputs))
        known = kept.get(whole, 0)
        if known == _EAGER:
            known = kept[whole] = self._recorded(function, inputs)
        if isinstance(known, _CapturedPass):
            return known(*inputs)
        kept[whole] = known + 1
        return function(*inputs)

    def _recorded(self, function: Callable[..., Outputs], inputs: Sequence[Tensor]) -> int | _CapturedPass:
        kept = [self._of_functions, *self._of_models.values()]
        if sum(isinstance(each, _CapturedPass) for entries in kept for each in list(entries.values())) >= _MOST:
            return _EAGER + 1
        try:
            return _CapturedPass(function, inputs, self._pool)
        except (RuntimeError, TypeError) as error:
            warn(f"a pass cannot be recorded as a CUDA graph, and runs without: {error}", RuntimeWarning, stacklevel=2)
            return _EAGER + 1


def _signature(x: Tensor) -> tuple[Hashable, ...]:
    return x.shape, x.stride(), x.dtype, x.device, x.requires_grad


class _CapturedPass:
    """A function recorded with its own memory: one graph of its forward pass and one of its backward pass."""

    def __init__(self, function: Callable[..., Outputs], inputs: Sequence[Tensor], pool: Any) -> None:
        # torch.cuda.make_graphed_callables would free what the forward pass keeps with the first backward pass, of
        # which there are as many as targets, and would lose the rules of rectifiers in checkpointed parts.
        self.inputs = [torch.empty_like(each).copy_(each).requires_grad_(each.requires_grad) for each in inputs]
        self.turn = 0
        device = inputs[0].device
        side = torch.cuda.Stream(device)
        # Casts of weights that autocast caches would be gone at the replay.
        kind, lower = device.type, torch.is_autocast_enabled(device.type)
        with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=lower, cache_enabled=False):
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    self._set_outputs(function(*self.inputs))
                    self._differentiate()
            torch.cuda.current_stream(device).wait_stream(side)
            self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.forward, pool=pool, stream=side):
                outputs = function(*self.inputs)
            self._set_outputs(outputs)
            if self.weights:
                with torch.cuda.graph(self.backward, pool=self.forward.pool(), stream=side):
                    self._differentiate()

    def _set_outputs(self, outputs: Outputs) -> None:
        for output in outputs:
            if not (output is None or isinstance(output, Tensor)):
                raise TypeError(f"it should give tensors, got {type(output).__name__}")
        self.outputs = outputs
        self.differentiable = [output for output in outputs if output is not None and output.requires_grad]
        self.weights = [torch.empty_like(output) for output in self.differentiable]

    def _differentiate(self) -> None:
        if self.weights:
            leaves = [each for each in self.inputs if each.requires_grad]
            self.gradients = differentiate(self.differentiable, leaves, self.weights, retain_graph=True)

    def __call__(self, *inputs: Tensor) -> Outputs:
        found = iter(_Replay.apply(self, *inputs))
        return tuple(None if output is None else next(found) for output in self.outputs)


class _Replay(torch.autograd.Function):
    """Replays a recording; inputs and outputs are copied into and out of its memory."""

    @staticmethod
    def forward(ctx: Any, recording: _CapturedPass, *inputs: Tensor) -> tuple[Tensor, ...]:
        for held, given in zip(recording.inputs, inputs, strict=True):
            held.detach().copy_(given)
        recording.forward.replay()
        recording.turn += 1
        ctx.recording, ctx.turn = recording, recording.turn
        outputs = [each for each in recording.outputs if each is not None]
        copies = tuple(each.detach().clone() for each in outputs)
        ctx.mark_non_differentiable(
            *(copy for copy, each in zip(copies, outputs, strict=True) if not each.requires_grad)
        )
        ctx.differentiable = [each.requires_grad for each in outputs]
        return copies

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        recording: _CapturedPass = ctx.recording
        if ctx.turn != recording.turn:
            raise RuntimeError("gradients of a replayed pass should be asked for before the pass is replayed again")
        given = [grad for grad, has in zip(grads, ctx.differentiable, strict=True) if has]
        for held, grad in zip(recording.weights, given, strict=True):
            held.copy_(grad)
        recording.backward.replay()
        found = iter(recording.gradients)
        taken = [next(found) if each.requires_grad else None for each in recording.inputs]
        return (None, *(None if each is None else each.clone() for each in taken))
