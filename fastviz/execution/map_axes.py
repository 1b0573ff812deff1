"""Follows, through a forward pass, which dimensions of a tensor are positions in the input.

A map need not be [N, C, H, W]: networks with layer norms hold [N, H, W, C], and those with attention tokens, windows or
heads. Convolutions show which dimensions are which. From there, permutations, reshapes and calls that keep positions
are followed. Positions may lie in one dimension, as tokens do, with class and register tokens before or after them.
After any other call they are unknown. Signals [N, C, L] and volumes [N, C, D, H, W] go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, TypeAlias
from weakref import ref

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastviz.execution.elementwise import ELEMENTWISE, kind_of, tensors_in

__all__ = ["Axes", "Planes", "Tokens"]


class Tokens(NamedTuple):
    """Places in one dimension, row after row, and how many other tokens are before and behind them.

    >>> Tokens((14, 14), before=1).length
    197
    """

    shape: tuple[int, ...]
    before: int = 0
    after: int = 0

    @property
    def length(self) -> int:
        """Of the dimension."""
        return self.before + prod(self.shape) + self.after


_Label: TypeAlias = "str | Tokens"
"""``n`` samples, ``c`` channels, ``k`` parts of channels such as heads, ``d``, ``h`` and ``w`` (``l`` of signals)
places, tokens of all places, ``?`` others."""

_SPACES: dict[int, tuple[str, ...]] = {3: ("l",), 4: ("h", "w"), 5: ("d", "h", "w")}
"""The places of inputs, by their number of dimensions."""


@dataclass(frozen=True)
class Planes:
    """Where the maps are in a tensor [N, ...].

    Attributes:
        order: its dimensions that are samples, channels, and places (or tokens).
        tokens: what stands in the last of these, where that is tokens.
    """

    order: tuple[int, ...]
    tokens: Tokens | None = None

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the maps, without samples and channels, in a tensor of this ``shape``."""
        return tuple(shape[each] for each in self.order[2:]) if self.tokens is None else self.tokens.shape

    def laid(self, values: Tensor) -> Tensor:
        """``values`` [N, ...] as maps [N, C, *places], or [N, T, ...] as [N, T, C, *places]; other tokens left out."""
        more = values.dim() - len(self.order)
        found = values.permute(*range(more + 1), *(each + more for each in self.order[1:]))
        if self.tokens is None:
            return found
        found = found.narrow(-1, self.tokens.before, prod(self.tokens.shape))
        return found.reshape(*found.shape[:-1], *self.tokens.shape)


# Calls that take maps [N, C, *places], and give such maps; those of one dimension end in 1d, 2d or 3d.
_PLANAR = frozenset(
    """
    batch_norm group_norm instance_norm local_response_norm native_batch_norm interpolate upsample
    pixel_shuffle pixel_unshuffle channel_shuffle feature_dropout feature_alpha_dropout
    """.split()  # noqa: SIM905 (a list would take a line per word)
) | {
    f"{name}{dims}d"
    for dims in (1, 2, 3)
    for name in (
        *("conv", "conv_transpose", "max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool"),
        *("fractional_max_pool", "dropout"),
    )
}
_POINTWISE = frozenset(
    """
    dropout alpha_dropout silu gelu hardswish selu mish softplus rrelu layer_norm rms_norm normalize requires_grad
    native_layer_norm glu softmax log_softmax
    """.split()  # noqa: SIM905
)
_RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "unsafe_view"})
_JOINS = frozenset({"cat", "concat", "concatenate"})
_SPLITS = frozenset({"split", "split_with_sizes", "chunk", "tensor_split", "narrow"})
# The result for a query has the query's position.
_OF_QUERIES = frozenset({"multi_head_attention_forward", "scaled_dot_product_attention"})
_ON_TOKENS = frozenset({"linear", "layer_norm", "rms_norm", "multi_head_attention_forward"}) | {
    "scaled_dot_product_attention"
}


