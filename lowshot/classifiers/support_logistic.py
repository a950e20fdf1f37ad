"""Logistic regression on the support features of each task, with scikit-learn."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

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
    """Return logits (Q, n_way) float64. For two classes, scikit-learn returns only the logit of the second."""
    solver = LogisticRegression(C=options.C, class_weight="balanced", max_iter=options.max_iter).fit(support, labels)
    logits = solver.decision_function(queries)
    return logits if logits.ndim == 2 else np.stack([np.zeros_like(logits), logits], axis=1)
