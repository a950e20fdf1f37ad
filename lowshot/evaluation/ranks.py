"""The rank of the true class among an image's scores, from which all metrics follow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lowshot.classifiers.methods import CLASSIFIERS, METHODS
from lowshot.classifiers.problem import Problem
from lowshot.classifiers.tasks import Tasks
from lowshot.core.errors import Diverged
from lowshot.core.seeds import stream
from lowshot.evaluation.settings import Ties

# Is given the scores (rows, classes) of a run (trial, n) for some of the test images.
Keep = Callable[[tuple[int, int], slice, torch.Tensor], None]


def true_class_ranks(scores: torch.Tensor, labels: torch.Tensor, ties: Ties = "against") -> torch.Tensor:
    """How many other classes score at least as high as the true one: 0 is a top-1 hit, below 5 a top-5 hit.

    A tie counts against the true class, so a classifier that scores all classes alike gets nothing right.

    Args:
        scores: (..., n, n_classes) float.
        labels: (n,) int64, on the device of `scores`.
        ties: "lowest_class" lets the class of the lower number win instead, as faiss does in Douze et al. (2018).

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
    """`true_class_ranks` of all rows without ever holding all scores.

    Args:
        score: maps (rows, D) float32 on `device` to scores (..., rows, n_classes).
        feats: (N, D) float32.
        labels: (N,) int64.
        keep: is given the rows and the scores of every chunk.

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


def classifier_ranks(
    name: str,
    problem: Problem,
    options: Any,
    queries: np.ndarray,
    labels: np.ndarray,
    seed: int,
    device: str,
    keep: Keep | None = None,
) -> dict[tuple[int, int], np.ndarray]:
    """`true_class_ranks` (N,) of every run (trial, n) of `problem`, by a classifier of the benchmark.

    Args:
        name: one of `CLASSIFIERS`; `options` are its settings.
        queries: (N, D) float32, the test images, transformed as the problem's rows are.
        labels: (N,) int64.
        keep: is given all scores.
    """
    score = CLASSIFIERS[name](problem, options, seed, device)

    def keep_all(rows: slice, scores: torch.Tensor) -> None:
        for run, some in zip(problem.runs, scores):
            keep(run.key, rows, some)

    ranks = ranks_in_chunks(score, queries, labels, device, keep=keep and keep_all)
    return {run.key: row for run, row in zip(problem.runs, ranks)}


def few_shot_ranks(
    name: str,
    problem: Problem,
    options: Any,
    classes: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    seed: int,
    device: str,
    keep: Keep | None = None,
) -> dict[tuple[int, int], np.ndarray]:
    """The same by a few-shot method: every run is one task. Base rows and the run's novel rows are its support, all
    test images its queries, the setup's `classes` (ascending) its ways."""
    method = METHODS[name]

    def ways(labels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.searchsorted(classes, labels)).to(device)

    truth, test = ways(labels), torch.from_numpy(queries).to(device)
    ranks = {}
    for run in tqdm(problem.runs, desc=name, unit="run", disable=None):
        support = torch.from_numpy(np.concatenate([problem.base_feats, run.feats])).to(device)
        support_labels = ways(np.concatenate([problem.base_labels, run.labels]))
        task = Tasks(support[None], support_labels[None], test[None], len(classes))
        scores = method.score(task, options, int(stream(seed, name, *run.key).integers(2**32)))[0]
        ranks[run.key] = true_class_ranks(scores, truth).cpu().numpy()
        if keep is not None:
            keep(run.key, slice(0, len(scores)), scores)
    return ranks
