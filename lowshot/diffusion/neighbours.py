"""Nearest-neighbour search by inner product, exact or with an inverted file, and merging of neighbour lists.

`Lists` are pairs (ids int32 (Q, k), similarities float32 (Q, k)), most similar first. Unused entries have id -1 and
similarity -inf.
"""

from math import isqrt

import faiss
import numpy as np
import torch

from lowshot.core.seeds import stream
from lowshot.data.rows import BLOCK, blocks, sample_rows
from lowshot.diffusion.settings import AutoIndex, ExactIndex, InvertedFile

Lists = tuple[np.ndarray, np.ndarray]

# Number of vectors from which on the automatic index is not exact.
EXACT_BELOW = 1_000_000
# Number of vectors converted, or compared in torch, at once. Bounds the memory of a search.
VECTORS_AT_ONCE = 2**15
# k-means training points per list, and the minimum (faiss warns below it).
POINTS_PER_LIST, MIN_POINTS_PER_LIST = 100, 39


class Index:
    """Search among `vectors` (N, d) for the largest inner products. `vectors` is float32 or float16 and may be a memory
    map.

    The inverted file is faiss' IVF-Flat as in Douze et al. (CVPR 2018, section 3): 4 floor(sqrt N) lists by spherical
    k-means, of which a query scans `n_probe`. The k-means sample is drawn at random and normalised; the released code
    uses the first rows without normalisation. Small sets have fewer lists.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        settings: AutoIndex | ExactIndex | InvertedFile,
        device: str | torch.device,
        seed: int = 0,
    ) -> None:
        self.vectors, self.device = vectors, torch.device(device)
        exact = isinstance(settings, ExactIndex) or (isinstance(settings, AutoIndex) and len(vectors) < EXACT_BELOW)
        self.inverted_file = None if exact else _build_ivf(vectors, self.device, settings.n_probe, seed)

    def search(self, queries: np.ndarray, k: int) -> Lists:
        """Return the neighbour lists of `queries` (Q, d). A list has fewer than k entries if the scanned inverted lists
        hold fewer vectors."""
        if self.inverted_file is None:
            return exact_search(queries, self.vectors, k, self.device)
        ids, similarities = _no_lists(len(queries), k)
        for rows in blocks(len(queries)):
            found, known = _as_lists(*self.inverted_file.search(_float32(queries[rows]), k)[::-1])
            ids[rows], similarities[rows] = found, known
        return _without_zeros((ids, similarities), queries, self.vectors)


def exact_search(queries: np.ndarray, vectors: np.ndarray, k: int, device: str | torch.device = "cpu") -> Lists:
    """Compare all `queries` (Q, d) with all `vectors` (N, d) and return the neighbour lists of the queries.

    Both arrays may be float16 or memory maps. A zero vector has no neighbours and is not a neighbour of any other
    vector. Memory is bounded for any N. The order among equally similar vectors is undefined.
    """
    if len(queries) == 0 or len(vectors) == 0:
        return _no_lists(len(queries), k)
    on_cpu = torch.device(device).type == "cpu"
    lists = _search_on_cpu(queries, vectors, k) if on_cpu else _search_in_torch(queries, vectors, k, device)
    return _without_zeros(lists, queries, vectors)


def _no_lists(n_rows: int, k: int) -> Lists:
    return np.full((n_rows, k), -1, np.int32), np.full((n_rows, k), -np.inf, np.float32)


def _search_on_cpu(queries: np.ndarray, vectors: np.ndarray, k: int) -> Lists:
    # faiss.knn is 1.7 times as fast as torch products with topk, and IndexFlatIP would copy the vectors.
    queries, best = _float32(queries), _no_lists(len(queries), k)
    for part in blocks(len(vectors), size=len(vectors) if vectors.dtype == np.float32 else VECTORS_AT_ONCE):
        similarities, ids = faiss.knn(queries, _float32(vectors[part]), k, metric=faiss.METRIC_INNER_PRODUCT)
        found = shifted(_as_lists(ids, similarities), part.start)
        best = found if part.start == 0 else merge(found, best, k)
    return best


@torch.inference_mode()
def _search_in_torch(queries: np.ndarray, vectors: np.ndarray, k: int, device: str | torch.device) -> Lists:
    """Multiply blocks and take the topk, on any device."""
    ids, similarities = _no_lists(len(queries), k)
    for rows in blocks(len(queries)):
        block = _tensor(queries[rows], device)
        best = _tensor(similarities[rows], device)
        best_ids = torch.full(best.shape, -1, device=device)
        for part in blocks(len(vectors), size=VECTORS_AT_ONCE):
            found, found_ids = (block @ _tensor(vectors[part], device).T).topk(min(k, part.stop - part.start))
            best, order = torch.cat([best, found], 1).topk(k)
            best_ids = torch.cat([best_ids, found_ids + part.start], 1).gather(1, order)
        ids[rows], similarities[rows] = best_ids.int().cpu().numpy(), best.cpu().numpy()
    return ids, similarities


def search_bytes(n_vectors: int) -> int:
    """Bytes that `_search_in_torch` uses on its device: the products of a block, and the working memory of `topk`."""
    return 8 * BLOCK * min(n_vectors, VECTORS_AT_ONCE)


def _tensor(rows: np.ndarray, device: str | torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, np.float32)).to(device)


def _without_zeros(lists: Lists, queries: np.ndarray, vectors: np.ndarray) -> Lists:
    """Remove the neighbours of zero queries, and zero vectors, from `lists`."""
    ids, similarities = lists
    row, column = np.nonzero((similarities == 0) & (ids >= 0))
    zero = ~(queries[row].any(axis=1) & vectors[ids[row, column]].any(axis=1))
    if not zero.any():
        return lists
    ids[row[zero], column[zero]] = -1
    return merge((ids[:, :0], similarities[:, :0]), lists, ids.shape[1])


def _build_ivf(vectors: np.ndarray, device: torch.device, n_probe: int, seed: int) -> faiss.Index:
    n_vectors, dim = vectors.shape
    n_lists = max(1, min(4 * isqrt(n_vectors), n_vectors // MIN_POINTS_PER_LIST))
    quantizer = faiss.IndexFlatIP(dim)
    if vectors.dtype == np.float16:  # keep the precision of the input
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, n_lists, kind, faiss.METRIC_INNER_PRODUCT, False)
    else:
        index = faiss.IndexIVFFlat(quantizer, dim, n_lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(n_probe, n_lists)
    random = stream(seed, "ivf")
    index.cp.seed = int(random.integers(2**31))
    if device.type == "cuda" and hasattr(faiss, "index_cpu_to_all_gpus"):
        index = faiss.index_cpu_to_all_gpus(index)
    n_points = min(n_vectors, POINTS_PER_LIST * n_lists)
    points = np.sort(random.choice(n_vectors, n_points, replace=False))
    index.train(_float32(sample_rows(vectors, points)))
    for rows in blocks(n_vectors):
        index.add(_float32(vectors[rows]))
    return index


def _float32(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows, np.float32)


def _as_lists(ids: np.ndarray, similarities: np.ndarray) -> Lists:
    """Convert the output of faiss, which marks unused entries by id -1 and the lowest finite similarity."""
    return ids.astype(np.int32), np.where(ids >= 0, similarities, -np.inf).astype(np.float32)


def merge(first: Lists, second: Lists, k: int) -> Lists:
    """Merge each row of two lists and keep its k most similar entries.

    Ties go to `second`; within one list, to the earlier entry. Entries with id -1 or similarity NaN are dropped.
    Negative similarities are kept; the released code drops the rest of the row from there on. The two lists of a row
    must have no id in common. They need not be sorted.
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
    """Return `lists` with `by` added to all ids except -1."""
    return np.where(lists[0] >= 0, lists[0] + np.int32(by), np.int32(-1)), lists[1]


