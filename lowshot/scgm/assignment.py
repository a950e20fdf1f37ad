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

import torch
from torch import Tensor

from lowshot.errors import InputError

# Iterations between two looks at the residual, as published.
_CHECK_EVERY = 10
# Scales beyond this or its inverse go into the logarithms.
_LARGE_SCALE = 1e30


class Assignment(NamedTuple):
    """`labels` int64 (N,), the plan's `log_r` float64 (K,) and `log_c` (N,); `residual` is the sum over images of the
    relative change of c in the last iteration that was looked at."""

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
    logits = exponent * log_scores.double()
    if not (logits.amax(1).isfinite().all() and logits.amax(0).isfinite().all()):
        raise InputError("scores of subclasses: NaN, or an image or a subclass without any that is finite")
    n, k = logits.shape
    log_r = -math.log(k) - (torch.logsumexp(logits, 0) - math.log(n))
    log_c = -math.log(n) - torch.logsumexp(logits + log_r, 1)
    iteration, residual = 1, _change(torch.exp(-math.log(n) - log_c))
    plan, r, c = _plan(logits, log_r, log_c), logits.new_ones(k), logits.new_ones(n)
    while residual > tolerance and iteration + _CHECK_EVERY <= max_iterations:
        for _ in range(_CHECK_EVERY):
            r = 1 / (k * (plan.T @ c))
            before, c = c, 1 / (n * (plan @ r))
        iteration, residual = iteration + _CHECK_EVERY, _change(before / c)
        if max(r.max(), c.max(), 1 / r.min(), 1 / c.min()) > _LARGE_SCALE:
            log_r, log_c = log_r + r.log(), log_c + c.log()
            plan, r, c = _plan(logits, log_r, log_c), torch.ones_like(r), torch.ones_like(c)
    log_r, log_c = log_r + r.log(), log_c + c.log()
    return Assignment((logits + log_r).argmax(1), log_r, log_c, iteration, residual)


def _plan(logits: Tensor, log_r: Tensor, log_c: Tensor) -> Tensor:
    return (logits + log_r).add_(log_c[:, None]).exp_()


def _change(ratios: Tensor) -> float:
    return float((ratios - 1).abs().sum())
