"""Whether a model keeps the images of a batch separate. If so it runs on batches, else on one image at a time.

Nothing is assumed or sampled: while a batch goes through the model, every ATen call is seen, and for each tensor it is
known which dimension holds the images. A call that could let one image into the result of another (a maximum over all
of a batch, statistics of a batch, a value read into Python, an unknown call) ends the pass, and each image runs alone.
A pass that goes through is a proof: no call mixed images, and no value of theirs decided which calls were made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastviz._util.modules import every_module
from fastviz.execution import cuda_graphs
from fastviz.execution.batch_functions import Functions, Reads, Unseen
from fastviz.execution.batch_watch import Mixes, Watch, unchanged_generators
from fastviz.execution.compiled import eager, has_compiled_parts
from fastviz.execution.inputs import output_of

__all__ = ["Batches", "Mixes"]

Result = TypeVar("Result")


class Batches:
    """Runs functions of images on whole batches if that provably changes nothing, else on one image at a time.

    The first batch of each size of images is watched; a batch of one image needs no proof. An object serves one call of
    a method, since a proof holds only for the model as it is now.

    Attributes:
        reason: why each image runs alone; empty as long as batches work.

    >>> batches = Batches(nn.BatchNorm2d(1, track_running_stats=False))
    >>> [len(part) for part in batches(batches.run_model, torch.rand(3, 1, 4, 4))], batches.reason
    ([1, 1, 1], 'native_batch_norm may mix the images of a batch')
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.reason = _unseen(model)
        # inside cuda_graphs() the model's code does not run again, so one proof is enough
        self._proved: set[object] = cuda_graphs.proved(model)

    def __call__(self, function: Callable[..., Result], images: Tensor, *more: Tensor) -> list[Result]:
        """``[function(images, *more)]``, or one result for each image if the images may mix.

        Args:
            function: of images [B, ...] and what goes with them; passes of the model in it go through :meth:`watched`.
            images: [B, ...].
            more: tensors with one entry per image.
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
        """``forward(images)``, which must contain all runs of the model. Called within the functions that are given to
        the call.

        Args:
            forward: the pass. If Python's calls do not show everything, it ends early and runs again.
            images: [B, ...].

        Raises:
            Mixes: the images may mix.
        """
        shape = (tuple(images.shape[1:]), images.dtype, images.device)
        if len(images) < 2 or shape in self._proved:
            return forward(images)
        if has_compiled_parts(self.model):
            # Compiled code makes other calls. So the same layers are watched as Python code, in a separate pass.
            with torch.no_grad():
                self._watched(eager(self.model), images.detach().clone())
            result = forward(images)
        else:
            result = self._watched(forward, images)
        self._proved.add(shape)
        return result

    def _watched(self, forward: Callable[[Tensor], Result], images: Tensor) -> Result:
        def trial() -> Tensor:
            # a pass that ended early may have written to its images, unless they require gradients
            return images if images.requires_grad else images.clone()

        with cuda_graphs.paused(), unchanged_generators():
            if not torch.is_inference_mode_enabled():
                begun = trial()
                watch = Watch(begun)
                with suppress(Unseen), Functions(watch, self.model):
                    result = forward(begun)
                    watch.finish(result)
                    return result
            begun = trial()
            watch = Watch(begun)
            with watch, Reads(watch):
                result = forward(begun)
                watch.finish(result)
            return result

    def together(self, images: Tensor, forward: Callable[[Tensor], object] | None = None) -> int:
        """How many of the ``images`` the model may get at once: all or one. For streams, whose results are not
        collected in one piece. It takes one pass over two images for each size.

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
    for module in every_module(model):
        if isinstance(module, torch.jit.ScriptModule):
            return f"{_where(model, module)} is scripted, so that its calls cannot be seen"
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            return f"{_where(model, module)} is a {type(module).__name__}, whose calls other threads make"
    return ""


def _where(model: nn.Module, part: nn.Module) -> str:
    name = next((name for name, module in model.named_modules() if module is part), "")
    return repr(name) if name else "the model"
