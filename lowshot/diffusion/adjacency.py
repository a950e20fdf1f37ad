"""Neighbour lists to the symmetric sparse matrix that labels spread over (Douze et al., CVPR 2018, section 3.2).

A is the matrix of the lists, one row a node; S combines A and its transpose. The published way (transpose, sort, add)
keeps whole copies of both; here rows are made range by range, so that beside the lists and the result only a range's
part of the transpose is held.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from lowshot.core.compiled import compiled
from lowshot.diffusion.settings import Symmetry

# Rows of the transpose are gathered for one range of nodes at a time: enough to be worth a pass over all lists, few
# enough to stay in the processor's cache.
_ENTRIES_PER_RANGE = 2**22
_MOST_RANGES = 16
# Lists that are looked at, at most, to tell how many entries S will have.
_SAMPLED_LISTS = 2**16


@dataclass(frozen=True)
class Block:
    """Rows `first` ... of S: row r has the columns `columns[offsets[r] : offsets[r + 1]]`, ascending.

    `offsets` int64 (rows + 1,), `columns` int32; `weights` float32, or None where every entry counts 1 (then an edge
    that both lists name stands twice in a sum).
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
        """`n_rows` rows without entries."""
        weights = np.empty(0, np.float32) if weighted else None
        return cls(first, np.zeros(n_rows + 1, np.int64), np.empty(0, np.int32), weights)


@dataclass(frozen=True)
class Adjacency:
    """S as blocks of rows, each of fewer than 2^31 entries, and `degrees` float32 (N,), the sums of its rows."""

    blocks: list[Block]
    degrees: np.ndarray

    def __len__(self) -> int:
        return len(self.degrees)

    @property
    def n_entries(self) -> int:
        return sum(len(block.columns) for block in self.blocks)

    def rows(self, nodes: np.ndarray) -> Block:
        """Some rows of S, one after another, as a block; `nodes` int64 (n,) ascend."""
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
        """S times `vector` (N,), float64."""
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
    """S of the lists `ids` int32 (N, k), in which -1 stands for no neighbour; `weights` float32 (N, k) of the edges.

    sum: A + A^T, as published: a mutual edge counts twice, and so does a node's edge to itself; max: the larger of the
    two; mutual: the smaller, only edges that both lists name. Without weights every listed edge counts 1. `share`: only
    the first rows, with about this share of the entries, as many ranges for every thread (to see what it takes).
    """
    counts = in_degrees(ids)
    ranges, n_threads = _ranges(counts, ids.shape[1]), torch.get_num_threads()
    ranges = ranges[: n_threads * math.ceil(len(ranges) * share / n_threads)]
    code = {"sum": 0, "max": 1, "mutual": 2}[how]
    with ThreadPoolExecutor(n_threads) as pool:
        made = list(pool.map(lambda span: _block(ids, weights, counts, *span, code), ranges))
    return Adjacency([block for block, _ in made], np.concatenate([degrees for _, degrees in made]))


def entries_bytes(n_entries: int, weighted: bool) -> int:
    """Bytes of entries of S: columns, and weights if they have some."""
    return (4 + 4 * weighted) * n_entries


def matrix_bytes(n_nodes: int, n_entries: int, weighted: bool) -> int:
    """Bytes of S: its entries, and the offsets and sums of its rows."""
    return entries_bytes(n_entries, weighted) + 12 * n_nodes


def transpose_bytes(n_nodes: int, n_entries: int, weighted: bool) -> float:
    """Bytes that `symmetrise` holds beside lists and S: in-degrees, and rows of A^T for the ranges made at once. These
    have half the entries of S, or more with weights, where both directions of an edge are one entry."""
    at_once = min(1, torch.get_num_threads() / _n_ranges(n_entries))
    return at_once * ((2 + 4 * weighted) * n_entries + 16 * n_nodes) + 4 * n_nodes


