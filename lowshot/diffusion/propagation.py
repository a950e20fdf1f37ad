"""Label propagation over a graph of labelled and unlabelled images (Douze et al., CVPR 2018, section 3).

S is the symmetrised neighbour matrix, D the diagonal matrix of its row sums, and W = D^-1 S. Starting from the one-hot
labels L_0, a step computes L <- W L and scales the columns to sum 1. After T steps, the scores of a test image are the
sum of the rows of L of its nearest nodes. Test images are not nodes.

Three identities make this cheap without changing the result:

* Scaling columns commutes with multiplication from the left: L_T = W^T L_0 diag(1 / s_T), so it is done once, at the
  end. The sums s_T = L_0' (W')^T 1 follow from one vector for all classes, summed over the nodes of each class.
* L_0 has one entry per labelled node, so the first step only adds rows of S.
* After the last step, only the neighbours of test images are needed.

Columns do not interact. They are processed in slices, which several processes can share without communication.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot.diffusion.adjacency import Adjacency, Block, entries_bytes
from lowshot.diffusion.settings import Precision, StepOptions

# Number of rows of a product computed at once. A block is still in the cache when its rows are scaled.
_BLOCK_ROWS = 2**15
# Number of columns processed at once in the first and the last step. These steps compute in float32 for any storage
# precision: bfloat16 cannot count beyond 256, and rounding errors of the last step are not averaged out. Half a slice
# in float32 is as large as a slice in bfloat16, so these steps need no more memory than the others.
_FEW_COLUMNS = 32


@dataclass(frozen=True)
class Labels:
    """L_0 in sparse form: labelled `nodes`, int64 (n,), ascending, and their `columns`, int64 (n,), in
    0..n_columns-1."""

    nodes: np.ndarray
    columns: np.ndarray
    n_columns: int

    def between(self, first: int, last: int) -> "Labels":
        """Select the labels in columns first..last-1 and renumber the columns from 0."""
        inside = (self.columns >= first) & (self.columns < last)
        return Labels(self.nodes[inside], self.columns[inside] - first, last - first)

    def among(self, nodes: np.ndarray) -> "Labels":
        """Select the labels of `nodes` (n,), ascending, and renumber the nodes as 0..n-1."""
        places = np.searchsorted(nodes, self.nodes)
        inside = np.append(nodes, -1)[places] == self.nodes
        return Labels(places[inside], self.columns[inside], self.n_columns)

    def add_to(self, state: Tensor, value: float) -> Tensor:
        """Add `value` times L_0 to `state` (N, n_columns), in place."""
        if value:
            state[_on(self.nodes, state.device), _on(self.columns, state.device)] += value
        return state


# Bytes per node of the vectors in `Spread.column_sums`.
SUMS_BYTES = 40


class Spread:
    """The steps L <- W L for the labels of one run, on `device`, for slices of columns.

    `needed`, int64 (R,) in ascending order, are the nodes whose rows of L to return.
    """

    def __init__(
        self, adjacency: Adjacency, labels: Labels, needed: np.ndarray, options: StepOptions, device: str
    ) -> None:
        self.adjacency, self.labels, self.needed, self.device = adjacency, labels, needed, device
        # `fresh` is the share of L_0 that a step adds. `factors` scale each row of S to a row of W. They are 0 for
        # nodes without neighbours, which have no mean, and for nodes that are reset to their label.
        self.fresh = 1.0 if options.clamp else options.restart
        degrees = adjacency.degrees
        self.factors = np.divide(1 - options.restart, degrees, out=np.zeros_like(degrees), where=degrees > 0)
        if options.clamp:
            self.factors[labels.nodes] = 0
        self.all_rows = [_Rows(b, self.factors[b.first : b.first + b.n_rows], device) for b in adjacency.blocks]
        everything = len(needed) == len(adjacency)
        self.needed_rows = (
            self.all_rows if everything else [_Rows(adjacency.rows(needed), self.factors[needed], device)]
        )

    def column_sums(self, n_steps: int) -> np.ndarray:
        """Return the sums of the unscaled columns after 0..n_steps steps, float64 (n_steps + 1, n_columns)."""
        labels, factors = self.labels, self.factors.astype(np.float64)
        u, sums = np.ones(len(self.adjacency)), []
        for step in range(n_steps + 1):
            sums.append(np.bincount(labels.columns, u[labels.nodes], labels.n_columns))
            if step < n_steps:
                u = self.adjacency.times(u * factors) + self.fresh
        return np.stack(sums)

    def columns(
        self, first: int, last: int, steps: Collection[int], precision: Precision
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (step, columns first..last-1), unscaled, float32 (R, last - first), for each of `steps` in ascending
        order."""
        labels, n_steps = self.labels.between(first, last), max(steps)
        among_needed, needed = labels.among(self.needed), _on(self.needed, self.device)
        if 0 in steps:
            yield 0, among_needed.add_to(torch.zeros(len(needed), labels.n_columns, device=self.device), 1)
        state = None
        for step in range(1, n_steps + 1):
            separately = is_separate(step, n_steps, precision)
            if separately and step in steps:
                yield step, among_needed.add_to(_float32_product(self.needed_rows, state), self.fresh)
            if step == n_steps > 1:
                return
            state = _product(self.all_rows, state) if step > 1 else self._first(labels, getattr(torch, precision))
            labels.add_to(state, self.fresh)
            if step in steps and not separately:
                yield step, state[needed].float()

    def _first(self, labels: Labels, dtype: torch.dtype) -> Tensor:
        """Compute W L_0. S is symmetric, so a column of S L_0 is the sum of the rows of S of its labelled nodes."""
        state = torch.empty(len(self.adjacency), labels.n_columns, dtype=dtype, device=self.device)
        factors = _on(self.factors, self.device)[:, None]
        sums = torch.empty(len(state) * min(labels.n_columns, _FEW_COLUMNS), device=self.device)
        for at in range(0, labels.n_columns, _FEW_COLUMNS):
            part = labels.between(at, min(at + _FEW_COLUMNS, labels.n_columns))
            rows = self.adjacency.rows(part.nodes)
            places = rows.columns * np.int64(part.n_columns) + np.repeat(part.columns, np.diff(rows.offsets))
            values = np.ones(len(places), np.float32) if rows.weights is None else rows.weights
            counts = sums[: len(state) * part.n_columns].zero_()
            counts.index_add_(0, _on(places, self.device), _on(values, self.device))
            state[:, at : at + part.n_columns] = counts.view(len(state), -1).mul_(factors)
        return state


