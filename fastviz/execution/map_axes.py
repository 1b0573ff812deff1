"""Which dimensions of a tensor are the rows and columns of the image, followed through a forward pass.

A map need not be [N, C, H, W]: networks with layer norms hold [N, H, W, C], and those with attention tokens, windows or
heads. Convolutions say which dimensions are which; from there permutations, reshapes and calls that leave the places
alone are followed. What is not known to leave them alone loses them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from fastviz.execution.elementwise import ELEMENTWISE, kind_of, tensors_in

__all__ = ["Axes"]

_Label: TypeAlias = "str | tuple[int, int]"
"""``n`` images, ``c`` channels, ``h`` rows, ``w`` columns, their numbers where both are one dimension, ``?`` others."""

_NCHW: tuple[_Label, ...] = ("n", "c", "h", "w")
# Calls that take maps [N, C, H, W], and give such maps.
_PLANAR = frozenset(
    """
    conv2d conv_transpose2d batch_norm group_norm instance_norm local_response_norm native_batch_norm
    max_pool2d avg_pool2d lp_pool2d adaptive_avg_pool2d adaptive_max_pool2d fractional_max_pool2d interpolate upsample
    pixel_shuffle pixel_unshuffle channel_shuffle dropout2d feature_dropout feature_alpha_dropout
    """.split()  # noqa: SIM905 (a list would take a line a word)
)
_POINTWISE = frozenset(
    """
    dropout alpha_dropout silu gelu hardswish selu mish softplus rrelu layer_norm rms_norm normalize requires_grad
    native_layer_norm glu softmax log_softmax
    """.split()  # noqa: SIM905
)
_RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "unsafe_view"})
_ON_TOKENS = frozenset({"linear", "layer_norm", "rms_norm", "multi_head_attention_forward"}) | {
    "scaled_dot_product_attention"
}


class Axes(TorchFunctionMode):
    """Inside, what this thread computes is followed.

    ``on_tokens`` says whether layers with weights, or attention, ran on tensors of three dimensions or more that are no
    maps.
    """

    def __init__(self) -> None:
        super().__init__()
        self._labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._calls = self._last_on_tokens = 0

    @property
    def on_tokens(self) -> bool:
        """See the class."""
        return self._last_on_tokens > 0

    def tokens_after(self, x: Tensor) -> bool:
        """Whether they ran after ``x``, whose dimensions are known, was made."""
        made: int = self._labels.get(x, (self._calls, ()))[0]
        return self._last_on_tokens > made

    def images(self, x: Tensor) -> Tensor:
        """``x`` itself, [N, C, H, W], known as such."""
        self._labels[x] = (0, _NCHW)
        return x

    def order(self, x: Tensor) -> tuple[int, int, int, int] | None:
        """The dimensions of ``x`` that are images, channels, rows and columns; None if that is not known."""
        labels = self._of(x)
        if labels is None or sorted(map(str, labels)) != sorted(map(str, _NCHW)) or labels[0] != "n":
            return None
        n, c, h, w = (labels.index(each) for each in _NCHW)
        return n, c, h, w

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = kind_of(func).name
        if name == "get":
            return func(*args, **kwargs)
        y = func(*args, **kwargs)
        self._calls += 1
        with torch._C.DisableTorchFunction():
            given = tensors_in(args, kwargs)
            if given and name in _ON_TOKENS and given[0].dim() >= 3 and not self._is_map(given[0]):
                self._last_on_tokens = self._calls
            for each in y if isinstance(y, (tuple, list)) else (y,):
                if isinstance(each, Tensor) and each.dim() >= 3 and given:
                    labels = self._made(name, each, given, args, kwargs)
                    if labels is not None:
                        self._labels[each] = (self._calls, labels)
        return y

    def _of(self, x: Tensor) -> tuple[_Label, ...] | None:
        labels: tuple[_Label, ...] | None = self._labels.get(x, (0, None))[1]
        return labels

    def _is_map(self, x: Tensor) -> bool:
        labels = self._of(x) or ()
        return "h" in labels and "w" in labels

    def _made(self, name: str, y: Tensor, given: list[Tensor], args: Any, kwargs: Any) -> tuple[_Label, ...] | None:
        x = given[0]
        labels = self._of(x)
        if name in _PLANAR:
            planar = labels is not None and len(labels) == 4 and labels[1] == "c"
            return (labels if planar else _NCHW) if x.dim() == y.dim() == 4 else None
        if name in ("permute", "transpose", "swapaxes", "swapdims") and labels is not None:
            return _permuted(name, labels, args, kwargs)
        if name == "pad":
            return labels if labels is not None and y.dim() == x.dim() else None
        if name in _RESHAPES and labels is not None:
            return _reshaped(labels, x.shape, y.shape)
        if name == "getitem" and labels is not None:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            whole = all(isinstance(each, slice) or each is Ellipsis for each in index)
            return labels if whole and y.dim() == x.dim() else None
        if name in ("linear", "matmul"):
            flat = name == "linear" or (len(given) == 2 and given[1].dim() == 2)
            return labels if labels is not None and flat and labels[-1] == "c" and y.dim() == x.dim() else None
        if name in ("cat", "concat", "concatenate", "split", "chunk", "narrow"):
            return self._same_places(y, given, may_differ="c")
        if name in _POINTWISE or name in ELEMENTWISE:
            return self._same_places(y, given, may_differ=None if name != "glu" else "c")
        return None

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
            if found is not None and found != labels:
                return None
            found = labels
        return found


def _permuted(name: str, labels: tuple[_Label, ...], args: Any, kwargs: Any) -> tuple[_Label, ...] | None:
    given = [*args[1:], *(value for key, value in kwargs.items() if key not in ("input", "self"))]
    dims = [int(each) for each in (given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given)]
    if name != "permute":
        order = list(range(len(labels)))
        order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
        dims = order
    return tuple(labels[each] for each in dims) if len(dims) == len(labels) else None


def _reshaped(labels: tuple[_Label, ...], before: Sequence[int], after: Sequence[int]) -> tuple[_Label, ...]:
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
        found += _regrouped(labels[first_i:i], before[first_i:i], after[first_j:j])
    return tuple(found)


def _regrouped(labels: Sequence[_Label], before: Sequence[int], after: Sequence[int]) -> list[_Label]:
    """The same for dimensions that have as many values together before as after, in the smallest such group."""
    if len(labels) == len(after) == 1:
        return list(labels)
    if len(after) == 1:
        if tuple(labels) == ("h", "w"):
            return [(before[0], before[1])]
        return ["c" if "c" in labels and set(labels) <= {"c", "?"} else "?"]
    if len(labels) == 1:
        label = labels[0]
        if isinstance(label, tuple):
            return ["h", "w"] if tuple(after) == label else ["?" for _ in after]
        # rows (or columns) in groups: the groups are rows, what is in a group is not
        return [label if label in ("h", "w") else "?", *("?" for _ in after[1:])]
    return ["?" for _ in after]
