"""Linear surrogate models of the network, fitted to its values when segments of the image are left out."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine.gradients.noise import generator
from fastviz.engine.incremental.window_grid import Fill
from fastviz.engine.masking.coalitions import coalitions
from fastviz.engine.masking.segments import SEGMENTS
from fastviz.methods.attribution.segment_maps import SegmentMap, segment_map
from fastviz.targets.selection import Target
from fastviz.vectors.regression import constrained_least_squares, weighted_ridge

__all__ = ["kernel_shap", "lime"]


def kernel_shap(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    segments: int | Tensor = SEGMENTS,
    samples: int = 500,
    fill: Fill = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> SegmentMap:
    """Shapley values of segments, as the coefficients of a linear model of the target.

    Minimises ``Σ_z k(z) (S(z) − S(fill) − z·φ)²`` over coalitions z, the sets of segments that are kept, with ``Σ φ =
    S(x) − S(fill)``, where ``k(z) = (S − 1) / (C(S, |z|) |z| (S − |z|))``. Lundberg, Lee 2017, "A Unified Approach to
    Interpreting Model Predictions", https://arxiv.org/abs/1705.07874. Coalitions are sampled according to k, each with
    its complement (Covert, Lee 2021, https://arxiv.org/abs/2012.01536); if ``samples`` is large enough for all
    coalitions, all are used and the values are exact. Arguments and errors as in :func:`fastviz.feature_ablation`, and:

    Args:
        model, x, target, segments, fill, batch_size, progress: as there.
        samples: coalitions per image, at least 2, rounded up to pairs.
        seed: for the coalitions; torch's global generator is not used.

    Returns:
        The values, signed; those of an image sum to S(x) − S(fill).

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> parts = torch.tensor([[0, 0], [1, 1]])
    >>> found = kernel_shap(model, torch.ones(1, 1, 2, 2), target=1, segments=parts)
    >>> torch.allclose(found.values[0], model[1].weight[1].view(2, 2).sum(1))
    True
    """
    checks.whole_number(samples, "samples", minimum=2)
    random = generator(seed)
    with coalitions(model, x, target, segments, fill, batch_size) as cut:
        drawn = [_shapley_coalitions(S, samples, random) for S in cut.counts]
        evaluations = sum(len(rows) + 1 for rows, _ in drawn)
        values = []
        with bar(progress, evaluations, text="kernel shap") as advance:
            for number, (rows, weights) in enumerate(drawn):
                none = torch.zeros(1, rows.shape[1], dtype=torch.bool)
                # [1 + P] or [1 + P, T] → [T, P]
                found = cut.values(number, torch.cat([none, rows]), advance).double().cpu()
                clean = cut.scores.clean[number].double().cpu().reshape(-1)
                columns = found.reshape(len(found), -1).T
                each = torch.stack(
                    [
                        constrained_least_squares(rows, column[1:] - column[0], weights, end - column[0])
                        for column, end in zip(columns, clean, strict=True)
                    ]
                )
                values.append(each.view(*cut.scores.clean.shape[1:], -1).to(cut.images.device))
        return segment_map(cut, values, evaluations=evaluations)


def lime(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    segments: int | Tensor = SEGMENTS,
    samples: int = 1000,
    kernel_width: float = 0.25,
    penalty: float = 1.0,
    fill: Fill = "mean",
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> SegmentMap:
    """The coefficients of a linear model of the target, fitted to pictures with random segments left out.

    The β that minimises ``Σ_z w(z) (S(z) − c − z·β)² + penalty · |β|²`` over ``samples`` coalitions z, in which each
    segment is kept with probability ½ (the first keeps all); ``w(z) = exp(−d² / kernel_width²)^½`` with d the cosine
    distance of z to all ones. Ribeiro, Singh, Guestrin 2016, "Why Should I Trust You?",
    https://arxiv.org/abs/1602.04938, with the settings of their package lime, except that a segment is replaced by the
    mean of the image instead of its own mean. Arguments and errors as in :func:`fastviz.feature_ablation`, and:

    Args:
        model, x, target, segments, fill, batch_size, progress: as there.
        samples: coalitions per image, at least 2.
        kernel_width: width of the weighting kernel, above 0; smaller values give pictures far from the image less
            weight.
        penalty: ridge penalty of the coefficients, 0 or more.
        seed: for the coalitions; torch's global generator is not used.

    Returns:
        The coefficients; ``stats["fit"]`` is the weighted R² of the linear model for each image and target.

    Raises:
        ModuleNotFoundError: scikit-learn, which fits the model, is not installed.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> parts = torch.tensor([[0, 0], [1, 1]])
    >>> found = lime(model, torch.ones(1, 1, 2, 2), 1, segments=parts, samples=50, penalty=0.0, fill=0.0)
    >>> torch.allclose(found.values[0], model[1].weight[1].view(2, 2).sum(1), atol=1e-5)
    True
    """
    checks.whole_number(samples, "samples", minimum=2)
    checks.positive(kernel_width, "kernel_width")
    checks.number(penalty, "penalty", low=0)
    random = generator(seed)
    with coalitions(model, x, target, segments, fill, batch_size) as cut:
        drawn = [torch.rand(samples, S, generator=random) < 0.5 for S in cut.counts]
        values, fits = [], []
        with bar(progress, samples * len(drawn), text="lime") as advance:
            for number, rows in enumerate(drawn):
                rows[0] = True
                found = cut.values(number, rows, advance).double()
                # the cosine of z and all ones is √(|z| / S)
                distance = 1 - rows.double().mean(1).sqrt()
                weights = (-(distance**2) / kernel_width**2).exp().sqrt()
                fitted = [weighted_ridge(rows, each, weights, penalty) for each in found.reshape(samples, -1).T]
                each = torch.stack([coefficients for coefficients, _ in fitted])
                values.append(each.view(*cut.scores.clean.shape[1:], -1).to(cut.images.device))
                fits.append([fit for _, fit in fitted])
        return segment_map(cut, values, evaluations=samples * len(drawn), fit=fits)


def _shapley_coalitions(S: int, samples: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Coalitions, bool [P, S], with weights [P]: all but the empty and the full one, or sampled pairs of weight 1."""
    if S == 1:
        return torch.zeros(0, 1, dtype=torch.bool), torch.zeros(0)
    sizes = torch.arange(1, S, dtype=torch.float64)
    if S < 40 and samples >= 2**S - 2:
        rows = torch.tensor(list(itertools.product((False, True), repeat=S)))[1:-1]
        kernel = torch.tensor([(S - 1) / (math.comb(S, k) * k * (S - k)) for k in range(1, S)], dtype=torch.float64)
        return rows, kernel[rows.sum(1) - 1]
    pairs = -(-samples // 2)
    drawn = torch.multinomial(1 / (sizes * (S - sizes)), pairs, replacement=True, generator=random) + 1
    rank = torch.rand(pairs, S, generator=random).argsort(1).argsort(1)
    rows = rank < drawn[:, None]
    return torch.stack([rows, ~rows], dim=1).flatten(0, 1), torch.ones(2 * pairs)