def expected_entries(
    ids: np.ndarray, n_nodes: int, nodes: np.ndarray, how: Symmetry, weighted: bool
) -> tuple[int, int]:
    """How many entries S of `n_nodes` lists like `ids` (N, k) will have, and its rows `nodes` (n,); from a sample."""
    sampled = np.arange(0, len(ids), max(1, len(ids) // _SAMPLED_LISTS))
    lists, few = ids[sampled], ids[sampled[:4096]]
    listed = float((lists >= 0).sum(1).mean())
    # A mutual edge is one entry, except in an unweighted sum.
    is_mutual = (ids[few] == sampled[:4096, None, None]).any(2) & (few >= 0)
    mutual = float(is_mutual.sum() / max(1, (few >= 0).sum()))
    per_edge = {"sum": 2 - mutual if weighted else 2, "max": 2 - mutual, "mutual": mutual}[how]
    is_asked_for = np.zeros(len(ids) + 1, bool)  # the last one is that of id -1
    is_asked_for[nodes] = True
    n_naming = float(is_asked_for[lists].sum()) / len(lists) * n_nodes
    return max(1, int(n_nodes * listed * per_edge)), int((len(nodes) * listed + n_naming) * per_edge / 2)


def _n_ranges(n_entries: int) -> int:
    """In how many ranges of nodes S of `n_entries` listed edges, forward and transposed, is made."""
    return int(np.clip(n_entries // _ENTRIES_PER_RANGE, 1, max(_MOST_RANGES, n_entries // 2**30)))


def _ranges(counts: np.ndarray, k: int) -> list[tuple[int, int]]:
    """Consecutive ranges of nodes with about equally many entries, forward and transposed."""
    ends = np.cumsum(counts + np.int64(k))
    n = _n_ranges(int(ends[-1]))
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, n) // n)
    edges = np.unique([0, *cuts, len(counts)])
    return list(zip(edges[:-1].tolist(), edges[1:].tolist()))


def _block(
    ids: np.ndarray, weights: np.ndarray | None, counts: np.ndarray, first: int, last: int, how: int
) -> tuple[Block, np.ndarray]:
    """Rows first..last-1 of S and their sums."""
    weighted = weights is not None
    values = weights if weighted else np.empty((0, ids.shape[1]), np.float32)
    starts = np.zeros(last - first + 1, np.int64)
    np.cumsum(counts[first:last], out=starts[1:])
    sources, source_values = _transposed_rows(ids, values, weighted, starts, first, last)
    # Pages of these two that stay unwritten take no memory: nothing is copied to cut them to size.
    columns = np.empty(starts[-1] + (last - first) * ids.shape[1], np.int32)
    entries = np.empty(len(columns) if weighted else 0, np.float32)
    offsets, degrees = np.zeros(last - first + 1, np.int64), np.empty(last - first, np.float32)
    _combine(ids, values, weighted, starts, sources, source_values, first, how, offsets, columns, entries, degrees)
    n = offsets[-1]
    return Block(first, offsets, columns[:n], entries[:n] if weighted else None), degrees


@compiled(nogil=True)
def in_degrees(ids):
    """How many lists name each node: int32 (N,)."""
    counts = np.zeros(ids.shape[0], np.int32)
    for i in range(ids.shape[0]):
        for j in ids[i]:
            if j >= 0:
                counts[j] += 1
    return counts


@compiled(nogil=True)
def _transposed_rows(ids, values, weighted, starts, first, last):
    """Rows first..last-1 of A^T: the nodes that list each of them, ascending, and the weights of those edges."""
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
    """Merge each row's own list, sorted, with its row of the transpose into the output arrays."""
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
    """Sort one list by node into `listed` and its weights into `listed_values`; returns how many neighbours it has."""
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
    """Rows of S times a vector, in float64."""
    for r in range(len(out)):
        total = 0.0
        for at in range(offsets[r], offsets[r + 1]):
            total += vector[columns[at]] * (weights[at] if weighted else np.float32(1))
        out[r] = total
