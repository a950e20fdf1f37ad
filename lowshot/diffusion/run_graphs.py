"""The graph of one run of the benchmark: the fixed nodes of the setup, the shots of the run, and the labels."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lowshot.core.errors import InputError
from lowshot.diffusion.adjacency import Adjacency, expected_entries, symmetrise
from lowshot.diffusion.graph import Graph, add_nodes, read_graph
from lowshot.diffusion.propagation import Labels, TestLists
from lowshot.diffusion.settings import ConstantWeight, EdgeOptions, SimilarityWeight
from lowshot.evaluation.benchmark import Benchmark, check_made_for
from lowshot.evaluation.settings import BenchmarkConfig


@dataclass(frozen=True)
class RunGraph:
    """The graph of one run. `labels` and `test_ids` (T, k) refer to the rows of the matrix."""

    adjacency: Adjacency
    labels: Labels
    test_ids: np.ndarray


@dataclass(frozen=True)
class Sizes:
    """The sizes that the memory and time of a run depend on. Entries are the stored entries of S."""

    n_nodes: int
    n_added: int
    n_classes: int
    n_entries: int
    n_needed: int
    """Number of nodes whose rows are needed after the last step."""
    needed_entries: int
    """Number of entries of these nodes, which are copied. 0 if all nodes are needed."""
    n_labelled: int
    weighted: bool


def open_setup_graph(path: Path, config: BenchmarkConfig) -> Graph:
    """Open the completed graph of the setup of `config`.

    Raises InputError if it is a background, or was made from different features, another split or for another setup.
    """
    graph = read_graph(path)
    if graph.train_rows is None:
        raise InputError(
            f"{graph.path}: a background, not the graph of a setup. "
            f"Run build_graph.py complete --background {graph.path}"
        )
    check_made_for(graph.path, config, {name: getattr(config, name) for name in ("train", "test", "split")})
    return graph


class RunGraphs:
    """The graphs of all runs of `benchmark`, made from the completed `graph` of its setup."""

    def __init__(self, graph: Graph, benchmark: Benchmark, options: EdgeOptions, device: str) -> None:
        if options.k > graph.k:
            raise InputError(
                f"{graph.path}: has lists of {graph.k} neighbours, fewer than edges.k {options.k}. Use --edges.k "
                f"{graph.k}, or build the graph with --k {options.k}"
            )
        self.graph, self.benchmark, self.options, self.device = graph, benchmark, options, device

    def of(self, trial: int, n_shot: int) -> RunGraph:
        """Return the graph of one run. Its shots become nodes, unless they are nodes already."""
        rows = self.benchmark.shot_rows(trial, n_shot).ravel()
        if self._are_nodes(rows):
            places = np.searchsorted(self.graph.train_rows, rows)
            return RunGraph(self._fixed, self._labels(places, rows), self.graph.test_ids[:, : self.options.k])
        vectors = self.graph.project(self.benchmark.train.feats[rows])
        ids, similarities, test_ids, *_ = add_nodes(self.graph, vectors, self.options.k, self.device)
        new = np.arange(self.graph.n_nodes, self.graph.n_nodes + len(rows))
        return RunGraph(self._matrix(ids, similarities), self._labels(new, rows), test_ids)

    def sizes(self, n_shot: int, all_needed: bool) -> Sizes:
        """Estimate the sizes of a run with `n_shot` shots from a sample of its lists.

        `all_needed`: the rows of all nodes are needed, not only those of the neighbours of test images.
        """
        graph, benchmark, options = self.graph, self.benchmark, self.options
        rows = benchmark.shot_rows(next(iter(benchmark.draws)), n_shot).ravel()
        n_added = 0 if self._are_nodes(rows) else len(rows)
        n_nodes, weighted = graph.n_nodes + n_added, not isinstance(options.weight, ConstantWeight)
        needed = np.arange(0) if all_needed else TestLists(graph.test_ids[:, : options.k]).nodes
        n_needed = n_nodes if all_needed else len(needed)
        n_entries, needed_entries = expected_entries(
            graph.ids[:, : options.k], n_nodes, needed, options.symmetry, weighted
        )
        return Sizes(
            n_nodes, n_added, len(benchmark.classes), n_entries, n_needed, needed_entries * (n_needed < n_nodes),
            len(benchmark.base_rows) + len(rows), weighted,
        )  # fmt: skip

    def _are_nodes(self, rows: np.ndarray) -> bool:
        return np.isin(rows, self.graph.train_rows).all()

    @cached_property
    def _fixed(self) -> Adjacency:
        k = self.options.k
        return self._matrix(self.graph.ids[:, :k], self.graph.similarities[:, :k])

    def _matrix(self, ids: np.ndarray, similarities: np.ndarray) -> Adjacency:
        return symmetrise(ids, edge_weights(similarities, self.options), self.options.symmetry)

    def _labels(self, shot_nodes: np.ndarray, shot_rows: np.ndarray) -> Labels:
        """L_0: every base row and every shot. Columns are the classes of the setup."""
        base = self.benchmark.base_rows
        nodes = np.concatenate([np.searchsorted(self.graph.train_rows, base), shot_nodes])
        labels = self.benchmark.train.labels[np.concatenate([base, shot_rows])]
        order = np.argsort(nodes)
        classes = self.benchmark.classes
        return Labels(nodes[order], np.searchsorted(classes, labels)[order], len(classes))


def edge_weights(similarities: np.ndarray, options: EdgeOptions) -> np.ndarray | None:
    """Return the weights of the listed edges, float32 (N, k), or None if all are 1.

    For unit vectors, |a - b|^2 = 2 - 2 a.b.
    """
    if isinstance(options.weight, ConstantWeight):
        return None
    if isinstance(options.weight, SimilarityWeight):
        return np.maximum(similarities, 0)
    return np.exp((similarities - 1) / np.float32(options.weight.sigma**2))


def edge_weights_bytes(n_nodes: int, k: int, weighted: bool) -> int:
    """Bytes of the output of `edge_weights`, which is held while the matrix is built."""
    return 4 * weighted * n_nodes * k
