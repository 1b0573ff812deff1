"""Pictures that minimise an objective: lucent's ``render_vis``, and a version for many objectives at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.memory import images_at_once
from fastviz._util.progress import bar
from fastviz.compat.lucent import param, transform
from fastviz.compat.lucent._passes import LayerLookup, Passes
from fastviz.compat.lucent.objectives import as_objective
from fastviz.engine.optimize.canvas import parameter_of
from fastviz.execution.differentiation import differentiate
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.memory_format import image_gradients

__all__ = ["export", "render_vis", "render_vis_many", "tensor_to_img_array", "view"]

_MIN_SIDE = 224
"""Smaller pictures are enlarged to this size before each pass."""

Arrays = list[np.ndarray[Any, Any]]


def render_vis(
    model: nn.Module,
    objective_f: Any,
    param_f: Callable[[], param.Parametrisation] | None = None,
    optimizer: Callable[[Any], Any] | None = None,
    transforms: Sequence[transform.Transform] | None = None,
    thresholds: Iterable[int] = (512,),
    verbose: bool = False,
    preprocess: bool = True,
    progress: bool = True,
    show_image: bool = True,
    save_image: bool = False,
    image_name: str | None = None,
    show_inline: bool = False,
    fixed_image_size: int | tuple[int, int] | None = None,
) -> Arrays:
    """Pictures that minimise an objective, by gradient descent with random transforms: lucent's function.

    Args:
        model: any module; it runs in evaluation mode, and its parameters get no gradients.
        objective_f: an objective from :mod:`fastviz.compat.lucent.objectives` or lucent, ``"layer:channel"``, or any
            function whose argument is a function from a layer's name to the layer's output.
        param_f: makes the parametrisation; None is ``param.image(128)``.
        optimizer: makes a torch optimizer from parameters; None is Adam with a learning rate of 0.05.
        transforms: applied to the pictures before each pass; None is ``transform.standard_transforms``.
        thresholds: steps after which the pictures are returned; the largest is the number of steps.
        verbose: print the objective at the start and at the thresholds.
        preprocess: normalise pictures as torchvision's networks, or InceptionV1, expect them.
        progress: show a progress bar on a terminal.
        show_image: open the pictures in the system's viewer.
        save_image: write them to ``image_name``; None is ``image.jpg``.
        show_inline: show them in a notebook instead.
        fixed_image_size: the size to which pictures are resized before each pass; None enlarges smaller pictures to 224
            pixels.

    Returns:
        One array for each threshold, float32 [N, H, W, C] in 0 to 1. Ctrl-C returns the pictures so far.

    Raises:
        AssertionError: a layer does not exist or was not called.

    >>> import fastviz as fv
    >>> options = {"thresholds": (2,), "preprocess": False, "fixed_image_size": 64, "show_image": False}
    >>> render_vis(fv.load_model("demo"), "relu2_1:3", lambda: param.image(32), **options)[0].shape
    (1, 32, 32, 3)
    """
    with _Rendering(model, [objective_f], param_f, optimizer, transforms, preprocess, fixed_image_size) as work:
        (one,) = work.pictures
        if verbose:
            print(f"Initial loss: {work.loss():.3f}")

        def reached(step: int) -> None:
            if verbose:
                print(f"Loss at step {step}: {work.loss():.3f}")
                if show_inline:
                    _show(tensor_to_img_array(one.make()))

        (images,) = work.run(thresholds, progress, reached)
        last = one.make().detach()
    if save_image:
        export(last, image_name)
    if show_inline:
        _show(tensor_to_img_array(last))
    elif show_image:
        view(last)
    return images


def render_vis_many(
    model: nn.Module,
    objectives: Sequence[Any],
    param_f: Callable[[], param.Parametrisation] | None = None,
    optimizer: Callable[[Any], Any] | None = None,
    transforms: Sequence[transform.Transform] | None = None,
    thresholds: Iterable[int] = (512,),
    preprocess: bool = True,
    progress: bool = True,
    fixed_image_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> list[Arrays]:
    """The results of :func:`render_vis` for each of several ``objectives``, rendered together.

    Each objective has its own parameters and optimizer, and gives the pictures that it would give alone with the same
    random numbers: those of the transforms are drawn once per step, for all objectives. Objectives of the same layers
    share their passes. The other arguments are those of :func:`render_vis`.

    Args:
        objectives: a list of objectives, see ``objective_f`` there.
        param_f: called once for each objective; all pictures of an objective run in the same pass.
        batch_size: images in a pass; None is all of them, or on a CPU as many as fit into its caches.

    Returns:
        For each objective a list with one array for each threshold, float32 [N, H, W, C] in 0 to 1.

    Raises:
        AssertionError: a layer does not exist or was not called.
        ValueError: there are no objectives, or the parametrisations give pictures of different sizes.

    >>> import fastviz as fv
    >>> options = {"thresholds": (1, 2), "preprocess": False, "fixed_image_size": 64}
    >>> made = render_vis_many(
    ...     fv.load_model("demo"), ["relu2_1:3", "relu3_1:5"], lambda: param.image(32), **options)
    >>> len(made), len(made[0])
    (2, 2)
    """  # fmt: skip
    if isinstance(objectives, str) or not len(objectives):
        raise ValueError(f"objectives should be a list of at least one, got {objectives!r}")
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    work = _Rendering(
        model, objectives, param_f, optimizer, transforms, preprocess, fixed_image_size, batch_size=batch_size
    )
    with work:
        return work.run(thresholds, progress)


class _Optimized:
    """An objective with its parametrisation and its optimizer."""

    def __init__(self, objective: Any, param_f: Callable[[], Any], optimizer: Callable[[Any], Any]) -> None:
        self.objective = as_objective(objective)
        parameters, self.make = param_f()
        parameters = list(parameters)
        self.optimizer = optimizer(parameters)
        groups = getattr(self.optimizer, "param_groups", [{"params": parameters}])
        self.parameters = [each for group in groups for each in group["params"] if each.requires_grad]


class _Rendering:
    """One call of a render function; a context manager in which the model is in evaluation mode."""

    def __init__(
        self,
        model: nn.Module,
        objectives: Sequence[Any],
        param_f: Callable[[], Any] | None,
        optimizer: Callable[[Any], Any] | None,
        transforms: Sequence[transform.Transform] | None,
        preprocess: bool,
        fixed_image_size: int | tuple[int, int] | None,
        *,
        batch_size: int | None = None,
    ) -> None:
        checks.module(model)
        param_f = param_f or (lambda: param.image(128))
        optimizer = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=5e-2))
        self.model = model
        self.device = parameter_of(model).device
        self.pictures = [_Optimized(each, param_f, optimizer) for each in objectives]
        shapes = {tuple(each.make().shape[1:]) for each in self.pictures}
        if len(shapes) > 1:
            raise ValueError(f"param_f should give pictures of one size, got {sorted(shapes)}")
        (shape,) = shapes
        self.transform = transform.compose(_all_transforms(model, transforms, preprocess, fixed_image_size, shape))
        self.batch_size = batch_size
        passes = Passes(model)
        self.passes, self.found = passes, [LayerLookup(passes, each.make) for each in self.pictures]

    def __enter__(self) -> _Rendering:
        self._evaluation = _evaluation(self.model)
        self._evaluation.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._evaluation.__exit__(*exception)

    def run(
        self, thresholds: Iterable[int], progress: bool, reached: Callable[[int], None] | None = None
    ) -> list[Arrays]:
        """The pictures of each objective at the ``thresholds``; ``reached`` is called with each of them."""
        marks = set(thresholds)
        images: list[Arrays] = [[] for _ in self.pictures]
        step, steps = 0, max(marks)

        def keep() -> None:
            for arrays, each in zip(images, self.pictures, strict=True):
                arrays.append(tensor_to_img_array(each.make()))

        with bar(progress, steps, text="rendering", unit="steps") as advance:
            try:
                for step in range(1, steps + 1):
                    self.advance()
                    advance(1)
                    if step in marks:
                        keep()
                        if reached is not None:
                            reached(step)
            except KeyboardInterrupt:
                print(f"Interrupted optimization at step {step}.", file=sys.stderr)
                keep()
        return images

    def advance(self) -> None:
        """One step of all optimisers."""
        everyone = range(len(self.pictures))
        losses = self._evaluate(everyone)
        for number in everyone:
            self.pictures[number].optimizer.step(self._closure(number, losses[number]))

    def loss(self) -> float:
        """The current value of the first objective, with transforms."""
        return float(self._evaluate(range(1))[0])

    def _closure(self, number: int, loss: Tensor) -> Callable[[], Tensor]:
        """The closure for an optimizer; the first call returns the known loss, later ones evaluate it again."""
        known = [loss]
        return lambda: known.pop() if known else self._evaluate(range(number, number + 1))[0]

    def _evaluate(self, numbers: range) -> list[Tensor]:
        """The losses of these objectives; the gradients are stored in the parameters."""
        made = [self.pictures[number].make() for number in numbers]
        changed = self.transform(torch.cat(made) if len(made) > 1 else made[0]).to(self.device)
        leaf = changed.detach().requires_grad_()
        places = dict(zip(numbers, _slices([len(each) for each in made]), strict=True))
        losses: dict[int, Tensor] = {}
        gradient = torch.zeros_like(leaf)
        for group in self._groups(numbers, places, leaf):
            mine = [parameter for number in group for parameter in self.pictures[number].parameters]
            for parameter in mine:
                parameter.grad = None
            own = self._pass(group, places, leaf, losses)
            inputs, *direct = differentiate(own, [leaf, *mine])
            gradient += 0 if inputs is None else inputs
            for parameter, found in zip(mine, direct, strict=True):
                parameter.grad = found
        everything = [parameter for number in numbers for parameter in self.pictures[number].parameters]
        through = differentiate([changed], everything, [gradient]) if changed.requires_grad else ()
        for parameter, found in zip(everything, through, strict=False):
            if found is not None:
                parameter.grad = found if parameter.grad is None else parameter.grad + found
        return [losses[number] for number in numbers]

    def _pass(self, group: Sequence[int], places: dict[int, slice], leaf: Tensor, losses: dict[int, Tensor]) -> Tensor:
        """Run the network for the objectives of ``group``; returns the sum of their losses."""
        whole = [places[number] for number in group]
        together = [row for place in whole for row in range(place.start, place.stop)]
        images = leaf if len(together) == len(leaf) else leaf[together]
        layers = frozenset[str]().union(*(self.found[number].asked for number in group))
        given = self.passes.until(images, layers)
        total: Any = 0
        for number, rows in zip(group, _slices([place.stop - place.start for place in whole]), strict=True):
            found = self.found[number]
            found.show(given, lambda: self.passes.everything(images), rows if len(group) > 1 else slice(None))
            loss = self.pictures[number].objective(found)
            losses[number] = loss.detach()
            total = total + loss
        whole_loss: Tensor = total
        return whole_loss

    def _groups(self, numbers: range, places: dict[int, slice], leaf: Tensor) -> Iterator[list[int]]:
        """Groups of objectives of the same layers, each with as many as go through the network together."""
        size = (leaf.shape[2], leaf.shape[3])
        most = self.batch_size or images_at_once(len(leaf), size, self.device)
        kinds: dict[frozenset[str], list[int]] = {}
        for number in numbers:
            kinds.setdefault(self.found[number].asked, []).append(number)
        for group in list(kinds.values()):
            part: list[int] = []
            images = 0
            for number in group:
                own = places[number].stop - places[number].start
                if part and images + own > most:
                    yield part
                    part, images = [], 0
                part.append(number)
                images += own
            yield part


def _slices(lengths: Sequence[int]) -> list[slice]:
    """Consecutive slices of these lengths."""
    ends = np.cumsum(lengths).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    with frozen_model(model), image_gradients(model):
        yield


def _all_transforms(
    model: nn.Module,
    transforms: Sequence[transform.Transform] | None,
    preprocess: bool,
    fixed_image_size: int | tuple[int, int] | None,
    shape: Sequence[int],
) -> list[transform.Transform]:
    """The ``transforms``, the model's preprocessing, and the resizing."""
    whole = list(transform.standard_transforms if transforms is None else transforms)
    if preprocess:
        first_inception = type(model).__name__ == "InceptionV1"
        whole.append(transform.preprocess_inceptionv1() if first_inception else transform.normalize())
    size = fixed_image_size
    if size is None and min(shape[1:]) < _MIN_SIDE:
        size = _MIN_SIDE
    if size is not None:
        whole.append(nn.Upsample(size=size, mode="bilinear", align_corners=True))
    return whole


