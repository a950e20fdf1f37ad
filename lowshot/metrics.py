"""The six numbers of the low-shot benchmark (Hariharan & Girshick, ICCV 2017): top-1, top-5 on novel, base, all images.

Scores run over every class of the data set, without masking to the setup's classes and without class priors.
"""

from collections.abc import Callable

import numpy as np
import torch

from lowshot.errors import Diverged, InputError

TOP_K = (1, 5)


def true_class_ranks(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many other classes score at least as high as the true one: 0 is a top-1 hit, below 5 a top-5 hit.

    A tie counts against the true class, so a classifier that scores all classes alike gets nothing right.

    Args:
        scores: (..., n, n_classes) float.
        labels: (n,) int64, on the device of `scores`.

    Returns:
        (..., n) int64. Raises Diverged for NaN scores, which would otherwise rank first.
    """
    if torch.isnan(scores).any():
        raise Diverged("the scores hold NaN: the classifier diverged (a lower learning rate may help)")
    index = labels.expand(scores.shape[:-1]).unsqueeze(-1)
    return (scores >= scores.gather(-1, index)).sum(-1) - 1


def ranks_in_chunks(
    score: Callable[[torch.Tensor], torch.Tensor],
    feats: np.ndarray,
    labels: np.ndarray,
    device: str = "cpu",
    chunk_rows: int = 1000,
) -> np.ndarray:
    """`true_class_ranks` of all rows without ever holding all scores.

    Args:
        score: maps (rows, D) float32 on `device` to scores (..., rows, n_classes).
        feats: (N, D) float32.
        labels: (N,) int64.

    Returns:
        (..., N) int64.
    """
    ranks = []
    for start in range(0, len(feats), chunk_rows):
        chunk = slice(start, start + chunk_rows)
        truth = torch.from_numpy(labels[chunk]).to(device)
        ranks.append(true_class_ranks(score(torch.from_numpy(feats[chunk]).to(device)), truth).cpu())
    return torch.cat(ranks, dim=-1).numpy()


def six_accuracies(
    ranks: np.ndarray, labels: np.ndarray, base_classes: np.ndarray, novel_classes: np.ndarray
) -> dict[str, float]:
    """Fractions of images whose true class ranks below k, as the results files name them (`top1_novel` ... `top5_all`).

    Args:
        ranks: (N,) from `true_class_ranks`.
        labels: (N,); images of classes outside the setup are left out.

    Raises InputError if the test images hold no novel or no base class of the setup.
    """
    members = {"novel": np.isin(labels, novel_classes), "base": np.isin(labels, base_classes)}
    for name, inside in members.items():
        if not inside.any():
            raise InputError(f"the test features hold no image of the setup's {name} classes")
    members["all"] = members["novel"] | members["base"]
    return {f"top{k}_{name}": float((ranks[inside] < k).mean()) for name, inside in members.items() for k in TOP_K}
