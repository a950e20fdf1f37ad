"""Run a classifier or a few-shot method, given its settings or a class of the user's own."""

from collections.abc import Callable
from typing import Any

import torch

from lowshot.classifiers.adaptive_transport import score_adaptive_transport
from lowshot.classifiers.attention import fit_attention
from lowshot.classifiers.balanced_linear import fit_balanced_sgd
from lowshot.classifiers.bd_cspn import score_bd_cspn
from lowshot.classifiers.convex import fit_logistic_regression
from lowshot.classifiers.cosine import cosine_head, score_cosine
from lowshot.classifiers.heads import Head
from lowshot.classifiers.imprinting import fit_imprinting
from lowshot.classifiers.laplacian_shot import score_laplacian_shot
from lowshot.classifiers.linear import fit_linear_sgd, trials_at_once
from lowshot.classifiers.logit_adjusted import fit_logit_adjusted
from lowshot.classifiers.mlp import fit_mlp, shots_at_once
from lowshot.classifiers.nearest_mean import nearest_mean_head, score_nearest_mean
from lowshot.classifiers.own_head import load_own_head
from lowshot.classifiers.problem import Problem, Scorer, all_at_once
from lowshot.classifiers.pt_map import score_pt_map
from lowshot.classifiers.refinement import score_refinement
from lowshot.classifiers.settings import (
    AdaptiveTransportOptions,
    AlphaTIMOptions,
    AttentionOptions,
    BalancedSGDOptions,
    BDCSPNOptions,
    CosineOptions,
    ImprintingOptions,
    LaplacianShotOptions,
    LogisticOptions,
    LogitAdjustedOptions,
    MLPOptions,
    NearestMeanOptions,
    OwnHead,
    PTMapOptions,
    RefinementOptions,
    SGDOptions,
    SupportLogisticOptions,
    TIMOptions,
)
from lowshot.classifiers.support_logistic import logistic_head, score_support_logistic
from lowshot.classifiers.tasks import Tasks, in_blocks
from lowshot.classifiers.tim import score_tim
from lowshot.core.choices import own_name
from lowshot.core.errors import InputError

# Rows (Q, D) float32 -> scores (Q, n_way).
ScoreRows = Callable[[torch.Tensor], torch.Tensor]

_FITS: dict[type, Callable[[Problem, Any, int, str], Scorer]] = {
    SGDOptions: fit_linear_sgd,
    BalancedSGDOptions: fit_balanced_sgd,
    LogisticOptions: fit_logistic_regression,
    MLPOptions: fit_mlp,
    LogitAdjustedOptions: fit_logit_adjusted,
    ImprintingOptions: fit_imprinting,
    AttentionOptions: fit_attention,
    OwnHead: load_own_head,
}
# Positions of the runs that are fitted together, because that is faster.
_TOGETHER: dict[type, Callable[[Problem, str], list[list[int]]]] = {
    SGDOptions: trials_at_once,
    MLPOptions: shots_at_once,
    ImprintingOptions: all_at_once,
    AttentionOptions: all_at_once,
    OwnHead: all_at_once,
}
_SCORES = {
    NearestMeanOptions: in_blocks(score_nearest_mean),
    SupportLogisticOptions: in_blocks(score_support_logistic),
    CosineOptions: in_blocks(score_cosine),
    LaplacianShotOptions: in_blocks(score_laplacian_shot),
    RefinementOptions: in_blocks(score_refinement),
    PTMapOptions: in_blocks(score_pt_map),
    BDCSPNOptions: in_blocks(score_bd_cspn),
    TIMOptions: in_blocks(score_tim),
    AlphaTIMOptions: in_blocks(score_tim),
    AdaptiveTransportOptions: in_blocks(score_adaptive_transport),
}

# Classifiers of the methods that look at one query at a time.
_HEADS: dict[type, Callable[[torch.Tensor, torch.Tensor, int, Any, int], Head]] = {
    NearestMeanOptions: nearest_mean_head,
    SupportLogisticOptions: logistic_head,
    CosineOptions: cosine_head,
}


def is_joint(classifier: Any) -> bool:
    """Whether it learns base and novel classes together, with `fit`. A few-shot method has `score(tasks, seed)`."""
    return type(classifier) in _FITS or hasattr(classifier, "fit")


def fitted_together(classifier: Any, problem: Problem, device: str) -> list[list[int]]:
    """Return groups of runs, as positions in `problem.runs`. A group is evaluated at once, and the groups in turn."""
    if type(classifier) in _TOGETHER:
        return _TOGETHER[type(classifier)](problem, device)
    positions = list(range(len(problem.runs)))
    return [positions] if hasattr(classifier, "fit") else [[i] for i in positions]


def fit_classifier(classifier: Any, problem: Problem, seed: int, device: str) -> Scorer:
    """Fit the classifier with these settings and return the scorer of all runs of `problem`.

    Raises InputError if a class of the user's own does not return a scorer, or its scores have the wrong shape.
    """
    if type(classifier) in _FITS:
        return _FITS[type(classifier)](problem, classifier, seed, device)
    scorer, name = classifier.fit(problem, seed, device), own_name(type(classifier))
    if not callable(scorer):
        raise InputError(f"{name}: fit returned {type(scorer).__name__}. Return a function of features (N, D)")

    def score(feats: torch.Tensor) -> torch.Tensor:
        shape = len(problem.runs), len(feats), problem.n_classes
        return _checked(scorer(feats), shape, f"{name}: the function from fit")

    return score


def score_tasks(method: Any, tasks: Tasks, seed: int) -> torch.Tensor:
    """Return scores float32 (E, Q, n_way) of the queries by the method with these settings. The highest is the best.

    Raises InputError if the scores of a class of the user's own have the wrong shape.
    """
    if type(method) in _SCORES:
        return _SCORES[type(method)](tasks, method, seed)
    shape = len(tasks), tasks.query_features.shape[1], tasks.n_way
    return _checked(method.score(tasks, seed), shape, f"{own_name(type(method))}: score")


def fit_head(method: Any, features: torch.Tensor, labels: torch.Tensor, n_way: int, seed: int = 0) -> ScoreRows:
    """Return what scores rows (Q, D) -> (Q, n_way) as `score_tasks` does, learned once from features (S, D).

    It is a `Head`, or for a method of the user's own a function that calls it with the features.
    """
    if type(method) in _HEADS:
        return _HEADS[type(method)](features, labels, n_way, method, seed)

    def score(rows: torch.Tensor) -> torch.Tensor:
        return score_tasks(method, Tasks(features[None], labels[None], rows[None], n_way), seed)[0]

    return score


def _checked(scores: Any, shape: tuple[int, ...], whose: str) -> torch.Tensor:
    if not isinstance(scores, torch.Tensor) or scores.shape != shape:
        returned = f"{tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise InputError(f"{whose} returned {returned}. Return a tensor of scores of shape {shape}")
    return scores.detach().float()
