"""The frequent calls of a network, recognised as Python makes them: the fast part of watching a batch.

Every call of torch from Python is seen here, before torch splits it into ATen calls. What most networks consist of
(convolutions, normalisations with kept statistics, rectifiers, sums of maps, products with weights) is decided at once:
one argument holds the images, and all others existed before. Any other call runs under
:class:`fastviz.execution.batch_watch.Watch`, which follows each of its ATen calls.

Tensors made where Python's calls do not show it (in an extension, say) would look like constants here. So only the
model's own tensors and the results of calls that were seen count as known, as long as nothing unseen writes to them.
Anything else raises :class:`Unseen`, and the pass is watched ATen call by ATen call instead. The same holds in
inference mode, where torch does not count writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastviz._util.modules import every_module
from fastviz.execution.batch_calls import PLAIN
from fastviz.execution.batch_places import Images, leaves, operands
from fastviz.execution.batch_watch import Watch, version_of

__all__ = ["Functions", "Reads", "Unseen", "called"]

Rule = Callable[[Watch, tuple[Any, ...], dict[str, Any]], "Images | None"]

_NOTHING: dict[str, Any] = {}


class Unseen(BaseException):
    """A tensor came from somewhere that Python's calls do not show."""


def _own_tensors(model: nn.Module) -> dict[int, int]:
    """The parameters, buffers and plain attributes of a model, by identity, and their versions."""
    found = {}
    with torch._C.DisableTorchFunction():  # the modes around this pass need not see it
        for module in every_module(model):
            for values in (module._parameters.values(), module._buffers.values(), vars(module).values()):
                found.update({id(each): version_of(each) for each in values if isinstance(each, Tensor)})
    return found


