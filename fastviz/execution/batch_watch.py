"""Follows the images of a batch through every ATen call of a pass."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastviz.execution.batch_calls import (
    LEAST_DIMS,
    NOT_POINTWISE,
    OWN,
    PLAIN,
    POINTWISE,
    RULES,
    TRAINING,
    of_batch_norm,
    of_first,
)
from fastviz.execution.batch_places import (
    LOST,
    SAME,
    TILES,
    UNWRITTEN,
    Images,
    Known,
    Same,
    leaves,
    operands,
)

__all__ = ["Mixes", "Watch", "unchanged_generators", "version_of"]


_SHAPE_ONLY = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
    *("new_empty_strided", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_same_size", "size"),
    *("_has_compatible_shallow_copy_type", "is_contiguous", "stride", "dim", "numel"),
}
"""Calls that look at a tensor's shape, not at its values."""

_KEEP_STATE = {"as_strided_", "resize_", "set_"}
"""Calls that change a tensor's shape and write nothing."""

_UNWRITTEN_RESULTS = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted"}


class Mixes(BaseException):
    """A call may mix the images of a batch; the message says which."""


class unchanged_generators:  # noqa: N801 - used like a function
    """Raises if a pass draws numbers from Python's or NumPy's generators; torch's are seen anyway."""

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


def _nothing() -> None:
    """A reference to nothing."""


class _Operation(NamedTuple):
    """What is known of an ATen overload independently of its arguments."""

    name: str
    parameters: tuple[str, ...]
    written: tuple[str, ...]
    pointwise: bool
    random: bool
    composite: bool
    single: bool
    windowed: bool
    view: bool
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
    pointwise = (torch.Tag.pointwise in func.tags and base not in NOT_POINTWISE) or base in POINTWISE
    seeded = torch.Tag.nondeterministic_seeded in func.tags
    composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    single = pointwise and not seeded and not composite and base not in ("copy", "where") and "out" not in written
    shown = base if pointwise else name
    windowed = shown in RULES and RULES[shown] in (of_first, of_batch_norm) and not written
    view = any(each.alias_info is not None and not each.alias_info.is_write for each in schema.returns)
    return _Operation(shown, parameters, written, pointwise, seeded, composite, single, windowed, view, given)