def is_separate(step: int, n_steps: int, precision: Precision) -> bool:
    """Whether the rows to return after `step` of `n_steps` need a separate product.

    Returned rows are float32 for any storage precision, so that a step returns the same rows whether it is the last one
    or not. With lower precision they cannot be taken from the stored state.
    """
    return step > 1 and (step == n_steps or precision != "float32")


def slice_bytes(n_rows: int, width: int, precision: Precision = "float32") -> int:
    """Bytes of a slice (n_rows, width) of labels or scores. A step holds two slices of labels."""
    return n_rows * width * getattr(torch, precision).itemsize


def first_step_bytes(n_nodes: int, n_entries: int, n_labelled: int, n_columns: int, width: int) -> float:
    """Bytes that `Spread._first` holds besides a slice: the sums of a few columns, and the entries and positions of the
    nodes labelled in these columns (`n_labelled` in all `n_columns`)."""
    few = min(width, _FEW_COLUMNS)
    return slice_bytes(n_nodes, few) + 24 * n_entries / n_nodes * n_labelled * few / n_columns


def given_rows_bytes(n_needed: int, width: int, n_requested: int, precision: Precision) -> int:
    """Bytes of the rows that `Spread.columns` yielded last, which the caller holds during the next step.

    They count twice if rows of earlier steps are separate products. `n_requested` is the number of steps with output.
    """
    return (1 + (n_requested > 1 and precision != "float32")) * slice_bytes(n_needed, width)


class _Rows:
    """Rows of W on a device, multiplied in blocks."""

    def __init__(self, block: Block, factors: np.ndarray, device: str) -> None:
        self.offsets, self.n_rows = block.offsets, block.n_rows
        self.entries, self.factors = _on(block.columns, device), _on(factors, device)
        self.weights = None if block.weights is None else _on(block.weights, device)

    def times(self, state: Tensor, out: Tensor) -> None:
        """Write the product with `state` (N, width) to `out` (rows, width). Sums are float32 for any precision of
        `state`."""
        for at in range(0, self.n_rows, _BLOCK_ROWS):
            rows = slice(at, min(at + _BLOCK_ROWS, self.n_rows))
            offsets = self.offsets[at : rows.stop + 1]
            entries = slice(offsets[0], offsets[-1])
            weights = None if self.weights is None else self.weights[entries].to(state.dtype)
            sums = _bag_sums(state, self.entries[entries], offsets - offsets[0], weights)
            torch.mul(sums, self.factors[rows, None], out=out[rows])


def device_bytes(n_nodes: int, n_entries: int, weighted: bool) -> int:
    """Bytes on a GPU of all `_Rows`, with `n_entries` in total, and of their factors."""
    return entries_bytes(n_entries, weighted) + 4 * n_nodes


def _product(blocks: list[_Rows], state: Tensor) -> Tensor:
    out = state.new_empty(sum(block.n_rows for block in blocks), state.shape[1])
    for block, rows in zip(blocks, out.split([block.n_rows for block in blocks])):
        block.times(state, rows)
    return out


def _float32_product(blocks: list[_Rows], state: Tensor) -> Tensor:
    """Product in float32. If `state` must be converted, this is done for a few columns at a time."""
    if state.dtype == torch.float32:
        return _product(blocks, state)
    return torch.cat([_product(blocks, part.float().contiguous()) for part in state.split(_FEW_COLUMNS, 1)], 1)


