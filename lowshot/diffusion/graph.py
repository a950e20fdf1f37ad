"""graph.h5: neighbour lists and unit vectors of a background, or of a setup (a completed graph).

All arrays are contiguous, so they can be memory-mapped: a graph larger than memory is read and written in parts.

ids            int32 (N, k)      neighbours, most similar first, the node itself included; -1 for none
similarities   float32 (N, k)    inner products; -inf for none
vectors        float32 or float16 (N, d), unit length
pca_mean, pca_components         float32 (D,), (d, D); absent without PCA
done           int64 (4,)        rows written in each phase, so that an interrupted run can resume

A background also has the attribute `recall`. A completed graph has N = M + background nodes and also:
train_rows     int64 (M,)        rows of the train features that are the nodes 0..M-1
test_ids, test_similarities, test_vectors    lists and vectors of the T test images
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from lowshot.core.artifacts import stored_recipe
from lowshot.core.errors import InputError
from lowshot.core.h5 import create_array, creating_h5, open_h5, require_datasets, reserve_space, write_recipe
from lowshot.core.progress import Progress
from lowshot.data.rows import BLOCK, blocks, mapped
from lowshot.diffusion.neighbours import exact_search, merge, shifted, with_self
from lowshot.diffusion.projection import Projection

SCHEMA = "lowshot-graph-1"
_LISTS = {"ids": ("integers", 2), "similarities": ("floats", 2), "vectors": ("floats", 2)}
_COMPLETED = {"train_rows": ("integers", 1), "test_ids": ("integers", 2), "test_similarities": ("floats", 2),
              "test_vectors": ("floats", 2)}  # fmt: skip
# Phases of the work; indices of `done`.
VECTORS, LISTS, TRAIN_LISTS, TEST_LISTS = range(4)


@dataclass
class Graph:
    """An open graph.h5. Arrays are memory maps; the module docstring gives their shapes. The fields from `train_rows`
    to `test_vectors` are None for a background."""

    path: Path
    ids: np.ndarray
    similarities: np.ndarray
    vectors: np.ndarray
    pca: Projection
    train_rows: np.ndarray | None = None
    test_ids: np.ndarray | None = None
    test_similarities: np.ndarray | None = None
    test_vectors: np.ndarray | None = None
    setup: str | None = None
    unlabelled: str | None = None
    inputs: dict[str, str] | None = None

    @property
    def n_nodes(self) -> int:
        return len(self.ids)

    @property
    def k(self) -> int:
        return self.ids.shape[1]

    @property
    def n_background(self) -> int:
        return self.n_nodes - (0 if self.train_rows is None else len(self.train_rows))

    @property
    def input_dim(self) -> int:
        """Dimension D of the features that the graph was built from."""
        return self.pca.input_dim or self.vectors.shape[1]

    def project(self, features: np.ndarray) -> np.ndarray:
        """Project features (n, D) to unit vectors in the space of this graph, float32 (n, d)."""
        if features.shape[1] != self.input_dim:
            raise InputError(
                f"{self.path}: built from features of {self.input_dim} dimensions, but these have {features.shape[1]}. "
                "Use features of the same extractor"
            )
        return self.pca(features)


def create_graph(
    path: Path,
    made_from: dict,
    n_nodes: int,
    k: int,
    dim: int,
    dtype: str | np.dtype,
    pca: Projection,
    train_rows: np.ndarray | None = None,
    n_test: int = 0,
) -> None:
    """Create a graph file: reserve disk space for all arrays, then write the recipe. Raises OSError if the disk is too
    small."""
    spaces = {"ids": ((n_nodes, k), np.int32), "similarities": ((n_nodes, k), np.float32),
              "vectors": ((n_nodes, dim), dtype), "done": ((4,), np.int64)}  # fmt: skip
    if train_rows is not None:
        spaces |= {"test_ids": ((n_test, k), np.int32), "test_similarities": ((n_test, k), np.float32),
                   "test_vectors": ((n_test, dim), dtype)}  # fmt: skip
    with creating_h5(path, alignment_threshold=1, alignment_interval=64) as file:
        if pca.mean is not None:
            file["pca_mean"], file["pca_components"] = pca.mean, pca.components
        if train_rows is not None:
            file["train_rows"] = train_rows.astype(np.int64)
        for name, (shape, kind) in spaces.items():
            create_array(file, name, shape, kind)
        reserve_space(file)
        write_recipe(file, SCHEMA, made_from)


def map_graph(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of an unfinished graph file for writing in place; returns them by name."""
    with open_h5(path) as file:
        return {name: mapped(path, dataset, "r+") for name, dataset in file.items()}


