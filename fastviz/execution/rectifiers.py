"""Another backward rule for every rectifier (ReLU) called within a ``with`` block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastviz import ops
from fastviz._util import checks
from fastviz.execution import elementwise, rectifier_calls
from fastviz.execution.elementwise import tensors_in
from fastviz.execution.missed_rectifiers import REPLAYED, activation_name, call_label, graph_nodes, scripted_parts

__all__ = ["RectifierWarning", "Rectifiers", "rectifier_rule"]


class RectifierWarning(UserWarning):
    """A backward rule was asked for that some, or all, activations of the model do not follow."""


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


class Rectifiers(TorchFunctionMode):
    """The mode behind :func:`rectifier_rule`; ``count`` is the number of calls that got the rule."""

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
        spelling = rectifier_calls.SPELLINGS.get(func)
        call = None if spelling is None else rectifier_calls.read(*spelling, args, kwargs)
        # Without a graph there is no backward pass whose rule could differ.
        if call is None or not (call.x.is_floating_point() and call.x.requires_grad and torch.is_grad_enabled()):
            if torch.compiler.is_compiling() or not self.written_by_hand:
                self.compiled_choices += func in rectifier_calls.COMPARISONS
                return func(*args, **kwargs)
            return self._other(func, args, kwargs, spelling is not None)
        self.count += 1
        if torch.compiler.is_compiling():
            y = self.rectified(call.x, call.upper)
            return call.x.copy_(y) if call.in_place else y
        with torch._C.DisableTorchFunction():  # other modes need not see how it is computed
            return self._ruled(call)

    def _ruled(self, call: rectifier_calls.RectifierCall) -> Tensor:
        """The result of a rectifier with the rule."""
        # For a view, autograd wants a gradient for the rest of its base too, which only copy_ gives. (Nor does Dynamo
        # see that an autograd function overwrites what it is given: it would lose the gradient.)
        plain = call.x._is_view() or not _is_dense(call.x)
        if call.in_place and not plain:
            return self.rectified_(call.x, call.upper)
        y = self.rectified(call.x, call.upper)
        if call.in_place:
            return call.x.copy_(y)
        if self.written_by_hand:
            self._forms.note_rectifier(y, call.x, call.upper)
        return y

    def _other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], spelled: bool) -> Any:
        """Handle a call that is not a rectifier by name but may complete a hand-written one."""
        kind = elementwise.kind_of(func)
        watched = kind.elementwise and "out" not in kwargs and bool(args or not kind.in_place)
        if not (watched or self._forms.watches(kind)):
            return func(*args, **kwargs)
        # Other modes need not see calls that only inspect values.
        with torch._C.DisableTorchFunction():
            forms = self._forms.tried(func, kind, args, kwargs) if watched else []
            followed = self._followed(func, kind, forms, args, kwargs) if torch.is_grad_enabled() else None
            if followed is not None:
                return followed
            tensors = tensors_in(args, kwargs)
            if kind.name in elementwise.WAYS_OUT and any(map(self._forms.differs, tensors)):
                self._left[f"what is done outside of torch after {call_label(kind)}"] += 1
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
        """The result of a call with the rule, if it completes a rectifier of some tensor; else None."""
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
            # The probes only cover finite numbers; check the real values.
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
        if activation_name(node) is None or kind.name in ("maximum", "max", "fmax"):
            self._choices[node] = call_label(kind)

    def rectified(self, x: Tensor, upper: float | None) -> Tensor:
        """``min(max(x, 0), upper)`` with the backward rule."""
        return ops.guided_relu(x, self.rule, upper)

    def rectified_(self, x: Tensor, upper: float | None) -> Tensor:
        """The same, written over ``x``."""
        return ops.guided_relu_(x, self.rule, upper)

    def missed(self, output: Tensor) -> Counter[str]:
        """Activations in the graph of ``output`` that did not get the rule, with their counts."""
        names = (self._choices.get(node) or activation_name(node) for node in graph_nodes(output))
        return Counter(name for name in names if name is not None) + self._left

    def check(self, output: Tensor, *, stacklevel: int = 2) -> None:
        """Warn, by name, if activations in the graph of ``output`` did not get the rule, or if there is no rectifier.

        To be called after the forward pass and before the backward pass. ``stacklevel`` as in :func:`warnings.warn`.
        """
        missed = self.missed(output)
        if self.compiled_choices:
            missed["comparisons in compiled code"] = self.compiled_choices
        scripted = [] if self._model is None else scripted_parts(self._model)
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
        elif not self.count and not any(node.name() == REPLAYED for node in graph_nodes(output)):
            warn(
                f"the model has no rectifier (ReLU): the {self.rule!r} rule gives its ordinary gradient",
                RectifierWarning,
                stacklevel=stacklevel + 1,
            )


@contextmanager
def rectifier_rule(rule: ops.Rule, *, model: nn.Module | None = None) -> Iterator[Rectifiers]:
    """Give every rectifier that is called inside, by this thread, another backward rule.

    ``rule`` is ``"plain"``, ``"guided"`` or ``"deconvnet"``, as in :func:`fastviz.ops.guided_relu`. A rectifier is
    ``relu``, ``relu6``, ``hardtanh(0, …)``, ``threshold(0, 0)`` and ``clamp(min=0)`` (also ``clip`` and ``clamp_min``),
    as a module, function, method or ATen call, in place or not, with or without an upper bound, on a floating-point
    tensor that takes part in a graph; and what is written by hand as a chain of elementwise calls that comes to the
    same, such as ``torch.where(x > 0, x, 0)``, ``x * (x > 0)``, ``x[x < 0] = 0``, ``torch.maximum(x, zeros)`` or
    ``(x + x.abs()) / 2``, see :mod:`fastviz.execution.elementwise`.

    A bounded one is ``min(max(x, 0), bound)``: the rule holds for the ``max``, and the ordinary gradient, zero from the
    bound on, for the ``min``. In-place calls still change their argument. Nothing is patched: other threads, and code
    after the ``with`` block, are not affected.

    The backward pass belongs inside too, by :func:`fastviz.execution.differentiation.differentiate`, because
    ``torch.utils.checkpoint`` runs parts of the model again in it.

    Yields an object with ``count``, the number of intercepted calls, and ``check(output)``, which raises a
    :class:`RectifierWarning` that names what was not intercepted: other activations (GELU, …), also those written by
    hand, with their place in the source; other people's autograd functions, scripted code, and computations outside of
    torch, none of which can be inspected. ``model`` lets it name scripted modules.

    >>> from fastviz.execution.differentiation import differentiate
    >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    >>> with rectifier_rule("guided") as found:
    ...     y = (x.relu() * torch.tensor([1.0, 1.0, -1.0])).sum()
    ...     (gradient,) = differentiate(y, [x])
    >>> gradient, found.count
    (tensor([0., 1., 0.]), 1)
    """
    checks.one_of(rule, "rule", ("plain", "guided", "deconvnet"))
    with Rectifiers(rule, model) as found:
        yield found
