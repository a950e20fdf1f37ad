"""Few-shot tasks as batched tensors, and helpers shared by the methods that score them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# Maximum number of feature values per block: a block of small tasks fits in the processor's cache.
_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Tasks:
    """E tasks of one shape: labelled support rows and unlabelled queries.

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
        """Return the tasks at `chosen`."""
        return replace(
            self,
            support_features=self.support_features[chosen],
            support_labels=self.support_labels[chosen],
            query_features=self.query_features[chosen],
        )


Score = Callable[[Tasks, Any, int], Tensor]


def in_blocks(score: Score) -> Score:
    """Apply the method to a few tasks at a time, so that its memory does not grow with the number of tasks.

    The scores stay the same: random numbers of a method depend on its seed only, not on the other tasks of a block.
    """

    def score_blocks(tasks: Tasks, options: Any, seed: int) -> Tensor:
        rows, dim = tasks.support_features.shape[1] + tasks.query_features.shape[1], tasks.query_features.shape[2]
        size = max(1, _BLOCK_ELEMENTS // (rows * dim))
        blocks = (tasks[first : first + size] for first in range(0, len(tasks), size))
        return torch.cat([score(block, options, seed) for block in blocks])

    return score_blocks


def class_sums(features: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """Return the sum (E, n_way, D) of the rows of each class, in the dtype of `features` (E, S, D); `labels` (E, S)."""
    n_tasks, _, dim = features.shape
    sums = features.new_zeros(n_tasks * n_way, dim)
    return sums.index_add_(0, numbered(labels, n_way), features.flatten(0, 1)).view(n_tasks, n_way, dim)


def class_counts(labels: Tensor, n_way: int) -> Tensor:
    """Return the number of rows of each class, int64 (E, n_way); `labels` (E, S)."""
    return torch.bincount(numbered(labels, n_way), minlength=len(labels) * n_way).view(-1, n_way)


def numbered(labels: Tensor, n_way: int) -> Tensor:
    """Return labels (E * S,) that are unique across tasks: task e uses e * n_way to (e + 1) * n_way - 1."""
    return (labels + n_way * torch.arange(len(labels), device=labels.device)[:, None]).flatten()


def class_means(features: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """Return the prototypes (E, n_way, D), in the dtype of `features` (E, S, D); `labels` (E, S)."""
    return class_sums(features, labels, n_way) / class_counts(labels, n_way).unsqueeze(-1)


def squared_distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Return squared Euclidean distances (E, Q, C) from rows (E, Q, D) to centres (E, C, D).

    Computed as a matrix product after subtracting the mean of the centres: features far from the origin keep their
    precision.
    """
    origin = centres.mean(1, keepdim=True)
    rows, centres = rows - origin, centres - origin
    squares = rows.square().sum(-1, keepdim=True) + centres.square().sum(-1).unsqueeze(1)
    return torch.baddbmm(squares, rows, centres.mT, alpha=-2).clamp_(min=0)


def below_best(scores: Tensor) -> Tensor:
    """Subtract the highest score of each query and convert to float32.

    Ranks and softmax stay the same, and rounding to float32 makes no ties with the highest score.
    """
    return (scores - scores.amax(-1, keepdim=True)).float()