def fill(arrays: dict[str, np.ndarray], phase: int, names: tuple[str, ...], rows: slice, compute: Callable) -> None:
    """Fill `rows` of the arrays `names`, one block at a time. Resumes an interrupted run of this `phase`.

    `compute` maps a slice of row numbers, counted from 0, to one array for each name.
    """
    done, n_rows = arrays["done"], rows.stop - rows.start
    if 0 < done[phase] < n_rows:
        print(f"continuing after {done[phase]} of {n_rows} rows ({names[0]})", flush=True)
    what = f"{names[0]} {rows.start}.."
    progress = Progress(desc=what, total=n_rows, initial=int(done[phase]), unit="row", unit_scale=True, resumable=True)
    for part in blocks(n_rows, int(done[phase])):
        for name, values in zip(names, compute(part)):
            arrays[name][rows.start + part.start : rows.start + part.stop] = values
            arrays[name].flush()
        done[phase] = part.stop
        done.flush()
        progress.update(part.stop - part.start)
    progress.close()


def read_graph(path: Path) -> Graph:
    """Open a graph file. Raises InputError unless shapes agree, ids are in -1..N-1 and similarities are not NaN."""
    with open_h5(path) as file:
        completed = "train_rows" in file
        names = _LISTS | (_COMPLETED if completed else {})
        require_datasets(file, names)
        arrays = {name: mapped(path, file[name]) for name in names}
        pca = read_projection(file)
    made_from = stored_recipe(path)
    config = made_from["config"]
    graph = Graph(
        Path(path), pca=pca, setup=config.get("setup"), unlabelled=config.get("unlabelled"),
        inputs=made_from["inputs"], **arrays,
    )  # fmt: skip
    _check_shapes(graph)
    check_lists(graph.ids, graph.similarities, graph.n_nodes, f"{path}: ids")
    if completed:
        inside = np.diff(graph.train_rows, prepend=-1).min() > 0
        if not inside:
            raise InputError(f"{path}: train_rows are not in ascending order")
        check_lists(graph.test_ids, graph.test_similarities, graph.n_nodes, f"{path}: test_ids")
    return graph


def read_projection(file: h5py.File) -> Projection:
    """Read the projection that an open graph file was made with."""
    if "pca_mean" not in file:
        return Projection()
    require_datasets(file, {"pca_mean": ("floats", 1), "pca_components": ("floats", 2)})
    return Projection(file["pca_mean"][()], file["pca_components"][()])


def _check_shapes(graph: Graph) -> None:
    axes = {"ids": 2, "similarities": 2, "vectors": 2, "train_rows": 1, "test_ids": 2, "test_similarities": 2,
              "test_vectors": 2}  # fmt: skip
    for name, n_axes in axes.items():
        array = getattr(graph, name)
        if array is not None and not (isinstance(array, np.ndarray) and array.ndim == n_axes and array.size):
            raise InputError(f"{graph.path}: '{name}' is empty, or not a contiguous array of {n_axes} dimensions")
    pairs = [("similarities", "ids", 2), ("vectors", "ids", 1)]
    if graph.train_rows is not None:
        pairs += [("test_similarities", "test_ids", 2), ("test_vectors", "test_ids", 1)]
        if graph.n_background < 0 or graph.test_ids.shape[1] != graph.k:
            raise InputError(f"{graph.path}: has more train_rows than nodes, or test_ids and ids differ in k")
    for name, other, n_axes in pairs:
        shape, expected = getattr(graph, name).shape, getattr(graph, other).shape
        if shape[:n_axes] != expected[:n_axes]:
            raise InputError(f"{graph.path}: '{name}' has shape {shape}, but '{other}' has shape {expected}")


