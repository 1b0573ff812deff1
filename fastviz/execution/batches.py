"""Whether a model keeps the images of a batch apart; what runs it on batches, and one image at a time where it may not.

Nothing is taken on trust and nothing is sampled: while a batch goes through the model, every ATen call that it makes is
seen, and for each tensor it is known which dimension counts images. A call that could let one image into the result of
another (a maximum over all of a batch, statistics of a batch, a value read into Python, a call that is not known) ends
the pass, and each image goes alone. What is left is a proof: no call mixed images, and no value of them decided which
calls are made.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastviz.execution import cuda_graphs
from fastviz.execution.compiled import eager, has_compiled_parts
from fastviz.execution.inputs import output_of

__all__ = ["Batches", "Mixes"]

Result = TypeVar("Result")


class Mixes(BaseException):
    """A call may mix the images of a batch; the message says which."""


class _Images(NamedTuple):
    """Where a tensor counts images: in dimension ``dim``, of outer · N · inner places with the images in the middle."""

    dim: int
    outer: int = 1
    inner: int = 1


class _Same:
    """No part of a tensor depends on the images."""


class _Unwritten:
    """Memory that nobody has written to yet."""


class _Lost:
    """Images take part in a tensor; where, is not known."""


class _Tiles:
    """Images cut into tiles by this package's own convolutions, which put each back into the map it came from."""


_SAME, _UNWRITTEN, _LOST, _TILES = _Same(), _Unwritten(), _Lost(), _Tiles()
_Known = _Images | _Same | _Unwritten | _Lost | _Tiles


class Batches:
    """Runs functions of images on whole batches where that is proved to change nothing, else on one image at a time.

    The first batch of each size of images is watched; a batch of one image needs no proof. For one call of a method:
    what is proved holds for the model as it is now.

    Attributes:
        reason: why each image goes alone; empty as long as it need not.

    >>> batches = Batches(nn.BatchNorm2d(1, track_running_stats=False))
    >>> [len(part) for part in batches(batches.run_model, torch.rand(3, 1, 4, 4))], batches.reason
    ([1, 1, 1], 'native_batch_norm may mix the images of a batch')
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.reason = _unseen(model)
        # inside of cuda_graphs() the model's code does not run again, so that one proof is enough
        self._proved: set[object] = cuda_graphs.proved(model)

    def __call__(self, function: Callable[..., Result], images: Tensor, *more: Tensor) -> list[Result]:
        """``[function(images, *more)]``, or a result for each image where the images may meet.

        Args:
            function: of images [B, ...] and what goes with them; passes of the model in it go through :meth:`watched`.
            images: [B, ...].
            more: tensors with an entry an image.
        """
        if len(images) < 2 or not self.reason:
            try:
                return [function(images, *more)]
            except Mixes as reason:
                self.reason = str(reason)
        return [
            function(images[at : at + 1], *(each[at : at + 1] for each in more)) for at in range(len(images))
        ]  # fmt: skip

    def watched(self, forward: Callable[[Tensor], Result], images: Tensor) -> Result:
        """``forward(images)``, which is all that runs the model; to be called in functions that are given to the call.

        Raises:
            Mixes: the images may meet.
        """
        shape = (tuple(images.shape[1:]), images.dtype, images.device)
        if len(images) < 2 or shape in self._proved:
            return forward(images)
        if has_compiled_parts(self.model):
            # Compiled code makes calls of its own: the same layers are watched as Python code, in a pass beside it.
            with torch.no_grad():
                self._watched(eager(self.model), images.detach().clone())
            result = forward(images)
        else:
            result = self._watched(forward, images)
        self._proved.add(shape)
        return result

    def _watched(self, forward: Callable[[Tensor], Result], images: Tensor) -> Result:
        watch = _Watch(self.model, images)
        with cuda_graphs.paused(), _unchanged_generators(), watch, _Reads(watch):
            result = forward(images)
            watch.finish(result)
        return result

    def together(self, images: Tensor, forward: Callable[[Tensor], object] | None = None) -> int:
        """How many of the ``images`` the model may get at once: all of them, or one.

        For streams, whose results do not come back in one piece: it takes a pass over two images, once for a size.

        Args:
            images: [N, ...].
            forward: the pass over two images, which gives all tensors that are used of it; None is the whole model.
        """
        shape = (tuple(images.shape[1:]), images.dtype, images.device)
        if len(images) > 1 and not self.reason and shape not in self._proved:
            try:
                with torch.no_grad():
                    self.watched(forward or self.model, images[:2].clone())
            except Mixes as reason:
                self.reason = str(reason)
            self._proved.add(shape)
        return 1 if self.reason else max(1, len(images))

    def run_model(self, images: Tensor) -> Any:
        """The model's output, watched."""
        return self.watched(lambda batch: output_of(self.model, batch), images)


