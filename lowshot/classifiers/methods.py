"""Low-shot classifiers, by name.

CLASSIFIERS learn base and novel classes together: the runs of the low-shot benchmark.
METHODS learn the classes of few-shot tasks, many tasks at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from lowshot.classifiers.convex import fit_logistic_regression
from lowshot.classifiers.cosine import score_cosine
from lowshot.classifiers.laplacian_shot import score_laplacian_shot
from lowshot.classifiers.linear import fit_linear_sgd
from lowshot.classifiers.mlp import fit_mlp
from lowshot.classifiers.nearest_mean import score_nearest_mean
from lowshot.classifiers.own_head import load_own_head
from lowshot.classifiers.problem import Problem, Scorer
from lowshot.classifiers.pt_map import score_pt_map
from lowshot.classifiers.refinement import score_refinement
from lowshot.classifiers.settings import (
    CosineOptions,
    FeatureTransform,
    LaplacianShotOptions,
    LogisticOptions,
    MLPOptions,
    NearestMeanOptions,
    PTMapOptions,
    RefinementOptions,
    SGDOptions,
    SupportLogisticOptions,
)
from lowshot.classifiers.support_logistic import score_support_logistic
from lowshot.classifiers.tasks import Score, in_blocks


class Classifier(NamedTuple):
    """`fit` maps (problem, options, seed, device) to the scorer of the problem's runs. `options` are the defaults; None
    if it has no settings (own_head takes the folder of an extractor in their place)."""

    fit: Callable[[Problem, Any, int, str], Scorer]
    options: Any


CLASSIFIERS = {
    "linear_sgd": Classifier(fit_linear_sgd, SGDOptions()),
    "logistic_regression": Classifier(fit_logistic_regression, LogisticOptions()),
    "mlp": Classifier(fit_mlp, MLPOptions()),
    "own_head": Classifier(load_own_head, None),
}


class Method(NamedTuple):
    """`score` maps (tasks, options, seed) to scores float32 (E, Q, n_way), best = highest, on the tasks' device.

    `options` and `transform` are those of configs/few_shot/episodes-NAME.yaml, which say where they come from. Stages
    take what their own settings say; `few_shot_scores` and `FewShotClassifier` take these unless told otherwise.
    """

    score: Score
    options: Any
    transform: FeatureTransform = FeatureTransform()
    transductive: bool = False
    """Whether a query's score depends on the other queries of its task."""


_L2N, _CL2N = FeatureTransform(normalise=True), FeatureTransform(centre=True, normalise=True)
METHODS = {
    "nearest_mean": Method(in_blocks(score_nearest_mean), NearestMeanOptions()),
    "logistic_regression": Method(in_blocks(score_support_logistic), SupportLogisticOptions(), _L2N),
    "cosine": Method(in_blocks(score_cosine), CosineOptions()),
    "laplacian_shot": Method(in_blocks(score_laplacian_shot), LaplacianShotOptions(), _CL2N, transductive=True),
    "prototype_refinement": Method(in_blocks(score_refinement), RefinementOptions(scale=10), _CL2N, transductive=True),
    "pt_map": Method(in_blocks(score_pt_map), PTMapOptions(), FeatureTransform(power=0.5), transductive=True),
}
