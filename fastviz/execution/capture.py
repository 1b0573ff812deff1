"""What holds inside a ``with``, and leaves no trace on the model: evaluation mode, activations, rules of rectifiers."""

from __future__ import annotations

import copy
import inspect
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, NamedTuple, TypeAlias
from warnings import warn

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastviz import models, ops
from fastviz._util import checks
from fastviz._util.memory import is_out_of_memory
from fastviz.execution import elementwise, exported
from fastviz.execution.elementwise import tensors_in

__all__ = [
    "Hook",
    "OwnHook",
    "Precision",
    "Reached",
    "RectifierWarning",
    "Rectifiers",
    "UnusableInputError",
    "activations",
    "called",
    "differentiate",
    "eager",
    "floating_output",
    "frozen_model",
    "has_hooks",
    "hooked",
    "input_batch",
    "is_compiled",
    "layer_module",
    "rectifiers",
    "require_gradients",
    "usable",
]


Precision: TypeAlias = Literal["model", "bfloat16"]
"""``"model"``: in the dtype of the model and its input, exact; ``"bfloat16"``: under autocast, approximate."""


# ---------------------------------------------------------------------------------------------- model and input


def layer_module(model: nn.Module, name: str) -> nn.Module:
    """The module of ``model`` that torch calls ``name`` (its dotted name in ``named_modules()``; ``""`` is the model).

    What ``torch.compile`` wraps also has the names that it has without the wrapper.

    Raises:
        TypeError: ``model`` is not a module or ``name`` not a string.
        ValueError: no module has this name; the message lists the nearest.
    """
    checks.module(model)
    if not isinstance(name, str):
        raise TypeError(f"layer should be a dotted module name, got {type(name).__name__}")
    if name and isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"layer {name!r} should not be inside a scripted module, where nothing can be recorded")
    with suppress(AttributeError):
        if not isinstance(model, torch.jit.ScriptModule):  # which do not have it
            return model.get_submodule(name)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for full, module in list(modules.items()):
        modules.setdefault(full.replace("_orig_mod.", ""), module)
    plain = name.replace("_orig_mod.", "")
    return modules[plain if plain in modules else checks.nearest(name, "layer", modules)]


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of ``module`` itself runs what ``torch.compile`` made of it."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def eager(model: nn.Module) -> nn.Module:
    """``model`` without what ``torch.compile`` made of it or its parts: the same layers and weights, as Python code.

    Compiled code does not call hooks that came after it was compiled, and goes on to call those that were there. What
    is not compiled is returned as it is; of a module around something compiled there is a shallow copy.
    """
    if not any(is_compiled(module) for module in model.modules()):
        return model
    known: dict[int, nn.Module] = {}

    def plain(module: nn.Module) -> nn.Module:
        if id(module) in known:
            return known[id(module)]
        inner = getattr(module, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            found = plain(inner)
        else:
            parts = {name: None if each is None else plain(each) for name, each in module._modules.items()}
            found = module
            if is_compiled(module) or any(each is not module._modules[name] for name, each in parts.items()):
                found = copy.copy(module)
                found.__dict__.update(_modules=parts, _compiled_call_impl=None)
        known[id(module)] = found
        return found

    return plain(model)


def input_batch(model: nn.Module, x: object, argument: str = "x", *, narrows: bool = False) -> Tensor:
    """``x``, if it is a floating-point batch [N, C, H, W] that ``model`` can be given; N may be 0.

    Another dtype than that of the first parameter is tried on one image: some models cast their input themselves.
    ``narrows`` says that the caller gives a model of 16 bits the images in its dtype.

    Raises:
        TypeError: ``model`` is not a module, ``x`` not a floating-point tensor, or of a dtype that ``model`` refuses.
        ValueError: ``x`` has another number of dimensions, no channels or pixels, or is on a device on which the model
            has nothing, or that is neither a CPU nor a GPU that torch calls cuda.
    """
    checks.module(model)
    batch = checks.image_batch(x, argument)
    if 0 in batch.shape[1:]:
        raise ValueError(f"{argument} should have at least one channel and one pixel, got {list(batch.shape)}")
    fixed = exported.fixed_batch(model)
    if fixed is not None and len(batch) != fixed:
        raise ValueError(
            f"{argument} should have {fixed} images, the number that the model was exported for, got {len(batch)}"
        )
    devices = _devices(model)
    if devices and batch.device not in devices:
        raise ValueError(
            f"{argument} should be on the device of the model, {', '.join(map(str, devices))}, got {batch.device}"
        )
    checks.device(batch.device, argument)
    own = next((value.dtype for value in model.parameters() if value.is_floating_point()), batch.dtype)
    if own != batch.dtype and not (narrows and own in (torch.float16, torch.bfloat16)):
        wrong = _wrong_dtype(model, batch, argument)
        if wrong is not None:
            raise TypeError(wrong)
    return batch


def _devices(model: nn.Module) -> set[torch.device]:
    """The devices of the parameters and buffers of ``model``, if fastviz computes on all of them."""
    found = {value.device for value in chain(model.parameters(), model.buffers())}
    for each in found:
        checks.device(each, "model")
    return found


class UnusableInputError(ValueError, RuntimeError):
    """A model cannot be run on what it was given; the message says what it can be run on, where that was found."""


def called(model: nn.Module, x: Tensor, argument: str = "x") -> Any:
    """The output of ``model`` for ``x``; see :func:`usable`. A model that works in place on its input changes ``x``."""
    with usable(model, x, argument):
        return model(x)


@contextmanager
def usable(model: nn.Module, x: Tensor, argument: str | None = "x") -> Iterator[None]:
    """Says of what ``model`` refuses while inside, where it is run on ``x``, which argument it was, and a cure.

    ``"size"`` is for images that were made in a size that the caller chose. For no ``argument`` what it says comes as
    it is.

    Raises:
        UnusableInputError: what torch says of the model and ``x``, unless memory ran out, with their shape and dtype.
    """
    shape = list(x.shape)
    try:
        yield
    except (RuntimeError, AssertionError, IndexError) as error:
        known = isinstance(error, UnusableInputError) or is_out_of_memory(error)
        if argument is None or known or _runs(model, x):
            raise
        raise UnusableInputError(_unusable(model, x, shape, argument, error)) from error


def _unusable(model: nn.Module, x: Tensor, shape: list[int], argument: str, error: Exception) -> str:
    """Which argument, what is needed, what came."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    wrong = _wrong_dtype(model, x, argument)
    if wrong is not None:
        return wrong
    if len(shape) != 4:
        return f"the model cannot be run on {argument} of shape {shape} and {x.dtype} ({said})"
    sized = argument == "size"
    came = (
        f"the model cannot be run on {'images' if sized else argument} of {shape[2]}x{shape[3]} pixels with "
        f"{shape[1]} channels in {x.dtype} ({said})"
    )
    convolutions = {getattr(module, "in_channels", None) for module in model.modules()}
    others = sorted({1, 3, *(number for number in convolutions if isinstance(number, int) and number > 0)} - {shape[1]})
    usual = models.preprocessing(model).size or (224, 224)
    for size in ([*shape[2:]], [*usual]):
        for channels in (shape[1], *others):
            if [channels, *size] != shape[1:] and _runs(model, x.new_zeros(1, channels, *size)):
                cure = f"{came}; it can be run on [N, {channels}, {size[0]}, {size[1]}]"
                if channels != shape[1]:
                    return f"{cure}; fastviz.describe(model, preprocessing=...) tells its channels"
                return f"size should be one that the model can take: {cure}" if sized else cure
    return came


def _wrong_dtype(model: nn.Module, x: Tensor, argument: str) -> str | None:
    """What to say if ``model`` can be run on ``x`` in the dtype of its parameters only; None if that is not it."""
    own = next((value.dtype for value in model.parameters() if value.is_floating_point()), x.dtype)
    if own == x.dtype or not x.numel() or _runs(model, x[:1]) or not _runs(model, x[:1].to(own)):
        return None
    return (
        f"{argument} should have the dtype of the model, {own}, got {x.dtype}: give {argument}.to({own}), or "
        f"model.to({x.dtype})"
    )


def _runs(model: nn.Module, batch: Tensor) -> bool:
    """Whether ``model`` can be run on a ``batch``."""
    devices = [batch.device] if batch.is_cuda else []
    try:
        with frozen_model(model), torch.no_grad(), torch.random.fork_rng(devices):
            model(batch.detach().clone())
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
        return False
    return True


def require_gradients(model: nn.Module) -> None:
    """Refuse a ``model`` with parameters or buffers that cannot take part in a graph.

    Raises:
        ValueError: some were made under ``torch.inference_mode()``.
    """
    if any(value.is_inference() for value in chain(model.parameters(), model.buffers())):
        raise ValueError(
            "model should not have parameters made under torch.inference_mode(), which take no part in gradients; "
            "make or load it outside"
        )


_frozen: dict[nn.Module, int] = {}  # modules held in evaluation mode that were in training mode → number of holders
_frozen_lock = threading.Lock()


@contextmanager
def frozen_model(model: nn.Module) -> Iterator[None]:
    """Keep ``model`` in evaluation mode while inside, with gradients on and inference mode off.

    Each submodule gets its own training flag back when the last ``with`` that holds it ends, also in other threads and
    when the body raises. Neither ``train()`` nor ``eval()`` is called, so what a model overrides there does not run.

    >>> model = nn.Sequential(nn.Dropout())
    >>> with frozen_model(model):
    ...     model[0].training
    False
    >>> model[0].training
    True
    """
    held: list[nn.Module] = []
    _devices(checks.module(model))
    try:
        with _frozen_lock:
            for module in model.modules():
                if getattr(module, "training", False) or module in _frozen:
                    held.append(module)
                    _frozen[module] = _frozen.get(module, 0) + 1
                    module.training = False
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        with _frozen_lock:
            for module in held:
                _frozen[module] -= 1
                if not _frozen[module]:
                    del _frozen[module]
                    module.training = True


# -------------------------------------------------------------------------------------------------- activations


class _Recorded(dict[str, Tensor]):
    """Layer name → output; asking for a layer that was not called says so."""

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(
            f"layer {name!r} was not called in the forward pass, so it has no output "
            "(layers inside scripted or compiled modules, and those of replicas in other threads, are not seen)"
        )


class Reached(BaseException):
    """Ends a forward pass when all that was asked of it is there; nothing in a model should catch it."""


@contextmanager
def activations(
    model: nn.Module,
    layers: Sequence[str],
    *,
    start_gradients: bool = False,
    calls: Mapping[str, int] | None = None,
) -> Iterator[Mapping[str, Tensor]]:
    """Record the outputs of ``layers`` in the forward passes made inside, by the thread that entered.

    Yields a mapping from layer name to output, in the graph of the forward pass, that fills while the model runs. The
    network goes on with a copy of the output, so an in-place rectifier behind the layer does not change what was
    recorded. A layer that is called several times leaves its last output.

    With ``start_gradients``, to be used under ``torch.no_grad()``, autograd starts at the layers: the first one called
    switches gradients on for the rest of the ``no_grad`` block, and its output is a leaf. What comes before needs no
    graph then, which saves its memory and time.

    With ``calls``, how often one forward pass calls each of the layers, it ends after the last of these calls, by
    raising :class:`Reached`, for the caller to catch.

    Raises:
        ValueError: a layer does not exist or is scripted (on entering), was not called (when it is read from the
            mapping).
        TypeError: a layer returns something else than a floating-point tensor (while the model runs).

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> with activations(model, ["0"]) as recorded:
    ...     scores = model(torch.zeros(3, 1, 2, 2))
    >>> recorded["0"].shape
    torch.Size([3, 4])
    """
    recorded = _Recorded()
    left = Counter(calls)

    def recorder(name: str) -> Hook:
        def record(module: nn.Module, inputs: object, output: object) -> Tensor:
            tensor = floating_output(name, output)
            if start_gradients:
                if not tensor.requires_grad:
                    tensor = tensor.detach().requires_grad_()
                torch.set_grad_enabled(True)
            recorded[name] = tensor
            if calls:
                left[name] -= 1
                if not any(left.values()):
                    raise Reached
            return tensor.clone()

        return record

    with hooked(model, {name: recorder(name) for name in layers}):
        yield recorded


Hook = Callable[[nn.Module, Any, object], "Tensor | None"]
"""What torch calls after a module, with the module, its inputs and its output; a tensor returned is the output then."""


class OwnHook:
    """A hook of fastviz's own: it acts in the thread that made it, and is gone when what that thread computes is there.

    Sweeps and the like in other threads, which do otherwise for models with hooks, need not mind it.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook
        self._thread = threading.get_ident()

    def __call__(self, *args: Any) -> Any:
        """What the hook returns; None in other threads."""
        return self._hook(*args) if threading.get_ident() == self._thread else None


def has_hooks(module: nn.Module, *, backward: bool = True) -> bool:
    """Whether ``module`` itself has forward hooks, or backward ones, that are not fastviz's own for another thread."""
    hooks = [module._forward_hooks, module._forward_pre_hooks]
    if backward:
        hooks += [module._backward_hooks, module._backward_pre_hooks]
    # Lists, because another thread may add and remove hooks meanwhile.
    return any(not is_of_another_thread(hook) for each in hooks for hook in list(each.values()))


def is_of_another_thread(hook: object) -> bool:
    """Whether a hook is fastviz's own, for what another thread computes."""
    return isinstance(hook, OwnHook) and hook._thread != threading.get_ident()


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Call a hook after every call of its layer made inside, by the thread that entered.

    ``hooks`` goes from layer name to what is called with the module, its inputs and its output, as the layer gave it:
    an in-place rectifier behind the layer may change it afterwards.

    Raises:
        ValueError: a layer does not exist or is scripted.
    """
    modules = {name: layer_module(model, name) for name in hooks}
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"layer {name!r} should not be inside a scripted module, where nothing can be recorded")
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(OwnHook(hooks[name])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def floating_output(name: str, output: object) -> Tensor:
    """The ``output`` of layer ``name``, if it is one floating-point tensor; else a TypeError."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        what = str(output.dtype) if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"layer {name!r} should return one floating-point tensor, got {what}")
    return output


# --------------------------------------------------------------------------------------------------- rectifiers


class RectifierWarning(UserWarning):
    """A backward rule was asked for that some, or all, activations of the model do not follow."""


class _Call(NamedTuple):
    """A call that computes min(max(x, 0), upper)."""

    x: Tensor
    upper: float | None
    in_place: bool


# The ways of writing a rectifier, and the parameters of each, in order.
_PARAMETERS = {
    "relu": ("input", "inplace"),
    "relu6": ("input", "inplace"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "threshold": ("input", "threshold", "value", "inplace"),
    "clamp": ("input", "min", "max"),
    "clip": ("input", "min", "max"),
    "clamp_min": ("input", "min"),
}


def _spellings() -> dict[Callable[..., object], tuple[str, bool]]:
    """Every function of torch that may be a rectifier → its key in ``_PARAMETERS``, and whether it works in place."""
    table: dict[Callable[..., object], tuple[str, bool]] = {}
    for name in _PARAMETERS:
        for variant, in_place in ((name, False), (f"{name}_", True)):
            for home in (torch, Tensor, functional, torch._C._nn):
                if hasattr(home, variant):
                    table[getattr(home, variant)] = (name, in_place)
            # What torch.export and torch.fx graphs call.
            packet = getattr(torch.ops.aten, variant)
            for function in (packet, *(getattr(packet, overload) for overload in packet.overloads())):
                table[function] = (name, in_place)
    return table


_SPELLINGS = _spellings()

# What rectifiers are made of where no call says so, in code that is being compiled.
_CHOICES = frozenset(
    getattr(home, name)
    for name in ("gt", "ge", "lt", "le", "__gt__", "__ge__", "__lt__", "__le__", "maximum", "fmax", "sign", "heaviside")
    for home in (torch, Tensor)
    if hasattr(home, name)
)


def _number(bound: object) -> float | None:
    """A bound of ``clamp`` as a number; NaN for a tensor whose value cannot be had without waiting for a device."""
    if isinstance(bound, Tensor):
        return float(bound) if bound.numel() == 1 and bound.device.type == "cpu" else torch.nan
    return bound  # type: ignore[return-value]


def _read(kind: str, in_place: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
    """The rectifier that a call is, or None if it is none (another bound) or has no gradient (``out=``)."""
    names = _PARAMETERS[kind]
    given = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        given["input" if key == "self" else key] = value
    lower: float | None = 0.0
    upper: float | None = None
    if kind == "relu6":
        upper = 6.0
    elif kind == "hardtanh":
        lower, upper = given.get("min_val", -1.0), given.get("max_val", 1.0)
    elif kind == "threshold":
        lower = 0.0 if given["threshold"] == 0 and given["value"] == 0 else None
    elif kind != "relu":
        lower, upper = _number(given.get("min")), _number(given.get("max"))
    x = given.get("input")
    if not isinstance(x, Tensor) or "out" in given or lower != 0 or not (upper is None or upper > 0):
        return None
    return _Call(x, None if upper == torch.inf else upper, in_place or bool(given.get("inplace", False)))


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


class Rectifiers(TorchFunctionMode):
    """The mode behind :func:`rectifiers`; ``count`` is the number of calls that got the rule."""

    written_by_hand = True
    """Whether rectifiers made of other calls get the rule too."""

    def __init__(self, rule: ops.Rule, model: nn.Module | None) -> None:
        super().__init__()
        self.rule = rule
        self.count = 0
        self.compiled_choices = 0
        self._model = model
        self._forms = elementwise.Forms()
        self._left: Counter[str] = Counter()
        self._choices: dict[Any, str] = {}  # autograd node → the call, and its place, that may be a missed rectifier

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        spelling = _SPELLINGS.get(func)
        call = None if spelling is None else _read(*spelling, args, kwargs)
        # Without a graph there is no backward pass whose rule could differ.
        if call is None or not (call.x.is_floating_point() and call.x.requires_grad and torch.is_grad_enabled()):
            if torch.compiler.is_compiling() or not self.written_by_hand:
                self.compiled_choices += func in _CHOICES
                return func(*args, **kwargs)
            return self._other(func, args, kwargs, spelling is not None)
        self.count += 1
        # For a view, autograd wants a gradient for the rest of its base too, which only copy_ gives; Dynamo does not
        # see that an autograd function overwrites what it is given, and would lose the gradient.
        plain = call.x._is_view() or torch.compiler.is_compiling() or not _is_dense(call.x)
        if call.in_place and not plain:
            return self.rectified_(call.x, call.upper)
        y = self.rectified(call.x, call.upper)
        if call.in_place:
            return call.x.copy_(y)
        if self.written_by_hand and not torch.compiler.is_compiling():
            with torch._C.DisableTorchFunction():
                self._forms.note_rectifier(y, call.x, call.upper)
        return y

    def _other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], spelled: bool) -> Any:
        """A call that is no rectifier by its name, but may complete one that is written by hand."""
        kind = elementwise.kind_of(func)
        watched = kind.elementwise and "out" not in kwargs and bool(args or not kind.in_place)
        if not (watched or self._forms.watches(kind)):
            return func(*args, **kwargs)
        # Other modes have no business with what is only looked at.
        with torch._C.DisableTorchFunction():
            forms = self._forms.tried(func, kind, args, kwargs) if watched else []
            followed = self._followed(func, kind, forms, args, kwargs) if torch.is_grad_enabled() else None
            if followed is not None:
                return followed
            tensors = tensors_in(args, kwargs)
            if kind.name in elementwise.WAYS_OUT and any(map(self._forms.differs, tensors)):
                self._left[f"what is done outside of torch after {_label(kind)}"] += 1
            parts = [each.grad_fn for each in tensors] if forms and self._choices else []
        y = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            written = args[0] if kind.in_place else y
            self._forms.note(written, kind, forms, args, kwargs)
            node = getattr(written[0] if isinstance(written, tuple) and written else written, "grad_fn", None)
            if node is not None and not spelled and self._forms.is_choice(kind, forms, args, kwargs):
                self._note_choice(node, kind, parts)
        return y

    def _followed(
        self, func: Callable[..., Any], kind: elementwise.Kind, forms: list[elementwise.Form], args: Any, kwargs: Any
    ) -> Tensor | None:
        """What a call gives, if it is a rectifier of some tensor, with the rule; else None."""
        for form in forms:
            x, found = form.origin(), None if form.is_ruled else form.read()
            if found is None or x is None or not x.requires_grad or elementwise.version_of(x) != form.version:
                continue
            with torch.no_grad():
                if kind.in_place:
                    y = args[0].clone()
                    func(y, *args[1:], **kwargs)
                else:
                    y = func(*args, **kwargs)
            if y.shape != x.shape or y.dtype != x.dtype:
                continue
            z = self.rectified(x if found.sign > 0 else -x, found.upper)
            z = z if found.slope == 1 else z * found.slope
            # The probes speak for finite numbers; these are the real ones.
            near = 4 * torch.finfo(y.dtype).eps
            if not torch.allclose(z.detach(), y, rtol=near, atol=near * float(y.abs().max()) if y.numel() else 0):
                continue
            self.count += 1
            for each in tensors_in(args, kwargs):
                self._choices.pop(each.grad_fn, None)
            if kind.in_place:
                written: Tensor = args[0].copy_(z)
                return written
            if found.sign > 0:
                self._forms.note_rectifier(z, x, found.upper, found.slope)
            return z
        return None

    def _note_choice(self, node: Any, kind: elementwise.Kind, parts: list[Any]) -> None:
        """Remember a call that may be a missed rectifier, in the place of its ``parts``."""
        for each in parts:
            self._choices.pop(each, None)
        if _activation(node) is None or kind.name in ("maximum", "max", "fmax"):
            self._choices[node] = _label(kind)

    def rectified(self, x: Tensor, upper: float | None) -> Tensor:
        """``min(max(x, 0), upper)`` with the backward rule."""
        return ops.guided_relu(x, self.rule, upper)

    def rectified_(self, x: Tensor, upper: float | None) -> Tensor:
        """The same, written over ``x``."""
        return ops.guided_relu_(x, self.rule, upper)

    def missed(self, output: Tensor) -> Counter[str]:
        """Activations in the graph of ``output`` that did not get the rule → how often each is there."""
        names = (self._choices.get(node) or _activation(node) for node in _nodes(output))
        return Counter(name for name in names if name is not None) + self._left

    def check(self, output: Tensor, *, stacklevel: int = 2) -> None:
        """Warn, by name, if activations in the graph of ``output`` did not get the rule, or if there is no rectifier.

        To be called after the forward pass and before the backward pass. ``stacklevel`` as in :func:`warnings.warn`.
        """
        missed = self.missed(output)
        if self.compiled_choices:
            missed["comparisons in compiled code"] = self.compiled_choices
        scripted = [] if self._model is None else _scripted_parts(self._model)
        self._forms.clear()
        self._choices.clear()
        self._left.clear()
        if missed or scripted:
            listed = ", ".join(f"{name} ({times} times)" for name, times in sorted(missed.items()))
            message = (
                f"the {self.rule!r} rule was not applied to {listed or 'scripted code'}: their own gradient was used"
            )
            if scripted:
                names = ", ".join(repr(name) for name in scripted[:5])
                message += f"; scripted modules and functions cannot be intercepted: {names}"
            warn(message, RectifierWarning, stacklevel=stacklevel + 1)
        elif not self.count and not any(node.name() == _REPLAYED for node in _nodes(output)):
            warn(
                f"the model has no rectifier (ReLU): the {self.rule!r} rule gives its ordinary gradient",
                RectifierWarning,
                stacklevel=stacklevel + 1,
            )


def _label(kind: elementwise.Kind) -> str:
    """The name and the place of the call that is being intercepted."""
    place = _place_of_call()
    return f"torch.{kind.name}" + (f" at {place}" if place else "")


def _place_of_call() -> str:
    """File and line of the call that is being intercepted, in the source of who wrote the model; "" if not known."""
    ours, torchs = f"{Path(__file__).parent}{os.sep}", f"{Path(torch.__file__).parent}{os.sep}"
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    while frame is not None and not frame.f_code.co_filename.startswith(ours):
        if not frame.f_code.co_filename.startswith(torchs):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


# What rectifiers and their kin are made of, in scripted code.
_SCRIPTED_CHOICES = (
    *("relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_", "threshold", "threshold_", "clamp", "clamp_"),
    *("clamp_min", "clamp_min_", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu", "selu_", "celu", "silu"),
    *("silu_", "gelu", "mish", "mish_", "hardswish", "hardswish_", "softplus", "where", "masked_fill", "masked_fill_"),
    *("maximum", "fmax", "gt", "ge", "lt", "le", "abs", "sign", "heaviside", "index_put", "index_put_", "rrelu"),
)


def _scripted_parts(model: nn.Module) -> list[str]:
    """Names of the scripted modules of ``model``, and of scripted functions its modules call, that may rectify."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not isinstance(module, torch.jit.ScriptModule):
            found.update(
                (str(each.name), None) for each in _scripted_functions(type(module).forward, type(module), seen)
            )
            is_torchs = type(module).__module__.partition(".")[0] == "torch"
            for value in () if is_torchs else vars(module).values():
                if isinstance(value, torch.jit.ScriptFunction) and _chooses(value.inlined_graph):
                    found[str(value.name)] = None
            continue
        inside = any(isinstance(modules[above], torch.jit.ScriptModule) for above in _above(name))
        if not inside and hasattr(module, "inlined_graph") and _chooses(module.inlined_graph):
            found[name] = None
    return list(found)


def _scripted_functions(function: object, home: type, seen: set[int]) -> Iterator[Any]:
    """Scripted functions that may rectify, among what the code of a Python function names, and so on."""
    if isinstance(function, torch.jit.ScriptFunction):
        if _chooses(function.inlined_graph):
            yield function
        return
    function = inspect.unwrap(function) if callable(function) else function
    if not isinstance(function, FunctionType) or id(function.__code__) in seen:
        return
    seen.add(id(function.__code__))
    if function.__module__ is None or function.__module__.partition(".")[0] in ("torch", "fastviz"):
        return
    for name in function.__code__.co_names:
        yield from _scripted_functions(function.__globals__.get(name), home, seen)
        yield from _scripted_functions(inspect.getattr_static(home, name, None), home, seen)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that is still empty
            yield from _scripted_functions(cell.cell_contents, home, seen)


def _above(name: str) -> list[str]:
    """Names of the modules that a module is in, the model itself among them."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts))]


def _chooses(graph: Any) -> bool:
    return any(graph.findNode(f"aten::{name}", True) is not None for name in _SCRIPTED_CHOICES)


_REPLAYED = "_ReplayBackward"
"""The node of a pass that :mod:`fastviz.execution.cuda_graphs` replays; it was checked before it was recorded."""


def _nodes(output: Tensor) -> Iterator[Any]:
    """Each node once of the autograd graph of ``output``."""
    seen = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions)


# Autograd nodes of activations to which the rules are not applied → what their users call them.
_OTHER_ACTIVATIONS = {
    "Celu": "CELU",
    "Elu": "ELU or SELU",
    "Fmax": "torch.fmax",
    "Gelu": "GELU",
    "Hardswish": "Hardswish",
    "LeakyRelu": "LeakyReLU",
    "Maximum": "torch.maximum",
    "Mish": "Mish",
    "PreluKernel": "PReLU",
    "Relu": "ReLU",
    "RreluWithNoise": "RReLU",
    "Silu": "SiLU",
    "Softplus": "Softplus",
}


def _activation(node: Any) -> str | None:
    """What the activation whose autograd node this is would be called; None if it is no activation, or had the rule."""
    name = node.name()
    kind = re.sub(r"Backward\d*$", "", name)
    if kind in _OTHER_ACTIVATIONS:
        return _OTHER_ACTIVATIONS[kind]
    if kind == "Threshold":
        return "threshold" if node._saved_threshold == 0 else None
    if kind == "Hardtanh":
        return "hardtanh" if node._saved_min_val == 0 else None
    if kind in ("Clamp", "ClampMin"):
        # Reading a saved tensor could recompute a checkpointed part, so a tensor is reported whatever its value.
        if hasattr(node, "_raw_saved_min"):
            return "clamp to a tensor"
        return "clamp" if node._saved_min == 0 else None
    if "DifferentiableGraph" in kind:
        return "scripted code"
    return _foreign_function(node)


def _foreign_function(node: Any) -> str | None:
    """The name and place of an autograd function of somebody else's, which may do anything; None for other nodes."""
    function = getattr(node, "_forward_cls", None)
    if function is None:
        # One in C++ can only be told by its name.
        return node.name() if "relu" in node.name().lower() and "fastviz" not in node.name().lower() else None
    if function.__module__.partition(".")[0] in ("fastviz", "torch"):
        return None
    try:
        place = f" at {inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        place = ""
    return f"{node.name()}{place}"


def differentiate(
    output: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    *,
    retain_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of the sum of ``output`` for the ``inputs``; None for one on which it does not depend.

    Of the sum of several outputs times their ``weights``, if these are given.

    ``torch.autograd.grad``, but with the mode of :func:`rectifiers` on in the parts of a model that
    ``torch.utils.checkpoint`` runs again.
    """
    # Every public way to run a backward pass is itself a function that modes intercept, and a mode is off while it
    # handles a call: what is run again would not have the rule. To be replaced once torch.autograd.grad keeps modes on.
    outputs = (output,) if isinstance(output, Tensor) else tuple(output)
    found: tuple[Tensor | None, ...] = _engine_run_backward(
        outputs,
        tuple(torch.ones_like(each) for each in outputs) if weights is None else tuple(weights),
        retain_graph,
        False,  # no graph of the gradient
        tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=False,
    )
    return found


@contextmanager
def rectifiers(rule: ops.Rule, *, model: nn.Module | None = None) -> Iterator[Rectifiers]:
    """Give every rectifier that is called inside, by this thread, another backward rule.

    ``rule`` is ``"plain"``, ``"guided"`` or ``"deconvnet"``, as in :func:`fastviz.ops.guided_relu`. A rectifier is
    ``relu``, ``relu6``, ``hardtanh(0, …)``, ``threshold(0, 0)`` and ``clamp(min=0)`` (also ``clip`` and ``clamp_min``),
    as a module, function, method or ATen call, in place or not, with or without an upper bound, on a floating-point
    tensor that takes part in a graph; and what is written by hand as a chain of elementwise calls that comes to the
    same, such as ``torch.where(x > 0, x, 0)``, ``x * (x > 0)``, ``x[x < 0] = 0``, ``torch.maximum(x, zeros)`` or
    ``(x + x.abs()) / 2``, see :mod:`fastviz.execution.elementwise`.

    A bounded one is ``min(max(x, 0), bound)``: the rule holds for the ``max``, and the ordinary gradient, zero from the
    bound on, for the ``min``. In-place calls change their argument as ever. Nothing is patched: other threads, and what
    comes after the ``with``, are not affected.

    The backward pass belongs inside too, by :func:`differentiate`: ``torch.utils.checkpoint`` runs parts of the model
    again then.

    Yields an object with ``count``, the number of intercepted calls, and ``check(output)``, which raises a
    :class:`RectifierWarning` that names what was not intercepted: other activations (GELU, …), also those written by
    hand, with their place in the source; other people's autograd functions, scripted code, and what is computed outside
    of torch, into none of which one can see. ``model`` lets it name scripted modules.

    >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    >>> with rectifiers("guided") as found:
    ...     y = (x.relu() * torch.tensor([1.0, 1.0, -1.0])).sum()
    ...     (gradient,) = differentiate(y, [x])
    >>> gradient, found.count
    (tensor([0., 1., 0.]), 1)
    """
    checks.one_of(rule, "rule", ("plain", "guided", "deconvnet"))
    with Rectifiers(rule, model) as found:
        yield found
