"""Evaluation of attribution maps: measures, and tables of methods by measures."""

from fastviz.evaluation._maps import Channels, Regions, Ties
from fastviz.evaluation._seeds import Seed
from fastviz.evaluation._substrate import Substrate
from fastviz.evaluation._values import Value
from fastviz.evaluation.complexity import complexity, sparseness
from fastviz.evaluation.confidence import ConfidenceChange, confidence_change
from fastviz.evaluation.curves import Curve, Spacing, deletion, insertion, region_perturbation
from fastviz.evaluation.evaluate import Row, Targets, WhereObjects, evaluate, rows, table
from fastviz.evaluation.localisation import (
    Objects,
    Pointing,
    by_class,
    energy_inside,
    intersection_over_union,
    pointing_game,
)
from fastviz.evaluation.measures import MEASURES, Measure
from fastviz.evaluation.randomisation import Initial, Randomisation, parameter_randomisation, randomisable_layers
from fastviz.evaluation.road import Road, impute, road
from fastviz.evaluation.robustness import Perturb, infidelity, max_sensitivity
from fastviz.evaluation.similarity import (
    Agreement,
    agreement,
    hog_correlation,
    rank_correlation,
    ssim,
    top_k_intersection,
)
from fastviz.evaluation.statistics import Band, Standing, Standings, bootstrap, standings

__all__ = [
    "MEASURES",
    "Agreement",
    "Band",
    "Channels",
    "ConfidenceChange",
    "Curve",
    "Initial",
    "Measure",
    "Objects",
    "Perturb",
    "Pointing",
    "Randomisation",
    "Regions",
    "Road",
    "Row",
    "Seed",
    "Spacing",
    "Standing",
    "Standings",
    "Substrate",
    "Targets",
    "Ties",
    "Value",
    "WhereObjects",
    "agreement",
    "bootstrap",
    "by_class",
    "complexity",
    "confidence_change",
    "deletion",
    "energy_inside",
    "evaluate",
    "hog_correlation",
    "impute",
    "infidelity",
    "insertion",
    "intersection_over_union",
    "max_sensitivity",
    "parameter_randomisation",
    "pointing_game",
    "randomisable_layers",
    "rank_correlation",
    "region_perturbation",
    "road",
    "rows",
    "sparseness",
    "ssim",
    "standings",
    "table",
    "top_k_intersection",
]
