"""Labels spread over a graph of labelled and unlabelled images (Douze, Szlam, Hariharan & Jégou, CVPR 2018, section 3).

S are the symmetrised neighbour lists and D its row sums. From the one-hot labels L_0, T times L <- D^-1 S L, columns
scaled to sum 1; a test image scores the sum of the rows of its nearest nodes. Test images are no nodes.

Three identities make this cheap, without changing a result:

* Scaling columns commutes with multiplying from the left: L_T = W^T L_0 diag(1 / s_T), one scaling at the end. And
  s_T = L_0' (W')^T 1, the sums of one vector, for all classes, over the nodes of each class.
* L_0 has one entry a labelled node, so the first step only adds up rows of S.
* After the last step only nodes that are neighbours of a test image are needed.

Columns never interact: they are worked off in slices, which any number of processes share without exchanging anything.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot.diffusion.adjacency import Adjacency, Block, entries_bytes
from lowshot.diffusion.settings import Precision, StepOptions

# Rows of a product computed at once: what a block writes is still in the cache when it is scaled.
_BLOCK_ROWS = 2**15
# Columns of the first and of the last step worked on at once. These are float32 whatever is stored: bfloat16 cannot
# count beyond 256, and what is rounded last is averaged least. Half a slice in float32 is as large as one in bfloat16,
# so that these steps hold no more than the ones between them.
_FEW_COLUMNS = 32


@dataclass(frozen=True)
class Labels:
    """L_0: the labelled `nodes` (n,) int64, ascending, and their `columns` (n,) int64 in 0..n_columns-1."""

    nodes: np.ndarray
    columns: np.ndarray
    n_columns: int

    def between(self, first: int, last: int) -> "Labels":
        """Those in the columns first..last-1, counted from `first`."""
        inside = (self.columns >= first) & (self.columns < last)
        return Labels(self.nodes[inside], self.columns[inside] - first, last - first)

    def among(self, nodes: np.ndarray) -> "Labels":
        """Those of some `nodes` (n,), ascending, which are then called 0..n-1."""
        places = np.searchsorted(nodes, self.nodes)
        inside = np.append(nodes, -1)[places] == self.nodes
        return Labels(places[inside], self.columns[inside], self.n_columns)

    def add_to(self, state: Tensor, value: float) -> Tensor:
        """Add `value` times L_0 to `state` (N, n_columns), in place."""
        if value:
            state[_on(self.nodes, state.device), _on(self.columns, state.device)] += value
        return state


# Bytes a node of the vectors that `Spread.column_sums` holds.
SUMS_BYTES = 40


class Spread:
    """The steps L <- W L from the labels of one run, on `device`, of slices of columns.

    `needed` int64 (R,), ascending, are the nodes whose rows are wanted.
    """

    def __init__(
        self, adjacency: Adjacency, labels: Labels, needed: np.ndarray, options: StepOptions, device: str
    ) -> None:
        self.adjacency, self.labels, self.needed, self.device = adjacency, labels, needed, device
        # What a step adds of L_0, and for each node the factor that makes its row of S one of W: 0 for a node without
        # neighbours, which has no mean, and for one that is put back to its label.
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
        """Sums of the unscaled columns after 0..n_steps steps: float64 (n_steps + 1, n_columns)."""
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
        """Columns first..last-1, unscaled, after each of `steps`, ascending: (step, float32 (R, last - first))."""
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
        """W L_0: S is symmetric, so a column adds up the rows of S of its labelled nodes."""
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
    """Whether rows wanted after `step` of `n_steps` are a product of their own, not taken from the stored state: they
    are float32 whatever is stored, so that a step gives the same on the way as when it is the last."""
    return step > 1 and (step == n_steps or precision != "float32")


def slice_bytes(n_rows: int, width: int, precision: Precision = "float32") -> int:
    """Bytes of a slice (n_rows, width) of labels, of which a step holds two, or of scores."""
    return n_rows * width * getattr(torch, precision).itemsize


def first_step_bytes(n_nodes: int, n_entries: int, n_labelled: int, n_columns: int, width: int) -> float:
    """Bytes that `Spread._first` holds beside a slice: sums of a few columns, and the entries and places of the nodes
    labelled in them (`n_labelled` in all `n_columns`)."""
    few = min(width, _FEW_COLUMNS)
    return slice_bytes(n_nodes, few) + 24 * n_entries / n_nodes * n_labelled * few / n_columns


def given_rows_bytes(n_needed: int, width: int, n_requested: int, precision: Precision) -> int:
    """Bytes of the rows that `Spread.columns` gave last, held while it makes the next; twice where it gives separate
    ones on the way (`n_requested`: steps)."""
    return (1 + (n_requested > 1 and precision != "float32")) * slice_bytes(n_needed, width)


class _Rows:
    """Some rows of W on a device, cut into blocks."""

    def __init__(self, block: Block, factors: np.ndarray, device: str) -> None:
        self.offsets, self.n_rows = block.offsets, block.n_rows
        self.entries, self.factors = _on(block.columns, device), _on(factors, device)
        self.weights = None if block.weights is None else _on(block.weights, device)

    def times(self, state: Tensor, out: Tensor) -> None:
        """Write the product with `state` (N, width) to `out` (rows, width); sums are float32, whatever is stored."""
        for at in range(0, self.n_rows, _BLOCK_ROWS):
            rows = slice(at, min(at + _BLOCK_ROWS, self.n_rows))
            offsets = self.offsets[at : rows.stop + 1]
            entries = slice(offsets[0], offsets[-1])
            weights = None if self.weights is None else self.weights[entries].to(state.dtype)
            sums = _bag_sums(state, self.entries[entries], offsets - offsets[0], weights)
            torch.mul(sums, self.factors[rows, None], out=out[rows])


def device_bytes(n_nodes: int, n_entries: int, weighted: bool) -> int:
    """Bytes on a GPU of all `_Rows`, which have `n_entries` together, and their factors."""
    return entries_bytes(n_entries, weighted) + 4 * n_nodes


def _product(blocks: list[_Rows], state: Tensor) -> Tensor:
    out = state.new_empty(sum(block.n_rows for block in blocks), state.shape[1])
    for block, rows in zip(blocks, out.split([block.n_rows for block in blocks])):
        block.times(state, rows)
    return out


def _float32_product(blocks: list[_Rows], state: Tensor) -> Tensor:
    """The product in float32, of a few columns at a time where `state` must be converted."""
    if state.dtype == torch.float32:
        return _product(blocks, state)
    return torch.cat([_product(blocks, part.float().contiguous()) for part in state.split(_FEW_COLUMNS, 1)], 1)


def last_step_bytes(n_nodes: int, n_needed: int, width: int, precision: Precision, assigning: bool) -> int:
    """Bytes of the last step: a slice, the rows wanted, and the larger of two: columns of the slice in float32, or the
    rows once more, in the parts that they are joined from or, in `assign`, scaled."""
    rows = slice_bytes(n_needed, width)
    converted = 0 if precision == "float32" else slice_bytes(n_nodes, min(width, _FEW_COLUMNS))
    return slice_bytes(n_nodes, width, precision) + rows + max(converted, rows if converted or assigning else 0)


def _bag_sums(matrix: Tensor, rows: Tensor, offsets: np.ndarray, weights: Tensor | None = None) -> Tensor:
    """Sums of the rows of `matrix` that each bag names. A GPU multiplies row numbers in their own type: int64 there."""
    kind = torch.int32 if matrix.device.type == "cpu" else torch.int64
    bags = _on(offsets, matrix.device).to(kind)
    return F.embedding_bag(
        rows.to(kind), matrix, bags, mode="sum", include_last_offset=True, per_sample_weights=weights
    )


def _on(array: np.ndarray, device: str | torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


class TestLists:
    """The nodes that each test image adds up: `ids` int (n_test, k), -1 for none."""

    def __init__(self, ids: np.ndarray) -> None:
        is_listed = ids >= 0
        self.nodes, places = np.unique(ids[is_listed], return_inverse=True)
        self.places = torch.from_numpy(places.astype(np.int32))
        self.offsets = np.concatenate([[0], np.cumsum(is_listed.sum(1))])

    def scores(self, rows: Tensor) -> Tensor:
        """Sums over each image's nodes: `rows` float32 (len(nodes), width) to (n_test, width)."""
        return _bag_sums(rows, self.places.to(rows.device), self.offsets)


