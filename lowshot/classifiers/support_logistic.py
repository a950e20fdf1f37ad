"""Logistic regression on the support features of every task, by scikit-learn."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lowshot.classifiers.settings import SupportLogisticOptions
from lowshot.classifiers.tasks import Tasks, below_best


def score_support_logistic(tasks: Tasks, options: SupportLogisticOptions, seed: int) -> Tensor:
    """Scores (E, Q, n_way) float32: logits less the query's highest. Needs two classes or more.

    Tian et al., ECCV 2020 (RFS): scikit-learn's multinomial LogisticRegression, C = 1, on unit-length features of a
    frozen backbone (`FeatureTransform(normalise=True)`). Solved in float64, a task at a time; the winners are
    scikit-learn's own. RFS also enlarges the support set by augmented copies of the images: episodes.py does so where
    --augmented_support says it.
    """
    logits = [_logits(*task, options) for task in zip(*_numpy(tasks))]
    return below_best(torch.from_numpy(np.stack(logits))).to(tasks.query_features.device)


def _numpy(tasks: Tasks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        tasks.support_features.double().cpu().numpy(),
        tasks.support_labels.cpu().numpy(),
        tasks.query_features.double().cpu().numpy(),
    )


def _logits(
    support: np.ndarray, labels: np.ndarray, queries: np.ndarray, options: SupportLogisticOptions
) -> np.ndarray:
    """(Q, n_way) float64. scikit-learn has one logit for two classes, that of the second."""
    solver = LogisticRegression(C=options.C, max_iter=options.max_iter).fit(support, labels)
    logits = solver.decision_function(queries)
    return logits if logits.ndim == 2 else np.stack([np.zeros_like(logits), logits], axis=1)
