"""TIM and alpha-TIM: prototypes that fit the shots and make predictions for the queries confident and varied."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.settings import AlphaTIMOptions, TIMOptions
from lowshot.classifiers.tasks import Tasks, below_best, class_counts, class_means, squared_distances

# alpha by the number of shots: that of the last entry whose number is not larger.
_PUBLISHED_ALPHA = ((1, 2.0), (2, 5.0), (5, 7.0))


def score_tim(tasks: Tasks, options: TIMOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: minus the scaled squared distance to each prototype, plus the smallest.

    "TIM-GD" of Boudiaf et al., NeurIPS 2020, and alpha-TIM of Veilleux et al., NeurIPS 2021, on unit-length features
    (`FeatureTransform(normalise=True)`). The prototypes start at the class means. Adam minimises a weighted sum of the
    cross-entropy of the shots, the negative entropy of the mean prediction and the mean entropy of a prediction. In
    alpha-TIM both entropies are Tsallis entropies (1 - sum of p^alpha) / (alpha - 1).

    **The entropy of the mean prediction is a prior for equal numbers of queries per class**: soft in TIM, weaker in
    alpha-TIM.

    Departures from the papers:

    - All classes have the same weight in the cross-entropy. With equal shots this is the mean over the shots.
    - Logarithms are exact, where the authors add 1e-12 to the probabilities.
    - If classes differ in their shots, alpha is that of the smallest class.
    """
    n_shots, labels = tasks.support_labels.shape[1], tasks.support_labels
    origin = tasks.support_features.mean(1, keepdim=True)  # distances stay the same, and are exact far from 0
    rows = torch.cat([tasks.support_features, tasks.query_features], 1) - origin
    prototypes, counts = class_means(rows[:, :n_shots], labels, tasks.n_way), class_counts(labels, tasks.n_way)
    shares = (tasks.n_way * counts.gather(1, labels)).reciprocal().unsqueeze(-1)
    targets, alpha = F.one_hot(labels, tasks.n_way), _alpha(options, counts)
    optimizer = torch.optim.Adam([prototypes], lr=options.lr)
    for _ in range(options.n_steps):
        # -|x - w|^2 / 2 = x w - |w|^2 / 2 + a term that all classes share.
        offsets = prototypes.square().sum(-1).unsqueeze(1) / 2
        logits = torch.baddbmm(offsets, rows, prototypes.mT, beta=-options.scale, alpha=options.scale)
        of_shots = options.support_weight * shares * (torch.softmax(logits[:, :n_shots], -1) - targets)
        slopes = torch.cat([of_shots, entropies_slope(logits[:, n_shots:], options, alpha)], 1)
        prototypes.grad = options.scale * (slopes.mT @ rows - slopes.sum(1).unsqueeze(-1) * prototypes)
        optimizer.step()
    return below_best(-options.scale / 2 * squared_distances(rows[:, n_shots:], prototypes))


def entropies_slope(logits: Tensor, options: TIMOptions, alpha: Tensor | None) -> Tensor:
    """Return the gradient (E, Q, n_way) of the weighted entropies of the queries with respect to their `logits`.

    The loss of a task is `conditional_weight` times the mean entropy of a prediction, minus `marginal_weight` times
    that of the mean prediction. `alpha` (E, 1, 1) is the order of the entropies, None for Shannon's.
    """
    log_probabilities = torch.log_softmax(logits, -1)
    probabilities = log_probabilities.exp()
    means = probabilities.mean(1, keepdim=True).clamp_min(torch.finfo(probabilities.dtype).tiny)
    slopes = options.marginal_weight * _negative_entropy_slope(means, means.log(), alpha)
    slopes = slopes - options.conditional_weight * _negative_entropy_slope(probabilities, log_probabilities, alpha)
    slopes = slopes - (probabilities * slopes).sum(-1, keepdim=True)
    return probabilities.mul_(slopes).div_(probabilities.shape[1])


def _negative_entropy_slope(probabilities: Tensor, log_probabilities: Tensor, alpha: Tensor | None) -> Tensor:
    """Return the derivative of the negative entropy with respect to each probability, up to a constant."""
    if alpha is None:
        return log_probabilities
    return alpha / (alpha - 1) * probabilities ** (alpha - 1)


def _alpha(options: TIMOptions, counts: Tensor) -> Tensor | None:
    """Return the order of the entropies of each task (E, 1, 1), None for Shannon's; `counts` (E, n_way) of shots."""
    if not isinstance(options, AlphaTIMOptions) or options.alpha == 1:
        return None
    fewest = counts.amin(1).view(-1, 1, 1)
    if options.alpha is not None:
        return torch.full_like(fewest, options.alpha, dtype=torch.float32)
    thresholds, values = zip(*_PUBLISHED_ALPHA)
    which = torch.bucketize(fewest, fewest.new_tensor(thresholds), right=True) - 1
    return torch.tensor(values, device=counts.device)[which]
