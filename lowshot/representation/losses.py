"""Representation losses of Hariharan & Girshick (ICCV 2017): cross-entropy plus a term that shrinks features or their
gradients.

With p = softmax(scores), delta_i = onehot(y_i) - p_i and features f_i, delta_i f_i^T is minus the gradient of example
i's cross-entropy with respect to a bias-free classifier. All sums run over all outputs; nothing is detached.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from lowshot.representation.settings import LossName


def l2(features: Tensor) -> Tensor:
    """Half the mean squared feature norm."""
    return features.square().sum(dim=1).mean() / 2


def sgm(scores: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Mean squared norm of the per-example gradients: mean of ||delta_i||^2 ||f_i||^2."""
    return (_delta(scores, labels).square().sum(dim=1) * features.square().sum(dim=1)).mean()


def batchsgm(
    scores: Tensor, features: Tensor, labels: Tensor, average: Callable[[Tensor], Tensor] = lambda g: g
) -> Tensor:
    """Squared Frobenius norm of the batch's mean gradient, (K, D); never above `sgm` (Jensen).

    `average` takes the mean gradient of this process to that of all processes: the norm of a mean is no mean of norms.
    """
    return average(_delta(scores, labels).T @ features / len(features)).square().sum()


def _delta(scores: Tensor, labels: Tensor) -> Tensor:
    return F.one_hot(labels, scores.shape[1]) - scores.softmax(dim=1)


def total_loss(
    name: LossName, weight: float, scores: Tensor, features: Tensor, labels: Tensor, average: Callable[[Tensor], Tensor]
) -> Tensor:
    """Cross-entropy + weight * term, in float32. scores (N, K), features (N, D), labels int64 (N,)."""
    scores, features = scores.float(), features.float()
    loss = F.cross_entropy(scores, labels)
    if name == "plain" or weight == 0:  # not 0 * term: features that overflow would make it NaN
        return loss
    if name == "l2":
        return loss + weight * l2(features)
    if name == "sgm":
        return loss + weight * sgm(scores, features, labels)
    return loss + weight * batchsgm(scores, features, labels, average)


def topk_correct(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many of the labels (N,) are among the k best scores (N, K)."""
    return (scores.topk(min(k, scores.shape[1]), dim=1).indices == labels[:, None]).any(dim=1).sum()
