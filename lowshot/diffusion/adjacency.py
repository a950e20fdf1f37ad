"""Build the symmetric sparse matrix that labels spread over (Douze et al., CVPR 2018, section 3.2).

A is the matrix of the neighbour lists, with one row per node. S combines A and its transpose. The published code
transposes, sorts and adds whole matrices. Here S is built for one range of rows at a time, so only the lists, the
result and the transpose of one range are in memory.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from lowshot.core.compiled import compiled
from lowshot.diffusion.settings import Symmetry

# The transpose is gathered for one range of nodes at a time. A range is large enough to be worth a pass over all lists,
# and small enough to stay in the processor cache.
_ENTRIES_PER_RANGE = 2**22
_MOST_RANGES = 16
# Maximum number of lists sampled to estimate the number of entries of S.
_SAMPLED_LISTS = 2**16


@dataclass(frozen=True)
class Block:
    """A block of rows of S in CSR format, starting at row `first`.

    Row r has the columns `columns[offsets[r] : offsets[r + 1]]`, in ascending order. `offsets` is int64 (rows + 1,),
    `columns` int32, `weights` float32. `weights` is None if every entry counts 1; with symmetry "sum", a mutual edge is
    then stored as two entries.
    """

    first: int
    offsets: np.ndarray
    columns: np.ndarray
    weights: np.ndarray | None

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def empty(cls, first: int, n_rows: int, weighted: bool) -> "Block":
        """A block of `n_rows` rows without entries."""
        weights = np.empty(0, np.float32) if weighted else None
        return cls(first, np.zeros(n_rows + 1, np.int64), np.empty(0, np.int32), weights)


@dataclass(frozen=True)
class Adjacency:
    """S as blocks of rows with fewer than 2^31 entries each, and its row sums `degrees`, float32 (N,)."""

    blocks: list[Block]
    degrees: np.ndarray

    def __len__(self) -> int:
        return len(self.degrees)

    @property
    def n_entries(self) -> int:
        return sum(len(block.columns) for block in self.blocks)

    def rows(self, nodes: np.ndarray) -> Block:
        """Return the rows `nodes` of S, int64 (n,) in ascending order, as one block."""
        columns, weights, lengths = [], [], []
        for b in self.blocks:
            inside = nodes[np.searchsorted(nodes, b.first) : np.searchsorted(nodes, b.first + b.n_rows)] - b.first
            counts = b.offsets[inside + 1] - b.offsets[inside]
            ends = np.cumsum(counts)
            at = np.repeat(b.offsets[inside] - (ends - counts), counts) + np.arange(counts.sum())
            lengths.append(counts)
            columns.append(b.columns[at])
            weights.append(b.weights[at] if b.weights is not None else None)
        joined = None if weights[0] is None else np.concatenate(weights)
        return Block(0, np.cumsum(np.concatenate([[0], *lengths])), np.concatenate(columns), joined)

    def times(self, vector: np.ndarray) -> np.ndarray:
        """Multiply S by `vector` (N,), in float64."""
        product = np.empty(len(self))

        def rows(b: Block) -> None:
            weights = np.empty(0, np.float32) if b.weights is None else b.weights
            out = product[b.first : b.first + b.n_rows]
            _row_products(b.offsets, b.columns, weights, b.weights is not None, vector, out)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(rows, self.blocks))
        return product


def symmetrise(
    ids: np.ndarray, weights: np.ndarray | None = None, how: Symmetry = "sum", share: float = 1
) -> Adjacency:
    """Build S from neighbour lists.

    Args:
        ids: int32 (N, k), -1 for no neighbour.
        weights: edge weights, float32 (N, k); 1 for every edge if None.
        how: "sum" is A + A^T as published, where mutual edges and self-loops count twice. "max" takes the larger of the
            two weights. "mutual" takes the smaller one, which keeps only the edges that are in both lists.
        share: build only the first rows, with about this share of the entries and the same number of ranges per thread.
            Used to measure the time.
    """
    counts = in_degrees(ids)
    ranges, n_threads = _ranges(counts, ids.shape[1]), torch.get_num_threads()
    ranges = ranges[: n_threads * math.ceil(len(ranges) * share / n_threads)]
    code = {"sum": 0, "max": 1, "mutual": 2}[how]
    with ThreadPoolExecutor(n_threads) as pool:
        made = list(pool.map(lambda span: _block(ids, weights, counts, *span, code), ranges))
    return Adjacency([block for block, _ in made], np.concatenate([degrees for _, degrees in made]))


def entries_bytes(n_entries: int, weighted: bool) -> int:
    """Bytes of `n_entries` entries of S: their columns, and their weights if there are any."""
    return (4 + 4 * weighted) * n_entries


def matrix_bytes(n_nodes: int, n_entries: int, weighted: bool) -> int:
    """Bytes of S: its entries, row offsets and row sums."""
    return entries_bytes(n_entries, weighted) + 12 * n_nodes


def transpose_bytes(n_nodes: int, n_entries: int, weighted: bool) -> float:
    """Bytes that `symmetrise` holds besides the lists and S: in-degrees, and rows of A^T for the ranges in progress.

    A^T has half the entries of S. With weights it has more than half, because both directions of an edge are one entry.
    """
    at_once = min(1, torch.get_num_threads() / _n_ranges(n_entries))
    return at_once * ((2 + 4 * weighted) * n_entries + 16 * n_nodes) + 4 * n_nodes


def expected_entries(
    ids: np.ndarray, n_nodes: int, nodes: np.ndarray, how: Symmetry, weighted: bool
) -> tuple[int, int]:
    """Estimate from a sample how many entries S will have, in all rows and in the rows `nodes` (n,).

    S is built from `n_nodes` lists like `ids` (N, k).
    """
    sampled = np.arange(0, len(ids), max(1, len(ids) // _SAMPLED_LISTS))
    lists, few = ids[sampled], ids[sampled[:4096]]
    listed = float((lists >= 0).sum(1).mean())
    # A mutual edge is one entry, except in an unweighted sum.
    is_mutual = (ids[few] == sampled[:4096, None, None]).any(2) & (few >= 0)
    mutual = float(is_mutual.sum() / max(1, (few >= 0).sum()))
    per_edge = {"sum": 2 - mutual if weighted else 2, "max": 2 - mutual, "mutual": mutual}[how]
    is_requested = np.zeros(len(ids) + 1, bool)  # the last element is for id -1
    is_requested[nodes] = True
    n_naming = float(is_requested[lists].sum()) / len(lists) * n_nodes
    return max(1, int(n_nodes * listed * per_edge)), int((len(nodes) * listed + n_naming) * per_edge / 2)


def _n_ranges(n_entries: int) -> int:
    """Number of node ranges that S is built in. `n_entries` counts listed edges, forward and transposed."""
    return int(np.clip(n_entries // _ENTRIES_PER_RANGE, 1, max(_MOST_RANGES, n_entries // 2**30)))


def _ranges(counts: np.ndarray, k: int) -> list[tuple[int, int]]:
    """Consecutive node ranges with about the same number of entries, forward and transposed."""
    ends = np.cumsum(counts + np.int64(k))
    n = _n_ranges(int(ends[-1]))
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, n) // n)
    edges = np.unique([0, *cuts, len(counts)])
    return list(zip(edges[:-1].tolist(), edges[1:].tolist()))


def _block(
    ids: np.ndarray, weights: np.ndarray | None, counts: np.ndarray, first: int, last: int, how: int
) -> tuple[Block, np.ndarray]:
    """Build rows first..last-1 of S and their sums."""
    weighted = weights is not None
    values = weights if weighted else np.empty((0, ids.shape[1]), np.float32)
    starts = np.zeros(last - first + 1, np.int64)
    np.cumsum(counts[first:last], out=starts[1:])
    sources, source_values = _transposed_rows(ids, values, weighted, starts, first, last)
    # These two are allocated at their largest possible size and not trimmed: pages never written use no memory.
    columns = np.empty(starts[-1] + (last - first) * ids.shape[1], np.int32)
    entries = np.empty(len(columns) if weighted else 0, np.float32)
    offsets, degrees = np.zeros(last - first + 1, np.int64), np.empty(last - first, np.float32)
    _combine(ids, values, weighted, starts, sources, source_values, first, how, offsets, columns, entries, degrees)
    n = offsets[-1]
    return Block(first, offsets, columns[:n], entries[:n] if weighted else None), degrees


@compiled(nogil=True)
def in_degrees(ids):
    """Number of lists that contain each node, int32 (N,)."""
    counts = np.zeros(ids.shape[0], np.int32)
    for i in range(ids.shape[0]):
        for j in ids[i]:
            if j >= 0:
                counts[j] += 1
    return counts


@compiled(nogil=True)
def _transposed_rows(ids, values, weighted, starts, first, last):
    """Rows first..last-1 of A^T: for each node, the nodes whose lists contain it (ascending) and the edge weights."""
    at = starts[:-1].copy()
    sources = np.empty(starts[-1], np.int32)
    source_values = np.empty(starts[-1] if weighted else 0, np.float32)
    for i in range(ids.shape[0]):
        for slot in range(ids.shape[1]):
            j = ids[i, slot]
            if first <= j < last:
                sources[at[j - first]] = i
                if weighted:
                    source_values[at[j - first]] = values[i, slot]
                at[j - first] += 1
    return sources, source_values


@compiled(nogil=True)
def _combine(ids, values, weighted, starts, sources, source_values, first, how, offsets, columns, entries, degrees):
    """Merge the sorted list of each row with its row of the transpose, and write the result to the output arrays."""
    listed, listed_values = np.empty(ids.shape[1], np.int32), np.empty(ids.shape[1], np.float32)
    n = 0
    for r in range(len(degrees)):
        length = _sorted_list(ids[first + r], values, first + r, weighted, listed, listed_values)
        a, b, end, total = 0, starts[r], starts[r + 1], 0.0
        while a < length or b < end:
            left = listed[a] if a < length else np.int32(2147483647)
            right = sources[b] if b < end else np.int32(2147483647)
            column = min(left, right)
            forward = (listed_values[a] if weighted else np.float32(1)) if left == column else np.float32(0)
            backward = (source_values[b] if weighted else np.float32(1)) if right == column else np.float32(0)
            a += left == column
            b += right == column
            value = forward + backward if how == 0 else (max(forward, backward) if how == 1 else min(forward, backward))
            total += value
            if weighted:
                if value != 0:
                    columns[n], entries[n] = column, value
                    n += 1
            else:
                for _ in range(int(value)):
                    columns[n] = column
                    n += 1
        offsets[r + 1], degrees[r] = n, total


@compiled(nogil=True, inline="always")
def _sorted_list(row, values, i, weighted, listed, listed_values):
    """Sort one list by node into `listed`, and its weights into `listed_values`. Return the number of neighbours."""
    n = 0
    for slot in range(len(row)):
        if row[slot] < 0:
            continue
        at = n
        while at > 0 and listed[at - 1] > row[slot]:
            listed[at] = listed[at - 1]
            listed_values[at] = listed_values[at - 1]
            at -= 1
        listed[at] = row[slot]
        if weighted:
            listed_values[at] = values[i, slot]
        n += 1
    return n


@compiled(nogil=True)
def _row_products(offsets, columns, weights, weighted, vector, out):
    """Multiply rows of S by a vector, in float64."""
    for r in range(len(out)):
        total = 0.0
        for at in range(offsets[r], offsets[r + 1]):
            total += vector[columns[at]] * (weights[at] if weighted else np.float32(1))
        out[r] = total
