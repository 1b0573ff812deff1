"""What a chain of elementwise calls computes, found by also running each call on a few probe numbers.

A rectifier need not be written with ``relu``: ``torch.where(x > 0, x, 0)``, ``x * (x > 0)`` and ``(x + x.abs()) / 2``
are some. Each call of such a chain runs again with the :data:`PROBES` in place of ``x``. Their values and slopes
show what was computed, however it was written.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["ELEMENTWISE", "WAYS_OUT", "Form", "Forms", "Kind", "Rectifier", "kind_of", "tensors_in", "version_of"]

_LARGEST = 10
"""Probes from 2^-30 to 2^10, so that a threshold near zero differs from zero, and bounds are exceeded."""

with torch.inference_mode(False), torch.enable_grad():
    _POWERS = torch.arange(-30, _LARGEST + 1, dtype=torch.float64, device="cpu").exp2()
    PROBES = torch.cat([-_POWERS.flip(0), torch.zeros(1, dtype=torch.float64, device="cpu"), _POWERS]).requires_grad_()
_POSITIVE: list[float] = _POWERS.tolist()
_ZERO = len(_POWERS)  # the index of 0 among the probes
_AT_64 = len(_POWERS) - _LARGEST + 6  # how far from it 64 and -64 are
_NEAR = 1e-12

# Functions whose output at a place depends on their inputs at that place alone, as they are called in Python and ATen;
# calls that are something else (a maximum over a dimension) fail on the probes, or give another shape. Not those that
# are never a rectifier, and are known by their autograd nodes (SiLU, GELU, …).
ELEMENTWISE = frozenset(
    """
    gt ge lt le eq ne greater greater_equal less less_equal not_equal
    logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor
    and or xor invert rand ror rxor iand ior ixor
    add sub subtract rsub radd mul multiply rmul div divide true_divide truediv rtruediv rdiv neg negative positive pos
    iadd isub imul itruediv idiv reciprocal addcmul addcdiv lerp
    abs absolute sign sgn signbit sqrt rsqrt square pow rpow ipow float_power hypot copysign
    exp exp2 expm1 log log1p log2 logaddexp tanh sigmoid erf erfc atan arctan logsigmoid softsign
    maximum minimum fmax fmin max min where masked_fill heaviside
    clamp clip clamp_min clamp_max threshold hardtanh relu relu6 hardsigmoid hardshrink softshrink
    leaky_relu prelu elu celu nan_to_num trunc floor ceil round fmod remainder masked_scatter
    clone contiguous detach to to_copy type type_as float double half bfloat16 bool int long
    zeros_like ones_like full_like setitem index_put copy fill zero
    """.split()  # noqa: SIM905 (a list would take a line per word)
)
_ARITHMETIC = frozenset(
    """
    add sub subtract rsub radd mul multiply rmul div divide true_divide truediv rtruediv rdiv
    iadd isub imul itruediv idiv
    """.split()  # noqa: SIM905
)
_COMPARISONS = frozenset(
    {"gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal", "sign", "sgn", "signbit", "heaviside"}
)
WAYS_OUT = frozenset({"numpy", "array", "tolist"})
"""Calls after which values leave torch."""
_JOINTS = frozenset({"stack", "cat", "concat", "concatenate"})
_LARGEST_OF = frozenset({"max", "amax", "sort", "topk"})
_CHOICES = frozenset({"maximum", "fmax", "max"})


class Kind(NamedTuple):
    """What is known of a function by its name."""

    name: str
    in_place: bool
    elementwise: bool


@lru_cache(maxsize=4096)
def kind_of(function: Callable[..., Any]) -> Kind:
    """The kind of a function of torch, method of a tensor or ATen operator."""
    if function == Tensor.data.__get__:  # type: ignore[attr-defined]
        return Kind("detach", False, True)
    full = getattr(function, "__name__", "").split(".")[0]
    name = full.strip("_")
    operator = full.startswith("__") and full.endswith("__")
    # __iadd__ is in place, __invert__ is not
    in_place = (full.endswith("_") and not operator) or (operator and (name[1:] in ELEMENTWISE and name[0] == "i"))
    return Kind(name, in_place or full == "__setitem__", name in ELEMENTWISE)


class Rectifier(NamedTuple):
    """``slope · min(max(sign · x, 0), upper)``, with a positive slope, and 1 or -1 as the sign."""

    sign: int
    slope: float
    upper: float | None


@dataclass(frozen=True)
class Form:
    """A tensor as an elementwise function of another one, its origin, represented by its values at the probes."""

    origin: Callable[[], Tensor | None]
    version: int
    values: Tensor
    has_rule: bool
    """Whether a rectifier with the rule lies on some path from the origin."""
    is_ruled: bool
    """Whether one lies on every path that gradients take."""

    def read(self) -> Rectifier | None:
        """The rectifier that this function is; None if it is none."""
        if not (self.values.requires_grad and self.values.is_floating_point()):
            return None
        (slopes,) = torch.autograd.grad(self.values.sum(), PROBES, retain_graph=True, allow_unused=True)
        if slopes is None:
            return None
        # As lists: single values of a tensor cannot be read while a CUDA graph is recorded.
        values, rises = self.values.detach().double().tolist(), slopes.tolist()
        backwards = [-each for each in reversed(rises)]
        found = _rectifier(values, rises)
        if found is not None:
            return Rectifier(1, *found)
        found = _rectifier(values[::-1], backwards)
        return None if found is None else Rectifier(-1, *found)

    @property
    def is_one_sided(self) -> bool:
        """Whether it passes positive values and damps negative ones, as smooth rectifiers also do."""
        if not (self.values.requires_grad and self.values.is_floating_point()):
            return False
        values = self.values.detach().double().tolist()
        start = values[_ZERO]
        rise = values[_ZERO + _AT_64] - start
        return bool(0.3 * 2**6 <= rise <= 3 * 2**12 and abs(values[_ZERO - _AT_64] - start) < 0.5 * rise)


def _rectifier(values: list[float], slopes: list[float]) -> tuple[float, float | None] | None:
    """Slope and upper bound of a rectifier that has these values and slopes at the probes; None if it is none."""
    slope = slopes[_ZERO + 1]
    if not slope > 0 or any(slopes[:_ZERO]) or not all(abs(each) <= _NEAR * slope for each in values[: _ZERO + 1]):
        return None
    top = values[-1] if slopes[-1] == 0 else math.inf
    for place, value, rise in zip(_POSITIVE, values[_ZERO + 1 :], slopes[_ZERO + 1 :], strict=True):
        expected = min(slope * place, top)
        if not abs(value - expected) <= 1e-6 * expected:
            return None
        # At the bound itself the slope may be either.
        if slope * place != top and not abs(rise - slope * (expected < top)) <= 1e-6 * slope:
            return None
    return slope, None if top == math.inf else top / slope


class _UnknownError(Exception):
    """A call is not an elementwise function of the tensor in question."""


class Forms:
    """The forms of the tensors of a forward pass, kept as long as the tensors live."""

    def __init__(self) -> None:
        self._forms: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._masks: WeakIdKeyDictionary = WeakIdKeyDictionary()  # what comparisons of activations gave
        self._stacks: WeakIdKeyDictionary = WeakIdKeyDictionary()  # activations beside something constant

    def note_rectifier(self, y: Tensor, x: Tensor, upper: float | None, slope: float = 1.0) -> None:
        """Note that ``y`` is the rectifier of ``x`` and got the rule."""
        # x is not kept: the map before a rectifier should be freed as soon as the model releases it.
        forms = [Form(weakref.ref(x), version_of(x), _noted(upper, slope), True, True)]
        for form in self._of(x):
            with torch.enable_grad():
                values = slope * form.values.clamp(min=0, max=upper)
            forms.append(Form(form.origin, form.version, values, True, True))
        self._forms[y] = (version_of(y), forms)

    def tried(self, function: Callable[..., Any], kind: Kind, args: Any, kwargs: Any) -> list[Form]:
        """The forms of what a call gives, or writes: one for each tensor of which it is an elementwise function."""
        tensors = tensors_in(args, kwargs)
        origins: dict[int, Tensor] = {}
        for each in tensors:
            if each.is_floating_point() and each.requires_grad and not each.is_sparse:
                origins.setdefault(id(each), each)
        for each in tensors:
            for form in self._of(each):
                origin = form.origin()
                if origin is not None:
                    origins.setdefault(id(origin), origin)
        found = []
        for origin in origins.values():
            made = self._form(origin, function, kind, args, kwargs)
            if made is not None:
                found.append(made)
        return found

    def note(self, y: object, kind: Kind, forms: list[Form], args: Any, kwargs: Any) -> None:
        """Keep what was found about ``y``, which a call gave."""
        if not isinstance(y, Tensor):
            return
        if forms and not any(y is form.origin() for form in forms):
            self._forms[y] = (version_of(y), forms)
        tensors = tensors_in(args, kwargs)
        if kind.name in _JOINTS and len({each.requires_grad for each in tensors}) == 2:
            self._stacks[y] = True
        if not y.requires_grad and (
            any(each in self._masks for each in tensors)
            or (kind.name in _COMPARISONS and any(self.differs(each) for each in tensors))
        ):
            self._masks[y] = True

    def is_choice(self, kind: Kind, forms: list[Form], args: Any, kwargs: Any) -> bool:
        """Whether a call with these forms chooses among values as a rectifier would, and got no rule."""
        if forms:
            return any(form.is_one_sided and not form.has_rule for form in forms)
        tensors = tensors_in(args, kwargs)
        if kind.name in _CHOICES and len(tensors) == 2:
            return True
        if kind.name in _LARGEST_OF:
            return any(each in self._stacks for each in tensors)
        return kind.name != "getitem" and any(each in self._masks for each in tensors)

    def clear(self) -> None:
        """Forget everything."""
        self._forms.clear()
        self._masks.clear()
        self._stacks.clear()

    def watches(self, kind: Kind) -> bool:
        """Whether calls of this kind matter although they are not elementwise."""
        return (
            bool(self._masks)
            or kind.name in _JOINTS
            or kind.name in WAYS_OUT
            or (bool(self._stacks) and kind.name in _LARGEST_OF)
        )

    def differs(self, x: Tensor) -> bool:
        """Whether ``x`` was made from values in an autograd graph, even if it is not in one itself."""
        return x.requires_grad or bool(self._of(x))

    def _of(self, x: Tensor) -> list[Form]:
        version, forms = self._forms.get(x, (0, []))
        return forms if version == version_of(x) else []

    def _form(self, origin: Tensor, function: Callable[..., Any], kind: Kind, args: Any, kwargs: Any) -> Form | None:
        probes: dict[int, Tensor] = {}
        has_rule, is_ruled = False, True
        others = []
        for each in tensors_in(args, kwargs):
            form = self._of_origin(each, origin)
            if each is origin:
                probes[id(each)], is_ruled = PROBES, False
            elif form is not None:
                probes[id(each)] = form.values
                has_rule = has_rule or form.has_rule
                is_ruled = is_ruled and (form.is_ruled or not each.requires_grad)
            elif each.requires_grad or (kind.name in _ARITHMETIC and (each.numel() > 1 or each.device.type != "cpu")):
                # Reading values waits for the GPU, so only calls that may rectify do it, not sums and products.
                return None
            else:
                others.append(each)
        try:
            probes.update((id(each), _constant(each)) for each in others)
            given = [_replaced(each, probes) for each in args]
            if kind.in_place:
                given[0] = given[0].clone()
            values = function(*given, **{name: _replaced(each, probes) for name, each in kwargs.items()})
        except (_UnknownError, RuntimeError, TypeError, ValueError, IndexError):
            return None
        if kind.in_place:
            values = given[0]
        if not isinstance(values, Tensor) or values.shape != PROBES.shape:
            return None
        held: Callable[[], Tensor | None] = weakref.ref(origin) if has_rule else lambda: origin
        return Form(held, version_of(origin), values.cpu(), has_rule, has_rule and is_ruled)

    def _of_origin(self, x: Tensor, origin: Tensor) -> Form | None:
        for form in self._of(x):
            if form.origin() is origin and form.version == version_of(origin):
                return form
        return None


def _replaced(value: Any, by: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return by[id(value)]
    return type(value)(_replaced(each, by) for each in value) if type(value) in (tuple, list) else value


def version_of(x: Tensor) -> int:
    """How often ``x`` was written over."""
    return 0 if x.is_inference() else x._version


def tensors_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors a function is given, also in lists and tuples."""
    found = []
    for each in (*args, *kwargs.values()):
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, (tuple, list)):
            found += [inner for inner in each if isinstance(inner, Tensor)]
    return found


@lru_cache(maxsize=64)
def _noted(upper: float | None, slope: float) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        return slope * PROBES.clamp(min=0, max=upper)


def _constant(x: Tensor) -> Tensor:
    """The one value that all of ``x`` has."""
    if not x.numel() or x.is_complex() or x.layout is not torch.strided:
        raise _UnknownError
    low, high = (x.all(), x.any()) if x.dtype == torch.bool else x.aminmax()
    # NaN is not itself, so that it is no constant.
    if low.item() != high.item():
        raise _UnknownError
    return torch.tensor(low.item(), dtype=torch.float64 if x.is_floating_point() else x.dtype, device="cpu")
