"""Recording a forward pass without data: its ATen calls as a graph, and each module's output.

The modules are copied, but not their tensors. They run on images without data (``FakeTensorMode``) while a dispatch
mode records every call. In inference mode autograd does not decompose calls first, so convolutions, linear layers and
norms arrive whole. Code that looks at values cannot run without data, so such models are refused. No process-wide
setting changes, so other threads are not affected.
"""

from __future__ import annotations

import copy
import functools
import operator
import types
from collections import OrderedDict, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastviz.execution.hooks import is_of_another_thread
from fastviz.execution.modes import no_function_modes
from fastviz.graph.batch_rules import has_rule

__all__ = ["NotTraceable", "Output", "Recording", "foreign_hooks", "record", "twin_of", "watchable"]


class NotTraceable(ValueError):  # noqa: N818 - it says what is the case, not that something broke
    """The model cannot be recorded as a graph; the message says why."""


FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ArithmeticError)
"""Errors that code may raise for images without data, or of an unusual size."""


@dataclass(frozen=True)
class Output:
    """What a module gave in one call.

    Attributes:
        node: of the (first) tensor; None if there is none, or if it came from no call.
        shape: of that tensor, the batch included; None if there is none.
        single: whether the output is one tensor.
        calls: how many calls the graph had by then.
    """

    node: fx.Node | None
    shape: tuple[int, ...] | None
    single: bool
    calls: int


@dataclass
class Recording:
    """The calls of one forward pass.

    Attributes:
        graph: functional ATen calls; the metadata of a node hold ``val``, its output without data, and
            ``nn_module_stack``, the names and classes of the modules that it was called in.
        constants: by the names of their placeholders, the model's own tensors that take part.
        image: the placeholder of the images.
        result: what the model gave, nodes in the place of tensors.
        outputs: for each module, by all of its names, what it gave in each call.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    image: fx.Node
    result: Any = None
    outputs: dict[str, list[Output]] = field(default_factory=dict)


class _Stop(BaseException):
    """Ends a pass early. Models that catch errors do not catch this."""


class _AliasedError(Exception):
    """A tensor with views is written to; torch has to make the calls functional."""


def record(
    model: nn.Module, batch: Tensor, until: tuple[str, int] | None = None, mode: FakeTensorMode | None = None
) -> Recording:
    """The calls of ``model`` in evaluation mode for a ``batch`` of images; only its shape, dtype and device count.

    The model is not touched, and neither are random numbers. Hooks that are not torch's own are left out.

    Args:
        model: the network.
        batch: images [N, C, H, W].
        until: a module's name and a number: the pass ends after that many calls of it; None is the whole pass.
        mode: of an earlier recording, which knows the parameters already.

    Raises:
        NotTraceable: the model has scripted parts, looks at values, writes to its own tensors, or cannot run on images
            without data.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotTraceable(f"{name or 'the model'} is a script, whose calls cannot be followed")
    mode = mode or FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with no_function_modes():
            return _recorded_either_way(model, batch, until, mode)
    except NotTraceable:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise NotTraceable(f"the model looks at values: {_operator(error)} decides what is computed") from error
    except FAILURES as error:
        words = (str(error).strip().splitlines() or [""])[0][:200]
        raise NotTraceable(f"the model cannot be traced without data: {type(error).__name__}: {words}") from error


def _recorded_either_way(
    model: nn.Module, batch: Tensor, until: tuple[str, int] | None, mode: FakeTensorMode
) -> Recording:
    try:
        return _recorded(model, batch, until, mode, functional=False)
    except _AliasedError:
        return _recorded(model, batch, until, mode, functional=True)


def _operator(error: Exception) -> str:
    return str(getattr(error, "func", "a call")).removeprefix("aten.").removesuffix(".default").lstrip("_")


def _recorded(
    model: nn.Module, batch: Tensor, until: tuple[str, int] | None, mode: FakeTensorMode, *, functional: bool
) -> Recording:
    twin = twin_of(model)
    graph = fx.Graph()
    with torch.inference_mode(), torch.autocast(batch.device.type, enabled=False):
        with mode:
            images = torch.empty(batch.shape, dtype=batch.dtype, device=batch.device)
        recorder = _Recorder(graph, images, until)
        recorder.watch(twin)

        def forward(images: Tensor) -> Any:
            return recorder.finish(twin(images))

        with suppress(_Stop), mode, recorder, _SlowPaths():
            (torch.func.functionalize(forward) if functional else forward)(images)
    found = recorder.recording
    graph.output(found.result)
    found.constants = {name: value.detach() for name, value in found.constants.items()}
    return found


