"""Adaptive transport: PT-MAP's assignment of the queries, for proportions of the classes that the queries decide."""

import torch
from torch import Tensor

from lowshot.classifiers.settings import AdaptiveTransportOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_counts, class_sums, squared_distances

# Queries that are added to each class when its proportion is estimated, so that none becomes 0.
_PRIOR_COUNT = 0.1
# Balancing in each step. With 100 rounds the accuracies on validation classes are the same.
_N_ROUNDS = 10


def score_adaptive_transport(tasks: Tasks, options: AdaptiveTransportOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: log of the final assignment minus the highest of the query.

    Our own method. PT-MAP (Hu et al., ICANN 2021) gives every class the same number of queries. Its gain comes from
    there, and so does its loss if the numbers differ. Here the queries tell how far to believe in equal numbers:

    1. Soft k-means with estimated proportions of the classes (EM for Gaussians of one width) assumes nothing on them.
    2. These proportions are trusted with the weight d / (d + `equality` v), and equal ones with the rest. The class
       means of the shots give each query class probabilities, and so each class a number of queries: d is the squared
       deviation of these numbers from equal ones, v their variance. Both are sums over classes.
    3. Starting anew from the class means, every class gets its proportion of the queries in each step, as in PT-MAP,
       and with `transport_scale` in place of `scale`.

    Features are transformed by `FeatureTransform(power=0.5, centre=True, normalise=True)`. Centring on the queries, as
    in PT-MAP, would assume equal numbers as well.
    """
    shots = class_sums(tasks.support_features, tasks.support_labels, tasks.n_way)
    counts = class_counts(tasks.support_labels, tasks.n_way).unsqueeze(-1)
    queries, scale = tasks.query_features, options.scale
    probabilities = torch.softmax(-scale * squared_distances(queries, shots / counts), -1)
    estimated = _assigned(queries, shots, counts, scale, options)[0].mean(1)
    proportions = believed(estimated, probabilities, options.equality)
    return below_best(_assigned(queries, shots, counts, options.transport_scale, options, proportions)[1])


def believed(estimated: Tensor, probabilities: Tensor, equality: float) -> Tensor:
    """Return proportions (E, n_way) between the estimated ones and equal ones.

    Args:
        estimated: (E, n_way) proportions of the classes.
        probabilities: (E, Q, n_way) of the classes for each query, from the shots alone.
        equality: how many times the variance a deviation from equal numbers must have to be half believed.
    """
    n_queries, n_way = probabilities.shape[1:]
    deviation = (probabilities.sum(1) - n_queries / n_way).square().sum(-1, keepdim=True)
    variance = (probabilities * (1 - probabilities)).sum((1, 2)).unsqueeze(-1)
    weight = deviation / (deviation + equality * variance).clamp_min(torch.finfo(variance.dtype).tiny)
    return (1 - weight) / n_way + weight * estimated


def _assigned(
    queries: Tensor,
    shots: Tensor,
    counts: Tensor,
    scale: float,
    options: AdaptiveTransportOptions,
    proportions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the assignment (E, Q, n_way) of the queries (E, Q, D) after all steps, and its logarithm up to a constant.

    `proportions` (E, n_way) are estimated anew in each step if they are None. `shots` (E, n_way, D) are sums and
    `counts` (E, n_way, 1) numbers of the shots.
    """
    centres, offsets = shots / counts, torch.zeros_like(shots[..., 0]).unsqueeze(1)
    for _ in range(options.n_steps):
        logits = -scale * squared_distances(queries, centres)
        if proportions is not None:
            offsets = _balancing_offsets(logits, offsets, proportions)
        scores = logits + offsets
        assignment = torch.softmax(scores, -1)
        sums = assignment.sum(1)
        if proportions is None:
            offsets = (sums + _PRIOR_COUNT).log().unsqueeze(1)
        estimates = (shots + assignment.mT @ queries) / (counts + sums.unsqueeze(-1))
        centres = centres.lerp(estimates, options.rate)
    return assignment, scores


def _balancing_offsets(logits: Tensor, offsets: Tensor, proportions: Tensor) -> Tensor:
    """Return class offsets (E, 1, n_way) with which the queries come near to their `proportions` (Sinkhorn iterations).

    Centres move little in a step, so a few rounds from the `offsets` of the last step do what a new start needs
    hundreds for.
    """
    tiny = torch.finfo(logits.dtype).tiny
    numbers = (logits.shape[1] * proportions).clamp_min(tiny)
    for _ in range(_N_ROUNDS):
        sums = torch.softmax(logits + offsets, -1).sum(1)
        offsets = offsets + (numbers / sums.clamp_min(tiny)).log().unsqueeze(1)
    return offsets
