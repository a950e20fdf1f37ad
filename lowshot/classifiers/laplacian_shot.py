"""LaplacianShot: nearest class mean, smoothed over a graph of neighbouring queries."""

import torch
from torch import Tensor

from lowshot.classifiers.bd_cspn import rectified, shifted
from lowshot.classifiers.settings import LaplacianShotOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_means, squared_distances

# Maximum number of distances between queries in memory at once.
_BLOCK_DISTANCES = 1 << 24


def score_laplacian_shot(tasks: Tasks, options: LaplacianShotOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: log of the final soft assignment minus the highest of the query.

    Ziko et al., ICML 2020, on centred, unit-length features (`FeatureTransform(centre=True, normalise=True)`).
    Minimises the squared distances to the prototypes plus lambda times the disagreement of neighbours. The bound
    updates are those of the paper: assignment = softmax(lambda * sum of the neighbours' assignments - distances).

    Departures from the paper:

    - It always makes `n_steps` updates, where the paper stops when the energy converges. The scores of a task then do
      not depend on the other tasks of the batch.
    - The default rectification is `rectified(..., "bounded")` without a shift. That of the paper
      (``rectification="published", shift=True``) is better if classes have equal numbers of queries, and fails if
      classes have none.
    """
    prototypes = class_means(tasks.support_features, tasks.support_labels, tasks.n_way)
    queries = shifted(tasks.query_features, prototypes) if options.shift else tasks.query_features
    if options.rectification != "none":
        prototypes = rectified(tasks, queries, prototypes, options.rectification)
    unary = squared_distances(queries, prototypes)
    neighbours = nearest_queries(queries, options.n_neighbours)
    logits = -unary
    for _ in range(options.n_steps):
        logits = options.smoothing * _sum_of_neighbours(torch.softmax(logits, -1), neighbours) - unary
    return below_best(logits)


def nearest_queries(queries: Tensor, n_neighbours: int) -> Tensor:
    """Return the indices (E, Q, k) of the nearest other queries of each query (E, Q, D). k is at most Q - 1.

    Distances are computed in blocks, to bound the memory.
    """
    n_tasks, n_queries, _ = queries.shape
    k = min(n_neighbours, n_queries - 1)
    size = max(1, _BLOCK_DISTANCES // (n_tasks * n_queries))
    found = []
    for first in range(0, n_queries, size):
        distances = squared_distances(queries[:, first : first + size], queries)
        distances.diagonal(first, 1, 2).fill_(torch.inf)
        found.append(distances.topk(k, largest=False).indices)
    return torch.cat(found, 1)


def _sum_of_neighbours(assignments: Tensor, neighbours: Tensor) -> Tensor:
    """Return for each query the sum (E, Q, C) of the `assignments` (E, Q, C) of its `neighbours` (E, Q, k)."""
    n_tasks, n_queries, n_classes = assignments.shape
    flat = assignments.view(-1, n_classes)
    total = torch.zeros_like(flat)
    places = neighbours + n_queries * torch.arange(n_tasks, device=neighbours.device)[:, None, None]
    for column in places.flatten(0, 1).unbind(-1):
        total += flat[column]
    return total.view_as(assignments)
