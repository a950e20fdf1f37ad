"""Speed of episodes in batches and one at a time, and agreement with scikit-learn on every query.

Reads     nothing; makes random features: 20 classes of 600 rows, 512 dimensions.
Writes    JSON lines and Markdown rows on stdout.

    python benchmarks/episodes.py                   two minutes on two cores
    python benchmarks/episodes.py --n_episodes 100  a quick run

Episodes are 5-way 1-shot with 15 queries. Both sides start from features in memory and end with accuracies. One side
draws and evaluates all episodes in batches (`evaluate_episodes`). The other side is a typical loop over episodes, with
np.random.choice for the classes and for the images of every class. It has two variants: means and distances in numpy,
and scikit-learn's NearestCentroid. Runs of all sides alternate. The output is the median of wall time and of processor
time; the latter is more reliable on a shared machine.

The second part fits scikit-learn to the same tasks, one at a time, and counts the queries that it assigns to a
different class.

Estimate: 1000 episodes gather 80,000 rows, 164 MB, which takes 30 to 60 ms at memory speed. 5 centroids for 75 queries
are 0.2 M multiply-adds per episode, which is negligible. Per episode, a loop needs 6 draws of 20 to 30 us and a dozen
calls of 5 to 10 us. The checks of scikit-learn add about 1 ms.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.settings import METHODS, NearestMeanOptions
from lowshot.core.cli import run
from lowshot.core.settings import PositiveInt
from lowshot.data.protocol import make_split
from lowshot.evaluation.episodes import Pool, draw_tasks, evaluate_episodes, gather_tasks, make_pool
from lowshot.evaluation.settings import Sampling

N_CLASSES, N_ROWS, DIM, N_WAY, N_SHOT, N_QUERIES = 20, 600, 512, 5, 1, 15
SAMPLING = Sampling(n_way=N_WAY, n_shots=[N_SHOT], n_queries=N_QUERIES)


@dataclass
class Config:
    n_episodes: PositiveInt = 1000
    """Number of episodes per run."""
    n_runs: PositiveInt = 5
    """Number of runs of each side."""
    n_fitted: PositiveInt = 200
    """Number of episodes to compare with scikit-learn, query by query."""


def main(config: Config) -> None:
    """Time all sides in turn, then compare all queries."""
    warnings.filterwarnings("ignore", module="sklearn")  # it warns that classes of one shot have no variance
    feats, labels = make_features()
    pool = pool_of(labels)
    sides = {
        "batched": lambda: evaluate_batched(feats, pool, config.n_episodes),
        "loop, numpy": lambda: evaluate_one_by_one(feats, labels, config.n_episodes, nearest_in_numpy),
        "loop, scikit-learn": lambda: evaluate_one_by_one(feats, labels, config.n_episodes, nearest_in_sklearn),
    }
    times = {name: [] for name in sides}
    for _ in range(config.n_runs):
        for name, side in sides.items():
            start = np.array([time.perf_counter(), time.process_time()])
            accuracy = side()
            times[name].append(np.array([time.perf_counter(), time.process_time()]) - start)
            assert accuracy.shape == (config.n_episodes,)
    medians = {name: np.median(runs, axis=0) for name, runs in times.items()}
    for name, median in medians.items():
        report_time(config, name, median, medians["batched"])
    for name in ("nearest_mean", "logistic_regression"):
        report_agreement(name, *count_differences(torch.from_numpy(feats), pool, config.n_fitted, name))


def make_features() -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D), float32, and labels (N,). Clusters overlap, so that some queries are ambiguous."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(N_CLASSES), N_ROWS)
    feats = 0.3 * rng.normal(size=(N_CLASSES, DIM))[labels] + rng.normal(size=(len(labels), DIM))
    return np.maximum(feats, 0).astype(np.float32), labels


def evaluate_batched(feats: np.ndarray, pool: Pool, n_episodes: int) -> np.ndarray:
    episodes = evaluate_episodes(torch.from_numpy(feats), pool, SAMPLING, n_episodes, NearestMeanOptions())
    return np.array([one["accuracy"] for one in episodes])


def pool_of(labels: np.ndarray) -> Pool:
    """Return the pool of all images, whose `labels` (N,) are novel classes."""
    split = make_split("random", [str(c) for c in range(2 * N_CLASSES)], [], [None] * 2 * N_CLASSES, 0,
                       novel_classes=list(range(N_CLASSES)))  # fmt: skip
    return make_pool(labels, split, np.arange(N_CLASSES), SAMPLING, "random")


Nearest = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def evaluate_one_by_one(feats: np.ndarray, labels: np.ndarray, n_episodes: int, nearest: Nearest) -> np.ndarray:
    """Return the accuracies (n_episodes,) of `nearest` on episodes drawn one at a time."""
    rows_of = [np.flatnonzero(labels == c) for c in range(N_CLASSES)]
    support_labels, query_labels = np.repeat(np.arange(N_WAY), N_SHOT), np.repeat(np.arange(N_WAY), N_QUERIES)
    accuracies = []
    for episode in range(n_episodes):
        np.random.seed(episode)
        support, queries = [], []
        for c in np.random.choice(N_CLASSES, N_WAY, replace=False):
            rows = np.random.choice(rows_of[c], N_SHOT + N_QUERIES, replace=False)
            support.append(feats[rows[:N_SHOT]])
            queries.append(feats[rows[N_SHOT:]])
        predicted = nearest(np.concatenate(support), support_labels, np.concatenate(queries))
        accuracies.append((predicted == query_labels).mean())
    return np.array(accuracies)


def nearest_in_numpy(support: np.ndarray, support_labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    means = np.stack([support[support_labels == c].mean(0) for c in range(N_WAY)])
    return np.linalg.norm(queries[:, None] - means[None], axis=2).argmin(1)


def nearest_in_sklearn(support: np.ndarray, support_labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return NearestCentroid().fit(support, support_labels).predict(queries)


def count_differences(feats: torch.Tensor, pool: Pool, n_episodes: int, name: str) -> tuple[int, int, int]:
    """Count queries, queries that scikit-learn classifies differently, and episodes of different accuracy."""
    n_queries = n_other = n_episodes_other = 0
    sampling = Sampling(n_way=N_WAY, n_shots=[1, 5], n_queries=N_QUERIES)
    rows = next(draw_tasks(pool, sampling, range(n_episodes)))
    for _, tasks in gather_tasks(feats, rows, sampling.n_shots):
        ours = score_tasks(METHODS.classes[name](), tasks, 0).argmax(2).numpy()
        for episode, predicted in enumerate(ours):
            model = NearestCentroid() if name == "nearest_mean" else LogisticRegression(max_iter=1000)
            support, labels = tasks.support_features[episode].double().numpy(), tasks.support_labels[episode].numpy()
            theirs = model.fit(support, labels).predict(tasks.query_features[episode].double().numpy())
            truth = rows.query_labels[episode]
            n_queries += len(truth)
            n_other += int((theirs != predicted).sum())
            n_episodes_other += int((theirs == truth).mean() != (predicted == truth).mean())
    return n_queries, n_other, n_episodes_other


def report_time(config: Config, name: str, median: np.ndarray, batched: np.ndarray) -> None:
    (seconds, cpu_seconds), (ratio, cpu_ratio) = median, median / batched
    record = {"side": name, "n_episodes": config.n_episodes, "seconds": round(seconds, 3), "ratio": round(ratio, 1),
              "cpu_seconds": round(cpu_seconds, 3), "cpu_ratio": round(cpu_ratio, 1)}  # fmt: skip
    print(json.dumps({"benchmark": "episodes", **record}))
    clock, cpu = f"{seconds:.2f} s ({ratio:.1f}x)", f"{cpu_seconds:.2f} s CPU ({cpu_ratio:.1f}x)"
    print(f"| {config.n_episodes} episodes, {name} | {clock} | {cpu} |")


def report_agreement(name: str, n_queries: int, n_other: int, n_episodes_other: int) -> None:
    record = {"method": name, "n_queries": n_queries, "n_other": n_other, "n_episodes_other": n_episodes_other}
    print(json.dumps({"benchmark": "episodes, scikit-learn", **record}))
    print(f"| {name} against scikit-learn | {n_other} of {n_queries} queries differ | {n_episodes_other} accuracies |")


if __name__ == "__main__":
    run(main, Config, __doc__)
