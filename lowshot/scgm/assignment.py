"""The E-step: one subclass for every image, all subclasses equally large (Asano et al., ICLR 2020; spec 3.3).

Of all plans Q (N, K) whose rows sum to 1/N and columns to 1/K, the one that maximises sum Q log P + H(Q) / exponent is
Q_ik = c_i P_ik^exponent r_k. Sinkhorn and Knopp's iteration sets r, then c. The label of an image is the subclass of
the largest entry in its row.

P^25 leaves the range of float64. Hence logarithms of r and c are kept, and of every ten iterations one is done with
them. The others scale its plan (Schmitzer, SIAM J. Sci. Comput. 2019): one iteration moves an entry of r or c by a
factor of N at most, so ten of them stay far inside the range. They read the matrix twice and need no exponential.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lowshot.errors import InputError

# Iterations between two looks at the residual, as published.
_CHECK_EVERY = 10


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
    next one to look at would be beyond `max_iterations`. Raises InputError for a score that is NaN or an image that no
    subclass explains.
    """
    logits = exponent * log_scores.double()
    if not logits.amax(1).isfinite().all():
        raise InputError("scores of subclasses: an image has NaN, or no subclass that explains it")
    n, k = logits.shape
    log_c = torch.full((n,), -math.log(n), dtype=torch.float64, device=logits.device)
    iteration = 1
    while True:
        log_r = -math.log(k) - torch.logsumexp(logits + log_c[:, None], 0)
        before, log_c = log_c, -math.log(n) - torch.logsumexp(logits + log_r, 1)
        residual = float(torch.expm1(before - log_c).abs().sum())
        if residual <= tolerance or iteration + _CHECK_EVERY > max_iterations:
            break
        log_r, log_c = _scaled(logits, log_r, log_c, _CHECK_EVERY - 1)
        iteration += _CHECK_EVERY
    return Assignment((logits + log_r).argmax(1), log_r, log_c, iteration, residual)


def _scaled(logits: Tensor, log_r: Tensor, log_c: Tensor, n_iterations: int) -> tuple[Tensor, Tensor]:
    """log r and log c after more iterations, which scale the plan that they make."""
    plan = (logits + log_r).add_(log_c[:, None]).exp_()
    n, k = plan.shape
    r, c = plan.new_ones(k), plan.new_ones(n)
    for _ in range(n_iterations):
        r = 1 / (k * (plan.T @ c))
        c = 1 / (n * (plan @ r))
    return log_r + r.log(), log_c + c.log()
