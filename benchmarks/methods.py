"""Seconds of every few-shot method on the same tasks, beside EasyFSL's, and their accuracies.

Reads     nothing; makes random features: 20 classes of 600 rows, 512 dimensions. Needs `pip install easyfsl`.
Writes    a Markdown table on stdout.

    python benchmarks/methods.py                       half an hour on two cores
    python benchmarks/methods.py --n_tasks 50 --n_runs 1   a quick run

Tasks are 5-way 1-shot with 15 queries, in memory. Ours are scored in one call of `score_tasks`, EasyFSL's one at a
time, which is how it is used. Both make the same number of steps, and both include the transform of the features. Runs
of both alternate. EasyFSL's slower methods run on the first of the tasks only, and their seconds are scaled to all.

Estimate: TIM makes 1000 steps of 2 products of 80 rows, 5 prototypes and 512 dimensions: 0.8 GFLOP a task, 20 to 40 s
for 1000 tasks on a core. Measured: 242 s, as products this small are far from the peak. PT-MAP makes 21 assignments of
375 entries, each in 20 to 100 rounds: 0.16 to 0.8 G exponentials for 1000 tasks, 1 to 5 s. Measured: 12 s.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.episodes import SAMPLING, make_features, pool_of
from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.settings import RECOMMENDED, FeatureTransform
from lowshot.classifiers.tasks import Tasks
from lowshot.classifiers.transform import fitted_transform
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.settings import PositiveInt
from lowshot.evaluation.episodes import draw_tasks, gather_tasks

# EasyFSL's class of a method, its settings for the same number of steps, and the part of the tasks that it runs on.
_THEIRS = {
    "nearest_mean": ("PrototypicalNetworks", {}, 1.0),
    "laplacian_shot": ("LaplacianShot", {"inference_steps": 20, "feature_normalization": 2.0}, 1.0),
    # EasyFSL neither centres nor normalises after the power. Its own factor, 10, makes NaN of these features; 2 makes
    # assignments about as hard as ours.
    "pt_map": ("PTMAP", {"fine_tuning_steps": 20, "feature_normalization": 2.0, "lambda_regularization": 2.0}, 0.2),
    "bd_cspn": ("BDCSPN", {"feature_normalization": 2.0}, 1.0),
    "tim": ("TIM", {"fine_tuning_steps": 1000, "feature_normalization": 2.0}, 0.02),
}
# The first query labels of a task are those of its first class, and so on.
_N_WAY, _N_QUERIES = SAMPLING.n_way, SAMPLING.n_queries


@dataclass
class Config:
    n_tasks: PositiveInt = 1000
    """Number of tasks."""
    n_runs: PositiveInt = 3
    """Number of runs of each side. The table shows medians."""


def main(config: Config) -> None:
    """Time all methods of both sides."""
    try:
        import easyfsl.methods as theirs
    except ImportError:
        raise InputError("easyfsl: not installed. Install it with pip install easyfsl") from None
    tasks, base = make_tasks(config.n_tasks)
    truth = torch.arange(_N_WAY).repeat_interleave(_N_QUERIES)
    print(f"{config.n_tasks} tasks, medians of {config.n_runs} runs\n")
    print("| method | ours, s | EasyFSL, s | ratio | ours, % | EasyFSL, % |\n|---|---|---|---|---|---|")
    for name, (method, transform) in RECOMMENDED.items():
        sides = [(partial(score_ours, method, transform, tasks, base), 1.0)]
        if name in _THEIRS:
            other, settings, part = _THEIRS[name]
            n_tasks = max(1, round(part * config.n_tasks))
            some = tasks[slice(n_tasks)]
            sides.append((partial(score_theirs, getattr(theirs, other), settings, some), n_tasks / config.n_tasks))
        timed = [[timed_scores(*side) for side in sides] for _ in range(config.n_runs)]
        seconds = np.median([[one[0] for one in run_] for run_ in timed], axis=0)
        accuracies = [100 * float((one[1].argmax(-1) == truth).float().mean()) for one in timed[0]]
        print_row(name, seconds, accuracies)


def make_tasks(n_tasks: int) -> tuple[Tasks, np.ndarray]:
    """Return tasks of random features, and rows of base classes to centre on."""
    feats, labels = make_features()
    rows = next(draw_tasks(pool_of(labels), SAMPLING, range(n_tasks)))
    return next(gather_tasks(torch.from_numpy(feats), rows, SAMPLING.n_shots))[1], feats


def score_ours(method: object, transform: FeatureTransform, tasks: Tasks, base: np.ndarray) -> Tensor:
    apply = fitted_transform(transform, torch.from_numpy(base))
    transformed = replace(
        tasks, support_features=apply(tasks.support_features), query_features=apply(tasks.query_features)
    )
    return score_tasks(method, transformed, 0)


def score_theirs(kind: type, settings: dict, tasks: Tasks) -> Tensor:
    scores = []
    for support, labels, queries in zip(tasks.support_features, tasks.support_labels, tasks.query_features):
        classifier = kind(**settings)
        classifier.process_support_set(support, labels)
        scores.append(classifier(queries).detach())
    return torch.stack(scores)


def timed_scores(score: Callable[[], Tensor], part: float) -> tuple[float, Tensor]:
    """Return the seconds for all tasks, and the scores. `part` is the part of the tasks that is scored."""
    start = time.perf_counter()
    scores = score()
    return (time.perf_counter() - start) / part, scores


def print_row(name: str, seconds: np.ndarray, accuracies: list[float]) -> None:
    """Print the row of a method: our seconds and accuracy, then EasyFSL's if there are any."""
    other = [f"{seconds[1]:.2f}", f"{seconds[1] / seconds[0]:.1f}x"] if len(seconds) > 1 else ["", ""]
    cells = [name, f"{seconds[0]:.2f}", *other, *(f"{one:.1f}" for one in accuracies), ""][:6]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run(main, Config, __doc__)