def _unseen(model: nn.Module) -> str:
    """Why a watched pass would not show all calls; empty if it does."""
    for name, module in model.named_modules():
        where = f"{name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{where} is scripted, so that its calls cannot be seen"
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            return f"{where} is a {type(module).__name__}, whose calls other threads make"
    return ""


class _unchanged_generators:  # noqa: N801 - used like a function
    """Raises for passes that draw numbers from the generators of Python or NumPy: torch's are seen anyway."""

    def __enter__(self) -> None:
        self._before = self._states()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None and self._states() != self._before:
            raise Mixes("the model draws random numbers")

    @staticmethod
    def _states() -> tuple[object, ...]:
        library = sys.modules.get("numpy")
        if library is None:
            return (random.getstate(),)
        name, keys, *place = library.random.get_state()
        return random.getstate(), name, keys.tobytes(), *place


class _Reads(TorchFunctionMode):
    """Ends a pass that takes values of images out of torch, where no call can be seen."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _READERS and args and isinstance(args[0], Tensor):
            self._watch.read(args[0])
        return func(*args, **(kwargs or {}))


_READERS = {
    *(Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.storage, Tensor.untyped_storage),
    *(Tensor.data_ptr, Tensor.apply_, Tensor.map_),
}


class _Operation(NamedTuple):
    """What is known of an ATen overload, whatever its arguments."""

    name: str
    parameters: tuple[str, ...]
    written: tuple[str, ...]
    pointwise: bool
    random: bool
    composite: bool
    single: bool
    windowed: bool
    given: dict[str, Any]


@lru_cache(None)
def _operation(func: Any) -> _Operation:
    schema = func._schema
    name = schema.name.removeprefix("aten::")
    parameters = tuple(argument.name for argument in schema.arguments)
    given = {argument.name: argument.default_value for argument in schema.arguments}
    written = tuple(
        argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write
    )
    base = name.removesuffix("_")
    pointwise = (torch.Tag.pointwise in func.tags and base not in _NOT_POINTWISE) or base in _POINTWISE
    seeded = torch.Tag.nondeterministic_seeded in func.tags
    composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    single = pointwise and not seeded and not composite and base not in ("copy", "where") and "out" not in written
    shown = base if pointwise else name
    windowed = shown in _RULES and _RULES[shown] in (_first, _batch_norm) and not written
    return _Operation(shown, parameters, written, pointwise, seeded, composite, single, windowed, given)


class _Watch(TorchDispatchMode):
    """Follows the images of a batch through every call; raises :class:`Mixes` where they may meet."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled under a mode, and asking so at each call takes longer than following it

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = len(images)
        # by identity, as tensors compare by value; the reference tells another tensor that got the same identity
        self._known: dict[int, tuple[Any, _Known]] = {}
        # storages that were written to: how far apart their images lie
        self._storages: dict[int, tuple[Any, int]] = {}
        self._note(images, _Images(0))

    def finish(self, result: object) -> None:
        """Raise if some tensor of ``result`` does not count the images in dimension 0."""
        for tensor in _leaves(result):
            known = self.of(tensor)
            if isinstance(known, _Images):
                apart = known.dim == 0 and known.outer == 1
            else:
                apart = isinstance(known, _Same) and (
                    not tensor.dim() or len(tensor) != self.count or self._is_uniform(tensor, _Images(0))
                )
            if not apart:
                raise Mixes("the model's output does not count the images in dimension 0")

    def read(self, tensor: Tensor) -> None:
        """Raise if values of ``tensor``, which leave torch, depend on the images."""
        if not isinstance(self.of(tensor), _Same):
            raise Mixes("the model reads values of its batch into Python")

    def of(self, tensor: Tensor) -> _Known:
        """What is known of a tensor. One that no call seen here made was there before, and depends on no image."""
        entry = self._known.get(id(tensor))
        known = entry[1] if entry is not None and entry[0]() is tensor else _SAME
        if self._storages and not isinstance(known, _Images):
            return self._through_storage(tensor, known)
        return known

    def _note(self, tensor: Tensor, known: _Known) -> None:
        self._known[id(tensor)] = (ref(tensor), known)

    # ------------------------------------------------------------------------------------------ one call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = _operation(func)
        if operation.composite and operation.name not in _RULES:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if operation.single and type(args[0]) in _PLAIN:
            # what most calls are: value by value of one tensor
            known = self.of(args[0])
            others = (*args[1:], *kwargs.values())
            if isinstance(known, _Images) and not any(isinstance(each, Tensor) for each in others):
                result = func(*args, **kwargs)
                self._note(result, known)
                return result
        place = self._plain(operation, args, kwargs) if operation.windowed else None
        if place is not None:
            result = func(*args, **kwargs)
            self._note_results(operation, result, place)
            return result
        given = dict(operation.given)
        given.update(zip(operation.parameters, args, strict=False))
        given.update(kwargs)
        if operation.random and not _draws_nothing(given):
            raise Mixes(f"{operation.name} draws random numbers")
        operands = list(_operands(given.values()))
        states = [(each, self.of(each)) for each in operands]
        moving = [(each, known) for each, known in states if isinstance(known, _Images)]
        if operation.name in _OWN or any(known is _TILES for _, known in states):
            return self._own(operation, states, func(*args, **kwargs))
        if not moving or operation.name in _SHAPE_ONLY:
            result = func(*args, **kwargs)
            self._note_fixed(operation, states, result)
            return result
        self._check_known(operation, states, given)
        rule = _RULES.get(operation.name)
        if not operation.pointwise and rule is None:
            raise Mixes(f"{operation.name} may mix the images of a batch")
        if operation.written and not operation.pointwise and operation.name != "as_strided_":
            raise Mixes(f"{operation.name} may mix the images of a batch")
        if operation.pointwise:
            expected = self._aligned(states, max(each.dim() for each in operands))
        else:
            assert rule is not None
            expected = rule(self, given)
        if expected is None:
            raise Mixes(f"{operation.name} may mix the images of a batch")
        result = func(*args, **kwargs)
        self._note_results(operation, result, expected)
        for name in operation.written:
            if not any(given[name] is each for each, _ in moving):
                self._note_written(given[name])
        return result

    def _plain(self, operation: _Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Images | None:
        """The place of a convolution, pooling or batch norm of images in dimension 0 and of what was there before.

        What the rules below say of most calls, without looking each argument up by its name; None if they have to.
        """
        if self._storages or kwargs or type(args[0]) not in _PLAIN:
            return None
        tensor, known = self._known.get(id(args[0]), (None, _SAME))
        if tensor is None or tensor() is not args[0] or not isinstance(known, _Images) or known.dim:
            return None
        if any(id(each) in self._known for each in args[1:] if isinstance(each, Tensor)):
            return None
        if operation.name in _LEAST_DIMS:
            return known if args[0].dim() >= 3 else None
        at = _TRAINING.get(operation.name)
        return known if at is not None and len(args) > at and args[at] is False else None

    def _own(self, operation: _Operation, states: list[tuple[Tensor, _Known]], result: Any) -> Any:
        """This package's own operators, which keep images apart."""
        kinds = [known for _, known in states]
        written: _Known | None
        mask: _Known
        (first, known), name = states[0], operation.name
        if all(isinstance(each, _Same) for each in kinds):
            written = mask = _SAME
        elif name == "fastviz::_winograd_tiles":
            written, mask = None, _TILES if known == _Images(0) else _LOST
        elif name == "bmm" and kinds[0] is _TILES and isinstance(kinds[1], _Same):
            written, mask = None, _TILES
        elif name == "fastviz::_winograd_maps" and kinds[1] is _TILES:
            written, mask = _Images(0), _LOST
        elif name in ("fastviz::guided_relu", "fastviz::_guided_relu_in_place") and isinstance(known, _Images):
            written, mask = known, _LOST
        else:
            raise Mixes(f"{name} may mix the images of a batch")
        results = list(_leaves(result))
        if name == "fastviz::guided_relu":
            self._note(results.pop(0), known)
        elif written is not None:
            self._note(first, written)
        for tensor in results:
            self._note(tensor, mask)
        return result

    def _check_known(self, operation: _Operation, states: list[tuple[Tensor, _Known]], given: dict[str, Any]) -> None:
        """Raise for operands that cannot be told from where they come."""
        overwritten = [given[name] for name in operation.written] if operation.name == "copy" else []
        for tensor, known in states:
            if isinstance(known, (_Images, _Same)) or any(tensor is each for each in overwritten):
                continue
            if tensor.numel() == 0:
                continue  # a batch norm's results that nobody asked for
            raise Mixes(f"{operation.name} gets a tensor of which it is not known what it depends on")

    def _note_fixed(self, operation: _Operation, states: list[tuple[Tensor, _Known]], result: Any) -> None:
        """Note results that depend on no image."""
        if operation.name in _KEEP_STATE:
            return
        if operation.name in _UNWRITTEN_RESULTS:
            known: _Known = _UNWRITTEN
        elif operation.name in _SHAPE_ONLY or operation.written:
            known = _SAME
        else:
            # what is made of memory that is not written yet, as a view of it, is not either
            known = next((each for _, each in states if not isinstance(each, _Same)), _SAME)
        for tensor in _leaves(result):
            self._note(tensor, known)

    def _note_results(self, operation: _Operation, result: Any, expected: _Images) -> None:
        first: Tensor | None = None
        for tensor in _leaves(result):
            place = expected
            first = tensor if first is None else first
            fits = place.dim < tensor.dim() and tensor.shape[place.dim] == place.outer * self.count * place.inner
            if tensor is first and not fits:
                raise Mixes(f"{operation.name} may mix the images of a batch")
            self._note(tensor, place if fits and tensor.dim() == first.dim() else _LOST)

    # --------------------------------------------------------------------------- places and constants

    def _aligned(self, states: Sequence[tuple[Tensor, _Known]], dims: int) -> _Images | None:
        """Where the result of a pointwise call with ``dims`` dimensions counts images; None if operands differ."""
        found: _Images | None = None
        for tensor, known in states:
            if isinstance(known, _Images):
                place = known._replace(dim=known.dim + dims - tensor.dim())
                if found is not None and place != found:
                    return None
                found = place
        assert found is not None
        for tensor, known in states:
            at = found.dim - (dims - tensor.dim())
            if isinstance(known, _Same) and at >= 0 and not self._is_uniform(tensor, found._replace(dim=at)):
                return None
        return found

    def _is_uniform(self, tensor: Tensor, place: _Images) -> bool:
        """Whether a tensor that no image takes part in gives each the same; all of a size of 1 does."""
        size = tensor.shape[place.dim]
        if size == 1 or tensor.stride(place.dim) == 0:
            return True
        if size != place.outer * self.count * place.inner:
            return False
        apart = tensor.detach().unflatten(place.dim, (place.outer, self.count, place.inner))
        return bool((apart == apart.narrow(place.dim + 1, 0, 1)).all())

    # --------------------------------------------------------------------------------------- memory

    def _note_written(self, tensor: Tensor) -> None:
        """Note what else shares the memory of a tensor that images were written to."""
        known = self.of(tensor)
        assert isinstance(known, _Images)
        step = tensor.stride(known.dim) * known.inner
        storage = _storage(tensor)
        before = self._storages.get(storage._cdata)
        if known.outer != 1 or (before is not None and before[1] != step):
            raise Mixes("memory is written to in a way that cannot be followed")
        # the storage is held, so that its number is not given to another
        self._storages[storage._cdata] = (storage, step)

    def _through_storage(self, tensor: Tensor, known: _Known) -> _Known:
        """The same for a tensor whose memory images were written to through another one."""
        written = self._storages.get(_storage(tensor)._cdata)
        if written is None:
            return known
        step = written[1]
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if stride and step % stride == 0 and size == self.count * (step // stride):
                return _Images(dim, 1, step // stride)
        return _LOST


def _storage(tensor: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def _operands(values: Any) -> Iterator[Tensor]:
    """The tensors among the arguments of a call, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _operands(value)
        elif isinstance(value, dict):
            yield from _operands(value.values())


def _leaves(value: object) -> Iterator[Tensor]:
    """The tensors of an output: one, or several in lists, dictionaries and the attributes of objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        yield from _leaves(vars(value))


def _draws_nothing(given: dict[str, Any]) -> bool:
    """Whether a call that could draw random numbers does not, with these arguments."""
    for name in ("train", "training", "dropout_p", "p"):
        if name in given:
            return given[name] in (False, 0)
    return False


# ---------------------------------------------------------------------------------------------------- rules
# Each gets the arguments of a call by name, and tells where the (first) result counts images; None if they may meet.

_Rule = Callable[[_Watch, dict[str, Any]], "_Images | None"]

_POINTWISE = {
    *("clone", "detach", "alias", "_to_copy", "to", "copy", "contiguous", "lift_fresh", "masked_fill", "where"),
    *("_prelu_kernel", "fill", "zero", "real", "imag", "_conj", "resolve_conj", "resolve_neg", "dropout", "lerp"),
    *("native_dropout", "rrelu_with_noise", "log_sigmoid", "hardswish", "softsign", "absolute", "mish", "celu"),
}
_NOT_POINTWISE = {"equal"}

_OWN = {
    *("fastviz::guided_relu", "fastviz::_guided_relu_in_place"),
    *("fastviz::_winograd_tiles", "fastviz::_winograd_maps"),
}

_PLAIN = (Tensor, nn.Parameter)

_LEAST_DIMS = {"convolution", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d"}
_TRAINING = {"native_batch_norm": 5, "cudnn_batch_norm": 5}
"""Where the frequent calls of a network say whether they are in training mode."""

_SHAPE_ONLY = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
    *("new_empty_strided", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_same_size", "size"),
    *("_has_compatible_shallow_copy_type", "is_contiguous", "stride", "dim", "numel"),
}
"""Calls that look at a tensor's shape, not at its values."""

_KEEP_STATE = {"as_strided_", "resize_", "set_"}
"""Calls that change a tensor's shape and write nothing."""

_UNWRITTEN_RESULTS = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted"}


def _input(watch: _Watch, given: dict[str, Any], *names: str) -> tuple[Tensor, _Images] | None:
    """The first argument and its place; None if another one depends on the images, too."""
    tensor = given[next(name for name in names if name in given)]
    place = watch.of(tensor)
    others = [each for each in _operands(given.values()) if each is not tensor]
    if not isinstance(place, _Images) or any(isinstance(watch.of(each), _Images) for each in others):
        return None
    return tensor, place


def _axis(dim: int, dims: int) -> int:
    return dim + dims if dim < 0 else dim


def _resized(place: _Images, count: int, before: Sequence[int], after: Sequence[int]) -> _Images | None:
    """Where a tensor of shape ``before`` counts images as one of shape ``after``, its values in the same order."""
    ahead = place.outer
    for size in before[: place.dim]:
        ahead *= size
    passed = 1
    for dim, size in enumerate(after):
        if size and passed * size > ahead:
            # this dimension has what is left of the places ahead, all images, and perhaps places behind them
            if ahead % passed or size % (ahead // passed * count):
                return None
            outer = ahead // passed
            return _Images(dim, outer, size // (outer * count))
        passed *= size
    return None


def _view(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    found = _input(watch, given, "self")
    shape = given.get("size", given.get("shape"))
    if found is None or not isinstance(shape, (list, tuple)):
        return None
    tensor, place = found
    sizes = list(shape)
    if -1 in sizes:
        known = 1
        for size in sizes:
            known *= 1 if size == -1 else size
        sizes[sizes.index(-1)] = tensor.numel() // max(1, known)
    return _resized(place, watch.count, tensor.shape, sizes)


def _expand(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    found = _input(watch, given, "self")
    if found is None:
        return None
    tensor, place = found
    return place._replace(dim=place.dim + len(given["size"]) - tensor.dim())


def _repeat(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    found = _input(watch, given, "self")
    if found is None:
        return None
    dim = found[1].dim + len(given["repeats"]) - found[0].dim()
    return found[1]._replace(dim=dim) if given["repeats"][dim] == 1 else None


def _order(watch: _Watch, given: dict[str, Any], order: Sequence[int]) -> _Images | None:
    """For calls that put old dimensions (-1: a new one) into this order."""
    found = _input(watch, given, "self")
    if found is None or found[1].dim not in order:
        return None
    return found[1]._replace(dim=list(order).index(found[1].dim))


def _permute(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    dims = given["self"].dim()
    return _order(watch, given, [_axis(dim, dims) for dim in given["dims"]])


def _transpose(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    dims = given["self"].dim()
    order = list(range(dims))
    if dims > 1:
        first, second = _axis(given.get("dim0", 0), dims), _axis(given.get("dim1", 1), dims)
        order[first], order[second] = second, first
    return _order(watch, given, order)


def _unsqueeze(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    dims = given["self"].dim()
    order = list(range(dims))
    order.insert(_axis(given["dim"], dims + 1), -1)
    return _order(watch, given, order)


def _squeeze(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    shape = given["self"].shape
    dims = given.get("dim", range(len(shape)))
    gone = {_axis(dim, len(shape)) for dim in ([dims] if isinstance(dims, int) else dims)}
    return _order(watch, given, [dim for dim in range(len(shape)) if dim not in gone or shape[dim] != 1])


def _elsewhere(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """Calls that work along some dimensions, which must not be that of the images."""
    found = _input(watch, given, "self", "input")
    if found is None:
        return None
    tensor, place = found
    dims = given.get("dim", given.get("dims", given.get("dimension")))
    if dims is None or dims == []:
        return None
    along = {_axis(dim, tensor.dim()) for dim in ([dims] if isinstance(dims, int) else dims)}
    return None if place.dim in along else place


def _reduced(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """The same for calls that remove these dimensions."""
    place = _elsewhere(watch, given)
    if place is None or given.get("keepdim"):
        return place
    tensor = given.get("self", given.get("input"))
    assert isinstance(tensor, Tensor)
    dims = given["dim"]
    along = {_axis(dim, tensor.dim()) for dim in ([dims] if isinstance(dims, int) else dims)}
    return place._replace(dim=place.dim - sum(dim < place.dim for dim in along))


def _select(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    return _reduced(watch, {**given, "keepdim": False})


def _slice(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """Slices, of all images where it is along theirs."""
    place = _elsewhere(watch, given)
    if place is not None:
        return place
    found = _input(watch, given, "self")
    if found is None:
        return None
    size = found[0].shape[found[1].dim]
    whole = (given["start"] or 0) in (0, -size) and given["step"] == 1 and (given["end"] or size) >= size
    return found[1] if whole else None


def _joined(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """Concatenation."""
    tensors = [each for each in given["tensors"] if each.numel()]
    states = [(each, watch.of(each)) for each in tensors]
    dims = tensors[0].dim()
    if any(each.dim() != dims for each in tensors):
        return None
    place = watch._aligned(states, dims)
    return None if place is None or _axis(given["dim"], dims) == place.dim else place


def _stacked(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    tensors = given["tensors"]
    dims = tensors[0].dim()
    place = watch._aligned([(each, watch.of(each)) for each in tensors], dims)
    return place and place._replace(dim=place.dim + (_axis(given["dim"], dims + 1) <= place.dim))


def _first(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """Convolutions, pools, resizing: image by image in dimension 0; their other arguments are constants."""
    found = _input(watch, given, "input", "self", "x", "images")
    if found is None or found[1].dim != 0 or found[0].dim() < 3:
        return None
    return found[1]


def _padded(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    found = _input(watch, given, "self")
    if found is None:
        return None
    pairs = len(given["pad"] if "pad" in given else given["padding"]) // 2
    return found[1] if found[1].dim < found[0].dim() - pairs else None


def _batch_norm(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """With kept statistics image by image; with those of the batch only if images count as channels."""
    found = _input(watch, given, "input")
    if found is None:
        return None
    place = found[1]
    if place.dim == 0:
        return None if given.get("training", given.get("train", False)) else place
    if place.dim != 1:
        return None
    constants = [each for each in _operands(given.values()) if each is not found[0] and each.dim() == 1]
    return place if all(watch._is_uniform(each, place._replace(dim=0)) for each in constants) else None


def _layer_norm(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    found = _input(watch, given, "input")
    if found is None:
        return None
    return found[1] if found[1].dim < found[0].dim() - len(given["normalized_shape"]) else None


def _product(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """Products of matrices [n, m] × [m, k], or of batches of them, and perhaps a sum with a third."""
    first, second = (
        (given["self"], given["mat2"]) if "mat2" in given and "mat1" not in given else _factors(given)
    )  # fmt: skip
    dims = first.dim()
    places = [watch.of(first), watch.of(second)]
    moving = [place for place in places if isinstance(place, _Images)]
    if not moving:
        return None  # only what is added depends on the images
    if dims == 3 and all(place.dim == 0 for place in moving):
        if len(set(moving)) > 1:
            return None
        place = moving[0]
        for each, known in zip((first, second), places, strict=True):
            if not isinstance(known, _Images) and not watch._is_uniform(each, place):
                return None
    elif len(moving) == 1 and moving[0].dim == dims - 2 and isinstance(places[0], _Images):
        place = moving[0]
    elif len(moving) == 1 and moving[0].dim == dims - 1 and isinstance(places[1], _Images):
        place = moving[0]._replace(dim=second.dim() - 1)
    else:
        return None
    if "mat1" in given or "batch1" in given:
        added = given["self"]
        return watch._aligned([(added, watch.of(added)), (_Shaped(dims), place)], dims)  # type: ignore[list-item]
    return place


class _Shaped:
    """Stands for the product, in a sum with it."""

    def __init__(self, dims: int) -> None:
        self._dims = dims

    def dim(self) -> int:
        return self._dims


def _factors(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    names = ("mat1", "mat2") if "mat1" in given else ("batch1", "batch2")
    return given[names[0]], given[names[1]]


def _attention(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """Attention of [N, heads, L, E]; each image (or head) has its own queries, keys and values."""
    states = [(given[name], watch.of(given[name])) for name in ("query", "key", "value")]
    if any(each.dim() != 4 for each, _ in states):
        return None
    place = watch._aligned(states, 4)
    mask = given.get("attn_mask", given.get("attn_bias"))
    if place is None or place.dim > 1 or not isinstance(mask, (Tensor, type(None))):
        return None
    return place if mask is None else watch._aligned([*states, (mask, watch.of(mask))], 4)


def _whole_attention(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """torch's own attention layers: [N, L, E] and constants."""
    inputs = [given[name] for name in ("query", "key", "value", "src") if name in given]
    others = [each for each in _operands(given.values()) if not any(each is tensor for tensor in inputs)]
    if any(not isinstance(watch.of(each), _Same) for each in others) or given.get("mask") is not None:
        return None
    return _Images(0) if all(each.dim() == 3 and watch.of(each) == _Images(0) for each in inputs) else None


def _looked_up(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """``x[:, :, index]``: constants that choose places along other dimensions than that of the images."""
    found = _input(watch, given, "self")
    if found is None:
        return None
    tensor, place = found
    indices = list(given["indices"])
    chosen = [at for at, index in enumerate(indices) if index is not None]
    if not chosen or any(indices[at].dtype in (torch.bool, torch.uint8) for at in chosen) or place.dim in chosen:
        return None
    together = chosen == list(range(chosen[0], chosen[-1] + 1))
    width = max(indices[at].dim() for at in chosen)
    at = place.dim - sum(each < place.dim for each in chosen)  # its place among the dimensions that are not chosen
    front = chosen[0] if together else 0
    return place._replace(dim=at if at < front else at + width) if tensor.dim() > place.dim else None


def _embedded(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    place = watch.of(given["indices"])
    return place if isinstance(place, _Images) and isinstance(watch.of(given["weight"]), _Same) else None


def _gathered(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    states = [(each, watch.of(each)) for each in (given["self"], given["index"])]
    dims = given["self"].dim()
    place = watch._aligned(states, dims)
    if place is None or place.dim == _axis(given["dim"], dims):
        return None
    return place if given["index"].shape[place.dim] == given["self"].shape[place.dim] else None


def _sampled(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    states = [(each, watch.of(each)) for each in (given["input"], given["grid"])]
    place = watch._aligned(states, given["input"].dim())
    return place if place is not None and place.dim == 0 and given["input"].dim() == given["grid"].dim() else None


def _windows_of(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """``Tensor.unfold``: a new last dimension."""
    return _elsewhere(watch, given)


def _triangle(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    found = _input(watch, given, "self")
    return found[1] if found is not None and found[1].dim < found[0].dim() - 2 else None


def _restrided(watch: _Watch, given: dict[str, Any]) -> _Images | None:
    """Other strides for dimensions with one place only, which mean nothing: poolings do that to their results."""
    found = _input(watch, given, "self")
    if found is None or list(given["size"]) != list(found[0].shape) or given["storage_offset"] is not None:
        return None
    strides = zip(found[0].shape, found[0].stride(), given["stride"], strict=True)
    return found[1] if all(size == 1 or old == new for size, old, new in strides) else None


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "_view_copy"), _view),
    "expand": _expand,
    "repeat": _repeat,
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    **dict.fromkeys(
        (
            *("_softmax", "_log_softmax", "cumsum", "cumprod", "cummax", "cummin", "flip", "roll", "glu", "sort"),
            *("topk", "split", "split_with_sizes", "narrow", "index_select", "renorm", "_fft_r2c", "_fft_c2r"),
            *("_fft_c2c", "softmax", "log_softmax", "logcumsumexp", "_safe_softmax", "chunk", "rot90"),
        ),
        _elsewhere,
    ),
    **dict.fromkeys(
        (
            *("sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "logsumexp"),
            *("linalg_vector_norm", "norm", "argmax", "argmin", "any", "all", "median", "nansum", "kthvalue", "mode"),
            *("count_nonzero", "aminmax"),
        ),
        _reduced,
    ),
    **dict.fromkeys(("select", "unbind"), _select),
    "slice": _slice,
    "cat": _joined,
    "stack": _stacked,
    **dict.fromkeys(
        (
            *("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution"),
            *("cudnn_convolution_relu", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d"),
            *("avg_pool1d", "avg_pool3d", "max_pool2d", "mkldnn_max_pool2d", "adaptive_avg_pool2d"),
            *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool2d"),
            *("adaptive_max_pool3d", "adaptive_avg_pool1d", "upsample_nearest1d", "upsample_nearest2d"),
            *("upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
            *("upsample_linear1d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d"),
            *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "native_group_norm"),
            *("im2col", "col2im", "fractional_max_pool2d", "lp_pool2d"),
        ),
        _first,
    ),
    **dict.fromkeys(
        (
            *("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d"),
            *("replication_pad2d", "replication_pad3d"),
        ),
        _padded,
    ),
    **dict.fromkeys(
        (
            *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
            *("cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "batch_norm_elemt"),
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_norm),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "_addmm_activation"), _product),
    **dict.fromkeys(
        (
            *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
            *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
        ),
        _attention,
    ),
    **dict.fromkeys(("_native_multi_head_attention", "_transformer_encoder_layer_fwd"), _whole_attention),
    "index": _looked_up,
    "embedding": _embedded,
    "gather": _gathered,
    "grid_sampler_2d": _sampled,
    "unfold": _windows_of,
    **dict.fromkeys(("tril", "triu"), _triangle),
    "as_strided_": _restrided,
}
