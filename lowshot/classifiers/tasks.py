"""Few-shot tasks as batched tensors, and what the methods that score them share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# Features that are worked on at once: small tasks go in groups that stay in the processor's cache.
_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Tasks:
    """E tasks of one shape: labelled support rows, unlabelled queries.

    `support_features` float32 (E, S, D); `support_labels` int64 (E, S) in 0..n_way-1, every class present in every
    task; `query_features` float32 (E, Q, D); all on one device.
    """

    support_features: Tensor
    support_labels: Tensor
    query_features: Tensor
    n_way: int

    def __len__(self) -> int:
        return len(self.support_labels)

    def __getitem__(self, chosen: slice | Tensor) -> "Tasks":
        """The tasks at `chosen`."""
        return replace(
            self,
            support_features=self.support_features[chosen],
            support_labels=self.support_labels[chosen],
            query_features=self.query_features[chosen],
        )


Score = Callable[[Tasks, Any, int], Tensor]


def in_blocks(score: Score) -> Score:
    """The same method on a few tasks at a time, so that its memory does not grow with the number of tasks.

    No score changes by that: a method's random numbers hang on its seed alone, not on which tasks are scored together.
    """

    def score_blocks(tasks: Tasks, options: Any, seed: int) -> Tensor:
        rows, dim = tasks.support_features.shape[1] + tasks.query_features.shape[1], tasks.query_features.shape[2]
        size = max(1, _BLOCK_ELEMENTS // (rows * dim))
        blocks = (tasks[first : first + size] for first in range(0, len(tasks), size))
        return torch.cat([score(block, options, seed) for block in blocks])

    return score_blocks


def class_sums(features: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """Sums (E, n_way, D) of the rows of every class, in the type of `features` (E, S, D); `labels` (E, S)."""
    n_tasks, _, dim = features.shape
    sums = features.new_zeros(n_tasks * n_way, dim)
    return sums.index_add_(0, numbered(labels, n_way), features.flatten(0, 1)).view(n_tasks, n_way, dim)


def class_counts(labels: Tensor, n_way: int) -> Tensor:
    """How many rows every class has, int64 (E, n_way); `labels` (E, S)."""
    return torch.bincount(numbered(labels, n_way), minlength=len(labels) * n_way).view(-1, n_way)


def numbered(labels: Tensor, n_way: int) -> Tensor:
    """The classes (E * S,) of all tasks' rows, each task's with numbers of their own."""
    return (labels + n_way * torch.arange(len(labels), device=labels.device)[:, None]).flatten()


def class_means(features: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """The prototypes (E, n_way, D), in the type of `features` (E, S, D); `labels` (E, S)."""
    return class_sums(features, labels, n_way) / class_counts(labels, n_way).unsqueeze(-1)


def squared_distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared Euclidean distances (E, Q, C) of rows (E, Q, D) to centres (E, C, D).

    By way of a matrix product, but about the centres' mean: features far from the origin lose no digits.
    """
    origin = centres.mean(1, keepdim=True)
    rows, centres = rows - origin, centres - origin
    squares = rows.square().sum(-1, keepdim=True) + centres.square().sum(-1).unsqueeze(1)
    return torch.baddbmm(squares, rows, centres.mT, alpha=-2).clamp_(min=0)


def below_best(scores: Tensor) -> Tensor:
    """Scores less the best of their query, as float32: neither ranks nor softmax change, and rounding makes no ties
    with the best."""
    return (scores - scores.amax(-1, keepdim=True)).float()
