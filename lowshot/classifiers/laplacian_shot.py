"""LaplacianShot: nearest class mean, smoothed over a graph of neighbouring queries."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.settings import LaplacianShotOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_means, class_sums, squared_distances

# Maximum number of distances between queries in memory at once.
_BLOCK_DISTANCES = 1 << 24
# Sharpness of the weights of prototype rectification (Liu et al., ECCV 2020).
_SHARPNESS = 10.0


def score_laplacian_shot(tasks: Tasks, options: LaplacianShotOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: log of the final soft assignment minus the highest of the query.

    Ziko et al., ICML 2020, on centred, unit-length features (`FeatureTransform(centre=True, normalise=True)`).
    Minimises the squared distances to the prototypes plus lambda times the disagreement of neighbours. The bound
    updates are those of the paper: assignment = softmax(lambda * sum of the neighbours' assignments - distances).

    Departures from the paper:

    - It always makes `n_steps` updates, where the paper stops when the energy converges. The scores of a task then do
      not depend on the other tasks of the batch.
    - The queries are shifted to the mean of the prototypes instead of the mean of the support rows. Classes with many
      rows then have no more influence than others.
    - Rectification normalises weights within a class, and shots keep their class.
    """
    prototypes = class_means(tasks.support_features, tasks.support_labels, tasks.n_way)
    queries = tasks.query_features
    if options.rectify:
        queries = queries + prototypes.mean(1, keepdim=True) - queries.mean(1, keepdim=True)
        prototypes = _rectified(tasks, queries, prototypes)
    unary = squared_distances(queries, prototypes)
    neighbours = nearest_queries(queries, options.n_neighbours)
    logits = -unary
    for _ in range(options.n_steps):
        logits = options.smoothing * _sum_of_neighbours(torch.softmax(logits, -1), neighbours) - unary
    return below_best(logits)


def _rectified(tasks: Tasks, queries: Tensor, prototypes: Tensor) -> Tensor:
    """Return prototypes (E, n_way, D): weighted means of their shots and of the `queries` assigned to them by cosine.

    The weight of a row is exp(10 * cosine with the old prototype), normalised to sum to 1 within its class (Liu et al.,
    ECCV 2020; section 3.3 of LaplacianShot).
    """
    directions = F.normalize(prototypes, dim=-1)
    guesses = (queries @ directions.mT).argmax(-1)
    rows, labels = torch.cat([tasks.support_features, queries], 1), torch.cat([tasks.support_labels, guesses], 1)
    class_directions = directions.gather(1, labels.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
    weights = ((F.cosine_similarity(rows, class_directions, dim=-1) - 1) * _SHARPNESS).exp().unsqueeze(-1)
    return class_sums(rows * weights, labels, tasks.n_way) / class_sums(weights, labels, tasks.n_way)


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
