"""N-way K-shot tasks (episodes) from a pool of features: many at once, each a function of the seed and its number.

Episode e has the same classes, shots and queries whatever the method, the batch size and the number of episodes, its
n-shot supports are nested, and its queries do not depend on n: results of methods and of shots are paired by episode.

Every draw without replacement is a step of Fisher and Yates' shuffle, done for all episodes of a batch at once. Each
step has a random stream of its own, of which consecutive episodes take consecutive numbers; PCG64 enters a stream at
any place. A class's shuffled images are first its queries, then its shots.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from scipy.special import gammaincinv, softmax
from torch import Tensor

from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.tasks import Tasks
from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream
from lowshot.data.protocol import Split
from lowshot.evaluation.ranks import true_class_ranks
from lowshot.evaluation.settings import Sampling

# Bytes of the shuffles that are drawn at once, and of the features that are gathered and evaluated at once: on a
# processor so few that they stay in its cache and in memory that it has already.
_DRAWN_BYTES = 64 << 20
_GATHERED_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20}


def tasks_digest(sampling: Sampling, labels: np.ndarray, images: list[str]) -> str:
    """The same where episodes of one number are the same images: same kind of task, same pool (in one split and setup)
    with labels (N,), from files whose `images` are named. The numbers of shots do not count: they share classes and
    queries."""
    kind = {f.name: getattr(sampling, f.name) for f in fields(Sampling) if f.name != "n_shots"}
    return hashlib.sha256(json.dumps([kind, images]).encode() + labels.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Pool:
    """Where tasks come from: rows by class, and the groups of classes that may meet in a task.

    `rows` int64 (N,) are row numbers of the features, class after class; class c has `sizes[c]` of them from
    `starts[c]` on. `groups` int64 (G, M) holds class numbers, `group_sizes` (G,) of them in each group, the rest is
    padding. `source` names the files in errors.
    """

    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    groups: np.ndarray
    group_sizes: np.ndarray
    class_names: list[str]
    source: str


@dataclass(frozen=True)
class TaskRows:
    """E tasks of one shape as row numbers of the features, all int64.

    `episodes` (E,); `classes` (E, n_way), class numbers of the split; `support` (E, n_way, n_shot), of which the first
    n are the n-shot support; `queries` and `query_labels` (E, Q), labels in 0..n_way-1.
    """

    episodes: np.ndarray
    classes: np.ndarray
    support: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray

    @property
    def n_way(self) -> int:
        return self.classes.shape[1]

    def parts(self, n_tasks: int) -> Iterator["TaskRows"]:
        """The tasks in order, `n_tasks` at a time."""
        for first in range(0, len(self.episodes), n_tasks):
            yield TaskRows(*(getattr(self, f.name)[first : first + n_tasks] for f in fields(self)))


def make_pool(labels: np.ndarray, split: Split, classes: np.ndarray, sampling: Sampling, source: str) -> Pool:
    """The pool of the images `labels` (N,), for tasks of `classes`.

    Raises InputError, naming the class, its images and `source`, where no such tasks can be drawn.
    """
    sizes = np.bincount(labels, minlength=split.n_classes)
    groups = _by_superclass(split, classes) if sampling.within_superclass else [classes]
    groups = _large_enough(groups, sampling)
    group_sizes = np.array([len(group) for group in groups])
    padded = np.stack([np.pad(group, (0, group_sizes.max() - len(group))) for group in groups])
    order = np.argsort(labels, kind="stable")
    pool = Pool(order, np.cumsum(sizes) - sizes, sizes, padded, group_sizes, split.class_names, source)
    classes = np.concatenate(groups)
    n_queries = 0 if sampling.dirichlet else sampling.n_queries
    _check_sizes(pool, classes, np.full(len(classes), n_queries), max(sampling.n_shots))
    return pool


def _by_superclass(split: Split, classes: np.ndarray) -> list[np.ndarray]:
    superclasses = np.array([-1 if split.superclass_of[c] is None else split.superclass_of[c] for c in classes])
    if (superclasses < 0).all():
        raise InputError(
            f"within_superclass: the split of {split.dataset} knows no superclass of the classes to evaluate"
        )
    return [classes[superclasses == superclass] for superclass in np.unique(superclasses[superclasses >= 0])]


def _large_enough(groups: list[np.ndarray], sampling: Sampling) -> list[np.ndarray]:
    n_way = 2 if sampling.n_way == "all" else sampling.n_way
    if n_way < 2:
        raise InputError(f"n_way {n_way}: a task has two classes or more")
    if large := [group for group in groups if len(group) >= n_way]:
        return large
    most = max(map(len, groups))
    if sampling.within_superclass:
        raise InputError(
            f"n_way {sampling.n_way}: no superclass has {n_way} of the classes to evaluate ({most} at most)"
        )
    raise InputError(f"n_way {sampling.n_way}: more ways than the {most} classes to evaluate")


def _check_sizes(pool: Pool, classes: np.ndarray, n_queries: np.ndarray, n_shot: int, task: str = "a task") -> None:
    """InputError unless each of `classes` (n,) has images enough for its `n_queries` (n,) and `n_shot` shots."""
    for i in np.flatnonzero(pool.sizes[classes] < n_queries + n_shot)[:1]:
        what = f"class {classes[i]} ({pool.class_names[classes[i]]}) has {pool.sizes[classes[i]]} images"
        needed = f"{n_shot} + {n_queries[i]} (shots + queries) of {task}"
        raise InputError(f"{pool.source}: {what}, fewer than the {needed}")


def draw_tasks(pool: Pool, sampling: Sampling, episodes: range) -> Iterator[TaskRows]:
    """The tasks of consecutive `episodes`, in parts of equally many ways: one part, unless a task takes all classes of
    its superclass."""
    group = (_uniform(sampling.seed, episodes, 1, "superclass")[:, 0] * len(pool.groups)).astype(np.int64)
    sizes = pool.group_sizes[group]
    n_way = np.full(len(sizes), sampling.n_way) if sampling.n_way != "all" else sizes
    places = _shuffle(sizes, n_way.max(), lambda step: _uniform(sampling.seed, episodes, 1, "class", step)[:, 0])
    classes = pool.groups[group[:, None], places]
    for ways in np.unique(n_way):
        yield _draw_rows(pool, sampling, episodes, n_way == ways, classes[n_way == ways, :ways])


def _draw_rows(pool: Pool, sampling: Sampling, episodes: range, chosen: np.ndarray, classes: np.ndarray) -> TaskRows:
    """Shots and queries of the `chosen` episodes (a mask) from their `classes` (E, n_way)."""
    numbers, (n_tasks, n_way), n_shot = np.array(episodes)[chosen], classes.shape, max(sampling.n_shots)

    def uniform(*key: int | str) -> np.ndarray:
        return _uniform(sampling.seed, episodes, n_way, *key)[chosen]

    n_queries = np.full((n_tasks, n_way), sampling.n_queries)
    if sampling.dirichlet:
        n_queries = _dirichlet_counts(sampling.dirichlet, uniform("dirichlet", 0), uniform("dirichlet", 1), n_queries)
        for e in np.flatnonzero((pool.sizes[classes] < n_queries + n_shot).any(1))[:1]:
            _check_sizes(pool, classes[e], n_queries[e], n_shot, f"episode {numbers[e]}")
    order = _shuffle(pool.sizes[classes].ravel(), n_queries.max() + n_shot, lambda step: uniform("row", step).ravel())
    rows = pool.rows[np.minimum(pool.starts[classes].reshape(-1, 1) + order, len(pool.rows) - 1)]

    counts = n_queries.ravel()
    support = np.take_along_axis(rows, counts[:, None] + np.arange(n_shot), 1)
    queries = rows[np.arange(rows.shape[1]) < counts[:, None]]
    labels = np.repeat(np.tile(np.arange(n_way), n_tasks), counts)
    shape = n_tasks, -1  # every task has n_way x n_queries queries, however they are shared out
    return TaskRows(numbers, classes, support.reshape(n_tasks, n_way, n_shot), queries.reshape(shape),
                    labels.reshape(shape))  # fmt: skip


def _uniform(seed: int, episodes: range, n: int, *key: int | str) -> np.ndarray:
    """(episodes, n) numbers in [0, 1): episode e has e * n to e * n + n - 1 of the stream of `key` and n."""
    generator = stream(seed, "episodes", *key, n)
    generator.bit_generator.advance(episodes.start * n)
    return generator.random((len(episodes), n))


def _shuffle(sizes: np.ndarray, n_steps: int, numbers: Callable[[int], np.ndarray]) -> np.ndarray:
    """(M, n_steps): on each line the first places of a random order of 0..size-1; `sizes` (M,).

    Fisher and Yates' shuffle, one step for all lines at a time; `numbers(step)` gives (M,) uniform numbers. A line
    shorter than the steps ends in places past its size.
    """
    n_steps = min(n_steps, sizes.max())
    order = np.tile(np.arange(sizes.max(), dtype=np.int32), (len(sizes), 1))
    lines = np.arange(len(sizes))
    for step in range(n_steps):
        other = step + (numbers(step) * np.maximum(sizes - step, 1)).astype(np.int64)
        order[lines, step], order[lines, other] = order[lines, other], order[lines, step]
    return order[:, :n_steps]


def _dirichlet_counts(alpha: float, first: np.ndarray, second: np.ndarray, balanced: np.ndarray) -> np.ndarray:
    """Queries of every class (E, n_way), in total as many as `balanced` (E, n_way) has.

    Shares are drawn from Dirichlet(alpha, ..., alpha) and rounded by largest remainders (Veilleux et al., NeurIPS 2021,
    section 4, leave the rounding open). A share is a gamma variable over the sum of its task's; of `first` and `second`
    (E, n_way), both uniform, comes Gamma(alpha) = Gamma(alpha + 1) x U^(1 / alpha), whose logarithm holds however small
    alpha is.
    """
    total = balanced.sum(1, keepdims=True)
    logarithms = np.log(gammaincinv(alpha + 1, 1 - first)) + np.log(1 - second) / alpha
    exact = softmax(logarithms, axis=1) * total
    counts = np.floor(exact).astype(np.int64)
    place = np.argsort(np.argsort(counts - exact, axis=1, kind="stable"), axis=1)
    return counts + (place < total - counts.sum(1, keepdims=True))


def evaluate_episodes(
    features: Tensor,
    pool: Pool,
    sampling: Sampling,
    n_episodes: int,
    method: Any,
    copies: Tensor | None = None,
) -> list[dict[str, int | float]]:
    """Accuracy of `method` on the episodes 0..n_episodes-1, for every number of shots, in this order.

    Args:
        features: (N, D) float32, the rows that `pool` counts, on the device to work on.
        method: the settings of a few-shot method.
        copies: (N, A, D) float32, the features of augmented copies of each row; if given, the method learns from the
            copies of a shot in place of it (Ni et al., ICLR 2022, spec 7.1).

    Returns:
        Entries of a results file: episode, n_way, n_shot, accuracy (fraction of the queries).
    """
    results = []
    with Progress(total=n_episodes, desc="episodes", unit="episode") as progress:
        for rows in _all_rows(features, pool, sampling, n_episodes, 1 if copies is None else copies.shape[1]):
            for n_shot, tasks in gather_tasks(features, rows, sampling.n_shots, copies):
                labels = torch.from_numpy(rows.query_labels).to(features.device)
                ranks = true_class_ranks(score_tasks(method, tasks, sampling.seed), labels)
                accuracies = (ranks == 0).double().mean(1).tolist()
                results += [
                    {"episode": episode, "n_way": rows.n_way, "n_shot": n_shot, "accuracy": accuracy}
                    for episode, accuracy in zip(rows.episodes.tolist(), accuracies)
                ]
            progress.update(len(rows.episodes))
    return sorted(results, key=lambda entry: (entry["episode"], entry["n_shot"]))


def _all_rows(
    features: Tensor, pool: Pool, sampling: Sampling, n_episodes: int, rows_per_shot: int
) -> Iterator[TaskRows]:
    """The tasks 0..n_episodes-1 in parts whose shuffles and features take a bounded memory."""
    n_way = int(pool.groups.shape[1]) if sampling.n_way == "all" else sampling.n_way
    n_drawn = _at_a_time(_DRAWN_BYTES, n_way * int(pool.sizes.max()) * 4)
    per_class = rows_per_shot * max(sampling.n_shots) + sampling.n_queries
    per_task = n_way * per_class * features.shape[1] * features.element_size()
    n_gathered = _at_a_time(_GATHERED_BYTES[features.device.type], per_task)
    for first in range(0, n_episodes, n_drawn):
        for rows in draw_tasks(pool, sampling, range(first, min(first + n_drawn, n_episodes))):
            yield from rows.parts(n_gathered)


def _at_a_time(n_bytes: int, per_task: int) -> int:
    return max(1, n_bytes // per_task)


def gather_tasks(
    features: Tensor, rows: TaskRows, n_shots: list[int], copies: Tensor | None = None
) -> Iterator[tuple[int, Tasks]]:
    """(n, the tasks of `rows` with n shots a class) for each n of `n_shots`; `features` (N, D), and the `copies`
    (N, A, D) that stand in place of a shot, which is then A rows of its class."""
    shots = features if copies is None else copies.flatten(1)
    n_tasks, n_way, dim = len(rows.episodes), rows.n_way, features.shape[1]
    queries = _gather(features, rows.queries)
    for n_shot in n_shots:
        support = _gather(shots, rows.support[:, :, :n_shot]).view(n_tasks, -1, dim)
        per_class = support.shape[1] // n_way
        labels = torch.arange(n_way, device=features.device).repeat_interleave(per_class).expand(n_tasks, -1)
        yield n_shot, Tasks(support, labels, queries, n_way)


def _gather(features: Tensor, rows: np.ndarray) -> Tensor:
    index = torch.from_numpy(np.ascontiguousarray(rows)).to(features.device)
    return features.index_select(0, index.flatten()).view(*rows.shape, -1)
