"""Nearest class mean: the class whose mean support feature (prototype) is closest to the query."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.heads import Head
from lowshot.classifiers.settings import NearestMeanOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_means


def score_nearest_mean(tasks: Tasks, options: NearestMeanOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: similarity to each class mean minus that to the nearest, so at most 0.

    The similarity is the negative squared distance or the cosine. Mensink et al., PAMI 2013; Snell et al., NeurIPS
    2017, equation 2. SimpleShot (Wang et al., 2019) is this method after `FeatureTransform(centre=True,
    normalise=True)`. Computed in float64: predictions equal those of scikit-learn's NearestCentroid.
    """
    means = class_means(tasks.support_features.double(), tasks.support_labels, tasks.n_way)
    if options.metric == "cosine":
        return below_best(F.normalize(tasks.query_features.double(), dim=-1) @ F.normalize(means, dim=-1).mT)
    # -|q - m|^2 = 2 q (m - o) - (m - o) (m + o) + a term shared by all classes, for any origin o. With o = mean of the
    # class means the terms stay small, and float64 keeps every difference between float32 features.
    origin = means.mean(1, keepdim=True)
    centred = means - origin
    offsets = (centred * (means + origin)).sum(-1).unsqueeze(1)
    return below_best(torch.baddbmm(-offsets, tasks.query_features.double(), centred.mT, alpha=2))


def nearest_mean_head(features: Tensor, labels: Tensor, n_way: int, options: NearestMeanOptions, seed: int) -> Head:
    """Return the classifier of the class means of features (S, D) with labels (S,)."""
    means = class_means(features.double()[None], labels[None], n_way)[0]
    if options.metric == "cosine":
        return Head([(F.normalize(means, dim=-1), means.new_zeros(n_way))], unit_length=True)
    return Head([(2 * means, -means.square().sum(-1))])
