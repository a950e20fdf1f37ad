"""PT-MAP: class centres and a balanced soft assignment of the queries, in turn."""

from dataclasses import dataclass

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt, restricted_number_type
from torch import Tensor

from lowshot.classifiers.tasks import Tasks, below_best, class_sums, squared_distances

# The assignment is balanced when no class's mass is further from its share, relatively.
_TOLERANCE = 1e-4
_MAX_ITERATIONS = 1000

Rate = restricted_number_type("Rate", float, [(">", 0), ("<=", 1)])


@dataclass
class PTMapOptions:
    scale: PositiveFloat = 10.0
    """The paper's lambda: multiplies squared distances; high means hard assignments."""
    rate: Rate = 0.2
    """The paper's alpha: how far a centre moves towards its new estimate in a step."""
    n_steps: PositiveInt = 20
    """Updates of the centres."""


def pt_map(tasks: Tasks, options: PTMapOptions, seed: int) -> Tensor:
    """Scores (E, Q, n_way) float32: log of the final assignment, less the best of the query.

    Hu, Gripon & Pateux, ICANN 2021, section 3.3 and algorithm 1; their features go through
    `FeatureTransform(power=0.5)` first. **Assumes that every class has the same number of queries**: each assignment
    gives every class Q / n_way of them (Sinkhorn, Cuturi 2013). Where that does not hold, it loses accuracy.

    Departures: the scaling is kept as logarithms, so that no feature scale makes it under- or overflow, and starts from
    that of the step before.
    """
    queries = tasks.query_features
    sums, counts = class_sums(tasks.support_features, tasks.support_labels, tasks.n_way)
    centres, log_scaling = sums / counts, None
    for _ in range(options.n_steps):
        logits = -options.scale * squared_distances(queries, centres)
        log_scaling = balancing(logits, log_scaling)
        shares = torch.softmax(logits + log_scaling, -1).mT
        estimates = (sums + shares @ queries) / (counts + shares.sum(-1, keepdim=True))
        centres = centres.lerp(estimates, options.rate)
    logits = -options.scale * squared_distances(queries, centres)
    return below_best(logits + balancing(logits, log_scaling))


def balancing(logits: Tensor, start: Tensor | None = None) -> Tensor:
    """What to add (E, 1, C) to `logits` (E, Q, C) that their softmax gives every class Q / C queries.

    Sinkhorn: the softmax scales the rows, the result the columns. Every task iterates until its own masses are even,
    so it does not matter which others are beside it.
    """
    n_tasks, n_queries, n_classes = logits.shape
    log_scaling = logits.new_zeros(n_tasks, 1, n_classes) if start is None else start.clone()
    uneven = torch.arange(n_tasks, device=logits.device)
    for _ in range(_MAX_ITERATIONS):
        masses = torch.softmax(logits[uneven] + log_scaling[uneven], -1).sum(1, keepdim=True) * n_classes / n_queries
        log_scaling[uneven] -= masses.clamp_min(torch.finfo(masses.dtype).tiny).log()
        uneven = uneven[(masses - 1).abs().amax((1, 2)) > _TOLERANCE]
        if not len(uneven):
            break
    return log_scaling
