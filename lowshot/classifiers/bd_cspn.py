"""BD-CSPN: nearest class mean after the prototypes were rectified with the queries."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.settings import BDCSPNOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_counts, class_means, class_sums, squared_distances

# Factor of the cosines in the weights of the rows.
_SHARPNESS = 10.0


def score_bd_cspn(tasks: Tasks, options: BDCSPNOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: minus the squared distance to each rectified prototype, plus the smallest.

    Liu, Song & Qin, ECCV 2020, section 3, in the form of the comparison by Veilleux et al., NeurIPS 2021, on centred,
    unit-length features (`FeatureTransform(centre=True, normalise=True)`): the published `rectified` prototypes, from
    shifted queries, classify the queries as they were before the shift.

    Departures from the paper, which that comparison shares: the weight of a row is its softmax over the classes instead
    of over the rows of a class, all queries take part instead of the most confident, and the distance is Euclidean
    instead of the cosine.
    """
    prototypes = class_means(tasks.support_features, tasks.support_labels, tasks.n_way)
    queries = shifted(tasks.query_features, prototypes) if options.shift else tasks.query_features
    return below_best(-squared_distances(tasks.query_features, rectified(tasks, queries, prototypes, "published")))


def shifted(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Return `queries` (E, Q, D), moved so that their mean is that of the `prototypes` (E, n_way, D).

    The papers move them to the mean of the support rows, which is the same for equal numbers of shots. Here classes
    with many shots have no more influence than others.
    """
    return queries + prototypes.mean(1, keepdim=True) - queries.mean(1, keepdim=True)


def rectified(tasks: Tasks, queries: Tensor, prototypes: Tensor, form: Literal["published", "bounded"]) -> Tensor:
    """Return prototypes (E, n_way, D), re-estimated from the shots of `tasks` and `queries` (E, Q, D).

    A row joins the class of the highest cosine with `prototypes` (E, n_way, D). Its weight is the softmax over the
    classes of 10 times the cosine.

    - "published": as in the experiments with LaplacianShot (Ziko et al., ICML 2020). Shots join a class as queries do.
      The weighted sum of a class is divided by its number of rows, so prototypes shrink. A class that no row joins
      keeps its prototype, where the experiments lose the class.
    - "bounded", our own: shots keep their class, and the sum is divided by the sum of the weights. A prototype then
      stays within the bounds of its rows.
    """
    rows = torch.cat([tasks.support_features, queries], 1)
    cosines = F.normalize(rows, dim=-1) @ F.normalize(prototypes, dim=-1).mT
    labels = cosines.argmax(-1)
    if form == "bounded":
        labels = torch.cat([tasks.support_labels, labels[:, tasks.support_labels.shape[1] :]], 1)
    weights = torch.softmax(_SHARPNESS * cosines, -1).gather(-1, labels.unsqueeze(-1))
    sums = class_sums(weights * rows, labels, tasks.n_way)
    if form == "bounded":
        return sums / class_sums(weights, labels, tasks.n_way)
    counts = class_counts(labels, tasks.n_way).unsqueeze(-1)
    return torch.where(counts > 0, sums / counts.clamp_min(1), prototypes)
