"""captum's classes that average gradients over many points: along a line, at random points, with noise."""

from __future__ import annotations

import logging
from typing import Any, get_args

import torch
from torch import Tensor

from fastviz.compat.captum import _bases
from fastviz.compat.captum._fast_model import (
    IMAGES_PER_PASS,
    gradients,
    images_are_independent,
    in_chunks,
    is_captums,
    own,
)
from fastviz.compat.captum._forward import formatted, select, target_of, tensors
from fastviz.compat.captum._sweep import Call, LeftToCaptum, accepted
from fastviz.engine.gradients.path_gradients import line_gradients
from fastviz.engine.gradients.quadrature import Quadrature, quadrature
from fastviz.execution.batches import Mixes
from fastviz.targets.objectives import Objective
from fastviz.targets.selection import Selection

__all__ = ["GradientShap", "IntegratedGradients", "NoiseTunnel"]

Tensors = Tensor | tuple[Tensor, ...]

_log = logging.getLogger("fastviz.compat.captum")


class _CaptumTarget(Objective):
    """The values of the output that captum's ``target`` selects."""

    def __init__(self, target: object) -> None:
        self.target = target

    def values(self, output: Any, activations: object) -> Tensor:
        chosen = select(output, self.target)
        if not isinstance(chosen, Tensor) or not chosen.dim() or chosen[0].numel() != 1:
            raise LeftToCaptum("the target does not select one value per image")
        return chosen.reshape(-1)

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        return _CaptumTarget(target_of(self.target, samples))


class IntegratedGradients(_bases.IntegratedGradients):
    """captum's ``IntegratedGradients``: the gradients of the target, integrated along the line from a baseline.

    Arguments, results and errors are captum's. For a module and one batch of images [N, C, H, W], the first convolution
    runs only twice per line and not at every step, if nothing else reads the images. A pass has at most 16 images, or
    ``internal_batch_size`` if that is less. Other calls are delegated to captum.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    >>> IntegratedGradients(model).attribute(torch.ones(1, 3, 2, 2), target=1).shape
    torch.Size([1, 3, 2, 2])
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """The attributions, and the convergence delta if asked for: see captum's ``IntegratedGradients.attribute``."""
        try:
            call = accepted(self, IntegratedGradients, inputs, baselines, additional_forward_args, 1)
            shares, begin = self._attributions(call, target, n_steps, method, internal_batch_size)
        except (LeftToCaptum, Mixes) as reason:
            _log.debug("IntegratedGradients takes captum's own path: %s", reason)
            return own(_bases.IntegratedGradients)(
                *(self, inputs, baselines, target, additional_forward_args, n_steps, method, internal_batch_size),
                return_convergence_delta=return_convergence_delta,
            )
        if not return_convergence_delta:
            return formatted(inputs, (shares,))
        with torch.no_grad():
            end, start = (select(call.model(each.clone()), target).reshape(-1) for each in (call.images, begin))
        return formatted(inputs, (shares,)), shares.flatten(1).sum(1) - (end - start)

    def _attributions(
        self, call: Call, target: object, n_steps: int, method: str, internal_batch_size: int | None
    ) -> tuple[Tensor, Tensor]:
        """The attributions, and the start points of the lines.

        Raises:
            LeftToCaptum, Mixes: captum has to compute the call.
        """
        if not is_captums(self.gradient_func):
            raise LeftToCaptum("gradient_func was replaced")
        if method not in get_args(Quadrature) or type(n_steps) is not int or n_steps < 2:
            raise LeftToCaptum("there is no such method, or there are too few steps")
        if internal_batch_size is not None and (type(internal_batch_size) is not int or internal_batch_size < 1):
            raise LeftToCaptum("internal_batch_size is not a whole number of at least 1")
        places, weights = quadrature(method, n_steps)
        if method != "gausslegendre":
            places = places.float().double()  # the same rounding as captum's
        begin = (torch.zeros_like(call.images) + call.fill).to(call.images)
        gradient = line_gradients(
            *(call.model, begin, call.images, Selection((_CaptumTarget(target),), False, None), places, weights),
            batch_size=min(internal_batch_size or IMAGES_PER_PASS, IMAGES_PER_PASS),
            mixing="refused",
        )
        return gradient * (call.images - begin) if self.multiplies_by_inputs else gradient, begin


