"""Models with several inputs, with all but the images fixed."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, jit, nn
from torch.utils import _pytree as pytree

from fastviz._util import checks
from fastviz.execution.compiled import eager
from fastviz.models.descriptions import describe_as

__all__ = ["fix_inputs"]


def fix_inputs(model: nn.Module, *more: Any, image: int | str = 0, **named: Any) -> nn.Module:
    """``model`` as a function of images alone, with fixed further inputs.

    This lets any method explain a model with several inputs: ``fv.saliency(fv.fix_inputs(model, age), x)`` runs
    ``model(x, age)``. The result shares the modules, parameters, layer names and description of ``model``, which is not
    changed; attributes set on ``model`` later are not copied.

    Args:
        model: any module.
        more: its further inputs by position, those before ``image`` and those behind it.
        image: where the images stand: their place among the inputs by position, or the name of their argument.
        named: further inputs by name.

    Tensors go to the device of the images. One whose first dimension is 1, also inside of lists and dictionaries, is
    repeated for each image, so that ``[1, D]`` goes with any number of them; everything else is passed unchanged and
    shared by all images. To explain images with inputs of their own, do so one at a time.

    Returns:
        A module that maps ``x`` to what ``model`` gives.

    Raises:
        TypeError: ``model`` is not a module, or ``image`` neither a number nor a name.
        ValueError: ``image`` is below 0, larger than the number of inputs ``more``, or among ``named``.

    >>> import torch
    >>> class Scaled(nn.Linear):
    ...     def forward(self, x, scale, *, negative=False):
    ...         return super().forward(x) * (-scale if negative else scale)
    >>> model, x = Scaled(3, 2), torch.ones(4, 3)
    >>> fixed = fix_inputs(model, torch.tensor([[2.0]]), negative=True)
    >>> torch.equal(fixed(x), model(x, 2.0, negative=True)), list(fixed.state_dict())
    (True, ['weight', 'bias'])
    """
    plain = eager(checks.module(model))
    if isinstance(image, str):
        if image in named:
            raise ValueError(f"image should not be among the fixed inputs, which have {image!r}, too")
    elif checks.whole_number(image, "image", minimum=0) > len(more):
        raise ValueError(f"image should be at most {len(more)}, the number of further inputs by position, got {image}")
    if isinstance(plain, jit.ScriptModule):
        return _Script(plain, functools.partial(_run, plain, more, image, named))
    twin: nn.Module = object.__new__(type(plain))
    vars(twin).update(vars(plain))
    own = vars(plain).get("forward") or types.MethodType(type(plain).forward, twin)
    twin.forward = functools.partial(_run, own, more, image, named)
    describe_as(twin, model)
    return twin


class _Script(nn.Module):
    """A wrapper for scripts, whose forward cannot be replaced."""

    def __init__(self, script: nn.Module, forward: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.script = script
        self._run = forward

    def forward(self, x: Tensor) -> Any:
        return self._run(x)


def _run(forward: Callable[..., Any], more: tuple[Any, ...], image: int | str, named: dict[str, Any], x: Tensor) -> Any:
    def fitted(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.to(x.device)
        # Also for one image: the calls of a pass should not depend on the number of images.
        return value.expand(len(x), *value.shape[1:]) if value.dim() and len(value) == 1 else value

    fixed, by_name = pytree.tree_map(fitted, (list(more), dict(named)))
    if isinstance(image, str):
        output = forward(*fixed, **{image: x}, **by_name)
    else:
        output = forward(*fixed[:image], x, *fixed[image:], **by_name)
    if isinstance(output, Tensor) and output.dim() and len(output) != len(x):
        raise ValueError(
            f"model should give a row for each of {len(x)} images, and gives {len(output)}: fixed inputs belong to all "
            "images alike, with a first dimension of 1 where the images have theirs"
        )
    return output
