"""Scores as probabilities: the temperature of the softmax, and how far probabilities are from the truth."""

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """Return the temperature T that minimises the mean of `row_losses(scores / T, labels)`.

    Guo et al., ICML 2017, section 4.2. `scores` (N, n_way) must be of rows that their classifier has not learned from.
    Departs from the paper in its targets: a share of 1 / (N + 1) is spread over all classes, as in Platt scaling. So N
    right answers do not make the classifier surer than N answers can.
    """
    double, spread = scores.double(), 1 / (len(labels) + 1)

    def loss(log_t: float) -> float:
        return float(row_losses(double / np.exp(log_t), labels, spread).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-8, 8), method="bounded").x))


def row_losses(scores: Tensor, labels: Tensor, spread: float = 0.0) -> Tensor:
    """Return the cross-entropy (N,) of scores (N, n_way), weighted so that all classes of `labels` (N,) count alike.

    A share `spread` of each target is spread evenly over all classes.
    """
    counts = labels.bincount()
    weights = len(labels) / ((counts > 0).sum() * counts[labels]).to(scores.dtype)
    return weights * F.cross_entropy(scores, labels, reduction="none", label_smoothing=spread)


def expected_calibration_error(confidence: np.ndarray, is_right: np.ndarray, n_bins: int = 10) -> float:
    """Return the mean difference of confidence and accuracy over bins of equally many rows (equal mass).

    Nguyen & O'Connor, EMNLP 2015, section 3. Bins of equal width (Guo et al., ICML 2017) leave most bins empty if most
    confidences are high.

    Args:
        confidence: (N,), the probability of the predicted class.
        is_right: bool (N,), whether it is the right one.
    """
    order = np.argsort(confidence, kind="stable")
    bins = np.array_split(order, min(n_bins, len(order)))
    gaps = [len(rows) * abs(confidence[rows].mean() - is_right[rows].mean()) for rows in bins]
    return float(np.sum(gaps) / len(order))