class GradientShap(_bases.GradientShap):
    """captum's ``GradientShap``: expected gradients over random baselines and random points on the lines from them.

    Arguments, results, random numbers and errors are captum's. Gradients of more than 16 images are computed in chunks
    if the model treats images independently.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any,
        n_samples: int = 5,
        stdevs: float | tuple[float, ...] = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """The attributions, and the convergence delta if asked for: see captum's ``GradientShap.attribute``."""
        other: Any = self
        if _bases.installed and is_captums(self.gradient_func):
            other = _bases.GradientShap(self.forward_func, self.multiplies_by_inputs)
            separate = images_are_independent(self, GradientShap, inputs, None, additional_forward_args)
            other.gradient_func = in_chunks(gradients) if separate else gradients
        return own(_bases.GradientShap)(
            *(other, inputs, baselines, n_samples, stdevs, target, additional_forward_args),
            return_convergence_delta=return_convergence_delta,
        )


class NoiseTunnel(_bases.NoiseTunnel):
    """captum's ``NoiseTunnel``: the mean, mean square or variance of another class's attributions of noisy copies.

    Arguments, results, random numbers and errors are captum's. The other class gets 16 noisy copies at a time if the
    model treats images independently.
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        nt_type: str = "smoothgrad",
        nt_samples: int = 5,
        nt_samples_batch_size: int | None = None,
        stdevs: float | tuple[float, ...] = 1.0,
        draw_baseline_from_distrib: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The attributions, and the other class's delta if asked for: see captum's ``NoiseTunnel.attribute``."""
        other: Any = self
        if _bases.installed and self._is_separable(inputs, nt_samples, kwargs):
            other = _ChunkedNoiseTunnel(self.attribution_method)
        return own(_bases.NoiseTunnel)(
            *(other, inputs, nt_type, nt_samples, nt_samples_batch_size, stdevs, draw_baseline_from_distrib), **kwargs
        )

    def _is_separable(self, inputs: object, samples: object, options: dict[str, Any]) -> bool:
        many = isinstance(samples, int) and isinstance(inputs, Tensor) and len(inputs) * samples > IMAGES_PER_PASS
        ours = type(self.attribution_method).__module__.startswith("fastviz.compat.captum")
        plain = not options.keys() - {"target", "baselines", "abs", "n_steps", "method", "return_convergence_delta"}
        return many and ours and plain and images_are_independent(self, NoiseTunnel, inputs)


class _ChunkedNoiseTunnel(_bases.NoiseTunnel):
    """captum's class, modified to pass the noisy copies to the other class in chunks; only for use in captum's code."""

    def _compute_partial_attribution(
        self, inputs_with_noise_partition: Any, kwargs_partition: Any, is_inputs_tuple: bool, delta_wanted: bool
    ) -> Any:
        ask = super()._compute_partial_attribution
        (images,) = inputs_with_noise_partition
        found: list[tuple[Tensor, ...]] = []
        deltas: list[Tensor] = []
        for at in torch.arange(len(images)).split(IMAGES_PER_PASS):
            options = dict(kwargs_partition)
            if "target" in options:
                options["target"] = target_of(options["target"], at)
            for each in (options["baselines"],) if "baselines" in options else ():
                only = each[0] if isinstance(each, tuple) else each
                options["baselines"] = only[at] if isinstance(only, Tensor) and len(only) == len(images) else only
            part, is_tuple, delta = ask((images[at],), options, is_inputs_tuple, delta_wanted)
            found.append(tensors(part))
            deltas += [] if delta is None else [delta]
        whole = tuple(torch.cat(each) for each in zip(*found, strict=True))
        return whole, is_tuple, torch.cat(deltas) if deltas else None