def tensor_to_img_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Images [N, C, H, W] as an array [N, H, W, C].

    >>> tensor_to_img_array(torch.zeros(1, 3, 4, 5)).shape
    (1, 4, 5, 3)
    """
    return tensor.detach().cpu().numpy().transpose(0, 2, 3, 1)


def _in_a_row(tensor: Tensor) -> Image.Image:
    """Pictures [N, C, H, W] in 0 to 1 as one image, side by side."""
    array = (tensor_to_img_array(tensor) * 255).astype(np.uint8)
    row = np.concatenate(list(array), axis=1)
    return Image.fromarray(row[:, :, 0] if row.shape[2] == 1 else row)


def view(tensor: Tensor) -> None:
    """Open pictures [N, C, H, W] in 0 to 1 in the system's viewer, side by side."""
    _in_a_row(tensor).show()


def export(tensor: Tensor, image_name: str | None = None) -> None:
    """Write pictures [N, C, H, W] in 0 to 1 to a file (None is ``image.jpg``), side by side."""
    _in_a_row(tensor).save(image_name or "image.jpg")


def _show(array: np.ndarray[Any, Any]) -> None:
    """Show pictures [N, H, W, C] in 0 to 1 in a notebook."""
    from IPython.display import display

    display(_in_a_row(torch.from_numpy(array).permute(0, 3, 1, 2)))  # type: ignore[no-untyped-call]
