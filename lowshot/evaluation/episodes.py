"""N-way K-shot tasks (episodes) from a pool of features, drawn in batches.

Episode e depends on the seed and on e only. It has the same classes, shots and queries for every method, batch size and
number of episodes. Its supports are nested over n, and its queries do not depend on n. Results are therefore paired by
episode, both across methods and across numbers of shots.

Draws without replacement are steps of the Fisher-Yates shuffle, computed for all episodes of a batch at once. Each step
has its own random stream, and consecutive episodes use consecutive numbers of it; PCG64 can start at any position. Of
the shuffled images of a class, the first are its queries and the next its shots.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import chain
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

# Maximum bytes of shuffles per batch, and of gathered features per batch. The batch for the CPU is small, so that it
# stays in the cache and reuses allocated memory.
_DRAWN_BYTES = 64 << 20
_GATHERED_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20}


def tasks_digest(sampling: Sampling, labels: np.ndarray, images: list[str]) -> str:
    """Return a digest that is equal if episodes of the same number have the same images.

    It depends on the kind of task, the `labels` (N,) of the pool and the names of its `images`, within one split and
    setup. It does not depend on the numbers of shots, since these share classes and queries.
    """
    kind = {f.name: getattr(sampling, f.name) for f in fields(Sampling) if f.name not in ("n_shots", "n_present")}
    kind |= {"n_present": sampling.n_present} if sampling.n_present else {}  # digests from before it existed are equal
    return hashlib.sha256(json.dumps([kind, images]).encode() + labels.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Pool:
    """Images to draw tasks from: rows by class, and the groups of classes that can form a task.

    `rows` int64 (N,) are row indices of the features, class after class. Class c has `sizes[c]` of them, starting at
    `starts[c]`. `groups` int64 (G, M) are class indices. Group g has `group_sizes[g]` of them, and the rest is padding.
    `source` names the files in errors.
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
    """E tasks of one shape as row indices of the features, all int64.

    `episodes` (E,); `classes` (E, n_way), classes of the split; `support` (E, n_way, n_shot), of which the first n are
    the n-shot support; `queries` and `query_labels` (E, Q), labels in 0..n_way-1.
    """

    episodes: np.ndarray
    classes: np.ndarray
    support: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray

    @property
    def n_way(self) -> int:
        return self.classes.shape[1]

    def __len__(self) -> int:
        return len(self.episodes)

    def taken(self, which: slice | np.ndarray) -> "TaskRows":
        """Select tasks by a slice or a mask (E,)."""
        return TaskRows(*(getattr(self, f.name)[which] for f in fields(self)))

    def parts(self, n_tasks: int) -> Iterator["TaskRows"]:
        """Yield the tasks in order, `n_tasks` at a time."""
        for first in range(0, len(self), n_tasks):
            yield self.taken(slice(first, first + n_tasks))

    def without(self, episodes: np.ndarray) -> "TaskRows":
        """Leave out the tasks of these episodes."""
        return self.taken(~np.isin(self.episodes, episodes))


def make_pool(labels: np.ndarray, split: Split, classes: np.ndarray, sampling: Sampling, source: str) -> Pool:
    """Return the pool of images with `labels` (N,), for tasks of `classes`.

    Raises InputError if there are too few classes, or if a class has too few images.
    """
    sizes = np.bincount(labels, minlength=split.n_classes)
    groups = _by_superclass(split, classes) if sampling.within_superclass else [classes]
    groups = _large_enough(groups, sampling, split.n_classes)
    group_sizes = np.array([len(group) for group in groups])
    n_way = group_sizes.min() if sampling.n_way == "all" else sampling.n_way
    if (sampling.n_present or 0) > n_way:
        raise InputError(f"--n_present {sampling.n_present}: a task has only {n_way} classes")
    padded = np.stack([np.pad(group, (0, group_sizes.max() - len(group))) for group in groups])
    order = np.argsort(labels, kind="stable")
    pool = Pool(order, np.cumsum(sizes) - sizes, sizes, padded, group_sizes, split.class_names, source)
    classes = np.concatenate(groups)
    n_queries = sampling.n_queries if _has_equal_queries(sampling) else 0
    _check_sizes(pool, classes, np.full(len(classes), n_queries), max(sampling.n_shots))
    return pool


def _by_superclass(split: Split, classes: np.ndarray) -> list[np.ndarray]:
    superclasses = np.array([-1 if split.superclass_of[c] is None else split.superclass_of[c] for c in classes])
    if (superclasses < 0).all():
        raise InputError(
            f"--within_superclass: the split of {split.dataset} has no superclasses for the classes to evaluate. "
            "Leave out --within_superclass"
        )
    return [classes[superclasses == superclass] for superclass in np.unique(superclasses[superclasses >= 0])]


