"""The logistic regression of Douze et al. (CVPR 2018): a linear softmax layer, SGD on class-uniform batches.

Each row of a batch is of a class of the setup, drawn uniformly, and one of its rows, drawn uniformly. The softmax is
over the classes of the setup. SGD has no momentum; weight decay applies to weights and bias, from PyTorch's default
initialisation. Departs from the release in that all random draws are seeded.
"""

import numpy as np
import torch

from lowshot.classifiers.problem import Problem, Run, Scorer, scorer_of_setup, with_constant
from lowshot.classifiers.settings import BalancedSGDOptions
from lowshot.core.errors import Diverged
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream, torch_stream

# Steps whose draws are made at once. Not a setting: another value would change the draws of a seed.
_BLOCK_STEPS = 500


def fit_balanced_sgd(problem: Problem, options: BalancedSGDOptions, seed: int, device: str) -> Scorer:
    """Train each run by itself. Classes outside the setup score minus infinity.

    Raises Diverged if the weights are not finite.
    """
    base = torch.from_numpy(with_constant(problem.base_feats)).to(device)
    with Progress(total=len(problem.runs) * options.n_steps, unit="step", desc="balanced_sgd") as progress:
        fitted = [_train(problem, run, base, options, seed, device, progress) for run in problem.runs]
    if not all(weights.isfinite().all() for _, weights in fitted):
        raise Diverged(f"balanced_sgd.lr {options.lr:g}: the weights are not finite. Use a smaller one")
    return scorer_of_setup(problem, fitted)


def _train(
    problem: Problem,
    run: Run,
    base: torch.Tensor,
    options: BalancedSGDOptions,
    seed: int,
    device: str,
    progress: Progress,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the classes (C,) of a run and their weights (C, D + 1), the bias in the last column."""
    feats = torch.cat([base, torch.from_numpy(with_constant(run.feats)).to(device)])
    labels = np.concatenate([problem.base_labels, run.labels])
    classes, targets = np.unique(labels, return_inverse=True)
    bound = problem.dim**-0.5
    drawn = torch.rand(len(classes), problem.dim + 1, generator=torch_stream(seed, "balanced", *run.key))
    weights = drawn.mul_(2 * bound).sub_(bound).to(device)
    for first in range(0, options.n_steps, _BLOCK_STEPS):
        n_steps = min(_BLOCK_STEPS, options.n_steps - first)
        random = stream(seed, "balanced rows", *run.key, first // _BLOCK_STEPS)
        rows, chosen = (torch.from_numpy(one).to(device) for one in draw_rows(random, targets, options.batch_size))
        for step in range(n_steps):
            batch = feats.index_select(0, rows[step])
            errors = torch.softmax(batch @ weights.T, -1)
            errors.scatter_add_(1, chosen[step][:, None], -torch.ones_like(errors[:, :1]))
            # (1 - lr * weight_decay) * weights - lr * gradient
            weights.addmm_(errors.T, batch, beta=1 - options.lr * options.weight_decay, alpha=-options.lr / len(batch))
        progress.update(n_steps)
    return torch.from_numpy(classes).to(device), weights


def draw_rows(random: np.random.Generator, targets: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows and their classes, both (`_BLOCK_STEPS`, batch_size), for a block of steps.

    `targets` (N,) are the classes 0, 1, ... of all rows.
    """
    counts = np.bincount(targets)
    order, starts = np.argsort(targets, kind="stable"), np.cumsum(counts) - counts
    classes = random.integers(len(counts), size=(_BLOCK_STEPS, batch_size))
    places = (random.random((_BLOCK_STEPS, batch_size)) * counts[classes]).astype(np.int64)
    return order[starts[classes] + places], classes
