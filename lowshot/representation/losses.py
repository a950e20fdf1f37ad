"""Representation losses of Hariharan & Girshick (ICCV 2017): cross-entropy plus a penalty on features or gradients.

Let p = softmax(scores), delta_i = onehot(y_i) - p_i, and f_i the features of example i. Then delta_i f_i^T is the
negative gradient of its cross-entropy with respect to a classifier without bias. Sums include all outputs, and nothing
is detached.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot.core.choices import is_own, own_name
from lowshot.core.errors import InputError
from lowshot.representation.settings import L2, SGM, BatchSGM

Loss = Callable[[Tensor, Tensor, Tensor, nn.Module], Tensor]


def l2(scores: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Return half the mean squared norm of the features."""
    return features.square().sum(dim=1).mean() / 2


def sgm(scores: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Return the mean squared norm of the per-example gradients: the mean of ||delta_i||^2 ||f_i||^2."""
    return (_delta(scores, labels).square().sum(dim=1) * features.square().sum(dim=1)).mean()


def batchsgm(scores: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Return the squared Frobenius norm of the mean gradient (K, D) of the batch; at most `sgm` (Jensen's inequality).

    The mean is over the batch of all processes, because the norm of a mean is not the mean of norms.
    """
    return _mean_of_processes(_delta(scores, labels).T @ features / len(features)).square().sum()


def _mean_of_processes(gradient: Tensor) -> Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return gradient
    from torch.distributed.nn.functional import all_reduce  # differentiable; missing in some builds of torch

    return all_reduce(gradient) / torch.distributed.get_world_size()


def _delta(scores: Tensor, labels: Tensor) -> Tensor:
    return F.one_hot(labels, scores.shape[1]) - scores.softmax(dim=1)


_TERMS = {L2: l2, SGM: sgm, BatchSGM: batchsgm}


def loss_of(choice: Any) -> Loss:
    """Return the loss function of a choice: cross-entropy + weight * penalty, or the user's own loss.

    Its arguments are float32 scores (N, K) and features (N, D), int64 labels (N,), and the network.
    """
    return _own_loss(choice) if is_own(choice) else _shrinking_loss(choice)


def _shrinking_loss(choice: Any) -> Loss:
    term = _TERMS.get(type(choice))

    def loss(scores: Tensor, features: Tensor, labels: Tensor, model: nn.Module) -> Tensor:
        value = F.cross_entropy(scores, labels, label_smoothing=getattr(choice, "label_smoothing", 0.0))
        if term is None or choice.weight == 0:  # 0 * term would be NaN if features overflow
            return value
        return value + choice.weight * term(scores, features, labels)

    return loss


def _own_loss(choice: Any) -> Loss:
    def loss(scores: Tensor, features: Tensor, labels: Tensor, model: nn.Module) -> Tensor:
        value = choice(scores, features, labels, model)
        if not isinstance(value, Tensor) or value.numel() != 1:
            form = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{own_name(type(choice))}: must return a scalar tensor, not {form}")
        return value.squeeze()

    return loss


def topk_correct(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Count the labels (N,) that are among the k highest scores (N, K)."""
    return (scores.topk(min(k, scores.shape[1]), dim=1).indices == labels[:, None]).any(dim=1).sum()
