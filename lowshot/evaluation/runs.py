"""All runs of the low-shot benchmark with one classifier or few-shot method."""

from collections.abc import Callable, Collection, Iterator, Sequence
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
from lowshot.evaluation.ranks import outcomes_in_chunks, outcomes_of, with_novel_bias

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
    novel_biases: Sequence[float] = (0.0,),
) -> Iterator[list[Evaluated]]:
    """Yield the outcomes of the runs of `problem`, part by part. A part has an entry for each of `novel_biases`.

    Args:
        classifier: settings of a classifier of the benchmark or of a few-shot method.
        problem: rows of the base classes, and of the novel classes of each run.
        queries: (N, D) float32, test features of the benchmark with the same transform as the rows of the problem.
        done: runs (trial, n) to leave out. A part is left out if all of its runs are.
        keep: called with the scores of every run and bias, the bias included.
        novel_biases: numbers to add to the scores of the novel classes (`with_novel_bias`). The classifier is fitted
            once for all of them.
    """
    parts = [[problem.runs[i] for i in part] for part in fitted_together(classifier, problem, device)]
    left = [runs for runs in parts if not {run.key for run in runs}.issubset(done)]
    name, is_single = BENCHMARK_CLASSIFIERS.name_of(classifier), all(len(runs) == 1 for runs in left)
    evaluate = _evaluate_jointly if is_joint(classifier) else _evaluate_tasks
    how = _Evaluation(benchmark, queries, seed, device, keep, novel_biases)
    for runs in Progress(left, name, unit="run", disable=not is_single, resumable=True):
        yield evaluate(classifier, replace(problem, runs=runs), how)


class _Evaluation(NamedTuple):
    """What all parts are evaluated with; see `evaluate_runs`."""

    benchmark: Benchmark
    queries: np.ndarray
    seed: int
    device: str
    keep: Keep | None
    novel_biases: Sequence[float]


def _evaluate_jointly(classifier: Any, problem: Problem, how: _Evaluation) -> list[Evaluated]:
    score = fit_classifier(classifier, problem, how.seed, how.device)

    def keep_all(rows: slice, scores: torch.Tensor) -> None:
        for run, run_scores in zip(problem.runs, scores):
            how.keep(run.key, rows, run_scores)

    columns, keep = how.benchmark.columns(of_setup=False), keep_all if how.keep else None
    rows = how.queries, how.benchmark.test_labels

    def evaluated(bias: float) -> Evaluated:
        def biased(feats: torch.Tensor) -> torch.Tensor:
            return with_novel_bias(score(feats), columns, bias)

        by_run = outcomes_in_chunks(biased, *rows, columns, how.device, keep=keep)
        return {run.key: by_run[i] for i, run in enumerate(problem.runs)}

    return [evaluated(bias) for bias in how.novel_biases]


def _evaluate_tasks(method: Any, problem: Problem, how: _Evaluation) -> list[Evaluated]:
    truth = torch.from_numpy(np.searchsorted(how.benchmark.classes, how.benchmark.test_labels)).to(how.device)
    by_bias, columns = [{} for _ in how.novel_biases], how.benchmark.columns(of_setup=True)
    for run in problem.runs:
        scores = score_tasks(method, _as_task(run, problem, how), seed_of_run(how.seed, method, run))[0]
        for evaluated, bias in zip(by_bias, how.novel_biases):
            biased = with_novel_bias(scores, columns, bias)
            evaluated[run.key] = outcomes_of(biased, truth, columns)
            if how.keep is not None:
                how.keep(run.key, slice(0, len(biased)), biased)
    return by_bias


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