class Functions(TorchFunctionMode):
    """Follows the images through Python's calls, and leaves unknown calls to the watch.

    Args:
        watch: what is known of the tensors of this pass; not entered.
        model: whose own tensors are constants.
    """

    def __init__(self, watch: Watch, model: nn.Module) -> None:
        super().__init__()
        self._watch = watch
        watch.constants = _own_tensors(model)
        watch.unknown = Unseen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or _NOTHING
        rule = RULES.get(func)
        if rule is _look:
            return func(*args, **kwargs)
        # other modes need not see what is asked of tensors here
        with torch._C.DisableTorchFunction():
            place = None if rule is None else rule(self._watch, args, kwargs)
            if place is None:
                if func in READERS and args and isinstance(args[0], Tensor):
                    self._watch.read(args[0])
                tensors = list(operands((*args, *kwargs.values())))
                given = self._watch.as_noted([*tensors, *(each._base for each in tensors if each._base is not None)])
        if place is not None:
            result = func(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                self._watch.note(result, place)
            return result
        with self._watch:
            result = func(*args, **kwargs)
        # torch counts writes, also those through a view, of the viewed tensor too, when the call has ended
        with torch._C.DisableTorchFunction():
            self._watch.renew(given)
            self._watch.renew(leaves(result) if isinstance(result, (Tensor, tuple, list)) else ())
        return result


class Reads(TorchFunctionMode):
    """Ends a pass that reads values of images outside of torch, without an ATen call."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in READERS and args and isinstance(args[0], Tensor):
            self._watch.read(args[0])
        return func(*args, **(kwargs or _NOTHING))


READERS = {
    *(Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.storage, Tensor.untyped_storage),
    *(Tensor.data_ptr, Tensor.apply_, Tensor.map_),
}
"""Calls that take values out of torch."""

# ------------------------------------------------------------------------------------------------ rules


def _look(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """Calls that read a tensor's shape or kind and give no tensor."""
    raise AssertionError


def _first(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Images] | None:
    """The first argument and its place, if the images are in its dimension 0 and all other tensors are constants."""
    tensor = args[0] if args else kwargs.get("input")
    if not isinstance(tensor, Tensor) or type(tensor) not in PLAIN:
        return None
    place = watch.images(tensor)
    if place is None or place.dim or not _constant(watch, args[1:]):
        return None
    if kwargs and not _constant(watch, (value for name, value in kwargs.items() if name != "input")):
        return None
    return tensor, place


def _constant(watch: Watch, values: Iterable[Any]) -> bool:
    """Whether no tensor in an argument list depends on the images. Lists of tensors are not checked."""
    for value in values:
        if isinstance(value, Tensor):
            if not watch.is_constant(value):
                return False
        elif isinstance(value, (list, tuple)) and any(isinstance(each, (Tensor, list, tuple)) for each in value):
            return False
    return True


def _of_rank(rank: int) -> Rule:
    """Calls that act image by image on maps of this rank: convolutions, pools."""

    def rule(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
        found = _first(watch, args, kwargs)
        return found[1] if found is not None and found[0].dim() == rank else None

    return rule


def _value_by_value(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """One tensor and numbers."""
    tensor = args[0] if args else kwargs.get("input")
    if not isinstance(tensor, Tensor) or type(tensor) not in PLAIN:
        return None
    rest = (*args[1:], *(value for name, value in kwargs.items() if name != "input"))
    return None if any(isinstance(each, (Tensor, list, tuple)) for each in rest) else watch.images(tensor)


def _dropout(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    training = args[2] if len(args) > 2 else kwargs.get("training", True)
    return _value_by_value(watch, args, kwargs) if training is False else None


def _batch_norm(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """With kept statistics."""
    found = _first(watch, args, kwargs)
    training = args[5] if len(args) > 5 else kwargs.get("training", False)
    return found[1] if found is not None and training is False and found[0].dim() >= 3 else None


def _layer_norm(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    found = _first(watch, args, kwargs)
    shape = args[1] if len(args) > 1 else kwargs.get("normalized_shape")
    if found is None or not isinstance(shape, (tuple, list)):
        return None
    return found[1] if found[0].dim() > len(shape) else None


def _linear(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    found = _first(watch, args, kwargs)
    return found[1] if found is not None and found[0].dim() >= 2 else None


def _flatten(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    found = _first(watch, args, kwargs)
    start = args[1] if len(args) > 1 else kwargs.get("start_dim", 0)
    return found[1] if found is not None and isinstance(start, int) and start > 0 else None


def _permute(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """Orders of dimensions that leave the images first."""
    found = _first(watch, args, kwargs)
    order = args[1:] if len(args) > 1 and isinstance(args[1], int) else args[1] if len(args) > 1 else ()
    return found[1] if found is not None and len(order) > 0 and order[0] == 0 else None


def _transpose(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """Of two dimensions behind that of the images."""
    found = _first(watch, args, kwargs)
    if found is None or len(args) != 3 or not all(isinstance(each, int) for each in args[1:]):
        return None
    return found[1] if all(each % found[0].dim() for each in args[1:]) else None


def _softmax(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """Along a dimension behind that of the images."""
    found = _first(watch, args, kwargs)
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return found[1] if found is not None and isinstance(dim, int) and dim % found[0].dim() else None


def _roll(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """Along dimensions behind that of the images."""
    found = _first(watch, args, kwargs)
    dims = args[2] if len(args) > 2 else kwargs.get("dims")
    along = (dims,) if isinstance(dims, int) else tuple(dims or ())
    return found[1] if found is not None and along and all(each % found[0].dim() for each in along) else None


def _pad(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """Of dimensions behind that of the images."""
    found = _first(watch, args, kwargs)
    sides = args[1] if len(args) > 1 else kwargs.get("pad", ())
    return found[1] if found is not None and 0 < len(sides) <= 2 * (found[0].dim() - 1) else None


def _matmul(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """Products of matrices, each with that of the same image."""
    if len(args) != 2 or kwargs or any(type(each) not in PLAIN or each.dim() < 3 for each in args):
        return None
    place, other = watch.images(args[0]), watch.images(args[1])
    alike = place is not None and not place.dim and place == other and args[0].dim() == args[1].dim()
    return place if alike else None


def _pairwise(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """Sums and products of maps with other maps of the same images, with constants or with a number."""
    if len(args) != 2 or kwargs.keys() - {"alpha"} or not isinstance(kwargs.get("alpha", 1), (int, float)):
        return None
    first, second = args
    if not isinstance(second, Tensor):
        return _value_by_value(watch, args, _NOTHING)
    if type(first) not in PLAIN or type(second) not in PLAIN:
        return None
    place, other = watch.images(first), watch.images(second)
    if place is None or place.dim:
        return None
    if other is not None:
        return place if place == other and first.dim() == second.dim() else None
    # a constant that has no entry for each image is the same for all of them
    alike = second.dim() < first.dim() or (second.dim() == first.dim() and second.shape[0] == 1)
    return place if alike and watch.is_constant(second) else None


def _joined(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """Maps of the same images, joined along their channels."""
    tensors = args[0] if args else kwargs.get("tensors")
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if not isinstance(tensors, (list, tuple)) or not tensors or not isinstance(dim, int):
        return None
    if any(type(each) not in PLAIN for each in tensors):
        return None
    rank = tensors[0].dim()
    if dim % rank == 0 or any(each.dim() != rank for each in tensors):
        return None
    places = [watch.images(each) for each in tensors]
    return places[0] if places[0] is not None and not places[0].dim and len(set(places)) == 1 else None


def _mean(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
    """Along dimensions behind that of the images."""
    found = _first(watch, args, kwargs)
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if found is None or dims is None:
        return None
    along = [dims] if isinstance(dims, int) else list(dims)
    return found[1] if along and all(each % found[0].dim() for each in along) else None


def called(names: str) -> set[Any]:
    """The functions of torch, of ``torch.nn.functional`` and of tensors that have one of these names."""
    owners = (torch, F, torch._C._nn, Tensor)
    found = {getattr(owner, name, None) for name in names.split() for owner in owners}
    return found - {None}


_LOOKS = (Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.is_floating_point)
_SHOWS = ("shape", "dtype", "device", "ndim", "is_cuda", "is_nested", "requires_grad", "layout", "is_quantized")

RULES: dict[Any, Rule] = {
    **{
        function: rule
        for names, rule in (
            ("conv1d avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d", _of_rank(3)),
            ("conv2d conv_transpose2d avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d", _of_rank(4)),
            ("conv3d conv_transpose3d avg_pool3d max_pool3d adaptive_avg_pool3d adaptive_max_pool3d", _of_rank(5)),
            ("relu relu_ relu6 leaky_relu elu selu celu hardswish hardsigmoid hardtanh sigmoid tanh", _value_by_value),
            ("silu gelu mish softplus clamp clamp_ contiguous abs exp neg sqrt", _value_by_value),
            ("dropout dropout2d", _dropout),
            ("batch_norm", _batch_norm),
            ("layer_norm", _layer_norm),
            ("linear", _linear),
            ("flatten", _flatten),
            ("permute", _permute),
            ("transpose", _transpose),
            ("softmax log_softmax", _softmax),
            ("roll", _roll),
            ("pad", _pad),
            ("matmul __matmul__ bmm", _matmul),
            ("add add_ sub sub_ mul mul_ div div_", _pairwise),
            ("cat concat", _joined),
            ("mean", _mean),
        )
        for function in called(names)
    },
    **dict.fromkeys(_LOOKS, _look),
    **{getattr(Tensor, name).__get__: _look for name in _SHOWS},
}
"""The rule for each function; a rule that cannot decide leaves the call to the watch."""
