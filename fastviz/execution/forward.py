"""Forward passes that go only as far as the layers asked for, and one vector an image from what a layer gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz.engine.gradients import input_gradients
from fastviz.execution import capture
from fastviz.execution.capture import Hook

__all__ = ["Pool", "called", "outputs", "penultimate", "run", "vectors"]

Pool = Literal["mean", "flatten"]


class _Enough(BaseException):
    """Every layer has been called: leaves the forward pass, also one that catches exceptions."""


def run(model: nn.Module, images: Tensor, hooks: Mapping[str, Hook], calls: Counter[str]) -> None:
    """Run ``model`` on ``images`` as far as its layers in ``hooks`` need, and call their hooks.

    The first pass, with ``calls`` empty, runs to the end and fills it with how often each layer is called; later ones
    end when every layer has been called as often. In the order in memory of
    :func:`fastviz.engine.gradients.input_gradients.in_fast_order`; a model that cannot take it runs again, so that
    hooks should replace what they noted before.

    Raises:
        ValueError: a layer does not exist, is scripted or was not called.
    """
    done: Counter[str] = Counter()

    def counted(name: str, hook: Hook) -> Hook:
        def call(module: nn.Module, inputs: Any, output: object) -> Tensor | None:
            changed = hook(module, inputs, output)
            done[name] += 1
            if done == calls:
                raise _Enough
            return changed

        return call

    def through(batch: Tensor) -> bool:
        done.clear()
        try:
            model(batch)
        except _Enough:
            return False
        return True

    with capture.hooked(model, {name: counted(name, hook) for name, hook in hooks.items()}):
        to_the_end = input_gradients.in_fast_order(model, "model", through)(images)
    if not to_the_end:
        return
    for name in hooks:
        if not done[name]:
            raise ValueError(
                f"layer {name!r} was not called in the forward pass, so it has no output "
                "(layers inside scripted or compiled modules, and those of replicas in other threads, are not seen)"
            )
    calls.update(done - calls)


def outputs(model: nn.Module, images: Tensor, layers: Iterable[str], calls: Counter[str]) -> list[object]:
    """What ``layers`` give, each as its last call left it; ``calls`` as in :func:`run`."""
    found: dict[str, object] = {}

    def noting(name: str) -> Hook:
        def note(module: nn.Module, inputs: Any, output: object) -> None:
            found[name] = output

        return note

    run(model, images, {name: noting(name) for name in layers}, calls)
    return list(found.values())


def called(model: nn.Module, images: Tensor, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """The names of the modules of these ``kinds`` that ``model`` calls, in the order of their last calls."""
    order: dict[str, None] = {}

    def noting(name: str) -> Hook:
        def note(module: nn.Module, inputs: Any, output: object) -> None:
            order.pop(name, None)
            order[name] = None

        return note

    hooks: dict[str, Hook] = {
        name: noting(name)
        for name, module in model.named_modules()
        if isinstance(module, kinds) and not isinstance(module, torch.jit.ScriptModule)
    }
    with capture.hooked(model, hooks):
        capture.called(model, images)
    return list(order)


def penultimate(model: nn.Module, images: Tensor) -> str:
    """The last linear layer or convolution that ``model`` calls: what goes into it is what it decides by.

    Raises:
        ValueError: it calls none.
    """
    found = called(model, images, (nn.Linear, nn.Conv1d, nn.Conv2d))
    if not found:
        raise ValueError("layer should be given for this model: it calls no linear layer and no convolution")
    return found[-1]


def vectors(value: object, layer: str, pool: Pool) -> Tensor:
    """One vector an image, [N, D], from what a layer takes or gives; float32 at least.

    [N, D] stays; of maps [N, C, H, W] the mean over the places of each channel, and of tokens [N, L, D] the mean over
    the tokens (``"mean"``), or all values in order (``"flatten"``).

    Raises:
        TypeError: it is no floating-point tensor.
        ValueError: it has another number of dimensions.
    """
    tensor = capture.floating_output(layer, value).detach()
    exact = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    if exact.dim() not in (2, 3, 4):
        raise ValueError(
            f"layer {layer!r} should have vectors [N, D], tokens [N, L, D] or maps [N, C, H, W], got shape "
            f"{list(exact.shape)}"
        )
    if pool == "flatten" or exact.dim() == 2:
        return exact.flatten(1).clone()  # what comes behind the layer may change its output in place
    return exact.mean(1) if exact.dim() == 3 else exact.mean((2, 3))
