"""From the scores of images to their outcomes: the rank of the true class, and what else the numbers need."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lowshot.core.errors import Diverged
from lowshot.evaluation.outcomes import NOVEL_PRIOR, Columns, Outcomes
from lowshot.evaluation.settings import Ties

# Scores are logits (or log-probabilities), or probabilities up to a factor.
Form = Literal["logits", "probabilities"]
# Infinite scores become finite, so that their differences are numbers.
_FINITE = 1e30


def true_class_ranks(scores: Tensor, labels: Tensor, ties: Ties = "against") -> Tensor:
    """Return the number of other classes that score at least as high as the true class.

    Rank 0 is a top-1 hit, a rank below 5 is a top-5 hit. A tie counts against the true class, so a classifier with
    equal scores for all classes has an accuracy of 0.

    Args:
        scores: (..., n, n_classes) float.
        labels: (n,) int64, on the device of `scores`.
        ties: with "lowest_class" the class of the lower index wins a tie, as in faiss (Douze et al., 2018).

    Returns:
        (..., n) int64. Raises Diverged for NaN scores, which would otherwise rank first.
    """
    if torch.isnan(scores).any():
        raise Diverged("the scores hold NaN: the classifier diverged (a lower learning rate may help)")
    index = labels.expand(scores.shape[:-1]).unsqueeze(-1)
    true_scores = scores.gather(-1, index)
    if ties == "against":
        return (scores >= true_scores).sum(-1) - 1
    lower = torch.arange(scores.shape[-1], device=scores.device) < index
    return ((scores > true_scores) | ((scores == true_scores) & lower)).sum(-1)


def outcomes_of(
    scores: Tensor, labels: Tensor, columns: Columns, ties: Ties = "against", form: Form = "logits"
) -> Outcomes:
    """Return what `scores` say.

    Args:
        scores: (..., n, C) float.
        labels: (n,) int64, true classes as columns, on the device of `scores`. All are base or novel.
        ties: see `true_class_ranks`. In `prior_ranks`, a tie with the other group counts against the true class.
        form: with "probabilities", `prior_ranks` and `leads` are computed from their logarithms.

    Raises Diverged for NaN scores.
    """
    ranks = true_class_ranks(scores, labels, ties)
    base, novel = (torch.from_numpy(one).to(scores.device) for one in (columns.base, columns.novel))
    is_novel, true = torch.isin(labels, novel), scores.gather(-1, labels.expand(ranks.shape).unsqueeze(-1))
    of_base, of_novel = scores.index_select(-1, base), scores.index_select(-1, novel)
    n_base, n_novel = (
        _n_ahead(one, true, group < labels[:, None], ties) for one, group in ((of_base, base), (of_novel, novel))
    )
    among = torch.where(is_novel, n_novel, n_base)
    of_base, of_novel, true = (_as_logits(one, form) for one in (of_base, of_novel, true))
    leads = of_base.amax(-1).double() - of_novel.amax(-1).double()
    # What a prior adds to the logits of the novel classes, relative to those of the base classes.
    odds = np.log(NOVEL_PRIOR / (1 - NOVEL_PRIOR)) + of_base.logsumexp(-1) - of_novel.logsumexp(-1)
    others = (of_base >= true + odds[..., None]).sum(-1), (of_novel >= true - odds[..., None]).sum(-1)
    predicted = torch.from_numpy(columns.classes).to(scores.device)[_winners(scores, labels, ranks)]
    numbers = ranks, among, among + torch.where(is_novel, *others)
    integers = (one.to("cpu", torch.int32).numpy() for one in (*numbers, predicted))
    return Outcomes(*integers, leads=leads.cpu().numpy())


def _n_ahead(scores: Tensor, true: Tensor, lower: Tensor, ties: Ties) -> Tensor:
    """Return the number of `scores` (..., n, C) ahead of the true score (..., n, 1), of other classes if it is among
    them. `lower` (n, C) marks classes of a lower index than the true one."""
    if ties == "against":
        return ((scores >= true).sum(-1) - 1).clamp(min=0)
    return ((scores > true) | ((scores == true) & lower)).sum(-1)


def _as_logits(scores: Tensor, form: Form) -> Tensor:
    return (scores.log() if form == "probabilities" else scores).clamp(-_FINITE, _FINITE)


def _winners(scores: Tensor, labels: Tensor, ranks: Tensor) -> Tensor:
    """Return the column with the highest score (..., n): the true one at rank 0, another one otherwise."""
    labels = labels.expand(ranks.shape)
    winners = torch.where(ranks == 0, labels, scores.argmax(-1))
    tied = (ranks > 0) & (winners == labels)
    rivals = scores[tied].clamp(-_FINITE).scatter(-1, labels[tied].unsqueeze(-1), -torch.inf)
    winners[tied] = rivals.argmax(-1)
    return winners


def with_novel_bias(scores: Tensor, columns: Columns, bias: float) -> Tensor:
    """Return `scores` (..., n, C) with `bias` added to those of the novel classes of the setup.

    Calibrated stacking (Chao et al., ECCV 2016), which subtracts a number from the scores of the base classes instead:
    the differences are the same. The result is float64, so that a large bias keeps the order within a group; without a
    bias it is `scores`.
    """
    if not bias:
        return scores
    shift = torch.zeros(scores.shape[-1], dtype=torch.float64)
    shift[columns.novel] = bias
    return scores + shift.to(scores.device)


def outcomes_in_chunks(
    score: Callable[[Tensor], Tensor],
    feats: np.ndarray,
    labels: np.ndarray,
    columns: Columns,
    device: str = "cpu",
    chunk_rows: int = 1000,
    keep: Callable[[slice, Tensor], None] | None = None,
    ties: Ties = "against",
    form: Form = "logits",
) -> Outcomes:
    """Return the outcomes of all rows. The scores of only one chunk are in memory at a time.

    Args:
        score: maps (rows, D) float32 on `device` to scores (..., rows, C).
        feats: (N, D) float32.
        labels: (N,) int64, true classes as columns.
        keep: called with the rows and the scores of every chunk.
        ties, form: see `outcomes_of`.
    """
    parts = []
    for start in range(0, len(feats), chunk_rows):
        chunk = slice(start, start + chunk_rows)
        scores = score(torch.from_numpy(feats[chunk]).to(device))
        parts.append(outcomes_of(scores, torch.from_numpy(labels[chunk]).to(device), columns, ties, form))
        if keep is not None:
            keep(chunk, scores)
    return Outcomes.joined(parts)