class Axes(TorchFunctionMode):
    """Within the ``with`` block, this thread's computation is followed.

    ``on_tokens`` says whether layers with weights, or attention, ran on tensors of three dimensions or more that are no
    maps.
    """

    def __init__(self) -> None:
        super().__init__()
        # By identity, as tensors compare by value; the reference tells another tensor that got the same identity.
        self._labels: dict[int, tuple[ref[Tensor], int, tuple[_Label, ...]]] = {}
        self._calls = self._last_on_tokens = 0
        self._space = _SPACES[4]

    @property
    def on_tokens(self) -> bool:
        """See the class."""
        return self._last_on_tokens > 0

    def tokens_after(self, x: Tensor) -> bool:
        """Whether they ran after ``x``, whose dimensions are known, was made."""
        entry = self._entry(x)
        return self._last_on_tokens > (self._calls if entry is None else entry[1])

    def images(self, x: Tensor) -> Tensor:
        """``x`` itself, [N, C, L], [N, C, H, W] or [N, C, D, H, W], known as such."""
        self._space = _SPACES[x.dim()]
        self._labels[id(x)] = (ref(x), 0, self._planar)
        return x

    @property
    def dims(self) -> int:
        """How many dimensions the input has, and maps [N, K, *places]."""
        return 2 + len(self._space)

    @property
    def layout(self) -> str:
        """Such maps, in words."""
        return f"[N, K, {', '.join(self._space)}]"

    @property
    def _planar(self) -> tuple[_Label, ...]:
        return ("n", "c", *self._space)

    def planes(self, x: Tensor) -> Planes | None:
        """Where the maps are in ``x``; None if that is not known."""
        labels = self._of(x)
        if labels == self._planar:
            return Planes(tuple(range(len(labels))))
        if labels is None or not labels or labels[0] != "n" or labels.count("c") != 1:
            return None
        tokens = [dim for dim, label in enumerate(labels) if isinstance(label, Tokens)]
        if sorted(map(str, labels)) == sorted(map(str, self._planar)):
            return Planes(tuple(labels.index(each) for each in self._planar))
        if len(labels) == 3 and len(tokens) == 1:
            found = labels[tokens[0]]
            assert isinstance(found, Tokens)
            return Planes((0, labels.index("c"), tokens[0]), found)
        return None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        several = isinstance(y, (tuple, list)) and not isinstance(y, torch.Size)
        name = kind_of(func).name
        if not (several or isinstance(y, Tensor)) or name == "get":  # it was asked for a property, a shape
            return y
        self._calls += 1
        # other modes need not see what is asked of tensors here
        with torch._C.DisableTorchFunction():
            given = tensors_in(args, kwargs)
            if given and name in _ON_TOKENS and given[0].dim() >= 3 and not self._is_map(given[0]):
                self._last_on_tokens = self._calls
            start = 0
            for each in y if several else (y,):
                if isinstance(each, Tensor) and each.dim() >= 3 and given:
                    if name in _SPLITS:
                        labels, start = self._split(name, each, given[0], args, kwargs, start)
                    else:
                        labels = self._made(name, each, given, args, kwargs)
                    if labels is not None:
                        self._labels[id(each)] = (ref(each), self._calls, labels)
        return y

    def _entry(self, x: Tensor) -> tuple[ref[Tensor], int, tuple[_Label, ...]] | None:
        entry = self._labels.get(id(x))
        return entry if entry is not None and entry[0]() is x else None

    def _of(self, x: Tensor) -> tuple[_Label, ...] | None:
        entry = self._entry(x)
        return None if entry is None else entry[2]

    def _is_map(self, x: Tensor) -> bool:
        return set(self._space) <= set(self._of(x) or ())

    def _made(self, name: str, y: Tensor, given: list[Tensor], args: Any, kwargs: Any) -> tuple[_Label, ...] | None:
        x = given[0]
        labels = self._of(x)
        if name in _PLANAR:
            planar = labels is not None and labels[1] == "c"
            dims = len(self._planar)
            if not x.dim() == y.dim() == dims or (name[-1] == "d" and name[-2:] != f"{dims - 2}d"):
                return None
            return labels if planar else self._planar
        if name in ("permute", "transpose", "swapaxes", "swapdims") and labels is not None:
            return _permuted(name, labels, args, kwargs)
        if name == "pad":
            return _if_whole(labels, y) if labels is not None and y.dim() == x.dim() else None
        if name in _RESHAPES and labels is not None:
            return _reshaped(labels, x.shape, y.shape, self._space)
        if name == "getitem" and labels is not None:
            return _sliced(labels, x, y, args[1])
        if name in _OF_QUERIES:
            return labels if y.shape[:-1] == x.shape[:-1] else None
        if name in ("linear", "matmul", "bmm"):
            return self._product(name, y, given)
        if name == "unbind" and labels is not None:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            return _without(labels, dim % x.dim())
        if name in _JOINS:
            return self._same_places(y, given, may_differ="c") or self._with_more_tokens(y, given, args, kwargs)
        if name in _POINTWISE or name in ELEMENTWISE:
            return self._same_places(y, given, may_differ=None if name != "glu" else "c")
        return None

    def _product(self, name: str, y: Tensor, given: Sequence[Tensor]) -> tuple[_Label, ...] | None:
        """The labels of a product: the last dimension is that of the second factor, or of weights."""
        labels = self._of(given[0])
        if labels is None or y.dim() != given[0].dim() or (labels[-1] not in ("c", "k") and name == "linear"):
            return None
        if name == "linear" or (len(given) == 2 and given[1].dim() == 2):
            return labels if labels[-1] == "c" else None
        second = self._of(given[1]) if len(given) == 2 else None
        return None if second is None or len(second) != len(labels) else (*labels[:-1], second[-1])

    def _with_more_tokens(
        self, y: Tensor, given: Sequence[Tensor], args: Any, kwargs: Any
    ) -> tuple[_Label, ...] | None:
        """The labels of tokens that were joined with others, which have no place: class tokens, registers."""
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))) % y.dim()
        known = [at for at, each in enumerate(given) if self._of(each) is not None]
        if len(known) != 1 or sum(each.shape[dim] for each in given) != y.shape[dim]:
            return None
        labels = self._of(given[known[0]])
        if labels is None or len(labels) != y.dim():
            return None
        tokens = labels[dim]
        if tokens == "l":  # the places of a signal are in one dimension anyway
            tokens = Tokens((given[known[0]].shape[dim],))
        if not isinstance(tokens, Tokens):
            return None
        before = sum(each.shape[dim] for each in given[: known[0]])
        after = sum(each.shape[dim] for each in given[known[0] + 1 :])
        grown = Tokens(tokens.shape, tokens.before + before, tokens.after + after)
        return (*labels[:dim], grown, *labels[dim + 1 :])

    def _split(
        self, name: str, y: Tensor, x: Tensor, args: Any, kwargs: Any, start: int
    ) -> tuple[tuple[_Label, ...] | None, int]:
        """The labels of a part ``y`` of ``x``, which begins at ``start`` (split) and where the next one begins."""
        labels = self._of(x)
        if labels is None or y.dim() != x.dim():
            return None, start
        differing = [dim for dim in range(x.dim()) if x.shape[dim] != y.shape[dim]]
        if len(differing) != 1:
            return (labels if not differing else None), start
        (dim,) = differing
        if name == "narrow":
            start = int(args[2] if len(args) > 2 else kwargs["start"])
        end = start + y.shape[dim]
        label = labels[dim]
        if isinstance(label, Tokens):
            cut = _cut(label, start, end)
            return (None if cut is None else (*labels[:dim], cut, *labels[dim + 1 :])), end
        return (labels if label in ("c", "k") else None), end

    def _same_places(self, y: Tensor, given: Sequence[Tensor], may_differ: str | None) -> tuple[_Label, ...] | None:
        """The labels of those of the ``given`` that are of the shape of ``y``, if they agree."""
        found: tuple[_Label, ...] | None = None
        for each in given:
            labels = self._of(each)
            if labels is None or each.dim() != y.dim():
                continue
            sizes = zip(labels, each.shape, y.shape, strict=True)
            if any(size != wanted and label != may_differ for label, size, wanted in sizes):
                continue
            found = labels if found is None else _agreed(found, labels)
            if found is None:
                return None
        return found


