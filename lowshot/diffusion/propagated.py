"""propagated.h5: unlabelled images labelled by diffusion, to be added to a training set.

`feats` float32 (M, D); `labels`, `trials`, `n_shots` int64 (M,); `places` int64 (M,), the rank of the row by confidence
within its run and class (0 is the most confident).
"""

from pathlib import Path

import numpy as np

from lowshot.core.artifacts import read_recipe
from lowshot.core.errors import InputError
from lowshot.core.h5 import creating_h5, open_h5, require_datasets, write_recipe
from lowshot.data.additions import Run
from lowshot.data.features import Features
from lowshot.data.rows import open_rows, sample_rows
from lowshot.diffusion.graph import Graph
from lowshot.diffusion.propagation import Labels
from lowshot.diffusion.settings import Propagated
from lowshot.evaluation.benchmark import Benchmark, check_made_for, input_files
from lowshot.evaluation.settings import BenchmarkConfig

SCHEMA = "lowshot-propagated-1"
_DATASETS = {"feats": ("floats", 2), **dict.fromkeys(("labels", "trials", "n_shots", "places"), ("integers", 1))}


class UnlabelledPool:
    """The unlabelled images of the graph of a setup.

    `background` is the feature file of the graph's background. Raises InputError if all nodes are labelled, or if the
    graph has a background but the file is missing or a different one.
    """

    def __init__(self, graph: Graph, benchmark: Benchmark, background: Path | None) -> None:
        self.graph, self.benchmark, self.background = graph, benchmark, None
        if graph.n_nodes == len(benchmark.base_rows):
            raise InputError(
                f"{graph.path}: has no unlabelled images. Add some with build_graph.py complete --unlabelled novel, or "
                "--background"
            )
        if not graph.n_background:
            return
        if background is None:
            raise InputError(
                f"{graph.path}: has a background. Give the features it was built from with --label.background"
            )
        self.background = open_rows(background, benchmark.train.dim, graph.n_background)
        first = self.background[:1000]
        built_from = graph.vectors[len(graph.train_rows) :][: len(first)]
        if np.abs(graph.project(first) - built_from).max() > 0.01:
            raise InputError(
                f"{background}: not the features that the background of {graph.path} was built from. Give those with "
                "--label.background"
            )

    def most_confident(
        self, run: tuple[int, int], labels: Labels, columns: np.ndarray, values: np.ndarray, n_rows: int
    ) -> dict[str, np.ndarray]:
        """Return the datasets of propagated.h5 for one run: for each novel class the `n_rows` nodes of highest value.

        Args:
            columns: (N,) the class assigned to each node, as an index into the classes of the setup.
            values: (N,) confidence. Nodes with value 0 and labelled nodes are left out.
        """
        values, columns = values[: self.graph.n_nodes].copy(), columns[: self.graph.n_nodes]
        values[labels.nodes[labels.nodes < len(values)]] = 0
        novel = np.searchsorted(self.benchmark.classes, self.benchmark.novel_classes)
        nodes = np.flatnonzero(np.isin(columns, novel) & (values > 0))
        nodes = nodes[np.lexsort((-values[nodes], columns[nodes]))]
        places = np.arange(len(nodes)) - np.searchsorted(columns[nodes], columns[nodes])
        nodes, places = nodes[places < n_rows], places[places < n_rows]
        trial, n_shot = (np.full(len(nodes), number) for number in run)
        node_labels = self.benchmark.classes[columns[nodes]]
        return {
            "feats": self._features(nodes),
            "labels": node_labels,
            "trials": trial,
            "n_shots": n_shot,
            "places": places,
        }

    def _features(self, nodes: np.ndarray) -> np.ndarray:
        """Features of `nodes`, float32 (n, D), without projection."""
        n_train = len(self.graph.train_rows)
        train = self.benchmark.train
        feats = np.empty((len(nodes), train.dim), np.float32)
        inside = nodes < n_train
        feats[inside] = train.feats[self.graph.train_rows[nodes[inside]]]
        if not inside.all():
            order = np.argsort(nodes[~inside])
            rows = sample_rows(self.background, nodes[~inside][order] - n_train)
            feats[np.flatnonzero(~inside)[order]] = rows
        return feats


def write_propagated(path: Path, made_from: dict, parts: list[dict[str, np.ndarray]]) -> None:
    """Write propagated.h5. Each of `parts` holds the datasets of one run by name."""
    with creating_h5(path) as file:
        for name in _DATASETS:
            file[name] = np.concatenate([part[name] for part in parts])
        write_recipe(file, SCHEMA, made_from)


class PropagatedRows:
    """Propagated labels (propagated.h5) as an addition to the training set.

    Raises InputError if the file was made from different features, split, shots or setup than `config`, or if its
    features have another dimension than `train`.
    """

    def __init__(self, settings: Propagated, config: BenchmarkConfig, train: Features) -> None:
        path, self.max_per_label = settings.file, settings.max_per_label
        with open_h5(path) as file:
            require_datasets(file, _DATASETS)
            self.rows = {name: file[name][:] for name in _DATASETS}
        files = input_files(config)
        check_made_for(path, config, {name: files[name] for name in files if name != "test"})
        if self.rows["feats"].shape[1] != train.dim:
            raise InputError(
                f"{path}: has features of {self.rows['feats'].shape[1]} dimensions, but {train.path} has {train.dim}. "
                "Make it again with diffusion.py --label from these features"
            )
        self.path, self.config = path, read_recipe(path)["config"]

    def extend(self, run: Run, benchmark: Benchmark, seed: int) -> Run:
        """Return the run with the most confident rows of every class added, up to `max_per_label` rows per class.

        A class gets no rows if its labels have not reached any image.
        """
        if run.n_shot not in self.config["shots"] or run.trial not in (self.config.get("trials") or [run.trial]):
            raise InputError(
                f"{self.path}: has no rows of trial {run.trial}, n = {run.n_shot}. Run diffusion.py --label with these "
                "--trials and --shots"
            )
        labels, counts = self.rows["labels"], np.bincount(run.labels, minlength=benchmark.split.n_classes)
        chosen = (self.rows["trials"] == run.trial) & (self.rows["n_shots"] == run.n_shot)
        chosen &= self.rows["places"] < self.max_per_label - counts[labels]
        return run.joined(self.rows["feats"][chosen], labels[chosen])
