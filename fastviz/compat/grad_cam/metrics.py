"""pytorch-grad-cam's ROAD metrics: all images, and all percentiles of an average, are imputed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastviz.compat.grad_cam._tool import MISSING, road
from fastviz.evaluation._imputation import imputed

__all__ = [
    "ROADCombined",
    "ROADLeastRelevantFirst",
    "ROADLeastRelevantFirstAverage",
    "ROADMostRelevantFirst",
    "ROADMostRelevantFirstAverage",
]

Maps = NDArray[np.float32]
Targets = Sequence[Callable[[Any], Tensor]]

_PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


def _base(name: str) -> Any:
    return getattr(road, name, object)


class _RoadBase:
    """The images with pixels removed and imputed, and the targets' values for them.

    The noise is the same as pytorch-grad-cam's: it is drawn from torch's generator, image by image.
    """

    _kind: str

    def __init__(self, argument: Any) -> None:
        if road is None:
            raise ImportError(MISSING)
        super().__init__(argument)  # type: ignore[call-arg]  # pytorch-grad-cam's class is next in the MRO

    def _imputed_images(self, images: Tensor, cams: Maps, percentiles: Sequence[Any]) -> list[Tensor]:
        """A batch of imputed images for each of the ``percentiles``."""
        masks = []
        for percentile in percentiles:
            remove = getattr(road, self._kind)(percentile, lambda image, mask: mask)
            masks += [remove(images[at].cpu(), torch.from_numpy(cams[at])) < 0.5 for at in range(len(images))]
        removed = torch.stack(masks).to(images.device)
        image = torch.arange(len(images), device=images.device).repeat(len(percentiles))
        pictures = imputed(images.detach(), removed, image)
        for picture, mask in zip(pictures, removed, strict=True):
            count, channels = int(mask.sum()), len(picture)
            noise = torch.randn(count if channels == 1 else (channels, count))
            picture[:, mask] += (0.01 * noise).to(picture)
        return list(pictures.split(len(images)))

    @staticmethod
    def _values(model: nn.Module, images: Tensor, targets: Targets) -> Maps:
        with torch.no_grad():
            outputs = model(images)
            values = [target(one).cpu().numpy() for target, one in zip(targets, outputs, strict=False)]
        return np.asarray(values, np.float32)


class _RoadAtPercentile(_RoadBase):
    def __init__(self, percentile: Any) -> None:
        super().__init__(percentile)
        self._percentile = percentile

    def __call__(
        self,
        input_tensor: Tensor,
        cams: Maps,
        targets: Targets,
        model: nn.Module,
        return_visualization: bool = False,
        return_diff: bool = True,
    ) -> Any:
        """The change of the targets' values, [N], when pixels are removed.

        Args:
            input_tensor: [N, C, H, W].
            cams: [N, H, W].
            targets: one function per image, of the image's output.
            model: any module; its mode is not changed.
            return_visualization: also return the imputed images.
            return_diff: subtract the values for the unchanged images; otherwise return the values after the removal.
        """
        before = self._values(model, input_tensor, targets) if return_diff else 0
        (filled,) = self._imputed_images(input_tensor, cams, [self._percentile])
        result = self._values(model, filled, targets) - before
        return (result, filled) if return_visualization else result


class _RoadAverage(_RoadBase):
    def __init__(self, percentiles: Sequence[float] = _PERCENTILES) -> None:
        super().__init__(percentiles)
        self.percentiles = list(percentiles)

    def __call__(self, input_tensor: Tensor, cams: Maps, targets: Targets, model: nn.Module) -> Any:
        """The mean over the percentiles, [N]."""
        before = self._values(model, input_tensor, targets)
        filled = self._imputed_images(input_tensor, cams, self.percentiles)
        scores = [self._values(model, images, targets) - before for images in filled]
        return np.asarray(scores, np.float32).mean(axis=0)


class ROADMostRelevantFirst(_RoadAtPercentile, _base("ROADMostRelevantFirst")):  # type: ignore[misc]
    """pytorch-grad-cam's ``ROADMostRelevantFirst``, see :func:`fastviz.evaluation.road`."""

    _kind = "RemoveMostRelevantFirst"

    def __init__(self, percentile: Any = 80) -> None:
        super().__init__(percentile)


class ROADLeastRelevantFirst(_RoadAtPercentile, _base("ROADLeastRelevantFirst")):  # type: ignore[misc]
    """pytorch-grad-cam's ``ROADLeastRelevantFirst``, see :func:`fastviz.evaluation.road`."""

    _kind = "RemoveLeastRelevantFirst"

    def __init__(self, percentile: Any = 20) -> None:
        super().__init__(percentile)


class ROADMostRelevantFirstAverage(_RoadAverage, _base("ROADMostRelevantFirstAverage")):  # type: ignore[misc]
    """pytorch-grad-cam's ``ROADMostRelevantFirstAverage``, see :func:`fastviz.evaluation.road`."""

    _kind = "RemoveMostRelevantFirst"


class ROADLeastRelevantFirstAverage(_RoadAverage, _base("ROADLeastRelevantFirstAverage")):  # type: ignore[misc]
    """pytorch-grad-cam's ``ROADLeastRelevantFirstAverage``, see :func:`fastviz.evaluation.road`."""

    _kind = "RemoveLeastRelevantFirst"


class ROADCombined(_base("ROADCombined")):  # type: ignore[misc]
    """pytorch-grad-cam's ``ROADCombined``: (least − most relevant first) / 2, see :func:`fastviz.evaluation.road`."""

    def __init__(self, percentiles: Sequence[float] = _PERCENTILES) -> None:
        self.percentiles = list(percentiles)
        self.morf_averager = ROADMostRelevantFirstAverage(percentiles)
        self.lerf_averager = ROADLeastRelevantFirstAverage(percentiles)

    def __call__(self, input_tensor: Tensor, cams: Maps, targets: Targets, model: nn.Module) -> Any:
        """[N], larger is better."""
        least = self.lerf_averager(input_tensor, cams, targets, model)
        return (least - self.morf_averager(input_tensor, cams, targets, model)) / 2
