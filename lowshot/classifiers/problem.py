"""The training data of a low-shot classifier: base rows, shared by all runs, and the novel rows of each run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

from lowshot.classifiers.heads import Head
from lowshot.data.additions import Run as Run

# (rows, D) float32 -> (n_runs, rows, n_classes), runs in the order of the problem.
Scorer = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """Base and novel classes together, `n_classes` outputs. `base_feats` float32 (N, D), `base_labels` int64 (N,)."""

    base_feats: np.ndarray
    base_labels: np.ndarray
    runs: list[Run]
    n_base_classes: int
    n_novel_classes: int
    n_classes: int

    @property
    def dim(self) -> int:
        return self.base_feats.shape[1]

    @property
    def base_fraction(self) -> float:
        """Fraction of base classes among the classes of the setup, and of base rows in every batch."""
        return self.n_base_classes / (self.n_base_classes + self.n_novel_classes)

    def batch_composition(self, batch_size: int) -> tuple[int, int]:
        """Return the number of (base, novel) rows of a batch, rounded half to even as in the published code."""
        n_base = round(self.base_fraction * batch_size)
        return n_base, batch_size - n_base

    def transformed(self, transform: Callable[[np.ndarray], np.ndarray]) -> "Problem":
        """Return the problem with all features transformed by `transform`, (n, D) -> (n, D)."""
        runs = [replace(run, feats=transform(run.feats)) for run in self.runs]
        return replace(self, base_feats=transform(self.base_feats), runs=runs)

    @cached_property
    def trials(self) -> dict[int, list[int]]:
        """Trial -> positions of its runs in `runs`."""
        trials = sorted({run.trial for run in self.runs})
        return {trial: [i for i, run in enumerate(self.runs) if run.trial == trial] for trial in trials}


def all_at_once(problem: Problem, device: str) -> list[list[int]]:
    """Return the positions of the runs to fit at once: all of them."""
    return [list(range(len(problem.runs)))]


def as_one_task(
    feats: np.ndarray, labels: np.ndarray, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return rows (1, n, D), labels (1, n) in 0..n_way-1 in the order of the classes, and n_way."""
    classes, numbers = np.unique(labels, return_inverse=True)
    return torch.from_numpy(feats[None]).to(device), torch.from_numpy(numbers[None]).to(device), len(classes)


def with_constant(feats: np.ndarray) -> np.ndarray:
    """Append a column of ones, (n, D) -> (n, D + 1): the bias becomes one more weight, decayed like the others."""
    extended = np.ones((len(feats), feats.shape[1] + 1), feats.dtype)
    extended[:, :-1] = feats
    return extended


class LinearScorer:
    """The scorer of linear classifiers: `weights` (n_runs, n_classes, D + 1), the bias in the last column.

    With `unit_length`, it first divides features by their length.
    """

    def __init__(self, weights: torch.Tensor, unit_length: bool = False) -> None:
        self.weights, self.unit_length = weights, unit_length

    def __call__(self, feats: torch.Tensor) -> torch.Tensor:
        feats = F.normalize(feats, dim=-1) if self.unit_length else feats
        return (self.weights[:, :, :-1] @ feats.T + self.weights[:, :, -1:]).transpose(1, 2)

    def head(self, run: int) -> Head:
        """Return the classifier of a run."""
        weights = self.weights[run].cpu()
        return Head([(weights[:, :-1], weights[:, -1])], self.unit_length)


def scorer_of_setup(
    problem: Problem, fitted: Sequence[tuple[torch.Tensor, torch.Tensor]], unit_length: bool = False
) -> LinearScorer:
    """Return the scorer of linear classifiers of the classes of the setup. All other classes score minus infinity.

    Args:
        fitted: for each run the classes int64 (C,) and their weights (C, D + 1), the bias in the last column.
    """
    joint = fitted[0][1].new_zeros(len(fitted), problem.n_classes, problem.dim + 1)
    joint[..., -1] = -torch.inf
    for of_run, (classes, weights) in zip(joint, fitted):
        of_run[classes] = weights
    return LinearScorer(joint, unit_length)


def cosine_scorer(problem: Problem, weights: list[torch.Tensor]) -> LinearScorer:
    """Return the scorer of cosine classifiers of the classes of the setup.

    Args:
        weights: (C, D) for each run: base classes, then novel classes, in ascending order. Their length is the scale of
            the cosines.
    """
    base = np.unique(problem.base_labels)
    classes = (torch.from_numpy(np.concatenate([base, np.unique(run.labels)])) for run in problem.runs)
    return scorer_of_setup(problem, [(c, F.pad(one, (0, 1))) for c, one in zip(classes, weights)], unit_length=True)
