"""Drop-in replacement for torch-cam's ``ScoreCAM``, ``SSCAM`` and ``ISCAM``: the same tensors, computed faster.

Only these classes run the network many times. torch-cam's other classes use the gradient of the caller's own pass, so
nothing can be saved; this module passes them through unchanged. torch-cam has to be installed. What is faster, and what
differs on purpose, is listed in docs/compat.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastviz.engine.incremental.whole import WholeImages

__all__ = ["ISCAM", "SSCAM", "ScoreCAM"]

_methods: Any = None
try:
    from torchcam import methods as _methods
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "torchcam":
        raise

_MISSING = 'this class needs torch-cam itself: pip install "fastviz[torchcam]"'


def __getattr__(name: str) -> Any:
    """torch-cam's other classes."""
    if name.startswith("_") or not hasattr(_methods, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}" + ("" if _methods else f"; {_MISSING}"))
    return getattr(_methods, name)


class _MaskedPasses(object if _methods is None else _methods.ScoreCAM):  # type: ignore[misc]
    """Runs the masked images.

    Images that a mask makes completely black, as that of an inactive channel does, are equal and run only once.
    """

    _run: WholeImages | None = None
    _black: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if _methods is None:
            raise ImportError(_MISSING)
        super().__init__(*arguments, **options)

    def _get_weights(self, *arguments: Any, **options: Any) -> list[Tensor]:
        try:
            # The hooks are inactive here, but they would prevent tracing.
            with _hooks_removed(self.hook_handles):
                weights: list[Tensor] = super()._get_weights(*arguments, **options)
            return weights
        finally:
            self._run = self._black = None

    def _init_score_weights(self, activations: list[Tensor], class_idx: Any, targets: Any) -> Any:
        started = super()._init_score_weights(activations, class_idx, targets)
        count = sum(len(each) for each in started[0]) * getattr(self, "num_samples", 1)
        if self._input.dim() == 4:
            self._run = WholeImages(self.model, self._input[:1], count)
            if not isinstance(self._run.output, Tensor):
                self._run = None
        return started

    def _score_input(self, input_tensor: Tensor, sample_indices: Tensor, class_idx: Any, targets: Any) -> Tensor:
        run = self._run
        if run is None:
            scores: Tensor = super()._score_input(input_tensor, sample_indices, class_idx, targets)
            return scores
        seen = input_tensor.flatten(1).ne(0).any(1)
        if self._black is None and not bool(seen.all()):
            self._black = run(torch.zeros_like(input_tensor[:1]))[0]
        parts = [output for part in input_tensor[seen].split(run.batch_size) if len(part) for output in run(part)]
        whole = torch.cat(parts) if parts else self._black[:0]
        if not bool(seen.all()):
            every = whole.new_empty((len(seen), *whole.shape[1:]))
            every[seen], every[~seen] = whole, self._black.to(whole.dtype)
            whole = every
        selected: Tensor = self._select_scores(whole, sample_indices, class_idx, targets)
        return selected


class ScoreCAM(_MaskedPasses, object if _methods is None else _methods.ScoreCAM):  # type: ignore[misc]
    """torch-cam's ``ScoreCAM``. Its masks are resized with ``align_corners=False``, those of :func:`fastviz.score_cam`
    with ``align_corners=True``.

    Args:
        model, target_layer, batch_size, input_shape: as in torch-cam; ``batch_size`` limits the images in a pass.
    """


class SSCAM(_MaskedPasses, object if _methods is None else _methods.SSCAM):  # type: ignore[misc]
    """torch-cam's ``SSCAM``, with the same noise; arguments as in torch-cam."""


class ISCAM(_MaskedPasses, object if _methods is None else _methods.ISCAM):  # type: ignore[misc]
    """torch-cam's ``ISCAM``; arguments as in torch-cam."""


@contextmanager
def _hooks_removed(handles: Sequence[Any]) -> Iterator[None]:
    """Remove hooks inside the ``with`` block, and restore them in their order."""
    places = [place for place in (handle.hooks_dict_ref() for handle in handles) if place is not None]
    held = [(place, dict(place)) for place in {id(each): each for each in places}.values()]
    try:
        for handle in handles:
            place = handle.hooks_dict_ref()
            if place is not None:
                place.pop(handle.id, None)
        yield
    finally:
        for place, hooks in held:
            added = {key: hook for key, hook in place.items() if key not in hooks}
            place.clear()
            place.update(hooks | added)
