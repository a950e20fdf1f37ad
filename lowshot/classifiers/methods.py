"""Low-shot classifiers, by name.

CLASSIFIERS: each `fit(problem, options, seed, device)` trains the runs of the low-shot benchmark, returns their scorer.
METHODS: each `score(tasks, options, seed)` learns every few-shot task of a batch and scores its queries.
"""

from typing import Any, NamedTuple

from lowshot.classifiers.convex import fit_logistic_regression
from lowshot.classifiers.cosine import score_cosine
from lowshot.classifiers.laplacian_shot import score_laplacian_shot
from lowshot.classifiers.linear import fit_linear_sgd
from lowshot.classifiers.mlp import fit_mlp
from lowshot.classifiers.nearest_mean import score_nearest_mean
from lowshot.classifiers.own_head import load_own_head
from lowshot.classifiers.pt_map import score_pt_map
from lowshot.classifiers.refinement import score_refinement
from lowshot.classifiers.settings import (
    CosineOptions,
    FeatureTransform,
    LaplacianShotOptions,
    NearestMeanOptions,
    PTMapOptions,
    RefinementOptions,
    SupportLogisticOptions,
)
from lowshot.classifiers.support_logistic import score_support_logistic
from lowshot.classifiers.tasks import Score, in_blocks

CLASSIFIERS = {
    "linear_sgd": fit_linear_sgd,
    "logistic_regression": fit_logistic_regression,
    "mlp": fit_mlp,
    "own_head": load_own_head,
}


class Method(NamedTuple):
    """`score` maps (tasks, options, seed) to scores float32 (E, Q, n_way), best = highest, on the tasks' device.

    `transform` and `options` are those that the method was published with. Stages take their own settings; the library
    (`few_shot_scores`, `FewShotClassifier`) takes these unless told otherwise.
    """

    score: Score
    options: Any
    transform: FeatureTransform
    transductive: bool = False
    """Whether a query's score depends on the other queries of its task."""


_CL2N, _L2N = FeatureTransform(centre=True, normalise=True), FeatureTransform(normalise=True)
METHODS = {
    "nearest_mean": Method(in_blocks(score_nearest_mean), NearestMeanOptions(), _L2N),
    "logistic_regression": Method(in_blocks(score_support_logistic), SupportLogisticOptions(), _L2N),
    "cosine": Method(in_blocks(score_cosine), CosineOptions(), FeatureTransform()),
    "laplacian_shot": Method(in_blocks(score_laplacian_shot), LaplacianShotOptions(), _CL2N, transductive=True),
    # Distances of unit vectors are 4 at most: they tell classes apart at scale 10.
    "prototype_refinement": Method(in_blocks(score_refinement), RefinementOptions(scale=10), _CL2N, transductive=True),
    "pt_map": Method(in_blocks(score_pt_map), PTMapOptions(), FeatureTransform(power=0.5), transductive=True),
}
