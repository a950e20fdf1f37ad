"""PT-MAP: alternate between class centres and a balanced soft assignment of the queries."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.settings import PTMapOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_counts, class_means, class_sums, squared_distances

# Sinkhorn iterations per step. The next step continues from their scaling, so all steps together balance.
_N_ITERATIONS = 20


def score_pt_map(tasks: Tasks, options: PTMapOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: log of the final assignment minus the highest of the query.

    Hu, Gripon & Pateux, ICANN 2021, section 3.3 and algorithm 1. Their features are first transformed by
    `FeatureTransform(power=0.5)`. **Assumes that every class has the same number of queries**: each assignment gives
    every class Q / n_way queries (Sinkhorn, Cuturi 2013). With other numbers it loses accuracy.

    As in the authors' experiments, the support is centred on the mean of its class means and the queries on their own
    mean. Both are then normalised to unit length.

    Departures from the paper:

    - The scaling is stored as logarithms, so that it never under- or overflows.
    - Each step makes 20 balancing iterations, starting from the scaling of the previous step. The paper starts anew and
      iterates to a tolerance.
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
    """Return offsets (E, C, 1) for `logits` (E, C, Q): their softmax over classes then gives each about Q / C queries.

    Sinkhorn iterations (Cuturi, 2013) in log space, starting from `log_scaling`. The softmax scales the queries, the
    offsets scale the classes.
    """
    _, n_classes, n_queries = logits.shape
    for _ in range(_N_ITERATIONS):
        masses = torch.softmax(logits + log_scaling, 1).sum(-1, keepdim=True)
        log_scaling = log_scaling - (masses * n_classes / n_queries).clamp_min(torch.finfo(masses.dtype).tiny).log()
    return log_scaling
