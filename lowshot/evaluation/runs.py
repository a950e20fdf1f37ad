"""All runs of the low-shot benchmark with one classifier or few-shot method."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from lowshot.classifiers.methods import fit_classifier, fitted_together, is_joint, score_tasks
from lowshot.classifiers.problem import Problem, Run
from lowshot.classifiers.settings import BENCHMARK_CLASSIFIERS, METHODS
from lowshot.classifiers.tasks import Tasks
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream
from lowshot.evaluation.benchmark import Benchmark, Evaluated
from lowshot.evaluation.ranks import outcomes_in_chunks, outcomes_of

# Called with a run (trial, n), rows of the test images and their scores (rows, classes).
Keep = Callable[[tuple[int, int], slice, torch.Tensor], None]


def evaluate_runs(
    classifier: Any,
    problem: Problem,
    benchmark: Benchmark,
    queries: np.ndarray,
    seed: int,
    device: str,
    done: Collection[tuple[int, int]] = (),
    keep: Keep | None = None,
) -> Iterator[Evaluated]:
    """Yield the outcomes of the runs of `problem`, part by part.

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
    evaluate = _evaluate_jointly if is_joint(classifier) else _evaluate_tasks
    how = _Evaluation(benchmark, queries, seed, device, keep)
    for runs in Progress(left, name, unit="run", disable=not is_single, resumable=True):
        yield evaluate(classifier, replace(problem, runs=runs), how)


class _Evaluation(NamedTuple):
    """What all parts are evaluated with; see `evaluate_runs`."""

    benchmark: Benchmark
    queries: np.ndarray
    seed: int
    device: str
    keep: Keep | None


def _evaluate_jointly(classifier: Any, problem: Problem, how: _Evaluation) -> Evaluated:
    score = fit_classifier(classifier, problem, how.seed, how.device)

    def keep_all(rows: slice, scores: torch.Tensor) -> None:
        for run, run_scores in zip(problem.runs, scores):
            how.keep(run.key, rows, run_scores)

    columns, keep = how.benchmark.columns(of_setup=False), keep_all if how.keep else None
    by_run = outcomes_in_chunks(score, how.queries, how.benchmark.test_labels, columns, how.device, keep=keep)
    return {run.key: by_run[i] for i, run in enumerate(problem.runs)}


def _evaluate_tasks(method: Any, problem: Problem, how: _Evaluation) -> Evaluated:
    truth = torch.from_numpy(np.searchsorted(how.benchmark.classes, how.benchmark.test_labels)).to(how.device)
    evaluated, columns = {}, how.benchmark.columns(of_setup=True)
    for run in problem.runs:
        scores = score_tasks(method, _as_task(run, problem, how), seed_of_run(how.seed, method, run))[0]
        evaluated[run.key] = outcomes_of(scores, truth, columns)
        if how.keep is not None:
            how.keep(run.key, slice(0, len(scores)), scores)
    return evaluated


def seed_of_run(seed: int, method: Any, run: Run) -> int:
    """Return the seed of a few-shot method in a run."""
    return int(stream(seed, METHODS.name_of(method), *run.key).integers(2**32))


def _as_task(run: Run, problem: Problem, how: _Evaluation) -> Tasks:
    """Return a run as one few-shot task.

    The support is the base rows and the novel rows of the run, the queries are all test images, and the ways are the
    classes of the setup in ascending order.
    """
    support = np.concatenate([problem.base_feats, run.feats])
    ways = np.searchsorted(how.benchmark.classes, np.concatenate([problem.base_labels, run.labels]))
    arrays = (torch.from_numpy(one[None]).to(how.device) for one in (support, ways, how.queries))
    return Tasks(*arrays, len(how.benchmark.classes))
