"""Logistic regression on the support features of each task, with scikit-learn."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lowshot.classifiers.heads import Head
from lowshot.classifiers.settings import SupportLogisticOptions
from lowshot.classifiers.tasks import Tasks, below_best


def score_support_logistic(tasks: Tasks, options: SupportLogisticOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: logits minus the highest of the query. Needs at least two classes.

    Tian et al., ECCV 2020 (RFS): scikit-learn's multinomial LogisticRegression, C = 1, on unit-length features of a
    frozen backbone (`FeatureTransform(normalise=True)`). Solved in float64, one task at a time, so that predictions
    equal those of scikit-learn. RFS also adds augmented copies of the images to the support set: see
    `episodes.py --augmented_support`.

    All classes have the same weight in the loss. In the tasks of RFS they have equally many shots, so the weight has no
    effect there. Without it, a class of 4 shots beside one of 30 is hardly ever predicted.
    """
    solved = [_solved(*task, options) for task in zip(tasks.support_features, tasks.support_labels)]
    weights, biases = (torch.from_numpy(np.stack(parts)) for parts in zip(*solved))
    logits = tasks.query_features.double().cpu() @ weights.mT + biases.unsqueeze(1)
    return below_best(logits).to(tasks.query_features.device)


def logistic_head(features: Tensor, labels: Tensor, n_way: int, options: SupportLogisticOptions, seed: int) -> Head:
    """Return the classifier that `score_support_logistic` learns from features (S, D) with labels (S,)."""
    weight, bias = _solved(features, labels, options)
    return Head([(torch.from_numpy(weight), torch.from_numpy(bias))])


def _solved(features: Tensor, labels: Tensor, options: SupportLogisticOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (n_way, D) and biases (n_way,), float64."""
    solver = LogisticRegression(C=options.C, class_weight="balanced", max_iter=options.max_iter)
    return solution_of(solver.fit(_double(features), labels.cpu().numpy()))


def solution_of(solver: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (n_way, D) and biases (n_way,) of a fitted solver, float64."""
    if len(solver.classes_) > 2:
        return solver.coef_, solver.intercept_
    # For two classes, scikit-learn has only the logit of the second.
    return np.stack([0 * solver.coef_[0], solver.coef_[0]]), np.stack([0 * solver.intercept_[0], solver.intercept_[0]])


def _double(features: Tensor) -> np.ndarray:
    return features.double().cpu().numpy()
