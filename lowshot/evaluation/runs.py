"""All runs of the low-shot benchmark with one classifier or few-shot method."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lowshot.classifiers.methods import fit_classifier, fitted_together, is_joint, score_tasks
from lowshot.classifiers.problem import Problem, Run
from lowshot.classifiers.settings import BENCHMARK_CLASSIFIERS, METHODS
from lowshot.classifiers.tasks import Tasks
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream
from lowshot.evaluation.benchmark import Benchmark, Ranks
from lowshot.evaluation.ranks import ranks_in_chunks, true_class_ranks

# Called with a run (trial, n), rows of the test images and their scores (rows, classes).
Keep = Callable[[tuple[int, int], slice, torch.Tensor], None]


def rank_runs(
    classifier: Any,
    problem: Problem,
    benchmark: Benchmark,
    queries: np.ndarray,
    seed: int,
    device: str,
    done: Collection[tuple[int, int]] = (),
    keep: Keep | None = None,
) -> Iterator[Ranks]:
    """Yield the ranks of the true classes in the runs of `problem`, part by part.

    Args:
        classifier: settings of a classifier of the benchmark or of a few-shot method.
        problem: rows of the base classes, and of the novel classes of each run.
        queries: (N, D) float32, test features of the benchmark with the same transform as the rows of the problem.
        done: runs (trial, n) to leave out. A part is left out if all of its runs are.
        keep: called with the scores of every run.
    """
    parts = [[problem.runs[i] for i in part] for part in fitted_together(classifier, problem, device)]
    left = [runs for runs in parts if not {run.key for run in runs}.issubset(done)]
    name, is_single = BENCHMARK_CLASSIFIERS.name_of(classifier), all(len(runs) == 1 for runs in left)
    rank = _rank_jointly if is_joint(classifier) else _rank_tasks
    for runs in Progress(left, name, unit="run", disable=not is_single, resumable=True):
        yield rank(classifier, replace(problem, runs=runs), benchmark, queries, seed, device, keep)


def _rank_jointly(
    classifier: Any,
    problem: Problem,
    benchmark: Benchmark,
    queries: np.ndarray,
    seed: int,
    device: str,
    keep: Keep | None,
) -> Ranks:
    score = fit_classifier(classifier, problem, seed, device)

    def keep_all(rows: slice, scores: torch.Tensor) -> None:
        for run, run_scores in zip(problem.runs, scores):
            keep(run.key, rows, run_scores)

    by_run = ranks_in_chunks(score, queries, benchmark.test_labels, device, keep=keep and keep_all)
    return {run.key: run_ranks for run, run_ranks in zip(problem.runs, by_run)}


def _rank_tasks(
    method: Any,
    problem: Problem,
    benchmark: Benchmark,
    queries: np.ndarray,
    seed: int,
    device: str,
    keep: Keep | None,
) -> Ranks:
    truth = torch.from_numpy(np.searchsorted(benchmark.classes, benchmark.test_labels)).to(device)
    ranks, name = {}, METHODS.name_of(method)
    for run in problem.runs:
        method_seed = int(stream(seed, name, *run.key).integers(2**32))
        scores = score_tasks(method, _as_task(run, problem, benchmark, queries, device), method_seed)[0]
        ranks[run.key] = true_class_ranks(scores, truth).cpu().numpy()
        if keep is not None:
            keep(run.key, slice(0, len(scores)), scores)
    return ranks


def _as_task(run: Run, problem: Problem, benchmark: Benchmark, queries: np.ndarray, device: str) -> Tasks:
    """Return a run as one few-shot task.

    The support is the base rows and the novel rows of the run, the queries are all test images, and the ways are the
    classes of the setup in ascending order.
    """
    support = np.concatenate([problem.base_feats, run.feats])
    ways = np.searchsorted(benchmark.classes, np.concatenate([problem.base_labels, run.labels]))
    arrays = (torch.from_numpy(one[None]).to(device) for one in (support, ways, queries))
    return Tasks(*arrays, len(benchmark.classes))
