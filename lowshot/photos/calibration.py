"""Scores as probabilities: the temperature of the softmax, a bias by class size, and the error that is left."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Calibration:
    """Scores become logarithms of probabilities: scores / `temperature` - `size_bias` * log(number of photos)."""

    temperature: float
    size_bias: float = 0.0

    def shift(self, counts: Tensor) -> Tensor:
        """Return what to add to the scores (n_way,) of classes with `counts` photos (n_way,)."""
        logs = counts.double().log()
        return -self.temperature * self.size_bias * (logs - logs.mean())

    def __call__(self, scores: Tensor, counts: Tensor) -> Tensor:
        """Return scores (N, n_way), float64, whose softmax are the probabilities."""
        return (scores.double() + self.shift(counts)) / self.temperature


def calibrate(scores: Tensor, labels: Tensor, counts: Tensor) -> Calibration:
    """Return the calibration that minimises the mean of `row_losses` of rows that were held out.

    The temperature is that of Guo et al., ICML 2017, section 4.2. Departs from the paper in two points:

    - A share of 1 / (N + 1) of the targets is spread over all classes, as in Platt scaling. So N right answers do not
      make the classifier surer than N answers can.
    - If classes have unequal numbers of photos, a bias by their size is fitted too, as in the logit adjustment of Menon
      et al., ICLR 2021, whose factor is 1. Few photos give a small region to a class, whatever their weight,
      so the bias is not negative.

    Args:
        scores: (N, n_way), of rows that their classifier has not learned from.
        labels: (N,), the classes of the rows.
        counts: (n_way,), the numbers of photos of all classes.
    """
    spread = 1 / (len(labels) + 1)

    def loss(point: np.ndarray) -> float:
        calibrated = Calibration(float(np.exp(point[0])), float(point[1]))(scores, counts)
        return float(row_losses(calibrated, labels, spread).mean())

    log_t = minimize_scalar(lambda log_t: loss(np.array([log_t, 0.0])), bounds=(-8, 8), method="bounded").x
    if counts.min() == counts.max():
        return Calibration(float(np.exp(log_t)))
    found = minimize(loss, [log_t, 0.5], bounds=[(-8, 8), (0, None)], method="Nelder-Mead")
    return Calibration(float(np.exp(found.x[0])), float(found.x[1]))


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
