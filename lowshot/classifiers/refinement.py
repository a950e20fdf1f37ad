"""Prototypes refined by the queries: one or more steps of soft k-means that start from the class means."""

import torch
from torch import Tensor

from lowshot.classifiers.settings import RefinementOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_counts, class_sums, squared_distances


def score_refinement(tasks: Tasks, options: RefinementOptions, seed: int) -> Tensor:
    """Scores (E, Q, n_way) float32: minus the scaled squared distance to the refined prototypes, less the best.

    Ren et al., ICLR 2018, section 3.1.1 and equations 3 and 4. The unlabelled rows are the queries themselves, where
    the paper has an unlabelled set beside them. A support row counts once, fully for its class; a query counts once,
    divided by the softmax over its distances.
    """
    queries = tasks.query_features
    sums = class_sums(tasks.support_features, tasks.support_labels, tasks.n_way)
    counts = class_counts(tasks.support_labels, tasks.n_way).unsqueeze(-1)
    prototypes = sums / counts
    for _ in range(options.n_steps):
        shares = torch.softmax(-options.scale * squared_distances(queries, prototypes), -1).mT
        prototypes = (sums + shares @ queries) / (counts + shares.sum(-1, keepdim=True))
    return below_best(-options.scale * squared_distances(queries, prototypes))
