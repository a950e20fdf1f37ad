"""Prototype refinement: steps of soft k-means over support and queries, starting from the class means."""

import torch
from torch import Tensor

from lowshot.classifiers.settings import RefinementOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_counts, class_sums, squared_distances


def score_refinement(tasks: Tasks, options: RefinementOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: negative scaled squared distance to each refined prototype.

    The highest score of each query is subtracted. Ren et al., ICLR 2018, section 3.1.1 and equations 3 and 4. The
    queries serve as the unlabelled rows, where the paper has a separate unlabelled set. A support row has weight 1 for
    its class. A query spreads the same weight over the classes by the softmax of its negative distances.
    """
    queries = tasks.query_features
    sums = class_sums(tasks.support_features, tasks.support_labels, tasks.n_way)
    counts = class_counts(tasks.support_labels, tasks.n_way).unsqueeze(-1)
    prototypes = sums / counts
    for _ in range(options.n_steps):
        shares = torch.softmax(-options.scale * squared_distances(queries, prototypes), -1).mT
        prototypes = (sums + shares @ queries) / (counts + shares.sum(-1, keepdim=True))
    return below_best(-options.scale * squared_distances(queries, prototypes))