class Watch(TorchDispatchMode):
    """Follows the images of a batch through every call; raises :class:`Mixes` where they may mix."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled under a mode. Checking that at each call would take longer than following the call.
        return False

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = len(images)
        # By identity, as tensors compare by value; the reference tells another tensor that got the same identity, the
        # version one that was written to since. A view has two: until the call ends, torch counts it on its own.
        self._known: dict[int, tuple[Any, Known, tuple[int, ...]]] = {}
        # storages that were written to, with the distance between their images
        self._storages: dict[int, tuple[Any, int]] = {}
        # What was there before: everything that no call made, where all calls are seen. Else it is these, by identity
        # and with their versions, and `unknown` is raised for others, and for what was written to unseen.
        self.constants: dict[int, int] = {}
        self.unknown: type[BaseException] | None = None
        self.note(images, Images(0))

    def finish(self, result: object) -> None:
        """Raise if some tensor of ``result`` does not hold the images in dimension 0."""
        for tensor in leaves(result):
            known = self.of(tensor)
            if isinstance(known, Images):
                apart = known.dim == 0 and known.outer == 1
            else:
                apart = isinstance(known, Same) and (
                    not tensor.dim() or len(tensor) != self.count or self.is_uniform(tensor, Images(0))
                )
            if not apart:
                raise Mixes("dimension 0 of the model's output is not that of the images")

    def read(self, tensor: Tensor) -> None:
        """Raise if values of ``tensor``, which leave torch, depend on the images."""
        if not isinstance(self.of(tensor), Same):
            raise Mixes("the model reads values of its batch into Python")

    def of(self, tensor: Tensor) -> Known:
        """What is known of a tensor. If no call seen here made it, it existed before and depends on no image."""
        entry = self._known.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            known, versions = entry[1:]
        else:
            known, versions = SAME, (self.constants.get(id(tensor), -1),)
        if self.unknown is not None and version_of(tensor) not in versions:
            raise self.unknown
        if self._storages and not isinstance(known, Images):
            return self._through_storage(tensor, known)
        return known

    def images(self, tensor: Tensor) -> Images | None:
        """Where a tensor holds images, if that is known directly."""
        entry = self._known.get(id(tensor))
        known = entry[1] if entry is not None and entry[0]() is tensor and version_of(tensor) in entry[2] else None
        return known if isinstance(known, Images) else None

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether it is known directly that a tensor does not depend on the images."""
        return not self._storages and isinstance(self.of(tensor), Same)

    def as_noted(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Those of the ``tensors`` that have not been written to since they were noted."""
        entries = [(each, self._known.get(id(each))) for each in tensors]
        return [each for each, entry in entries if entry is not None and version_of(each) in entry[2]]

    def renew(self, tensors: Iterable[Tensor]) -> None:
        """Mark the notes on ``tensors`` as current: a call that was seen wrote to them."""
        for each in tensors:
            entry = self._known.get(id(each))
            if entry is not None and entry[0]() is each:
                self.note(each, entry[1])

    def note(self, tensor: Tensor, known: Known, of: Tensor | None = None) -> None:
        """Note what is known of a tensor, maybe a view ``of`` another, from now on."""
        versions = (version_of(tensor),) if of is None else (version_of(tensor), version_of(of))
        self._known[id(tensor)] = (ref(tensor), known, versions)

    # ------------------------------------------------------------------------------------------ one call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = _operation(func)
        if operation.name == "lift_fresh" and self._known.get(id(args[0]), (_nothing,))[0]() is not args[0]:
            self.note(args[0], SAME)  # by torch.tensor, or a number written into a tensor: Python made it just now
        if operation.composite and operation.name not in RULES:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if operation.single and type(args[0]) in PLAIN:
            # the most common kind: value by value of one tensor
            known = self.of(args[0])
            others = (*args[1:], *kwargs.values())
            if isinstance(known, Images) and not any(isinstance(each, Tensor) for each in others):
                result = func(*args, **kwargs)
                self.note(result, known)
                return result
        place = self._plain(operation, args, kwargs) if operation.windowed else None
        if place is not None:
            result = func(*args, **kwargs)
            self._note_results(operation, result, place, None)
            return result
        given = dict(operation.given)
        given.update(zip(operation.parameters, args, strict=False))
        given.update(kwargs)
        if operation.random and not _draws_nothing(given):
            raise Mixes(f"{operation.name} draws random numbers")
        tensors = list(operands(given.values()))
        states = [(each, self.of(each)) for each in tensors]
        moving = [(each, known) for each, known in states if isinstance(known, Images)]
        if operation.name in OWN or any(known is TILES for _, known in states):
            return self._own(operation, states, func(*args, **kwargs))
        if not moving or operation.name in _SHAPE_ONLY:
            result = func(*args, **kwargs)
            self._note_fixed(operation, states, result)
            return result
        self._check_known(operation, states, given)
        rule = RULES.get(operation.name)
        if not operation.pointwise and rule is None:
            raise Mixes(f"{operation.name} may mix the images of a batch")
        if operation.written and not operation.pointwise and operation.name != "as_strided_":
            raise Mixes(f"{operation.name} may mix the images of a batch")
        if operation.pointwise:
            expected = self.aligned(states, max(each.dim() for each in tensors))
        else:
            assert rule is not None
            expected = rule(self, given)
        if expected is None:
            raise Mixes(f"{operation.name} may mix the images of a batch")
        result = func(*args, **kwargs)
        self._note_results(operation, result, expected, tensors[0] if operation.view else None)
        for name in operation.written:
            if not any(given[name] is each for each, _ in moving):
                self._note_written(given[name])
        return result

    def _plain(self, operation: _Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Images | None:
        """The place of a convolution, pooling or batch norm of images in dimension 0 and of what was there before.

        What the rules below say of most calls, without looking each argument up by its name; None if they have to.
        """
        if self._storages or kwargs or self.unknown is not None or type(args[0]) not in PLAIN:
            return None
        tensor, known, _ = self._known.get(id(args[0]), (None, SAME, 0))
        if tensor is None or tensor() is not args[0] or not isinstance(known, Images) or known.dim:
            return None
        if any(id(each) in self._known for each in args[1:] if isinstance(each, Tensor)):
            return None
        if operation.name in LEAST_DIMS:
            return known if args[0].dim() >= 3 else None
        at = TRAINING.get(operation.name)
        return known if at is not None and len(args) > at and args[at] is False else None

    def _own(self, operation: _Operation, states: list[tuple[Tensor, Known]], result: Any) -> Any:
        """This package's own operators, which keep images separate."""
        kinds = [known for _, known in states]
        written: Known | None
        mask: Known
        (first, known), name = states[0], operation.name
        if all(isinstance(each, Same) for each in kinds):
            written = mask = SAME
        elif name == "fastviz::_winograd_tiles":
            written, mask = None, TILES if known == Images(0) else LOST
        elif name == "bmm" and kinds[0] is TILES and isinstance(kinds[1], Same):
            written, mask = None, TILES
        elif name == "fastviz::_winograd_maps" and kinds[1] is TILES:
            written, mask = Images(0), LOST
        elif name in ("fastviz::guided_relu", "fastviz::_guided_relu_in_place") and isinstance(known, Images):
            written, mask = known, LOST
        else:
            raise Mixes(f"{name} may mix the images of a batch")
        results = list(leaves(result))
        if name == "fastviz::guided_relu":
            self.note(results.pop(0), known)
        elif written is not None:
            self.note(first, written)
        for tensor in results:
            self.note(tensor, mask)
        return result

    def _check_known(self, operation: _Operation, states: list[tuple[Tensor, Known]], given: dict[str, Any]) -> None:
        """Raise for operands of unknown origin."""
        overwritten = [given[name] for name in operation.written] if operation.name == "copy" else []
        for tensor, known in states:
            if isinstance(known, (Images, Same)) or any(tensor is each for each in overwritten):
                continue
            if tensor.numel() == 0:
                continue  # a batch norm's unused results
            raise Mixes(f"{operation.name} gets a tensor that depends on something unknown")

    def _note_fixed(self, operation: _Operation, states: list[tuple[Tensor, Known]], result: Any) -> None:
        """Note results that depend on no image."""
        if operation.name in _KEEP_STATE:
            return
        if operation.name in _UNWRITTEN_RESULTS:
            known: Known = UNWRITTEN
        elif operation.name in _SHAPE_ONLY or operation.written:
            known = SAME
        else:
            # a view of memory that is not written yet is not written either
            known = next((each for _, each in states if not isinstance(each, Same)), SAME)
        for tensor in leaves(result):
            self.note(tensor, known, states[0][0] if operation.view else None)

    def _note_results(self, operation: _Operation, result: Any, expected: Images, of: Tensor | None) -> None:
        first: Tensor | None = None
        for tensor in leaves(result):
            place = expected
            first = tensor if first is None else first
            fits = place.dim < tensor.dim() and tensor.shape[place.dim] == place.outer * self.count * place.inner
            if tensor is first and not fits:
                raise Mixes(f"{operation.name} may mix the images of a batch")
            self.note(tensor, place if fits and tensor.dim() == first.dim() else LOST, of)

    # --------------------------------------------------------------------------- places and constants

    def aligned(self, states: Sequence[tuple[Tensor, Known]], dims: int) -> Images | None:
        """Where the result of a pointwise call with ``dims`` dimensions holds images; None if the operands differ."""
        found: Images | None = None
        for tensor, known in states:
            if isinstance(known, Images):
                place = known._replace(dim=known.dim + dims - tensor.dim())
                if found is not None and place != found:
                    return None
                found = place
        assert found is not None
        for tensor, known in states:
            at = found.dim - (dims - tensor.dim())
            if isinstance(known, Same) and at >= 0 and not self.is_uniform(tensor, found._replace(dim=at)):
                return None
        return found

    def is_uniform(self, tensor: Tensor, place: Images) -> bool:
        """Whether a tensor that does not depend on the images is the same for each, as any with size 1 there is."""
        size = tensor.shape[place.dim]
        if size == 1 or tensor.stride(place.dim) == 0:
            return True
        if size != place.outer * self.count * place.inner:
            return False
        apart = tensor.detach().unflatten(place.dim, (place.outer, self.count, place.inner))
        return bool((apart == apart.narrow(place.dim + 1, 0, 1)).all())

    # --------------------------------------------------------------------------------------- memory

    def _note_written(self, tensor: Tensor) -> None:
        """Note the other tensors that share memory with one that images were written to."""
        known = self.of(tensor)
        assert isinstance(known, Images)
        step = tensor.stride(known.dim) * known.inner
        storage = _storage(tensor)
        before = self._storages.get(storage._cdata)
        if known.outer != 1 or (before is not None and before[1] != step):
            raise Mixes("memory is written to in a way that cannot be followed")
        # the storage is kept alive so that its id is not reused
        self._storages[storage._cdata] = (storage, step)

    def _through_storage(self, tensor: Tensor, known: Known) -> Known:
        """The same for a tensor whose memory was written to through another one."""
        written = self._storages.get(_storage(tensor)._cdata)
        if written is None:
            return known
        step = written[1]
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if stride and step % stride == 0 and size == self.count * (step // stride):
                return Images(dim, 1, step // stride)
        return LOST


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 for inference tensors, which do not count writes."""
    try:
        return tensor._version
    except RuntimeError:
        return 0


def _storage(tensor: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def _draws_nothing(given: dict[str, Any]) -> bool:
    """Whether a call that could draw random numbers does not, with these arguments."""
    for name in ("train", "training", "dropout_p", "p"):
        if name in given:
            return given[name] in (False, 0)
    return False
