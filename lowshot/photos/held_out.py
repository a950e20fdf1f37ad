"""How well a classifier will do, judged by its own photos: each is classified by one that has not learned from it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from lowshot.classifiers.methods import fit_head
from lowshot.classifiers.settings import NearestMeanOptions, SupportLogisticOptions
from lowshot.classifiers.tasks import class_counts
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream
from lowshot.photos.calibration import calibrate, row_losses

# What `choose` compares: a logistic regression, which stands unless another is better, the class means, and others.
DEFAULT = SupportLogisticOptions(C=10.0)
CANDIDATES = (
    DEFAULT, NearestMeanOptions("cosine"),
    *(SupportLogisticOptions(C=strength) for strength in (1.0, 100.0, 1000.0)),
)  # fmt: skip
_CHOICE_FOLDS, _CHOICE_ROWS = 5, 2000  # enough to tell candidates apart
_ONE_BY_ONE = 100  # photos up to which each is left out by itself; beyond, a tenth is left out at a time


@dataclass(frozen=True)
class Candidate:
    """A method, and its loss and accuracy (means over classes) on held-out rows, after calibration."""

    method: Any
    loss: float
    accuracy: float


def choose(features: Tensor, labels: Tensor, n_way: int) -> list[Candidate]:
    """Compare `CANDIDATES` on features (S, D) with labels (S,), by five-fold cross-validation; the best comes first.

    The best is `DEFAULT`, unless others have a loss that is lower by more than a standard error of the difference: on
    few photos, the smallest loss alone picks at random among candidates that are equally good. The loss tells them
    apart where accuracies tie. Without two photos of any class nothing can be held out, and the class means are the
    only candidate.
    """
    if len(labels) > _CHOICE_ROWS:
        rows = torch.from_numpy(_some_of_each(labels.numpy(), -(-_CHOICE_ROWS // n_way)))
        features, labels = features[rows], labels[rows]
    folds = assign_folds(labels, _CHOICE_FOLDS)
    if folds.max() < 0:
        return [Candidate(NearestMeanOptions("cosine"), np.nan, np.nan)]
    held, losses, accuracies = torch.from_numpy(folds >= 0), [], []
    truth, counts = labels[held], labels.bincount(minlength=n_way)
    for method in CANDIDATES:
        scores = held_out_scores(method, features, labels, n_way, folds)[held]
        scores = calibrate(scores, truth, counts)(scores, counts)
        losses.append(row_losses(scores, truth))
        accuracies.append(mean_recall(scores.argmax(1), truth, n_way))
    gains = [losses[0] - loss for loss in losses]
    is_better = [bool(gain.mean() > gain.std() / len(gain) ** 0.5) for gain in gains]
    compared = [Candidate(*one) for one in zip(CANDIDATES, [float(loss.mean()) for loss in losses], accuracies)]
    best = min((i for i in range(len(CANDIDATES)) if i == 0 or is_better[i]), key=lambda i: compared[i].loss)
    return [compared[best], *(one for i, one in enumerate(compared) if i != best)]


def _some_of_each(labels: np.ndarray, most: int) -> np.ndarray:
    """Draw at most `most` rows of each class, and return them ascending."""
    order = stream(0, "choice").permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < most])


def leave_out(method: Any, features: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """Return scores (S, n_way) of features (S, D), each by a classifier that has not learned from it.

    With at most 100 rows, each is left out by itself; with more, a tenth at a time. NaN for a row that is alone in its
    class.
    """
    n_folds = len(labels) if len(labels) <= _ONE_BY_ONE else 10
    return held_out_scores(method, features, labels, n_way, assign_folds(labels, n_folds))


def assign_folds(labels: Tensor, n_folds: int) -> np.ndarray:
    """Return the fold (S,) of each row: classes are spread evenly. Rows that are alone in their class have -1."""
    classes, folds = labels.numpy(), np.empty(len(labels), np.int64)
    order = stream(0, "folds").permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    folds[order] = np.arange(len(classes)) % n_folds
    return np.where(np.bincount(classes)[classes] > 1, folds, -1)


def held_out_scores(method: Any, features: Tensor, labels: Tensor, n_way: int, folds: np.ndarray) -> Tensor:
    """Return scores (S, n_way), each fold scored by a classifier of the other rows. NaN for rows of the fold -1."""
    scores = torch.full((len(labels), n_way), torch.nan)
    with threadpool_limits(1):  # a fit takes milliseconds: threads cost more than they save
        for fold in Progress(np.unique(folds[folds >= 0]), "held out", unit="fold", leave=False):
            held = torch.from_numpy(folds == fold)
            scores[held] = fit_head(method, features[~held], labels[~held], n_way)(features[held]).float()
    return scores


def mean_recall(predicted: Tensor, labels: Tensor, n_way: int) -> float:
    """Return the mean over the classes of `labels` (N,) of the share of rows that are predicted right."""
    counts = class_counts(labels[None], n_way)[0]
    hits = torch.bincount(labels[predicted == labels], minlength=n_way)
    return float((hits[counts > 0] / counts[counts > 0]).mean())