def _best_first(similarities: np.ndarray, k: int) -> np.ndarray:
    """Columns (n, k) of the k largest entries of each row of `similarities`, float32 (n, width), largest first. Of
    equal entries the leftmost comes first.

    The sort keys are integers: the similarity in the high bits, the column in the low bits. They are all different, so
    the fast unstable sort gives a stable order.
    """
    bits = (similarities + 0.0).view(np.int32)  # turns -0.0, which would sort after 0.0, into 0.0
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # has the same order as the floats
    keys = (~ascending).astype(np.int64) << 16 | np.arange(similarities.shape[1])
    if k < keys.shape[1]:
        keys.partition(k - 1, axis=1)
    keys = np.sort(keys[:, :k], axis=1)
    return keys & 0xFFFF


def with_self(lists: Lists, node_ids: np.ndarray, vectors: np.ndarray) -> Lists:
    """Make sure that the list of every node contains the node itself.

    A node with k or more duplicates may be missing from its own list. It is then inserted in front and the last entry
    is dropped. `node_ids` (Q,) and `vectors` (Q, d) are the nodes of the rows. Changes `lists` in place.
    """
    ids, similarities = lists
    lost = np.flatnonzero(~(ids == node_ids[:, None]).any(axis=1))
    self_similarities = np.maximum(np.square(vectors[lost], dtype=np.float32).sum(axis=1), similarities[lost, 0])
    ids[lost, 1:], similarities[lost, 1:] = ids[lost, :-1], similarities[lost, :-1]
    ids[lost, 0], similarities[lost, 0] = node_ids[lost], self_similarities
    return lists


def recall(ids: np.ndarray, vectors: np.ndarray, device: str | torch.device, seed: int) -> float:
    """Estimate the recall of the neighbour lists `ids` (N, k) of `vectors` (N, d) on a thousand rows drawn at random.

    A neighbour that is as similar as a true one counts as a true one.
    """
    rows = sampled_rows(len(ids), 1000, seed)
    true = exact_search(vectors[rows], vectors, ids.shape[1], device)
    furthest = np.where(true[0] >= 0, true[1], np.inf).min(axis=1, keepdims=True)
    hits = listed_products(ids, vectors, rows) >= furthest - 1e-5
    return float(hits.sum() / max(1, (true[0] >= 0).sum()))


def sampled_rows(n_rows: int, n_sample: int, seed: int) -> np.ndarray:
    """Draw at most `n_sample` of `n_rows` row numbers at random and return them in ascending order."""
    return np.sort(stream(seed, "sample").choice(n_rows, min(n_sample, n_rows), replace=False))


def listed_products(ids: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products (n, k) of the vectors `rows` (n,) with the neighbours in their lists; -inf for id -1."""
    listed, queries = vectors[ids[rows]].astype(np.float32), vectors[rows].astype(np.float32)
    return np.where(ids[rows] >= 0, np.einsum("nkd,nd->nk", listed, queries), -np.inf)
