"""Analogies a : b :: c : d between the centroids of two classes, mined exactly.

For every ordered pair (a, b) of centroids of a class, the pair (c, d) of another class whose difference is best
aligned with it is its partner (Hariharan & Girshick, ICCV 2017; the CIFAR-100 rule of 2018 differs in constants only).
The direct way forms all K^2 differences of each class and multiplies them class by class. Here the search forms none:

* (a_I - a_J) . (b_x - b_y) = E[x] - E[y] with E[x] = G[x, I] - G[x, J] and G = B A^T, one K x K product per class pair.
  Centroids are centred per class first (differences do not change), which keeps float32 accurate.
* A reversed pair has the mirrored partner, so only I < J and x < y are looked at, by the absolute value.
* For one row x, |E[x] - E[y]| / |b_x - b_y| is at most the reach of E over the rows still to come, divided by the
  distance of x to its nearest of them. Rows that cannot beat the best score so far are skipped; centroids stand
  outermost first, which makes that bound tight.
* Float32 only proposes: with a bound on its rounding error added, every pair that could win is scored in float64 from
  the centroids themselves. So results are exact and do not depend on the number of threads.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numba
import numpy as np
from scipy.spatial.distance import pdist, squareform

from lowshot.core.artifacts import open_h5, read_recipe, require_datasets, write_recipe
from lowshot.core.compiled import compiled
from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.data.protocol import Split
from lowshot.hallucination.settings import Scope

SCHEMA = "lowshot-quadruplets-1"

LANES = 16  # source pairs searched side by side: two AVX registers
UNROLL = 4  # rows of E per step of the innermost loop
TIE = 1e-12  # scores closer than this are one score; the first class, then the first pair, wins
_N_THREADS = numba.config.NUMBA_NUM_THREADS  # every core this process may use


@dataclass(frozen=True)
class Rule:
    """Constants of a published selection rule; `epsilon` is added to the length of a difference before dividing."""

    n_clusters: int
    n_iterations: int
    n_redo: int
    epsilon: float


RULES = {"hariharan2017": Rule(100, 20, 1, 1e-5), "ghosted2018": Rule(10, 300, 10, 0.0)}


@dataclass
class Quadruplets:
    """What quadruplets.h5 holds.

    `centroids` float32 (B, K, D) of the classes `labels` int64 (B,); `numbers` int32 (M, 4): rows a, b, c, d of the
    flattened centroids (B * K, D) with a - b aligned with c - d; `scores` float32 (M,); `extractor` is the digest of
    what made the features, if known.
    """

    centroids: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    scores: np.ndarray
    extractor: str | None = None


def partner_classes(classes: np.ndarray, split: Split, scope: Scope, where: Path) -> list[np.ndarray]:
    """For each of `classes` (B,) the positions in `classes` of those it may be paired with, ascending.

    Raises InputError, naming the split file `where`, if no class has a partner.
    """
    superclass = np.array([-1 if split.superclass_of[c] is None else split.superclass_of[c] for c in classes])
    if scope == "superclass" and (superclass < 0).all():
        raise InputError(f"{where}: has no superclasses, which scope superclass needs")
    allowed = ~np.eye(len(classes), dtype=bool)
    if scope == "superclass":
        allowed &= (superclass[:, None] == superclass) & (superclass >= 0)
    if not allowed.any():
        raise InputError(
            f"{where}: no base class has another one to be paired with (scope {scope}, {len(classes)} base classes)"
        )
    return [np.flatnonzero(row) for row in allowed]


def mine(
    centroids: np.ndarray,
    partners: list[np.ndarray],
    epsilon: float,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The best partner of every ordered pair of centroids of a class, among the pairs of its partner classes.

    Args:
        centroids: float32 (B, K, D).
        partners: for each class the positions of the classes searched, ascending; never itself.
        epsilon: added to the lengths of differences before dividing.
        progress: show a progress bar.

    Returns:
        quadruplets int32 (M, 4) in the order of the source pair (class, I, J), and scores float32 (M,), all above zero.
        Of equal scores the first class wins, then the first pair in row-major order. A pair (J, I) gets the mirrored
        partner of (I, J), as in the 2018 code; searching for it too (2017) differs only where two scores are equal.
    """
    classes = _prepare(centroids, epsilon)
    sources = Progress(enumerate(partners), "mining", len(partners), unit="class", disable=not progress)
    found = [_mine_class(classes, a, np.asarray(chosen)) for a, chosen in sources]
    return np.concatenate([numbers for numbers, _ in found]), np.concatenate([scores for _, scores in found])


class _Classes(NamedTuple):
    """What the search reads of all classes, with the centroids of each class sorted outermost first."""

    order: np.ndarray  # int64 (B, K): original numbers of the sorted centroids
    centroids: np.ndarray  # float32 (B, K, D)
    centred: np.ndarray  # float32 (B, K, D)
    radii: np.ndarray  # float64 (B,): largest distance to the class mean
    lengths: np.ndarray  # float64 (B, K, K): distances of centroids plus epsilon, 0 between copies
    weights: (
        np.ndarray
    )  # float32 (B, K, K + UNROLL): 1 / lengths, 0 between copies and in the padding, which never wins
    row_weights: np.ndarray  # float32 (B, K): largest weight to the right of the diagonal


