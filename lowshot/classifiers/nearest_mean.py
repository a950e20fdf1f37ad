"""Nearest class mean: the class whose mean support feature (prototype) is closest to the query."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.tasks import Tasks, below_best, class_means


@dataclass
class NearestMeanOptions:
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Compare the query with class means by squared Euclidean distance, or by the cosine of the angle."""


def score_nearest_mean(tasks: Tasks, options: NearestMeanOptions, seed: int) -> Tensor:
    """Scores (E, Q, n_way) float32: how much further (squared distance, cosine) than the nearest mean, so at most 0.

    Mensink et al., PAMI 2013; Snell et al., NeurIPS 2017, equation 2. SimpleShot (Wang et al., 2019) is this after
    `FeatureTransform(centre=True, normalise=True)`. Computed in float64: the winners are those of scikit-learn's
    NearestCentroid.
    """
    means = class_means(tasks.support_features.double(), tasks.support_labels, tasks.n_way)
    if options.metric == "cosine":
        return below_best(F.normalize(tasks.query_features.double(), dim=-1) @ F.normalize(means, dim=-1).mT)
    # About the means' mean, so that features far from the origin lose no digits; the query's own square, the same for
    # every class, is left out.
    origin = means.mean(1, keepdim=True)
    queries, means = tasks.query_features - origin, means - origin
    return below_best(torch.baddbmm(-means.square().sum(-1).unsqueeze(1), queries, means.mT, alpha=2))
