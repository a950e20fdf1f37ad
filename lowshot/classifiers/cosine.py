"""Cosine classifier: softmax over scaled cosines between a feature and class weights, trained on the support."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.heads import Head
from lowshot.classifiers.settings import CosineOptions
from lowshot.classifiers.tasks import Tasks, class_counts, class_means
from lowshot.core.errors import Diverged
from lowshot.core.seeds import torch_stream

_MOMENTUM = 0.9

# Unit-length rows (E, B, D), labels (E, B) and the share of each row in the loss (E, B, 1).
Batch = tuple[Tensor, Tensor, Tensor]


def score_cosine(tasks: Tasks, options: CosineOptions, seed: int) -> Tensor:
    """Return scores (E, Q, n_way) float32: scaled cosines of the queries with the trained class weights.

    "Baseline++" of Chen et al., ICLR 2019: 100 steps of SGD, rate 0.01, momentum and dampening 0.9 on frozen features.

    Departures from the paper:

    - Weights start from the class means, as in Qi et al., CVPR 2018, instead of at random.
    - Each step uses the whole support set, where the paper draws batches of 4. All classes have the same weight.
    - There is no weight decay, since a cosine does not depend on the length of the weights.
    - The scale is the initial value of Gidaris & Komodakis, CVPR 2018.

    A support set larger than the batch size is drawn from. All tasks then use the same draws.
    """
    weights = trained_weights(tasks.support_features, tasks.support_labels, tasks.n_way, options, seed)
    return options.scale * F.normalize(tasks.query_features, dim=-1) @ F.normalize(weights, dim=-1).mT


def cosine_head(features: Tensor, labels: Tensor, n_way: int, options: CosineOptions, seed: int) -> Head:
    """Return the classifier that `score_cosine` learns from features (S, D) with labels (S,)."""
    weights = trained_weights(features[None], labels[None], n_way, options, seed)[0]
    return Head([(options.scale * F.normalize(weights, dim=-1), weights.new_zeros(n_way))], unit_length=True)


def trained_weights(features: Tensor, labels: Tensor, n_way: int, options: CosineOptions, seed: int) -> Tensor:
    """Return the class weights (E, n_way, D) that are learned from features (E, S, D) with labels (E, S)."""
    rows = F.normalize(features, dim=-1)
    weights = F.normalize(class_means(rows, labels, n_way), dim=-1)
    velocity = torch.zeros_like(weights)
    batch = _batches(rows, labels, n_way, options.batch_size, seed)
    for step in range(options.n_steps):
        gradient = cross_entropy_gradient(weights, *batch(step), options.scale)
        # The first gradient enters the momentum buffer whole, as in torch.optim.SGD.
        velocity.lerp_(gradient, 1.0 if step == 0 else 1 - _MOMENTUM)
        weights.sub_(velocity, alpha=options.lr)
    if not weights.norm(dim=-1).isfinite().all():
        raise Diverged(f"lr {options.lr:g} of the cosine classifier: the weights grew without bound")
    return weights


def cross_entropy_gradient(weights: Tensor, rows: Tensor, labels: Tensor, shares: Tensor, scale: float) -> Tensor:
    """Return the gradient (E, n_way, D) of the cross-entropy of a `Batch` with respect to `weights`."""
    lengths = weights.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    directions = weights / lengths
    errors = torch.softmax(scale * rows @ directions.mT, -1)
    errors.scatter_add_(-1, labels.unsqueeze(-1), -torch.ones_like(shares)).mul_(shares)
    towards = scale * errors.mT @ rows
    return (towards - (towards * directions).sum(-1, keepdim=True) * directions) / lengths


def _batches(rows: Tensor, labels: Tensor, n_way: int, batch_size: int, seed: int) -> Callable[[int], Batch]:
    """Return a function step -> batch. Classes have equal shares of the loss (in expectation if rows are drawn)."""
    n_tasks, n_rows, _ = rows.shape
    counts = class_counts(labels, n_way)
    if n_rows <= batch_size:
        whole = rows, labels, (n_way * counts.gather(1, labels)).reciprocal().unsqueeze(-1)
        return lambda step: whole
    by_class, starts = labels.argsort(dim=1, stable=True), counts.cumsum(1) - counts
    which = torch.arange(n_tasks, device=rows.device)[:, None]
    shares = rows.new_full((n_tasks, batch_size, 1), 1 / batch_size)

    def draw(step: int) -> Batch:
        random = torch_stream(seed, "cosine", step)
        classes = torch.randint(n_way, (batch_size,), generator=random).to(rows.device).expand(n_tasks, -1)
        places = torch.rand(batch_size, generator=random, dtype=torch.float64).to(rows.device)
        chosen = by_class.gather(1, starts.gather(1, classes) + (places * counts.gather(1, classes)).long())
        return rows[which, chosen], classes, shares

    return draw
