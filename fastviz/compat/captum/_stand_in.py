"""Stand-ins for captum's classes if captum is not installed: constructors and members, but no attribution."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = [
    "Deconvolution",
    "FeatureAblation",
    "FeaturePermutation",
    "GradientShap",
    "GuidedBackprop",
    "GuidedGradCam",
    "InputXGradient",
    "IntegratedGradients",
    "InternalInfluence",
    "KernelShap",
    "LayerActivation",
    "LayerConductance",
    "LayerGradCam",
    "LayerGradientXActivation",
    "Lime",
    "NeuronDeconvolution",
    "NeuronGuidedBackprop",
    "NoiseTunnel",
    "Occlusion",
    "Saliency",
    "ShapleyValueSampling",
    "ShapleyValues",
    "log_usage",
]


def log_usage() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator without effect that, like captum's, stores the function as ``__wrapped__``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    return decorate


class _Attribution:
    gradient_func = None
    multiplies_by_inputs = False

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func

    def has_convergence_delta(self) -> bool:
        return False

    @classmethod
    def get_name(cls) -> str:
        return "".join(letter if letter.islower() else f" {letter}" for letter in cls.__name__).lstrip()

    @log_usage()
    def attribute(self, *args: object, **kwargs: object) -> Any:
        raise ImportError(
            f'this call of {type(self).__name__} needs captum, which is not installed: pip install "fastviz[captum]"'
        )

    def attribute_future(self) -> None:
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")


class _ModelAttribution(_Attribution):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.model = model


class _LayerAttribution(_Attribution):
    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        super().__init__(forward_func)
        self.layer = layer
        self.device_ids = device_ids


class FeatureAblation(_Attribution):
    multiplies_by_inputs = True


class Occlusion(FeatureAblation):
    pass


class Saliency(_Attribution):
    pass


class InputXGradient(_Attribution):
    multiplies_by_inputs = True


class GuidedBackprop(_ModelAttribution):
    pass


class Deconvolution(_ModelAttribution):
    pass


class NeuronGuidedBackprop(_LayerAttribution):
    pass


class NeuronDeconvolution(_LayerAttribution):
    pass


class LayerGradCam(_LayerAttribution):
    pass


class GuidedGradCam(_Attribution):
    def __init__(self, model: Any, layer: Any, device_ids: list[int] | None = None) -> None:
        super().__init__(model)


class _Path(_Attribution):
    def __init__(self, forward_func: Callable[..., Any], multiply_by_inputs: bool = True) -> None:
        super().__init__(forward_func)
        self.multiplies_by_inputs = multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        return True


class IntegratedGradients(_Path):
    pass


class GradientShap(_Path):
    pass


class NoiseTunnel(_Attribution):
    def __init__(self, attribution_method: Any) -> None:
        super().__init__(attribution_method.forward_func)
        self.attribution_method = attribution_method
        self.multiplies_by_inputs = attribution_method.multiplies_by_inputs

    def has_convergence_delta(self) -> bool:
        return bool(self.attribution_method.has_convergence_delta())


class LayerActivation(_LayerAttribution):
    multiplies_by_inputs = True


class LayerGradientXActivation(_LayerAttribution):
    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Any,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__(forward_func, layer, device_ids)
        self.multiplies_by_inputs = multiply_by_inputs
        self._memory_efficient = memory_efficient


class InternalInfluence(_LayerAttribution):
    pass


class LayerConductance(_LayerAttribution):
    multiplies_by_inputs = True

    def has_convergence_delta(self) -> bool:
        return True


class FeaturePermutation(FeatureAblation):
    pass


class ShapleyValueSampling(_Attribution):
    multiplies_by_inputs = True


class ShapleyValues(ShapleyValueSampling):
    pass


class Lime(_Attribution):
    pass


class KernelShap(Lime):
    pass