def _large_enough(groups: list[np.ndarray], sampling: Sampling, n_classes: int) -> list[np.ndarray]:
    """Return the groups with enough classes for a task. `n_classes` is the number of classes of the split."""
    n_way = 2 if sampling.n_way == "all" else sampling.n_way
    if n_way < 2:
        raise InputError(f"--n_way {n_way}: a task needs at least two classes")
    if large := [group for group in groups if len(group) >= n_way]:
        return large
    most = max(map(len, groups))
    smaller = [f"--n_way {most}"] if most > 1 else []
    remedies = smaller + (["--classes all"] if sum(map(len, groups)) < n_classes else [])
    few = f"no superclass has more than {most}" if sampling.within_superclass else f"there are only {most}"
    remedy = f". Use {' or '.join(remedies)}" if remedies else ""
    raise InputError(f"--n_way {sampling.n_way}: {few} classes to evaluate{remedy}")


def _check_sizes(pool: Pool, classes: np.ndarray, n_queries: np.ndarray, n_shot: int, task: str = "a task") -> None:
    """Raise InputError unless each of `classes` (n,) has images for its `n_queries` (n,) and `n_shot` shots."""
    for i in np.flatnonzero(pool.sizes[classes] < n_queries + n_shot)[:1]:
        what = f"class {classes[i]} ({pool.class_names[classes[i]]}) has {pool.sizes[classes[i]]} images"
        needed = f"{task} needs {n_shot} + {n_queries[i]} (shots + queries)"
        raise InputError(f"{pool.source}: {what}, but {needed}. Use a smaller --n_shots or --n_queries")


def draw_tasks(pool: Pool, sampling: Sampling, episodes: range) -> Iterator[TaskRows]:
    """Yield the tasks of consecutive `episodes`, in parts with the same number of ways.

    There is one part, unless each task has all classes of its superclass.
    """
    group = (_uniform(sampling.seed, episodes, 1, "superclass")[:, 0] * len(pool.groups)).astype(np.int64)
    sizes = pool.group_sizes[group]
    n_way = np.full(len(sizes), sampling.n_way) if sampling.n_way != "all" else sizes
    places = _shuffle(sizes, n_way.max(), lambda step: _uniform(sampling.seed, episodes, 1, "class", step)[:, 0])
    classes = pool.groups[group[:, None], places]
    for ways in np.unique(n_way):
        yield _draw_rows(pool, sampling, episodes, n_way == ways, classes[n_way == ways, :ways])


def _draw_rows(pool: Pool, sampling: Sampling, episodes: range, chosen: np.ndarray, classes: np.ndarray) -> TaskRows:
    """Draw shots and queries of the `chosen` episodes (a mask) from their `classes` (E, n_way)."""
    numbers, (n_tasks, n_way), n_shot = np.array(episodes)[chosen], classes.shape, max(sampling.n_shots)

    def uniform(*key: int | str) -> np.ndarray:
        return _uniform(sampling.seed, episodes, n_way, *key)[chosen]

    n_queries = np.full((n_tasks, n_way), sampling.n_queries)
    if not _has_equal_queries(sampling):
        drawn = (uniform("dirichlet", 0), uniform("dirichlet", 1)) if sampling.dirichlet else None
        n_queries = _query_counts(n_queries, sampling.n_present or n_way, sampling.dirichlet, drawn)
        for e in np.flatnonzero((pool.sizes[classes] < n_queries + n_shot).any(1))[:1]:
            _check_sizes(pool, classes[e], n_queries[e], n_shot, f"episode {numbers[e]}")
    order = _shuffle(pool.sizes[classes].ravel(), n_queries.max() + n_shot, lambda step: uniform("row", step).ravel())
    rows = pool.rows[np.minimum(pool.starts[classes].reshape(-1, 1) + order, len(pool.rows) - 1)]

    counts = n_queries.ravel()
    support = np.take_along_axis(rows, counts[:, None] + np.arange(n_shot), 1)
    queries = rows[np.arange(rows.shape[1]) < counts[:, None]]
    labels = np.repeat(np.tile(np.arange(n_way), n_tasks), counts)
    shape = n_tasks, -1  # every task has n_way x n_queries queries, for all class proportions
    return TaskRows(numbers, classes, support.reshape(n_tasks, n_way, n_shot), queries.reshape(shape),
                    labels.reshape(shape))  # fmt: skip


def _uniform(seed: int, episodes: range, n: int, *key: int | str) -> np.ndarray:
    """Return (episodes, n) numbers in [0, 1): episode e has numbers e * n to e * n + n - 1 of the stream (`key`, n)."""
    generator = stream(seed, "episodes", *key, n)
    generator.bit_generator.advance(episodes.start * n)
    return generator.random((len(episodes), n))


