"""The loss of the low-shot classifier is convex: minimise it to its optimum instead of for a fixed number of steps."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from lowshot.classifiers.problem import LinearScorer, Problem, Run, Scorer, with_constant
from lowshot.classifiers.settings import LogisticOptions


def fit_logistic_regression(problem: Problem, options: LogisticOptions, seed: int, device: str) -> Scorer:
    """Minimise `objective` for each run. linear_sgd minimises it in expectation; this solver is deterministic."""
    weights = [_solve(problem, run, options) for run in problem.runs]
    return LinearScorer(torch.from_numpy(np.stack(weights).astype(np.float32)).to(device))


def objective(weights: np.ndarray, problem: Problem, run: Run, weight_decay: float) -> float:
    """Return the class-proportional mean cross-entropy over all outputs plus the L2 penalty.

    The penalty is weight_decay / 2 times the sum of the squared weights and biases.

    Args:
        weights: (n_classes, D + 1), the bias in the last column.
    """
    feats, labels, shares = _rows(problem, run)
    logits = feats @ weights.T.astype(np.float64)
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return float(shares @ losses + weight_decay / 2 * np.square(weights, dtype=np.float64).sum())


def _rows(problem: Problem, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return feats float64 (n, D + 1), labels (n,) and shares of the loss (n,): base rows, then novel rows.

    The shares sum to 1.
    """
    feats = with_constant(np.concatenate([problem.base_feats, run.feats]).astype(np.float64))
    labels = np.concatenate([problem.base_labels, run.labels])
    n_base, n_novel = len(problem.base_labels), len(run.labels)
    base, novel = problem.base_fraction / n_base, (1 - problem.base_fraction) / n_novel
    return feats, labels, np.repeat([base, novel], [n_base, n_novel])


def _solve(problem: Problem, run: Run, options: LogisticOptions) -> np.ndarray:
    """Return weights (n_classes, D + 1). A class without rows is an output too: it gets one row of sample weight 0."""
    feats, labels, shares = _rows(problem, run)
    absent = np.setdiff1d(np.arange(problem.n_classes), labels)
    feats = np.concatenate([feats, np.zeros((len(absent), feats.shape[1]))])
    labels = np.concatenate([labels, absent])
    shares = np.concatenate([shares, np.zeros(len(absent))])
    solver = LogisticRegression(
        C=1 / options.weight_decay, fit_intercept=False, tol=options.tolerance, max_iter=options.max_iter
    )
    return solver.fit(feats, labels, sample_weight=shares).coef_