def _permuted(name: str, labels: tuple[_Label, ...], args: Any, kwargs: Any) -> tuple[_Label, ...] | None:
    given = [*args[1:], *(value for key, value in kwargs.items() if key not in ("input", "self"))]
    dims = [int(each) for each in (given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given)]
    if name != "permute":
        order = list(range(len(labels)))
        order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
        dims = order
    return tuple(labels[each] for each in dims) if len(dims) == len(labels) else None


def _cut(tokens: Tokens, start: int, end: int) -> Tokens | None:
    """The tokens from ``start`` to ``end``, if all with a place are among them."""
    last = tokens.before + prod(tokens.shape)
    if not start <= tokens.before or not last <= end <= tokens.length:
        return None
    return Tokens(tokens.shape, tokens.before - start, end - last)


def _agreed(first: tuple[_Label, ...], second: tuple[_Label, ...]) -> tuple[_Label, ...] | None:
    """The labels of what is computed of two tensors; None where they contradict each other."""
    pairs = list(zip(first, second, strict=True))
    if any(a != b and "?" not in (a, b) for a, b in pairs):
        return None
    return tuple(b if a == "?" else a for a, b in pairs)


def _without(labels: tuple[_Label, ...], dim: int) -> tuple[_Label, ...] | None:
    """The labels without a dimension that is a part of channels."""
    return (*labels[:dim], *labels[dim + 1 :]) if labels[dim] in ("k", "?") else None