def _shuffle(sizes: np.ndarray, n_steps: int, numbers: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return the first n_steps entries (M, n_steps) of M random permutations, of 0..size-1 for each of `sizes` (M,).

    Fisher-Yates shuffle, vectorised over permutations. `numbers(step)` returns uniform numbers (M,). A permutation
    shorter than n_steps is followed by entries that are not below its size.
    """
    n_steps = min(n_steps, sizes.max())
    order = np.tile(np.arange(sizes.max(), dtype=np.int32), (len(sizes), 1))
    lines = np.arange(len(sizes))
    for step in range(n_steps):
        other = step + (numbers(step) * np.maximum(sizes - step, 1)).astype(np.int64)
        order[lines, step], order[lines, other] = order[lines, other], order[lines, step]
    return order[:, :n_steps]


def _has_equal_queries(sampling: Sampling) -> bool:
    """Whether every class of a task has the same number of queries."""
    return sampling.dirichlet is None and sampling.n_present is None


def _query_counts(
    balanced: np.ndarray, n_present: int, alpha: float | None, drawn: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """Return the number of queries of every class (E, n_way), with the same totals as `balanced` (E, n_way).

    The first `n_present` classes, which are in random order, have queries: equally many, or in proportions from
    Dirichlet(alpha, ..., alpha), rounded by largest remainders (Veilleux et al., NeurIPS 2021, section 4; they do not
    specify the rounding). Proportions are gamma variables, normalised within a task, computed from two arrays of
    uniform numbers (E, n_way), `drawn`, as Gamma(alpha) = Gamma(alpha + 1) x U^(1 / alpha). The logarithm keeps this
    stable for small alpha.
    """
    total, logarithms = balanced.sum(1, keepdims=True), np.zeros(balanced.shape)
    if alpha is not None:
        first, second = drawn
        logarithms = np.log(gammaincinv(alpha + 1, 1 - first)) + np.log(1 - second) / alpha
    logarithms[:, n_present:] = -np.inf
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
    parts: list[list[dict]] | None = None,
) -> list[dict[str, int | float]]:
    """Evaluate `method` on the episodes 0..n_episodes-1, for every number of shots.

    Args:
        features: (N, D) float32, the rows that `pool` refers to, on the device to compute on.
        method: settings of a few-shot method.
        copies: (N, A, D) float32, features of augmented copies of each row. If given, the method learns from the copies
            of a shot instead of the shot (Ni et al., ICLR 2022).
        parts: entries of some episodes, which are not evaluated again. Those of the others are appended, part by part.

    Returns:
        Entries of a results file: episode, n_way, n_shot, accuracy (fraction of the queries), ordered by episode and
        n_shot.
    """
    parts = [] if parts is None else parts
    done = np.unique([entry["episode"] for part in parts for entry in part])
    all_rows = _all_rows(features, pool, sampling, n_episodes, 1 if copies is None else copies.shape[1])
    with Progress(total=n_episodes, initial=len(done), desc="episodes", unit="episode", resumable=True) as progress:
        for rows in filter(len, (one.without(done) for one in all_rows)):
            parts.append(_evaluate_part(features, rows, sampling, method, copies))
            progress.update(len(rows))
    return sorted(chain.from_iterable(parts), key=lambda entry: (entry["episode"], entry["n_shot"]))


def _evaluate_part(
    features: Tensor, rows: TaskRows, sampling: Sampling, method: Any, copies: Tensor | None
) -> list[dict[str, int | float]]:
    """Return the entries of some episodes."""
    entries, labels = [], torch.from_numpy(rows.query_labels).to(features.device)
    for n_shot, tasks in gather_tasks(features, rows, sampling.n_shots, copies):
        ranks = true_class_ranks(score_tasks(method, tasks, sampling.seed), labels)
        accuracies = (ranks == 0).double().mean(1).tolist()
        entries += [
            {"episode": episode, "n_way": rows.n_way, "n_shot": n_shot, "accuracy": accuracy}
            for episode, accuracy in zip(rows.episodes.tolist(), accuracies)
        ]
    return entries


def _all_rows(
    features: Tensor, pool: Pool, sampling: Sampling, n_episodes: int, rows_per_shot: int
) -> Iterator[TaskRows]:
    """Yield the tasks 0..n_episodes-1 in parts, so that shuffles and features use bounded memory."""
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
    """Yield (n, the tasks of `rows` with n shots per class) for each n of `n_shots`.

    With `copies` (N, A, D), each shot is replaced by A rows. Queries are rows of `features` (N, D).
    """
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
