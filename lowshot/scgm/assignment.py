"""The E-step: one subclass for every image, all subclasses equally large (Asano et al., ICLR 2020; spec 3.3).

Of all plans Q (N, K) whose rows sum to 1/N and columns to 1/K, the one that maximises sum Q log P + H(Q) / exponent is
Q_ik = c_i P_ik^exponent r_k. Sinkhorn and Knopp's iteration sets r, then c. The label of an image is the subclass of
the largest entry in its row.

P^25 leaves the range of float64. Hence r and c are kept as logarithms, the first iteration is done with them, and the
others scale the plan that they make (Schmitzer, SIAM J. Sci. Comput. 2019), which takes no exponential. An iteration
moves an entry of r or c by a factor of N at most, so scales are looked at every ten iterations, and go into the
logarithms when they have grown.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from lowshot.core.compiled import compiled
from lowshot.core.errors import InputError

# Iterations between two looks at the residual, as published.
_CHECK_EVERY = 10
# Scales beyond this or its inverse go into the logarithms.
_LARGE_SCALE = 1e30


class Assignment(NamedTuple):
    """`labels` int64 (N,), the plan's `log_r` float64 (K,) and `log_c` (N,), all on the CPU; `residual` is the sum over
    images of the relative change of c in the last iteration that was looked at."""

    labels: Tensor
    log_r: Tensor
    log_c: Tensor
    n_iterations: int
    residual: float


def assign_subclasses(
    log_scores: Tensor, exponent: float, tolerance: float = 0.1, max_iterations: int = 1001
) -> Assignment:
    """Balanced subclasses from `log_scores` (N, K), log P, worked on in float64.

    Stops when the residual of iteration 1, 11, 21, ... is at most `tolerance`, or, unlike the published code, when the
    next one to look at would be beyond `max_iterations`. Raises InputError for a score that is NaN, an image that no
    subclass explains or a subclass that explains no image.
    """
    logits = exponent * log_scores.cpu().double().numpy()
    if not (np.isfinite(logits.max(1)).all() and np.isfinite(logits.max(0)).all()):
        raise InputError("scores of subclasses: NaN, or an image or a subclass without any that is finite")
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
    """r (K,), the last but one c (N,), c, and what columns of `plan` (N, K) sum to with rows scaled by c, after more
    iterations from such sums. A row is read once an iteration, for its c and for the sums."""
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
