"""Exact mining of analogies a : b :: c : d between the centroids of two classes.

The partner of an ordered pair (a, b) of centroids is the pair (c, d) of another class with the most similar direction
of its difference (Hariharan & Girshick, ICCV 2017; the CIFAR-100 rule of 2018 differs in constants only). The naive
search forms all K^2 differences of each class and multiplies them for each pair of classes. This search forms none:

* (a_I - a_J) . (b_x - b_y) = E[x] - E[y] with E[x] = G[x, I] - G[x, J] and G = B A^T, one K x K product per pair of
  classes. Centroids are first centred per class, which keeps float32 accurate and does not change differences.
* A reversed pair has the reversed partner, so it is enough to compare pairs I < J and x < y by absolute value.
* For a row x, |E[x] - E[y]| / |b_x - b_y| is bounded by the range of E over the remaining rows, divided by the distance
  of x to the nearest of them. Rows that cannot exceed the best score so far are skipped. Centroids are sorted outermost
  first, which makes the bound tight.
* Float32 only selects candidates, with a bound on its rounding error. Every pair that could win is scored in float64
  from the centroids. Results are therefore exact, and do not depend on the number of threads.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from scipy.spatial.distance import pdist, squareform

from lowshot.core.artifacts import read_recipe
from lowshot.core.compiled import compiled
from lowshot.core.errors import InputError
from lowshot.core.h5 import creating_h5, open_h5, require_datasets, write_recipe
from lowshot.core.progress import Progress
from lowshot.data.protocol import Split
from lowshot.hallucination.settings import Scope

SCHEMA = "lowshot-quadruplets-1"

LANES = 16  # source pairs that are searched together: two AVX registers
UNROLL = 4  # rows of E per step of the innermost loop
TIE = 1e-12  # scores that differ by less are equal; the first class, then the first pair, wins
_N_THREADS = numba.config.NUMBA_NUM_THREADS  # every core this process may use


@dataclass(frozen=True)
class Rule:
    """Constants of a published mining rule. `epsilon` is added to the length of a difference before dividing by it."""

    n_clusters: int
    n_iterations: int
    n_redo: int
    epsilon: float


RULES = {"hariharan2017": Rule(100, 20, 1, 1e-5), "ghosted2018": Rule(10, 300, 10, 0.0)}


@dataclass
class Quadruplets:
    """The content of quadruplets.h5.

    Attributes:
        centroids: float32 (B, K, D).
        labels: Their classes, int64 (B,).
        numbers: int32 (M, 4), rows a, b, c, d of the flattened centroids (B * K, D) with a - b similar to c - d.
        scores: float32 (M,).
        extractor: Digest of the extractor of the features, if known.
    """

    centroids: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    scores: np.ndarray
    extractor: str | None = None


def partner_classes(classes: np.ndarray, split: Split, scope: Scope, where: Path) -> list[np.ndarray]:
    """Return, for each of `classes` (B,), the positions in `classes` of its possible partners, ascending.

    Raises InputError if no class has a partner; `where` is the split file.
    """
    superclass = np.array([-1 if split.superclass_of[c] is None else split.superclass_of[c] for c in classes])
    if scope == "superclass" and (superclass < 0).all():
        raise InputError(f"{where}: has no superclasses, which --scope superclass needs. Use --scope global")
    allowed = ~np.eye(len(classes), dtype=bool)
    if scope == "superclass":
        allowed &= (superclass[:, None] == superclass) & (superclass >= 0)
    if not allowed.any():
        raise InputError(
            f"{where}: no base class has a partner class (--scope {scope}, {len(classes)} base classes). Use --scope "
            f"global and at least two base classes"
        )
    return [np.flatnonzero(row) for row in allowed]


def mine(
    centroids: np.ndarray,
    partners: list[np.ndarray],
    epsilon: float,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the best partner of every ordered pair of centroids of a class, in its partner classes.

    Args:
        centroids: float32 (B, K, D).
        partners: For each class, the ascending positions of the classes to search, without itself.
        epsilon: Added to the lengths of differences before dividing.
        progress: Whether to show a progress bar.

    Returns:
        Quadruplets int32 (M, 4), sorted by source pair (class, I, J), and their scores float32 (M,), all positive. For
        equal scores the first class wins, then the first pair in row-major order. The partner of (J, I) is the reversed
        partner of (I, J), as in the 2018 code; searching for it, as in 2017, differs only if scores are equal.
    """
    classes = _prepare(centroids, epsilon)
    sources = Progress(enumerate(partners), "mining", len(partners), unit="class", disable=not progress)
    found = [_mine_class(classes, a, np.asarray(chosen)) for a, chosen in sources]
    return np.concatenate([numbers for numbers, _ in found]), np.concatenate([scores for _, scores in found])


