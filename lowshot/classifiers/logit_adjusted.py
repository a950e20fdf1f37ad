"""Logit adjustment: logistic regression on all rows alike, corrected for how rare each class is among them.

Sources: Menon et al., ICLR 2021; Ren et al., NeurIPS 2020 (balanced softmax).
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from lowshot.classifiers.problem import Problem, Run, Scorer, scorer_of_setup
from lowshot.classifiers.settings import LogitAdjustedOptions
from lowshot.classifiers.support_logistic import solution_of


def fit_logit_adjusted(problem: Problem, options: LogitAdjustedOptions, seed: int, device: str) -> Scorer:
    """Fit each run in float64 and subtract tau * log(share of the class among the rows of the run) from its scores.

    This is the adjustment after training (Menon et al., equation 9). The one in the loss (equation 10; with tau 1 the
    balanced softmax of Ren et al.) has the same optimum: biases are not penalised, so they take up what that loss adds
    to the logits. Departs from `fit_logistic_regression` in these biases, and in that every row has the same weight.

    Rows that were added count. Classes outside the setup score minus infinity.
    """
    return scorer_of_setup(problem, [_solved(problem, run, options, device) for run in problem.runs])


def _solved(
    problem: Problem, run: Run, options: LogitAdjustedOptions, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the classes (C,) of a run and their weights (C, D + 1), the bias in the last column."""
    feats = np.concatenate([problem.base_feats, run.feats]).astype(np.float64)
    classes, labels = np.unique(np.concatenate([problem.base_labels, run.labels]), return_inverse=True)
    solver = LogisticRegression(C=1 / options.weight_decay, tol=options.tolerance, max_iter=options.max_iter)
    weights, biases = solution_of(solver.fit(feats, labels, sample_weight=np.full(len(labels), 1 / len(labels))))
    joint = np.column_stack([weights, biases - options.tau * log_shares(labels)]).astype(np.float32)
    return torch.from_numpy(classes), torch.from_numpy(joint).to(device)


def log_shares(labels: np.ndarray) -> np.ndarray:
    """Return the logarithm of the share of each class (C,) among `labels` (n,), the classes 0, 1, ... without gaps."""
    return np.log(np.bincount(labels) / len(labels))
