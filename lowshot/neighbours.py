"""Nearest neighbours by inner product: exact or through an inverted file, and the merging of two sets of lists.

Lists are pairs (ids int32 (Q, k), similarities float32 (Q, k)), best first; where there are fewer neighbours than k the
id is -1 and the similarity -inf.
"""

from math import isqrt
from typing import Literal

import faiss
import numpy as np
import torch

from lowshot.rows import blocks
from lowshot.seeds import stream

Lists = tuple[np.ndarray, np.ndarray]
IndexKind = Literal["exact", "ivf"]

# Vectors that are converted or compared at once, which bounds the memory of a search.
VECTORS_AT_ONCE = 2**17


class Index:
    """Finds the vectors (N, d) of largest inner product; `vectors` may be a memory map, float32 or float16.

    `ivf` is faiss' IVF-Flat as in Douze et al. (CVPR 2018, section 3): 4 floor(sqrt N) lists by spherical k-means,
    `n_probe` of them scanned for a query. The k-means sample is drawn at random and normalised (the released code takes
    the first rows, not normalised). `exact` compares all.
    """

    def __init__(
        self, vectors: np.ndarray, kind: IndexKind, device: str | torch.device, n_probe: int = 256, seed: int = 0
    ) -> None:
        self.device = torch.device(device)
        self.n_vectors, self.dim = vectors.shape
        self.vectors = vectors
        self._ivf = _build_ivf(vectors, self.device, n_probe, seed) if kind == "ivf" else None

    def search(self, queries: np.ndarray, k: int) -> Lists:
        """Lists of `queries` (Q, d)."""
        if self._ivf is None:
            return exact_search(queries, self.vectors, k, self.device)
        parts = [self._ivf.search(_float32(queries[rows]), k) for rows in blocks(len(queries))]
        return _as_lists(np.concatenate([ids for _, ids in parts]), np.concatenate([s for s, _ in parts]))


def exact_search(queries: np.ndarray, vectors: np.ndarray, k: int, device: str | torch.device = "cpu") -> Lists:
    """Lists of `queries` (Q, d) among `vectors` (N, d), all compared; both may be float16 or memory maps.

    A zero vector has no neighbours and is nobody's. Memory stays bounded for any N. Which of equally similar vectors
    are listed is not defined.
    """
    search = _search_on_cpu if torch.device(device).type == "cpu" else _search_in_torch
    best = np.full((len(queries), k), -1, np.int32), np.full((len(queries), k), -np.inf, np.float32)
    size = max(1, len(vectors)) if vectors.dtype == np.float32 else VECTORS_AT_ONCE
    for rows in blocks(len(vectors), size=size) if len(queries) else ():
        found = shifted(search(queries, vectors[rows], k, device), rows.start)
        best = found if rows.start == 0 else merge(found, best, k)
    return _without_zeros(best, queries, vectors)


def _without_zeros(lists: Lists, queries: np.ndarray, vectors: np.ndarray) -> Lists:
    """Lists without the neighbours of a zero query, and without zero vectors."""
    ids, similarities = lists
    row, column = np.nonzero((similarities == 0) & (ids >= 0))
    zero = ~(queries[row].any(axis=1) & vectors[ids[row, column]].any(axis=1))
    if not zero.any():
        return lists
    ids[row[zero], column[zero]] = -1
    return merge((ids[:, :0], similarities[:, :0]), lists, ids.shape[1])


def _search_on_cpu(queries: np.ndarray, vectors: np.ndarray, k: int, device: str | torch.device) -> Lists:
    # The fastest of three here: 1.7 times torch products with topk, and as fast as IndexFlatIP, which copies.
    similarities, ids = faiss.knn(_float32(queries), _float32(vectors), k, metric=faiss.METRIC_INNER_PRODUCT)
    return _as_lists(ids, similarities)


@torch.inference_mode()
def _search_in_torch(queries: np.ndarray, vectors: np.ndarray, k: int, device: str | torch.device) -> Lists:
    """Blocked products and topk, on any device."""
    raise NotImplementedError


def _build_ivf(vectors: np.ndarray, device: torch.device, n_probe: int, seed: int) -> faiss.Index:
    raise NotImplementedError


def _float32(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows, np.float32)


def _as_lists(ids: np.ndarray, similarities: np.ndarray) -> Lists:
    """faiss' answer in our form: it marks what is missing by id -1 and the lowest finite similarity."""
    return ids.astype(np.int32), np.where(ids >= 0, similarities, -np.inf).astype(np.float32)


def merge(first: Lists, second: Lists, k: int) -> Lists:
    """The best k of two lists, row by row: ties go to `second`, within a list to the entry that stands first.

    Entries of id -1 or similarity NaN are skipped, negative similarities are kept (where the released code blanks the
    rest of the row). The ids of the two lists must differ. Needs no sorted lists.
    """
    n_rows, width = len(first[0]), first[0].shape[1] + second[0].shape[1]
    merged = np.full((n_rows, k), -1, np.int32), np.full((n_rows, k), -np.inf, np.float32)
    for rows in blocks(n_rows):
        ids = np.concatenate([second[0][rows], first[0][rows]], axis=1)
        similarities = np.concatenate([second[1][rows], first[1][rows]], axis=1).astype(np.float32)
        missing = (ids < 0) | np.isnan(similarities)
        ids[missing], similarities[missing] = -1, -np.inf
        order = _best_first(similarities, min(k, width))
        merged[0][rows, : order.shape[1]] = np.take_along_axis(ids, order, axis=1)
        merged[1][rows, : order.shape[1]] = np.take_along_axis(similarities, order, axis=1)
    return merged


def shifted(lists: Lists, by: int) -> Lists:
    """Lists with ids raised by `by`; -1 stays."""
    return np.where(lists[0] >= 0, lists[0] + np.int32(by), np.int32(-1)), lists[1]


def _best_first(similarities: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k largest of float32 (n, width), largest first, of equals the leftmost: (n, k).

    Sorts whole numbers, similarity above and column below, which are all different: any sort of them is stable, and
    fast ones are.
    """
    bits = (similarities + 0.0).view(np.int32)  # no negative zero, which would come after zero
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # in the order of the floats
    keys = (~ascending).astype(np.int64) << 16 | np.arange(similarities.shape[1])
    if k < keys.shape[1]:
        keys.partition(k - 1, axis=1)
    keys = np.sort(keys[:, :k], axis=1)
    return keys & 0xFFFF


def with_self(lists: Lists, own_ids: np.ndarray, vectors: np.ndarray) -> Lists:
    """Lists with every node in its own: where more duplicates than k pushed it out, it stands first and the last goes.

    `own_ids` (Q,), `vectors` (Q, d) of the nodes.
    """
    ids, similarities = lists
    lost = np.flatnonzero(~(ids == own_ids[:, None]).any(axis=1))
    own = np.maximum(np.square(vectors[lost], dtype=np.float32).sum(axis=1), similarities[lost, 0])
    ids[lost, 1:], similarities[lost, 1:] = ids[lost, :-1], similarities[lost, :-1]
    ids[lost, 0], similarities[lost, 0] = own_ids[lost], own
    return lists