class _Classes(NamedTuple):
    """The data of all classes that the search reads, with the centroids of each class sorted outermost first."""

    order: np.ndarray  # int64 (B, K): original indices of the sorted centroids
    centroids: np.ndarray  # float32 (B, K, D)
    centred: np.ndarray  # float32 (B, K, D)
    radii: np.ndarray  # float64 (B,): largest distance to the class mean
    lengths: np.ndarray  # float64 (B, K, K): distances of centroids plus epsilon, 0 between copies
    weights: (
        np.ndarray
    )  # float32 (B, K, K + UNROLL): 1 / lengths, 0 between copies and in the padding, which never wins
    row_weights: np.ndarray  # float32 (B, K): largest weight to the right of the diagonal


class _State(NamedTuple):
    """The state of the search for one source class: the best partner so far of each pair I < J."""

    pairs: np.ndarray  # int64 (2, P): I and J
    threshold: np.ndarray  # float32 (P,): best score times the length of the source difference
    best: np.ndarray  # float64 (P,)
    winners: np.ndarray  # int64 (P, 3): class, and the original indices of c and d in it


def _prepare(centroids: np.ndarray, epsilon: float) -> _Classes:
    n_classes, n_clusters, _ = centroids.shape
    centred = centroids - centroids.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
    radii = np.linalg.norm(centred, axis=2).astype(np.float64)
    order = np.argsort(-radii, axis=1, kind="stable")
    centroids, centred = (np.take_along_axis(part, order[:, :, None], 1) for part in (centroids, centred))
    lengths = np.stack([squareform(pdist(class_centroids.astype(np.float64))) for class_centroids in centroids])
    lengths[lengths > 0] += epsilon
    weights = np.zeros((n_classes, n_clusters, n_clusters + UNROLL), np.float32)
    np.divide(1, lengths, out=weights[:, :, :n_clusters], where=lengths > 0, casting="same_kind")
    row_weights = np.stack([np.triu(class_weights[:, :n_clusters], 1).max(1) for class_weights in weights])
    return _Classes(order, centroids, centred, radii.max(1), lengths, weights, row_weights)