class _State(NamedTuple):
    """What the search of one source class writes: the best partner so far of its pairs I < J."""

    pairs: np.ndarray  # int64 (2, P): I and J
    threshold: np.ndarray  # float32 (P,): best score times the length of the source difference
    best: np.ndarray  # float64 (P,)
    winners: np.ndarray  # int64 (P, 3): class, c and d, these in their original numbers within the class


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
    """Quadruplets int32 (m, 4) and scores float32 (m,) with class `a` as the source."""
    n_classes, n_clusters, dim = classes.centred.shape
    gram = (classes.centred.reshape(-1, dim) @ classes.centred[a].T).reshape(n_classes, n_clusters, n_clusters)
    # Four entries of G, D products each, and the few operations around them, each off by 2^-24 of the largest product.
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
    """All I < J as int64 (2, P), P filled up to a multiple of LANES with the last centroid twice: no difference."""
    pairs = np.stack(np.triu_indices(n_clusters, 1))
    return np.pad(pairs, ((0, 0), (0, -pairs.shape[1] % LANES)), constant_values=n_clusters - 1)


def _as_quadruplets(order: np.ndarray, a: int, state: _State) -> tuple[np.ndarray, np.ndarray]:
    """Both orientations of the found pairs of class `a`, in row-major order of the source pair."""
    n_clusters = order.shape[1]
    found = np.flatnonzero(state.best > TIE)
    source = order[a, state.pairs[:, found]] + a * n_clusters
    target = (state.winners[found, 1:] + state.winners[found, :1] * n_clusters).T
    numbers = np.concatenate([np.stack([*source, *target], 1), np.stack([*source[::-1], *target[::-1]], 1)])
    row_major = np.lexsort((numbers[:, 1], numbers[:, 0]))
    return numbers[row_major].astype(np.int32), np.tile(state.best[found], 2)[row_major].astype(np.float32)


# The innermost loops below become vector instructions. What they read and what they write are different rows (the two
# rows of `high`, `low` and `top` take turns), since an update in place becomes masked stores, several times slower.


@compiled(nogil=True)
def _search(a, partners, gram, errors, classes, state, thread, n_threads):
    """Best partner of every n_threads-th block of source pairs of class a. Threads share nothing that they write."""
    n_clusters = gram.shape[1]
    differences = np.zeros((n_clusters + UNROLL, LANES), np.float32)
    high = np.empty((2, LANES), np.float32)  # three arrays: as parts of one, the search takes half as long again
    low, top = np.empty_like(high), np.empty_like(high)
    for b in partners:
        for start in range(thread * LANES, state.pairs.shape[1], n_threads * LANES):
            block = state.pairs[:, start : start + LANES]
            _fill_differences(gram[b], block[0], block[1], differences)
            _search_block(a, b, start, errors[b], classes, state, differences, high, low, top)


@compiled()
def _fill_differences(gram, first, second, differences):
    """E[x, lane] = G[x, I] - G[x, J] for the LANES source pairs (I, J)."""
    n_lanes = len(first)  # not the constant: the compiler would unroll the loop instead of vectorising it
    if first[0] == first[n_lanes - 1]:  # then the J are consecutive
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
    """Compare the LANES source pairs from number `start` on with all pairs (x, y > x) of class b."""
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
    """In how many lanes row `here` may reach `goal` with a later row; the range of those rows then takes in `here`."""
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
    """Largest |E[x] - E[y]| * weights[y] over y > x for each lane; returns which of the two rows of `top` holds it."""
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
    """Score in float64 the pairs (x, y > x) of class b that may be the best partner so far of source pair `pair`."""
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
    """(a_i - a_j) . (b_x - b_y) in float64."""
    total = 0.0
    for k in range(centroids.shape[2]):
        source = np.float64(centroids[a, i, k]) - np.float64(centroids[a, j, k])
        total += source * (np.float64(centroids[b, x, k]) - np.float64(centroids[b, y, k]))
    return total


def write_quadruplets(path: Path, content: Quadruplets, made_from: dict) -> None:
    """Write quadruplets.h5."""
    with h5py.File(path, "w") as file:
        file["centroids"] = content.centroids.astype(np.float32)
        file["centroid_labels"] = content.labels.astype(np.int32)
        file["quadruplets"] = content.numbers.astype(np.int32)
        file["scores"] = content.scores.astype(np.float32)
        write_recipe(file, SCHEMA, made_from)


def read_quadruplets(path: Path) -> Quadruplets:
    """Read and check quadruplets.h5. Raises InputError if it is truncated, incomplete or points past its centroids."""
    with open_h5(path) as file:
        require_datasets(file, ["centroids", "centroid_labels", "quadruplets", "scores"])
        try:
            centroids, labels, numbers, scores = (
                file[k][:] for k in ("centroids", "centroid_labels", "quadruplets", "scores")
            )
        except OSError as error:
            raise InputError(f"{path}: cannot be read to its end ({error})") from None
    if centroids.ndim != 3 or labels.shape != centroids.shape[:1] or numbers.shape != (len(scores), 4):
        raise InputError(
            f"{path}: shapes {centroids.shape}, {labels.shape}, {numbers.shape}, {scores.shape} do not fit together"
        )
    if not np.isfinite(centroids).all():
        raise InputError(f"{path}: centroids hold NaN or infinity")
    if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= centroids.shape[0] * centroids.shape[1]:
        raise InputError(
            f"{path}: has no quadruplets, or some past its {centroids.shape[0] * centroids.shape[1]} centroids"
        )
    made_from = read_recipe(path)
    extractor = made_from["inputs"].get("extractor") if made_from else None
    return Quadruplets(centroids, labels.astype(np.int64), numbers, scores, extractor)
