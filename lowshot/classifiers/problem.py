"""What a low-shot classifier learns from: the base rows all runs share, and the novel rows of every run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch

from lowshot.data.additions import Run as Run

# (rows, D) float32 -> (n_runs, rows, n_classes), runs in the order of the problem
Scorer = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """Base and novel classes jointly, `n_classes` outputs. `base_feats` float32 (N, D), `base_labels` int64 (N,)."""

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
        """The share of base classes among the setup's classes: base rows get this share of every batch."""
        return self.n_base_classes / (self.n_base_classes + self.n_novel_classes)

    def batch_composition(self, batch_size: int) -> tuple[int, int]:
        """(base rows, novel rows) of a batch, rounded half to even as in the published code."""
        n_base = round(self.base_fraction * batch_size)
        return n_base, batch_size - n_base

    def transformed(self, transform: Callable[[np.ndarray], np.ndarray]) -> "Problem":
        """The same problem on features that went through `transform`, (n, D) -> (n, D)."""
        runs = [replace(run, feats=transform(run.feats)) for run in self.runs]
        return replace(self, base_feats=transform(self.base_feats), runs=runs)

    @cached_property
    def trials(self) -> dict[int, list[int]]:
        """Positions in `runs` by trial."""
        trials = sorted({run.trial for run in self.runs})
        return {trial: [i for i, run in enumerate(self.runs) if run.trial == trial] for trial in trials}


def with_constant(feats: np.ndarray) -> np.ndarray:
    """(n, D) -> (n, D + 1) with a last column of ones: the bias becomes one more weight, decayed like the others."""
    extended = np.ones((len(feats), feats.shape[1] + 1), feats.dtype)
    extended[:, :-1] = feats
    return extended


def linear_scorer(weights: torch.Tensor) -> Scorer:
    """Scores of linear classifiers; `weights` (n_runs, n_classes, D + 1), the bias in the last column."""
    return partial(_linear_scores, weights)


def _linear_scores(weights: torch.Tensor, feats: torch.Tensor) -> torch.Tensor:
    return (weights[:, :, :-1] @ feats.T + weights[:, :, -1:]).transpose(1, 2)