def check_lists(ids: np.ndarray, similarities: np.ndarray, n_nodes: int, where: str) -> None:
    """Raise InputError, naming the row, for an id outside -1..n_nodes-1 or a NaN similarity of a listed neighbour."""
    for rows in blocks(len(ids)):
        part, known = ids[rows], similarities[rows]
        outside = (part < -1) | (part >= n_nodes)
        for what, wrong in (("id", outside), ("similarity", np.isnan(known) & (part >= 0))):
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                value = (part if what == "id" else known)[row, column]
                raise InputError(
                    f"{where}: row {rows.start + row} has the {what} {value}; the graph has {n_nodes} nodes"
                )


def check_distinct(ids: np.ndarray, where: str) -> None:
    """Raise InputError, naming the row, if a list contains a node twice. Only published lists need this check."""
    for rows in blocks(len(ids)):
        part = np.sort(ids[rows], axis=1)
        twice = (part[:, 1:] == part[:, :-1]) & (part[:, 1:] >= 0)
        for row, column in np.argwhere(twice)[:1]:
            raise InputError(f"{where}: row {rows.start + row} contains id {part[row, column]} twice")


def add_nodes(
    graph: Graph, new_vectors: np.ndarray, k: int, device: str | torch.device = "cpu"
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Return the lists of a completed graph with S more nodes N..N+S-1, equal to those of a graph built with them.

    Only the new nodes are compared with others, by exact search. The list of an old node changes if a new node is
    nearer than its k-th neighbour.

    Args:
        new_vectors: unit vectors float32 (S, d), see `Graph.project`. S may be 0.
        k: number of neighbours, at most the k of the graph.

    Returns:
        ids (N + S, k), similarities (N + S, k), test_ids (T, k), test_similarities (T, k), and the number of
        multiply-adds.
    """
    if k > graph.k:
        raise InputError(f"{graph.path}: has lists of {graph.k} neighbours, fewer than k {k}")
    n_old, n_new = graph.n_nodes, len(new_vectors)
    ids = np.empty((n_old + n_new, k), np.int32)
    similarities = np.empty((n_old + n_new, k), np.float32)
    ids[:n_old], similarities[:n_old] = graph.ids[:, :k], graph.similarities[:, :k]
    n_compared = 0
    for rows in blocks(n_old):
        old = np.asarray(graph.vectors[rows], np.float32)
        nearest = exact_search(old, new_vectors, 1, device)[1][:, 0]
        changed = np.flatnonzero(nearest > similarities[rows, k - 1])
        found = shifted(exact_search(old[changed], new_vectors, k, device), n_old)
        changed += rows.start
        ids[changed], similarities[changed] = merge(found, (ids[changed], similarities[changed]), k)
        n_compared += (len(old) + len(changed)) * n_new
    among_new = shifted(exact_search(new_vectors, new_vectors, k, device), n_old)
    new = merge(exact_search(new_vectors, graph.vectors, k, device), among_new, k)
    ids[n_old:], similarities[n_old:] = with_self(new, np.arange(n_old, n_old + n_new), new_vectors)
    test = graph.test_ids[:, :k], graph.test_similarities[:, :k]
    test = merge(shifted(exact_search(graph.test_vectors, new_vectors, k, device), n_old), test, k)
    n_compared += n_new * (n_new + n_old + len(graph.test_vectors))
    return ids, similarities, *test, n_compared * new_vectors.shape[1]


def adding_bytes(n_nodes: int, dim: int, k: int) -> tuple[int, int]:
    """Bytes of `add_nodes`: the lists that it returns, and the block that it works on."""
    return 8 * n_nodes * k, BLOCK * (4 * dim + 64 * k)
