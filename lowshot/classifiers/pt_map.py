"""PT-MAP: alternate between class centres and a balanced soft assignment of the queries."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.settings import PTMapOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_counts, class_means, class_sums, squared_distances

# Balancing stops when no query's sum changes by more in a round, or after so many rounds, as published.
_TOLERANCE = 1e-6
_MAX_ROUNDS = 1000


def score_pt_map(tasks: Tasks, options: PTMapOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: log of the final assignment minus the highest of the query.

    Hu, Gripon & Pateux, ICANN 2021, section 3.3 and algorithm 1. Their features are first transformed by
    `FeatureTransform(power=0.5)`. **Assumes that every class has the same number of queries**: each assignment gives
    every class Q / n_way queries (Sinkhorn, Cuturi 2013). With other numbers it loses accuracy.

    As in the authors' experiments, support and queries are each centred on their own mean and then normalised to unit
    length.

    Departures from the paper:

    - The scaling is stored as logarithms, so that it never under- or overflows.
    - The support is centred on the mean of its class means, so that classes with many shots have no more influence.
    """
    means = class_means(tasks.support_features, tasks.support_labels, tasks.n_way)
    support = F.normalize(tasks.support_features - means.mean(1, keepdim=True), dim=-1)
    queries = F.normalize(tasks.query_features - tasks.query_features.mean(1, keepdim=True), dim=-1)
    sums = class_sums(support, tasks.support_labels, tasks.n_way)
    counts = class_counts(tasks.support_labels, tasks.n_way).unsqueeze(-1)
    centres = sums / counts
    for step in range(options.n_steps + 1):
        logits = -options.scale * squared_distances(queries, centres).mT.contiguous()
        assignment, log_scaling = balanced(logits)
        if step < options.n_steps:
            estimates = (sums + assignment @ queries) / (counts + assignment.sum(-1, keepdim=True))
            centres = centres.lerp(estimates, options.rate)
    return below_best((logits + log_scaling).mT)


def balanced(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return an assignment (E, C, Q) of queries in which classes have equal sums, and class offsets (E, C, 1).

    The assignment is exp(`logits` + offsets) times a factor of each query (Sinkhorn iterations, Cuturi 2013). A round
    scales each query to the sum 1, then each class to the sum Q / C. A task stops by itself, whatever the others do.
    The sums of its queries are then near 1, and those of its classes exact.
    """
    (n_way, n_queries), tiny = logits.shape[1:], torch.finfo(logits.dtype).tiny
    assignment, offsets = torch.empty_like(logits), torch.zeros_like(logits[..., :1])
    sums = torch.softmax(logits.flatten(1), 1).view_as(logits).sum(1)
    running = torch.arange(len(logits), device=logits.device)
    for _ in range(_MAX_ROUNDS):
        shares = torch.softmax(logits[running] + offsets[running], 1)
        factors = n_queries / n_way / shares.sum(-1, keepdim=True).clamp_min(tiny)
        before, sums = sums, (shares * factors).sum(1)
        assignment[running] = shares * factors
        offsets[running] += factors.log()
        moving = (sums - before).abs().amax(1) > _TOLERANCE
        running, sums = running[moving], sums[moving]
        if not len(running):
            break
    return assignment, offsets
