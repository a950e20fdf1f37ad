"""PT-MAP: class centres and a balanced soft assignment of the queries, in turn."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.settings import PTMapOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_counts, class_means, class_sums, squared_distances

# Of Sinkhorn in a step. The scaling carries over to the next step, so all steps together balance the assignment.
_N_ITERATIONS = 20


def score_pt_map(tasks: Tasks, options: PTMapOptions, seed: int) -> Tensor:
    """Scores (E, Q, n_way) float32: log of the final assignment, less the best of the query.

    Hu, Gripon & Pateux, ICANN 2021, section 3.3 and algorithm 1; their features go through
    `FeatureTransform(power=0.5)` first. **Assumes that every class has the same number of queries**: each assignment
    gives every class Q / n_way of them (Sinkhorn, Cuturi 2013). Where that does not hold, it loses accuracy.

    As in the authors' experiments, support and queries of a task are each centred on their own mean (the support on
    that of its classes) and brought to unit length.

    Departures: the scaling is kept as logarithms, so that no scale of the features makes it under- or overflow; and
    each step balances by 20 iterations that go on from the last step's, where the paper starts afresh and iterates to a
    tolerance.
    """
    means = class_means(tasks.support_features, tasks.support_labels, tasks.n_way)
    support = F.normalize(tasks.support_features - means.mean(1, keepdim=True), dim=-1)
    queries = F.normalize(tasks.query_features - tasks.query_features.mean(1, keepdim=True), dim=-1)
    sums = class_sums(support, tasks.support_labels, tasks.n_way)
    counts = class_counts(tasks.support_labels, tasks.n_way).unsqueeze(-1)
    centres, log_scaling = sums / counts, torch.zeros_like(sums[..., :1])
    for step in range(options.n_steps + 1):
        logits = -options.scale * squared_distances(queries, centres).mT.contiguous()
        log_scaling = balancing(logits, log_scaling)
        if step < options.n_steps:
            shares = torch.softmax(logits + log_scaling, 1)
            estimates = (sums + shares @ queries) / (counts + shares.sum(-1, keepdim=True))
            centres = centres.lerp(estimates, options.rate)
    return below_best((logits + log_scaling).mT)


def balancing(logits: Tensor, log_scaling: Tensor) -> Tensor:
    """What to add (E, C, 1) to `logits` (E, C, Q) so that their softmax over classes gives each about Q / C queries.

    Sinkhorn (Cuturi, 2013) from the scaling so far, as logarithms: the softmax scales queries, the result classes.
    """
    _, n_classes, n_queries = logits.shape
    for _ in range(_N_ITERATIONS):
        masses = torch.softmax(logits + log_scaling, 1).sum(-1, keepdim=True)
        log_scaling = log_scaling - (masses * n_classes / n_queries).clamp_min(torch.finfo(masses.dtype).tiny).log()
    return log_scaling
