"""Low-shot classifiers, by name.

CLASSIFIERS: each `fit(problem, options, seed, device)` trains the runs of the low-shot benchmark, returns their scorer.
METHODS: each `score(tasks, options, seed)` learns every few-shot task of a batch and scores its queries.
"""

from typing import NamedTuple

from lowshot.classifiers.convex import fit_logistic_regression
from lowshot.classifiers.cosine import score_cosine
from lowshot.classifiers.laplacian_shot import score_laplacian_shot
from lowshot.classifiers.linear import fit_linear_sgd
from lowshot.classifiers.mlp import fit_mlp
from lowshot.classifiers.nearest_mean import score_nearest_mean
from lowshot.classifiers.own_head import load_own_head
from lowshot.classifiers.pt_map import score_pt_map
from lowshot.classifiers.refinement import score_refinement
from lowshot.classifiers.support_logistic import score_support_logistic
from lowshot.classifiers.tasks import Score, in_blocks

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
