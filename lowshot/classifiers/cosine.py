"""Cosine classifier: softmax over scaled cosines with class weights that are trained on the support."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.tasks import Tasks, class_means
from lowshot.seeds import torch_stream

_MOMENTUM = 0.9


@dataclass
class CosineOptions:
    scale: PositiveFloat = 10.0
    lr: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 0.001
    n_steps: NonNegativeInt = 100
    batch_size: PositiveInt = 1000
    start: Literal["means", "random"] = "means"


def cosine(tasks: Tasks, options: CosineOptions, seed: int) -> Tensor:
    rows = F.normalize(tasks.support_features, dim=-1)
    if options.start == "means":
        weights = F.normalize(class_means(rows, tasks.support_labels, tasks.n_way), dim=-1)
    else:
        D = rows.shape[-1]
        weights = (
            ((torch.rand(tasks.n_way, D, generator=torch_stream(seed, "c")) * 2 - 1) * D**-0.5)
            .expand(len(tasks), -1, -1)
            .clone()
        )
    next_batch = _balanced_batches(rows, tasks, options.batch_size, seed)
    velocity = torch.zeros_like(weights)
    for step in range(options.n_steps):
        gradient = _gradient(weights, *next_batch(step), options.scale).add_(weights, alpha=options.weight_decay)
        velocity = gradient if step == 0 else velocity.lerp_(gradient, 1 - _MOMENTUM)
        weights = weights.sub_(velocity, alpha=options.lr)
    return options.scale * F.normalize(tasks.query_features, dim=-1) @ F.normalize(weights, dim=-1).mT


def _gradient(weights: Tensor, rows: Tensor, labels: Tensor, shares: Tensor, scale: float) -> Tensor:
    """Of the weighted cross-entropy with respect to `weights` (E, n_way, D).

    `rows` (E, B, D) of unit length, `labels` (E, B), `shares` (E, B, 1) of the loss, which sum to 1.
    """
    lengths = weights.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    directions = weights / lengths
    errors = torch.softmax(scale * rows @ directions.mT, -1).scatter_add_(
        -1, labels[..., None], -torch.ones_like(shares)
    )
    pull = scale * (errors * shares).mT @ rows
    return (pull - (pull * directions).sum(-1, keepdim=True) * directions) / lengths


Batch = tuple[Tensor, Tensor, Tensor]


def _balanced_batches(rows: Tensor, tasks: Tasks, batch_size: int, seed: int) -> Callable[[int], Batch]:
    """step -> (rows, labels, shares) in which every class has the same share of the loss (in expectation, if drawn)."""
    n_tasks, n_rows, _ = rows.shape
    labels, n_way = tasks.support_labels, tasks.n_way
    which = torch.arange(n_tasks, device=labels.device)[:, None]
    counts = torch.bincount((labels + n_way * which).flatten(), minlength=n_tasks * n_way).view(n_tasks, n_way)
    if n_rows <= batch_size:
        shares = (n_way * counts.gather(1, labels)).reciprocal().unsqueeze(-1)
        return lambda step: (rows, labels, shares)
    by_class, starts = labels.argsort(dim=1, stable=True), counts.cumsum(1) - counts
    shares = rows.new_full((n_tasks, batch_size, 1), 1 / batch_size)

    def draw(step: int) -> Batch:
        random = torch_stream(seed, "cosine", step)
        classes = torch.randint(n_way, (batch_size,), generator=random).to(labels.device).expand(n_tasks, -1)
        places = torch.rand(batch_size, generator=random, dtype=torch.float64).to(labels.device)
        within = (places * counts.gather(1, classes)).long()
        chosen = by_class.gather(1, starts.gather(1, classes) + within)
        return rows[which, chosen], classes, shares

    return draw
