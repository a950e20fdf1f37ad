"""Low-shot classifiers, by name.

CLASSIFIERS: each `fit(problem, options, seed, device)` trains the runs of the low-shot benchmark, returns their scorer.
METHODS: each `score(tasks, options, seed)` learns every few-shot task of a batch and scores its queries.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from lowshot.classifiers.convex import LogisticOptions, fit_logistic_regression
from lowshot.classifiers.cosine import CosineOptions, score_cosine
from lowshot.classifiers.laplacian_shot import LaplacianShotOptions, score_laplacian_shot
from lowshot.classifiers.linear import SGDOptions, fit_linear_sgd
from lowshot.classifiers.mlp import MLPOptions, fit_mlp
from lowshot.classifiers.nearest_mean import NearestMeanOptions, score_nearest_mean
from lowshot.classifiers.own_head import load_own_head
from lowshot.classifiers.problem import Problem, Run, Scorer
from lowshot.classifiers.pt_map import PTMapOptions, score_pt_map
from lowshot.classifiers.refinement import RefinementOptions, score_refinement
from lowshot.classifiers.support_logistic import SupportLogisticOptions, score_support_logistic
from lowshot.classifiers.tasks import Score, Tasks, in_blocks
from lowshot.classifiers.transform import FeatureTransform

CLASSIFIERS = {
    "linear_sgd": fit_linear_sgd,
    "logistic_regression": fit_logistic_regression,
    "mlp": fit_mlp,
    "own_head": load_own_head,
}


class Method(NamedTuple):
    """`score` maps (tasks, options, seed) to scores float32 (E, Q, n_way), best = highest, on the tasks' device."""

    score: Score
    transductive: bool
    """Whether a query's score depends on the other queries of its task."""


METHODS = {
    "nearest_mean": Method(in_blocks(score_nearest_mean), transductive=False),
    "logistic_regression": Method(in_blocks(score_support_logistic), transductive=False),
    "cosine": Method(in_blocks(score_cosine), transductive=False),
    "laplacian_shot": Method(in_blocks(score_laplacian_shot), transductive=True),
    "prototype_refinement": Method(in_blocks(score_refinement), transductive=True),
    "pt_map": Method(in_blocks(score_pt_map), transductive=True),
}


@dataclass
class InductiveOptions:
    """The settings of the methods that judge a query alone, each under its name: `getattr(options, name)`."""

    nearest_mean: NearestMeanOptions = field(default_factory=NearestMeanOptions)
    """Settings of nearest_mean."""
    logistic_regression: SupportLogisticOptions = field(default_factory=SupportLogisticOptions)
    """Settings of logistic_regression."""
    cosine: CosineOptions = field(default_factory=CosineOptions)
    """Settings of cosine."""


@dataclass
class MethodOptions(InductiveOptions):
    """The settings of every method."""

    laplacian_shot: LaplacianShotOptions = field(default_factory=LaplacianShotOptions)
    """Settings of laplacian_shot."""
    prototype_refinement: RefinementOptions = field(default_factory=RefinementOptions)
    """Settings of prototype_refinement."""
    pt_map: PTMapOptions = field(default_factory=PTMapOptions)
    """Settings of pt_map."""


__all__ = [
    "CLASSIFIERS",
    "METHODS",
    "FeatureTransform",
    "InductiveOptions",
    "LogisticOptions",
    "MLPOptions",
    "Method",
    "MethodOptions",
    "Problem",
    "Run",
    "SGDOptions",
    "Scorer",
    "Tasks",
]