@dataclass(frozen=True)
class Work:
    """How the work is cut; memory and speed depend on it, results do not."""

    device: str = "cpu"
    slice_width: int = 64
    """Columns worked on at a time."""
    process: int = 0
    """Of `n_processes`: slices are dealt out in turn, columns of the others stay 0."""
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
    """Scores of test images after each of `steps` steps: float32 (n_test, n_columns).

    Args:
        test_ids: int32 (n_test, k) nodes nearest to each test image, -1 for none.
        precision: of what is stored between steps; sums are float32.
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


# Bytes a node that `assign` holds beside its slices: numbers, and the best of all slices so far and of the last one.
ASSIGN_BYTES = 40


def assign(
    adjacency: Adjacency,
    labels: Labels,
    n_steps: int,
    options: StepOptions | None = None,
    precision: Precision = "float32",
    work: Work | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The column of the highest entry of every node after `n_steps` steps, and that entry: int64 (N,), float32 (N,).

    An entry is the node's share of all of a class's label mass; 0 where no label has reached the node.
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
        del rows, values, places  # before the next slice is made
    return columns.cpu().numpy(), best.cpu().numpy()


def _inverse(sums: np.ndarray) -> np.ndarray:
    """1 / sums, float32; 1 where a column is empty."""
    return np.divide(1, sums, out=np.ones_like(sums), where=sums > 0).astype(np.float32)