def _if_whole(labels: tuple[_Label, ...], y: Tensor) -> tuple[_Label, ...] | None:
    """The labels, unless they speak of tokens of another number than there are."""
    right = (not isinstance(label, Tokens) or label.length == y.shape[dim] for dim, label in enumerate(labels))
    return labels if all(right) else None


def _sliced(labels: tuple[_Label, ...], x: Tensor, y: Tensor, index: Any) -> tuple[_Label, ...] | None:
    """The labels of ``x[index]``, where that takes slices only."""
    if isinstance(index, int):
        return _without(labels, 0)
    index = index if isinstance(index, tuple) else (index,)
    if y.dim() != x.dim() or not all(isinstance(each, slice) or each is Ellipsis for each in index):
        return None
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (x.dim() - len(index) + 1), *index[at + 1 :])
    found = list(labels)
    for dim, each in enumerate(index):
        label = labels[dim]
        if isinstance(label, Tokens):
            start, stop, step = each.indices(x.shape[dim])
            cut = _cut(label, start, stop) if step == 1 else None
            found[dim] = "?" if cut is None else cut
    return tuple(found)


def _reshaped(
    labels: tuple[_Label, ...], before: Sequence[int], after: Sequence[int], space: tuple[str, ...]
) -> tuple[_Label, ...]:
    """The labels of a tensor of shape ``before`` when it is seen as one of shape ``after``."""
    found: list[_Label] = []
    i = j = 0
    while j < len(after):
        first_i, first_j = i, j
        old, new = before[i] if i < len(before) else 1, after[j]
        i, j = i + 1, j + 1
        while old != new:
            if old < new and i < len(before):
                old, i = old * before[i], i + 1
            elif j < len(after):
                new, j = new * after[j], j + 1
            else:
                return tuple("?" for _ in after)
        found += _regrouped(labels[first_i:i], before[first_i:i], after[first_j:j], space)
    return tuple(found)


def _regrouped(
    labels: Sequence[_Label], before: Sequence[int], after: Sequence[int], space: tuple[str, ...]
) -> list[_Label]:
    """The same for dimensions that have as many values together before as after, in the smallest such group."""
    if len(labels) == len(after) == 1:
        return list(labels)
    if len(after) == 1:
        if tuple(labels) == space:
            return [Tokens(tuple(before))]
        channels = set(labels) == {"k"} or ("c" in labels and set(labels) <= {"c", "?"})
        return ["c" if channels else "?"]
    if len(labels) == 1:
        label = labels[0]
        if isinstance(label, Tokens):
            return list(space) if label == Tokens(tuple(after)) else ["?" for _ in after]
        if label == "c":
            return ["k" for _ in after]
        # rows (or columns) in groups: the groups are rows, what is in a group is not
        return [label if label in space else "?", *("?" for _ in after[1:])]
    return ["?" for _ in after]
