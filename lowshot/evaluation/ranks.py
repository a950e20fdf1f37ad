"""The rank of the true class among the scores of an image. All metrics are computed from it."""

from collections.abc import Callable

import numpy as np
import torch

from lowshot.core.errors import Diverged
from lowshot.evaluation.settings import Ties


def true_class_ranks(scores: torch.Tensor, labels: torch.Tensor, ties: Ties = "against") -> torch.Tensor:
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


def ranks_in_chunks(
    score: Callable[[torch.Tensor], torch.Tensor],
    feats: np.ndarray,
    labels: np.ndarray,
    device: str = "cpu",
    chunk_rows: int = 1000,
    keep: Callable[[slice, torch.Tensor], None] | None = None,
) -> np.ndarray:
    """Return `true_class_ranks` of all rows. The scores of only one chunk are in memory at a time.

    Args:
        score: maps (rows, D) float32 on `device` to scores (..., rows, n_classes).
        feats: (N, D) float32.
        labels: (N,) int64.
        keep: called with the rows and the scores of every chunk.

    Returns:
        (..., N) int64.
    """
    ranks = []
    for start in range(0, len(feats), chunk_rows):
        chunk = slice(start, start + chunk_rows)
        truth = torch.from_numpy(labels[chunk]).to(device)
        scores = score(torch.from_numpy(feats[chunk]).to(device))
        ranks.append(true_class_ranks(scores, truth).cpu())
        if keep is not None:
            keep(chunk, scores)
    return torch.cat(ranks, dim=-1).numpy()