def last_step_bytes(n_nodes: int, n_needed: int, width: int, precision: Precision, assigning: bool) -> int:
    """Bytes of the last step: a slice, the rows to return, and temporary arrays.

    The temporary arrays are either a few columns of the slice in float32, or a second copy of the rows: the parts they
    are joined from, or the scaled rows in `assign`. The larger one counts.
    """
    rows = slice_bytes(n_needed, width)
    converted = 0 if precision == "float32" else slice_bytes(n_nodes, min(width, _FEW_COLUMNS))
    return slice_bytes(n_nodes, width, precision) + rows + max(converted, rows if converted or assigning else 0)


def _bag_sums(matrix: Tensor, rows: Tensor, offsets: np.ndarray, weights: Tensor | None = None) -> Tensor:
    """Sum the rows of `matrix` listed in each bag.

    On a GPU row numbers must be int64, because offsets into `matrix` are computed in their type.
    """
    kind = torch.int32 if matrix.device.type == "cpu" else torch.int64
    bags = _on(offsets, matrix.device).to(kind)
    return F.embedding_bag(
        rows.to(kind), matrix, bags, mode="sum", include_last_offset=True, per_sample_weights=weights
    )


def _on(array: np.ndarray, device: str | torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


class TestLists:
    """The neighbours of each test image: `ids`, int (n_test, k), -1 for none."""

    def __init__(self, ids: np.ndarray) -> None:
        is_listed = ids >= 0
        self.nodes, places = np.unique(ids[is_listed], return_inverse=True)
        self.places = torch.from_numpy(places.astype(np.int32))
        self.offsets = np.concatenate([[0], np.cumsum(is_listed.sum(1))])

    def scores(self, rows: Tensor) -> Tensor:
        """Sum `rows`, float32 (len(nodes), width), over the neighbours of each test image: (n_test, width)."""
        return _bag_sums(rows, self.places.to(rows.device), self.offsets)


@dataclass(frozen=True)
class Work:
    """How to divide the work. Memory and speed depend on it; the results do not."""

    device: str = "cpu"
    slice_width: int = 64
    """Number of columns processed at a time."""
    process: int = 0
    """Rank among `n_processes`. Slices are assigned to processes in turn; columns of other processes stay 0."""
    n_processes: int = 1

    def slices(self, n_columns: int) -> list[slice]:
        """The slices of this process."""
        starts = range(0, n_columns, self.slice_width)
        return [slice(at, min(at + self.slice_width, n_columns)) for at in starts][self.process :: self.n_processes]


def propagate(
    adjacency: Adjacency,
    labels: Labels,
    test_ids: np.ndarray,
    steps: Collection[int],
    options: StepOptions | None = None,
    precision: Precision = "float32",
    work: Work | None = None,
) -> dict[int, np.ndarray]:
    """Propagate the labels and return the scores of the test images after each of `steps`, float32 (n_test, n_columns).

    Args:
        test_ids: int32 (n_test, k), nodes nearest to each test image, -1 for none.
        precision: storage type of the labels between steps. Sums are float32.
    """
    work = work or Work()
    lists = TestLists(test_ids)
    spread = Spread(adjacency, labels, lists.nodes.astype(np.int64), options or StepOptions(), work.device)
    scales = _inverse(spread.column_sums(max(steps)))
    scores = {step: np.zeros((len(test_ids), labels.n_columns), np.float32) for step in steps}
    for part in work.slices(labels.n_columns):
        for step, rows in spread.columns(part.start, part.stop, steps, precision):
            scores[step][:, part] = lists.scores(rows).cpu().numpy() * scales[step, part]
    return scores


# Bytes per node that `assign` holds besides its slices: node numbers, and the best entries of all slices so far and of
# the current one.
ASSIGN_BYTES = 40


def assign(
    adjacency: Adjacency,
    labels: Labels,
    n_steps: int,
    options: StepOptions | None = None,
    precision: Precision = "float32",
    work: Work | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every node after `n_steps` steps, the column of its highest entry, int64 (N,), and the entry, float32
    (N,).

    An entry is the node's share of the label mass of a class. It is 0 if no label has reached the node.
    """
    work = work or Work()
    spread = Spread(adjacency, labels, np.arange(len(adjacency)), options or StepOptions(), work.device)
    scales = _on(_inverse(spread.column_sums(n_steps)[-1]), work.device)
    best = torch.zeros(len(adjacency), device=work.device)
    columns = torch.zeros(len(adjacency), dtype=torch.int64, device=work.device)
    for part in work.slices(labels.n_columns):
        ((_, rows),) = spread.columns(part.start, part.stop, [n_steps], precision)
        values, places = (rows * scales[part]).max(1)
        higher = values > best
        best[higher], columns[higher] = values[higher], places[higher] + part.start
        del rows, values, places  # free the memory before the next slice
    return columns.cpu().numpy(), best.cpu().numpy()


def _inverse(sums: np.ndarray) -> np.ndarray:
    """Return 1 / sums as float32, or 1 for an empty column."""
    return np.divide(1, sums, out=np.ones_like(sums), where=sums > 0).astype(np.float32)
