"""Analogy generators: a network that carries the difference between two features of a base class over to another
feature.

Two published forms differ in what they learn to predict from a quadruplet a : b :: c : d, and in where the differences
come from later: Hariharan & Girshick (ICCV 2017) predict b from (a, c, d) and use pairs of centroids; the CIFAR system
predicts d from (c, a, b) and uses pairs of raw features. The network's input is always (seed, from, to).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowshot.core.artifacts import read_json, write_json
from lowshot.core.errors import InputError
from lowshot.core.seeds import stream
from lowshot.core.state_dicts import fill
from lowshot.data.additions import Run
from lowshot.data.features import Features
from lowshot.data.protocol import Split
from lowshot.hallucination.settings import Generator

_CHUNK = 8192


class AnalogyGenerator(nn.Module):
    """Three linear layers, a ReLU after each (the output is non-negative like the features), on (seed, from, to).

    Buffers `centroids` float32 (B, K, D) and `centroid_labels` int64 (B,) are what it was trained on.
    """

    def __init__(self, dim: int, hidden: int, n_centroid_classes: int, n_clusters: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, dim),
            nn.ReLU(),
        )
        self.register_buffer("centroids", torch.zeros(n_centroid_classes, n_clusters, dim))
        self.register_buffer("centroid_labels", torch.zeros(n_centroid_classes, dtype=torch.int64))

    def forward(self, seed: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """What relates to `seed` as `end` to `start`; all (N, D)."""
        return self.layers(torch.cat([seed, start, end], dim=1))


def save_generator(folder: Path, model: AnalogyGenerator, made_from: dict) -> None:
    """Write `model.pt` and the `config.json` that rebuilds it."""
    torch.save(model.state_dict(), folder / "model.pt")
    n_classes, n_clusters, dim = model.centroids.shape
    shape = {
        "dim": dim,
        "hidden": model.layers[0].out_features,
        "n_centroid_classes": n_classes,
        "n_clusters": n_clusters,
    }
    write_json(folder / "config.json", {**made_from, "schema": "lowshot-generator-1", "model": shape})


def load_generator(folder: Path) -> tuple[AnalogyGenerator, str | None]:
    """(generator in evaluation mode, digest of the extractor whose features it was trained on, if known)."""
    content = read_json(Path(folder) / "config.json")
    try:
        model = AnalogyGenerator(**content["model"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}/config.json: does not describe a generator ({error})") from None
    fill(model, Path(folder) / "model.pt")
    return model.eval(), content.get("inputs", {}).get("extractor")


@dataclass
class _Pool:
    """Vectors (V, D) grouped by class: class i of `classes` owns `counts[i]` rows from `starts[i]` on."""

    vectors: Tensor
    classes: np.ndarray
    starts: np.ndarray
    counts: np.ndarray


def _centroid_pool(model: AnalogyGenerator) -> _Pool:
    n_classes, n_clusters, dim = model.centroids.shape
    counts = np.full(n_classes, n_clusters)
    return _Pool(
        model.centroids.view(-1, dim), model.centroid_labels.numpy(), np.arange(n_classes) * n_clusters, counts
    )


def _feature_pool(train: Features, split: Split) -> _Pool:
    rows = np.flatnonzero(np.isin(train.labels, split.base_classes))
    rows = rows[np.argsort(train.labels[rows], kind="stable")]
    classes, starts, counts = np.unique(train.labels[rows], return_index=True, return_counts=True)
    if counts.min() < 2:
        raise InputError(f"{train.path}: class {classes[counts.argmin()]} has one row; pairs of features need two")
    return _Pool(torch.from_numpy(train.feats[rows]), classes, starts, counts)


class Hallucinator:
    """Adds generated rows to a low-shot training set.

    Args:
        settings: the folder of a trained generator, what pairs are drawn from and how many rows a class is to have.
        split: gives base classes and superclasses.
        train: the train features that are to be extended; InputError if they have another dimension or come from
        another extractor.
    """

    def __init__(self, settings: Generator, split: Split, train: Features) -> None:
        generator_dir = settings.folder
        self.model, extractor = load_generator(generator_dir)
        dim = self.model.centroids.shape[2]
        if dim != train.dim:
            raise InputError(
                f"{generator_dir}: made for features of {dim} dimensions, but {train.path} has {train.dim}"
            )
        if extractor and train.extractor and extractor != train.extractor:
            raise InputError(f"{generator_dir}: trained on features of another extractor than {train.path}")
        if other := set(self.model.centroid_labels.tolist()) - set(split.base_classes):
            raise InputError(
                f"{generator_dir}: has centroids of class {min(other)}, which is no base class of this split"
            )
        self.max_per_label, self.distinct = settings.max_per_label, settings.pairs == "features"
        self.pool = _feature_pool(train, split) if self.distinct else _centroid_pool(self.model)
        self.superclass_of = split.superclass_of if settings.pair_scope == "superclass" else [0] * split.n_classes
        self.split = split

    def extend(self, run: Run, benchmark: Any, seed: int) -> Run:
        """The run with rows that fill every class up to `max_per_label`.

        Seeds are drawn from the class's rows in `run`, with replacement; generated rows never become seeds. Row j of a
        class depends on (seed, trial, class, j) and those rows only, so asking for more rows leaves the first ones as
        they are.
        """
        feats, labels = run.feats, run.labels
        parts = [self._draw(rows, int(c), self.max_per_label - len(rows), seed, run.trial)
                 for c in np.unique(labels)
                 if len(rows := np.flatnonzero(labels == c)) < self.max_per_label]  # fmt: skip
        if not parts:
            return run
        seeds, starts, ends = (np.concatenate(column) for column in zip(*parts))
        return run.joined(self._generate(torch.from_numpy(feats[seeds]), starts, ends), labels[seeds])

    def _draw(
        self, rows: np.ndarray, label: int, n_new: int, seed: int, trial: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(seed rows, pool rows to start from, pool rows to end at) of the new rows of one class, each (n_new,)."""
        u = stream(seed, "hallucinate", trial, label).random((n_new, 4))
        sources = self._sources(label)
        source = sources[(u[:, 1] * len(sources)).astype(np.int64)]
        count = self.pool.counts[source]
        start = (u[:, 2] * count).astype(np.int64)
        end = (u[:, 3] * (count - self.distinct)).astype(np.int64)
        end += self.distinct & (end >= start)
        first = self.pool.starts[source]
        return rows[(u[:, 0] * len(rows)).astype(np.int64)], first + start, first + end

    def _sources(self, label: int) -> np.ndarray:
        """Positions in the pool's classes that may lend their differences to class `label`."""
        superclass = self.superclass_of[label]
        inside = np.array([self.superclass_of[c] == superclass for c in self.pool.classes])
        if superclass is None or not inside.any():
            name = self.split.class_names[label]
            raise InputError(
                f"class {label} ({name}): no base class shares its superclass; draw pairs from all classes instead"
            )
        return np.flatnonzero(inside)

    @torch.inference_mode()
    def _generate(self, seeds: Tensor, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        vectors = self.pool.vectors
        chunks = [slice(i, i + _CHUNK) for i in range(0, len(seeds), _CHUNK)]
        return torch.cat([self.model(seeds[c], vectors[starts[c]], vectors[ends[c]]) for c in chunks]).numpy()