def _mine_class(classes: _Classes, a: int, partners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mine class `a` as the source. Returns quadruplets int32 (m, 4) and scores float32 (m,)."""
    n_classes, n_clusters, dim = classes.centred.shape
    gram = (classes.centred.reshape(-1, dim) @ classes.centred[a].T).reshape(n_classes, n_clusters, n_clusters)
    # Four entries of G with D products each, and a few other operations, each with an error of 2^-24 of the largest
    # product.
    errors = (4 * (dim + 16) * 2.0**-24 * classes.radii[a] * classes.radii).astype(np.float32)
    pairs = _padded_pairs(n_clusters)
    threshold = np.where(classes.lengths[a][tuple(pairs)] > 0, 0, np.inf).astype(np.float32)
    state = _State(pairs, threshold, np.zeros(len(threshold)), np.full((len(threshold), 3), -1))
    shared = a, partners, gram, errors, classes, state
    with ThreadPoolExecutor(_N_THREADS) as pool:
        parts = [pool.submit(_search, *shared, thread, _N_THREADS) for thread in range(_N_THREADS)]
    for part in parts:
        part.result()
    return _as_quadruplets(classes.order, a, state)


def _padded_pairs(n_clusters: int) -> np.ndarray:
    """Return all pairs I < J, int64 (2, P). P is padded to a multiple of LANES by pairs of equal centroids."""
    pairs = np.stack(np.triu_indices(n_clusters, 1))
    return np.pad(pairs, ((0, 0), (0, -pairs.shape[1] % LANES)), constant_values=n_clusters - 1)


def _as_quadruplets(order: np.ndarray, a: int, state: _State) -> tuple[np.ndarray, np.ndarray]:
    """Return both orientations of the pairs of class `a`, in row-major order of the source pair."""
    n_clusters = order.shape[1]
    found = np.flatnonzero(state.best > TIE)
    source = order[a, state.pairs[:, found]] + a * n_clusters
    target = (state.winners[found, 1:] + state.winners[found, :1] * n_clusters).T
    numbers = np.concatenate([np.stack([*source, *target], 1), np.stack([*source[::-1], *target[::-1]], 1)])
    row_major = np.lexsort((numbers[:, 1], numbers[:, 0]))
    return numbers[row_major].astype(np.int32), np.tile(state.best[found], 2)[row_major].astype(np.float32)


# The compiler vectorises the innermost loops of the functions below. They read and write different rows (the two rows
# of `high`, `low` and `top` alternate), because updates in place become masked stores, which are several times slower.


@compiled(nogil=True)
def _search(a, partners, gram, errors, classes, state, thread, n_threads):
    """Search partners for every n_threads-th block of source pairs of class a. Threads write to separate data."""
    n_clusters = gram.shape[1]
    differences = np.zeros((n_clusters + UNROLL, LANES), np.float32)
    high = np.empty((2, LANES), np.float32)  # three separate arrays; parts of one array slow the search down by half
    low, top = np.empty_like(high), np.empty_like(high)
    for b in partners:
        for start in range(thread * LANES, state.pairs.shape[1], n_threads * LANES):
            block = state.pairs[:, start : start + LANES]
            _fill_differences(gram[b], block[0], block[1], differences)
            _search_block(a, b, start, errors[b], classes, state, differences, high, low, top)


@compiled()
def _fill_differences(gram, first, second, differences):
    """Compute E[x, lane] = G[x, I] - G[x, J] for the LANES source pairs (I, J)."""
    n_lanes = len(first)  # with the constant LANES the compiler unrolls the loop instead of vectorising it
    if first[0] == first[n_lanes - 1]:  # all pairs have the same I, so the J are consecutive
        i, start = first[0], second[0]
        for x in range(gram.shape[0]):
            product, products, out = gram[x, i], gram[x, start : start + n_lanes], differences[x]
            for lane in range(n_lanes):
                out[lane] = product - products[lane]
    else:
        for x in range(gram.shape[0]):
            for lane in range(n_lanes):
                differences[x, lane] = gram[x, first[lane]] - gram[x, second[lane]]


@compiled()
def _search_block(a, b, start, error, classes, state, differences, high, low, top):
    """Compare the LANES source pairs from index `start` on with all pairs (x, y > x) of class b."""
    row_weights, weights = classes.row_weights[b], classes.weights[b]
    goal = state.threshold[start : start + LANES]
    last = classes.lengths.shape[1] - 1
    high[0], low[0] = differences[last], differences[last]
    for back in range(last):
        x, now, then = last - 1 - back, back % 2, 1 - back % 2
        weight = row_weights[x]
        if _n_within_reach(differences[x], high[now], low[now], high[then], low[then], error, weight, goal) == 0:
            continue
        turn = _row_maximum(differences, x, weights[x], top)
        for lane in range(LANES):
            if top[turn, lane] + error * weight >= goal[lane]:
                _settle(a, b, start + lane, x, differences[:, lane], error, classes, state)


@compiled(inline="always")
def _n_within_reach(here, high, low, new_high, new_low, error, weight, goal):
    """Count the lanes in which row `here` may reach `goal` with a later row, and extend the range of rows by `here`."""
    count = np.int32(0)
    for lane in range(len(here)):
        value, top, bottom = here[lane], high[lane], low[lane]
        up, down = top - value, value - bottom
        reach = up if up > down else down
        count += np.int32((reach + error) * weight >= goal[lane])
        new_high[lane] = value if value > top else top
        new_low[lane] = value if value < bottom else bottom
    return count


@compiled()
def _row_maximum(differences, x, weights, top):
    """Compute the maximum of |E[x] - E[y]| * weights[y] over y > x per lane. Returns its row index in `top`."""
    turn = 0
    for lane in range(LANES):
        top[0, lane] = np.float32(0)
    for y in range(x + 1, differences.shape[0] - UNROLL, UNROLL):
        w0, w1, w2, w3 = weights[y], weights[y + 1], weights[y + 2], weights[y + 3]
        here, so_far, updated = differences[x], top[turn], top[1 - turn]
        e0, e1, e2, e3 = differences[y], differences[y + 1], differences[y + 2], differences[y + 3]
        for lane in range(LANES):
            difference = here[lane]
            v0, v1 = abs(difference - e0[lane]) * w0, abs(difference - e1[lane]) * w1
            v2, v3 = abs(difference - e2[lane]) * w2, abs(difference - e3[lane]) * w3
            v0 = v0 if v0 > v1 else v1
            v2 = v2 if v2 > v3 else v3
            v0 = v0 if v0 > v2 else v2
            old = so_far[lane]
            updated[lane] = v0 if v0 > old else old
        turn = 1 - turn
    return turn


@compiled()
def _settle(a, b, pair, x, differences, error, classes, state):
    """Score in float64 the pairs (x, y > x) of class b that may beat the best partner so far of source pair `pair`."""
    i, j = state.pairs[0, pair], state.pairs[1, pair]
    winner, threshold = state.winners[pair], state.threshold[pair]
    lengths, weights = classes.lengths[b, x], classes.weights[b, x]
    for y in range(x + 1, len(lengths)):
        if (abs(differences[x] - differences[y]) + error) * weights[y] < threshold or lengths[y] == 0:
            continue
        product = _exact_product(classes.centroids, a, i, j, b, x, y)
        score = abs(product) / (classes.lengths[a, i, j] * lengths[y])
        third, fourth = classes.order[b, x], classes.order[b, y]
        if product < 0:
            third, fourth = fourth, third
        tied = abs(score - state.best[pair]) <= TIE and winner[0] == b
        earlier = third < winner[1] or (third == winner[1] and fourth < winner[2])
        if score > state.best[pair] + TIE or (tied and earlier):
            state.best[pair] = max(score, state.best[pair])
            winner[0], winner[1], winner[2] = b, third, fourth
            threshold = np.float32(state.best[pair] * classes.lengths[a, i, j])
    state.threshold[pair] = threshold


@compiled(fastmath={"reassoc", "contract"})
def _exact_product(centroids, a, i, j, b, x, y):
    """Return (a_i - a_j) . (b_x - b_y) in float64."""
    total = 0.0
    for k in range(centroids.shape[2]):
        source = np.float64(centroids[a, i, k]) - np.float64(centroids[a, j, k])
        total += source * (np.float64(centroids[b, x, k]) - np.float64(centroids[b, y, k]))
    return total


def write_quadruplets(path: Path, content: Quadruplets, made_from: dict) -> None:
    """Write quadruplets.h5."""
    with creating_h5(path) as file:
        file["centroids"] = content.centroids.astype(np.float32)
        file["centroid_labels"] = content.labels.astype(np.int32)
        file["quadruplets"] = content.numbers.astype(np.int32)
        file["scores"] = content.scores.astype(np.float32)
        write_recipe(file, SCHEMA, made_from)


_FIELDS = {"centroids": ("floats", 3), "centroid_labels": ("integers", 1), "quadruplets": ("integers", 2),
           "scores": ("floats", 1)}  # fmt: skip


def read_quadruplets(path: Path) -> Quadruplets:
    """Read and check quadruplets.h5. Raises InputError for a truncated, incomplete or inconsistent file."""
    with open_h5(path) as file:
        require_datasets(file, _FIELDS)
        centroids, labels, numbers, scores = (file[name][:] for name in _FIELDS)
    if centroids.ndim != 3 or labels.shape != centroids.shape[:1] or numbers.shape != (len(scores), 4):
        raise InputError(
            f"{path}: shapes {centroids.shape}, {labels.shape}, {numbers.shape}, {scores.shape} are inconsistent"
        )
    if not np.isfinite(centroids).all():
        raise InputError(f"{path}: centroids contain NaN or infinity")
    if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= centroids.shape[0] * centroids.shape[1]:
        raise InputError(
            f"{path}: has no quadruplets, or indices outside its {centroids.shape[0] * centroids.shape[1]} centroids"
        )
    made_from = read_recipe(path)
    extractor = made_from["inputs"].get("extractor") if made_from else None
    return Quadruplets(centroids, labels.astype(np.int64), numbers, scores, extractor)
