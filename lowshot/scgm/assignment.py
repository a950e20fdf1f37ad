"""The E-step: assign each image to a subclass, with subclasses of equal size (Asano et al., ICLR 2020).

Among all plans Q (N, K) with row sums 1/N and column sums 1/K, Q_ik = c_i P_ik^exponent r_k maximises
sum Q log P + H(Q) / exponent. The Sinkhorn-Knopp iteration updates r, then c. The label of an image is the subclass
with the largest entry in its row.

P^25 exceeds the range of float64, so r and c are kept as logarithms. The first iteration uses them directly. Further
iterations scale the resulting plan (Schmitzer, SIAM J. Sci. Comput. 2019), which avoids exponentials. One iteration
changes an entry of r or c by at most a factor of N. The scales are therefore checked every ten iterations, and moved
into the logarithms if they have become large.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from lowshot.core.compiled import compiled
from lowshot.core.errors import InputError

# Number of iterations between checks of the residual, as published.
_CHECK_EVERY = 10
# Scales above this value, or below its inverse, are moved into the logarithms.
_LARGE_SCALE = 1e30


class Assignment(NamedTuple):
    """The result of the assignment, on the CPU.

    `labels` is int64 (N,); `log_r` float64 (K,) and `log_c` float64 (N,) define the plan. `residual` is the sum over
    images of the relative change of c in the last iteration that was checked.
    """

    labels: Tensor
    log_r: Tensor
    log_c: Tensor
    n_iterations: int
    residual: float


def assign_subclasses(
    log_scores: Tensor, exponent: float, tolerance: float = 0.1, max_iterations: int = 1001
) -> Assignment:
    """Compute balanced subclasses from `log_scores` (N, K) = log P, in float64.

    Stops when the residual of iteration 1, 11, 21, ... is at most `tolerance`. Unlike the published code, it also stops
    when the next check would exceed `max_iterations`. Raises InputError for NaN scores, and for an image or a subclass
    whose scores are all -inf.
    """
    logits = exponent * log_scores.cpu().double().numpy()
    if not (np.isfinite(logits.max(1)).all() and np.isfinite(logits.max(0)).all()):
        raise InputError(
            "scores of subclasses: contain NaN, or an image or a subclass has no finite score. Use a smaller --lr"
        )
    n, k = logits.shape
    log_r = -math.log(k) - (logsumexp(logits, axis=0) - math.log(n))
    log_c = -math.log(n) - logsumexp(logits + log_r, axis=1)
    iteration, residual = 1, _change(np.exp(-math.log(n) - log_c))
    plan, r, c = _plan(logits, log_r, log_c), np.ones(k), np.ones(n)
    of_columns = plan.sum(0)
    while residual > tolerance and iteration + _CHECK_EVERY <= max_iterations:
        r, before, c, of_columns = _scale(plan, of_columns, _CHECK_EVERY)
        iteration, residual = iteration + _CHECK_EVERY, _change(before / c)
        if max(r.max(), c.max(), 1 / r.min(), 1 / c.min()) > _LARGE_SCALE:
            log_r, log_c = log_r + np.log(r), log_c + np.log(c)
            plan, r, c = _plan(logits, log_r, log_c), np.ones(k), np.ones(n)
            of_columns = plan.sum(0)
    log_r, log_c = log_r + np.log(r), log_c + np.log(c)
    labels = (logits + log_r).argmax(1)
    return Assignment(*map(torch.from_numpy, (labels, log_r, log_c)), iteration, residual)


@compiled(fastmath={"reassoc", "contract"})
def _scale(
    plan: np.ndarray, of_columns: np.ndarray, n_iterations: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Run `n_iterations` on `plan` (N, K), starting from the column sums `of_columns` (K,).

    Returns r (K,), the c of the last but one iteration (N,), c (N,), and the column sums of the plan with its rows
    scaled by c. Each iteration reads a row once, for its c and for the sums.
    """
    n, k = plan.shape
    c = np.ones(n)
    for _ in range(n_iterations):
        before, c = c, np.empty(n)
        r = 1 / (k * of_columns)
        of_columns = np.zeros(k)
        for i in range(n):
            total = 0.0
            for j in range(k):
                total += plan[i, j] * r[j]
            c[i] = 1 / (n * total)
            for j in range(k):
                of_columns[j] += c[i] * plan[i, j]
    return r, before, c, of_columns


def _plan(logits: np.ndarray, log_r: np.ndarray, log_c: np.ndarray) -> np.ndarray:
    plan = logits + log_r
    plan += log_c[:, None]
    return np.exp(plan, out=plan)


def _change(ratios: np.ndarray) -> float:
    return float(np.abs(ratios - 1).sum())