class _SlowPaths(TorchFunctionMode):
    """Does nothing itself. But while any mode is active, torch's transformers do not replace a whole layer by one fused
    call."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Writes down the calls that are made inside."""

    def __init__(self, graph: fx.Graph, images: Tensor, until: tuple[str, int] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        image = graph.placeholder("image")
        image.meta["val"] = images
        self.recording = Recording(graph, {}, image)
        self._until = until
        self._count = 0
        self._nodes: dict[int, fx.Node] = {}
        # tensors are kept alive so that no id is reused
        self._tensors: dict[int, Tensor] = {}
        self._sharing: dict[int, list[int]] = {}
        self._stack: list[tuple[str, type]] = []
        self._put(images, image)

    # ---------------------------------------------------------------------------------------------- modules

    def watch(self, twin: nn.Module) -> None:
        """Note what the modules of ``twin`` give, and in which of them calls are made."""
        names: dict[nn.Module, list[str]] = {}
        for name, module in twin.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        for module, own in names.items():
            module.register_forward_pre_hook(functools.partial(self._enter, own[0]))
            module.register_forward_hook(functools.partial(self._leave, own))

    def _enter(self, name: str, module: nn.Module, inputs: object) -> None:
        self._stack.append((name, type(module)))

    def _leave(self, names: list[str], module: nn.Module, inputs: object, output: object) -> None:
        self._stack.pop()
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        node, shape = None, None
        if isinstance(first, Tensor):
            node, shape = self._find(first), tuple(int(size) for size in first.shape)
        found = Output(node, shape, first is output and shape is not None, self._count)
        for name in names:
            calls = self.recording.outputs.setdefault(name, [])
            calls.append(found)
            if self._until == (name, len(calls)):
                raise _Stop

    # ------------------------------------------------------------------------------------------------ calls

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if func.namespace == "aten" and not has_rule(func) and func._can_decompose():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        target = self._functional(func, name, args) if func._schema.is_mutable else func
        sources = self._mapped(args), self._mapped(kwargs)
        result = _normalized(func, args, kwargs)
        if name in _LIKE and isinstance(result, Tensor):
            target, sources = _as_fill(result, args, kwargs, name)
        self._write(target, *sources, result)
        return result

    def _write(self, target: Any, args: Any, kwargs: Any, result: Any) -> None:
        made = list(result) if isinstance(result, (tuple, list)) else [result]
        if not any(isinstance(value, Tensor) for value in made):
            return
        graph = self.recording.graph
        node = graph.call_function(target, args, kwargs)
        self._count += 1
        node.meta.update(val=result, nn_module_stack={name: (name, kind) for name, kind in self._stack})
        if isinstance(result, Tensor):
            self._put(result, node)
            return
        for index, value in enumerate(made):
            if isinstance(value, Tensor):
                part = graph.call_function(operator.getitem, (node, index))
                self._count += 1
                part.meta.update(val=value, nn_module_stack=node.meta["nn_module_stack"])
                self._put(value, part)

    def _functional(self, func: Any, name: str, args: tuple[Any, ...]) -> Any:
        """The functional call that returns what ``func`` would write into its first argument."""
        written = args[0] if args else None
        if not isinstance(written, FakeTensor):
            raise NotTraceable(f"the model writes to its own tensors, with {name}")
        overload = func._schema.overload_name or "default"
        found = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), overload, None)
        writes = [each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments]
        shares = self._sharing[_storage(written)]
        if not name.endswith("_") or found is None or sum(writes) != 1 or not writes[0] or len(shares) > 1:
            raise _AliasedError
        return found

    # ---------------------------------------------------------------------------------------------- tensors

    def _put(self, tensor: Tensor, node: fx.Node) -> None:
        key = id(tensor)
        if key not in self._tensors:
            self._tensors[key] = tensor
            self._sharing.setdefault(_storage(tensor), []).append(key)
        self._nodes[key] = node

    def _find(self, tensor: Tensor) -> fx.Node | None:
        """The node that made the current value of ``tensor``; None if no call did."""
        tensor = _unwrapped(tensor)
        if id(tensor) in self._nodes:
            return self._nodes[id(tensor)]
        if not isinstance(tensor, FakeTensor):
            return None
        for key in self._sharing.get(_storage(tensor), []):  # ``.data`` and the like
            other = self._tensors[key]
            places = [(each.shape, each.stride(), each.storage_offset(), each.dtype) for each in (tensor, other)]
            if places[0] == places[1]:
                self._put(tensor, self._nodes[key])
                return self._nodes[key]
        return None

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._find(value) or self._constant(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self._mapped(each) for each in value)
        if isinstance(value, dict):
            return {key: self._mapped(each) for key, each in value.items()}
        return value

    def _constant(self, tensor: Tensor) -> fx.Node:
        if isinstance(tensor, FakeTensor):
            raise NotTraceable("the model reads a tensor that no call made")
        graph = self.recording.graph
        # placeholders stand before calls
        with graph.inserting_after(self.recording.image):
            node = graph.placeholder(f"constant_{len(self.recording.constants)}")
        node.meta["val"] = tensor
        self.recording.constants[node.name] = tensor
        self._tensors[id(tensor)] = tensor
        self._nodes[id(tensor)] = node
        return node

    def finish(self, result: Any) -> Any:
        """Record the model's result."""
        self.recording.result = self._result(result)
        return result

    def _result(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._find(value) or self._constant(value)
        if isinstance(value, dict):
            return {str(key): self._result(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._result(each) for each in value]
        return None


def _normalized(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of ``func``. For a batch norm it is known without the slow way through torch's decompositions."""
    if func is torch.ops.aten.batch_norm.default and len(args) > 5 and not args[5] and isinstance(args[0], FakeTensor):
        return torch.empty_like(args[0])
    return func(*args, **kwargs)


_LIKE = {f"{kind}{what}{like}" for kind in ("", "new_") for what in ("zeros", "ones", "full", "empty", "empty_strided")
         for like in ("", "_like")}  # fmt: skip


def _as_fill(result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> tuple[Any, tuple[Any, Any]]:
    """The call that makes ``result`` with explicit shape, dtype and device, instead of copying them from a tensor."""
    value: Any = float("one" in name)
    if "full" in name:
        value = kwargs["fill_value"] if "fill_value" in kwargs else args[1 if len(args) == 2 else -1]
    if isinstance(value, Tensor):
        raise NotTraceable("the model fills a tensor with a number that it computes")
    settings = {"dtype": result.dtype, "device": result.device}
    return torch.ops.aten.full.default, (([int(size) for size in result.shape], value), settings)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _unwrapped(tensor: Tensor) -> Tensor:
    if not torch._is_functional_tensor(tensor):
        return tensor
    torch._sync(tensor)  # type: ignore[attr-defined, no-untyped-call]
    inner: Tensor = torch._from_functional_tensor(tensor)
    return inner


# -------------------------------------------------------------------------------------------------------- the modules

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def foreign_hooks(module: nn.Module) -> bool:
    """Whether ``module`` has forward hooks that are neither torch's own nor fastviz's own for another thread."""
    # Copied to lists, because another thread may add or remove hooks.
    hooks = [hook for name in _HOOKS[:2] for hook in list(getattr(module, name).values())]
    return any(not _is_torchs(hook) and not is_of_another_thread(hook) for hook in hooks)


def _is_torchs(hook: object) -> bool:
    """Whether a hook computes a weight (``weight_norm``) or checks an exported module's input."""
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return str(getattr(named, "__module__", "")).startswith(("torch.nn.utils.", "torch.export.", "torch._export."))


def watchable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules whose hooks are called, with their names; not the parts of scripts."""
    return [(name, each) for name, each in model.named_modules() if not isinstance(each, torch.jit.ScriptModule)]


def twin_of(model: nn.Module, *, copy_buffers: bool = False) -> nn.Module:
    """A copy of the modules in evaluation mode around the very same parameters, buffers and other objects.

    Lists and dicts in the modules are copied, too, so that anything a forward pass stores stays in the copy. Locks,
    files and other objects that cannot be copied are shared. Hooks that are not torch's own are left out, and what
    ``torch.compile`` made is left for the module that it was made of. With ``copy_buffers`` a pass with data leaves the
    model's own buffers as they are.
    """
    known: dict[int, Any] = {id(each): each.clone() for each in model.buffers()} if copy_buffers else {}
    twin: nn.Module = _copied(model, known)
    return twin


def _copied(value: Any, known: dict[int, Any]) -> Any:
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, torch.jit.ScriptModule):
        return value
    if isinstance(value, nn.Module):
        return _copied_module(value, known)
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        return types.MethodType(value.__func__, _copied(value.__self__, known))
    if type(value) is functools.partial:
        inside = _copied([value.func, list(value.args), value.keywords], known)
        return functools.partial(inside[0], *inside[1], **inside[2])
    if type(value) in (dict, OrderedDict, defaultdict):
        made = known[id(value)] = copy.copy(value)
        for key, each in value.items():
            made[key] = _copied(each, known)
        return made
    if type(value) is list:
        items: list[Any] = []
        known[id(value)] = items
        items.extend(_copied(each, known) for each in value)
        return items
    if type(value) is tuple:
        return tuple(_copied(each, known) for each in value)
    return value


def _copied_module(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    compiled_from = vars(module).get("_modules", {}).get("_orig_mod")
    if compiled_from is not None:
        return _copied_module(compiled_from, known) if id(compiled_from) not in known else known[id(compiled_from)]
    twin: nn.Module = object.__new__(type(module))
    known[id(module)] = twin
    for key, value in vars(module).items():
        if key in _HOOKS:
            made: Any = OrderedDict((at, hook) for at, hook in value.items() if _is_torchs(hook))
        elif key in ("_parameters", "_buffers"):
            made = {name: known.get(id(each), each) for name, each in value.items()}
        elif key == "_compiled_call_impl":
            made = None
        else:
            made = _copied(value, known)
        vars(twin)[key] = made
    vars(twin)["training"] = False
    return twin
