"""Analogy generators: a network that transfers the difference between two features of a base class to another feature.

There are two published forms. Hariharan & Girshick (ICCV 2017) predict b from (a, c, d) in a quadruplet
a : b :: c : d, and generate with pairs of centroids. The CIFAR system predicts d from (c, a, b), and generates with
pairs of features. The network's input is always (seed, from, to).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowshot.core.artifacts import stored_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.core.seeds import stream
from lowshot.core.state_dicts import fill, save_state
from lowshot.data.additions import Run
from lowshot.data.features import Features
from lowshot.data.protocol import Split
from lowshot.hallucination.settings import Generator

_CHUNK = 8192


class AnalogyGenerator(nn.Module):
    """Three linear layers on (seed, from, to), each with a ReLU, so that outputs are non-negative like the features.

    The buffers `centroids` float32 (B, K, D) and `centroid_labels` int64 (B,) contain its training data.
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
        """Return features that relate to `seed` as `end` relates to `start`; all (N, D)."""
        return self.layers(torch.cat([seed, start, end], dim=1))


def save_generator(folder: Path, model: AnalogyGenerator, made_from: dict) -> None:
    """Write `model.pt` (a state dict) and `config.json`, which together rebuild the generator."""
    save_state(model.state_dict(), folder / "model.pt")
    n_classes, n_clusters, dim = model.centroids.shape
    shape = {
        "dim": dim,
        "hidden": model.layers[0].out_features,
        "n_centroid_classes": n_classes,
        "n_clusters": n_clusters,
    }
    write_json(folder / "config.json", {**made_from, "schema": "lowshot-generator-1", "model": shape})


def load_generator(folder: Path) -> tuple[AnalogyGenerator, str | None]:
    """Load a generator in evaluation mode, and the digest of the extractor of its training features, if known."""
    content = read_json(Path(folder) / "config.json")
    try:
        model = AnalogyGenerator(**content["model"])
    except (KeyError, TypeError):
        raise InputError(f"{folder}: not a generator. Use a folder of train_analogy_generator.py") from None
    fill(model, Path(folder) / "model.pt")
    made_from = stored_recipe(folder)
    return model.eval(), made_from["inputs"].get("extractor")


@dataclass
class _Pool:
    """Vectors (V, D) grouped by class: class i of `classes` has `counts[i]` rows, beginning at `starts[i]`."""

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
        raise InputError(
            f"{train.path}: class {classes[counts.argmin()]} has a single row, but pairs of features need two. Use "
            f"--add.generator.pairs centroids"
        )
    return _Pool(torch.from_numpy(train.feats[rows]), classes, starts, counts)


class Hallucinator:
    """Adds generated rows to a low-shot training set.

    Args:
        settings: The folder of a trained generator, the source of pairs, and the number of rows per class.
        split: Base classes and superclasses.
        train: The train features to extend.

    Raises InputError if `train` has another dimension or another extractor than the generator's training features.
    """

    def __init__(self, settings: Generator, split: Split, train: Features) -> None:
        generator_dir = settings.folder
        self.model, extractor = load_generator(generator_dir)
        dim = self.model.centroids.shape[2]
        if dim != train.dim:
            raise InputError(
                f"{generator_dir}: trained on features of {dim} dimensions, but {train.path} has {train.dim}. Use a "
                f"generator and features of the same extractor"
            )
        if extractor and train.extractor and extractor != train.extractor:
            raise InputError(
                f"{generator_dir}: trained on features of another extractor than {train.path}. Use a generator and "
                f"features of the same extractor"
            )
        if other := set(self.model.centroid_labels.tolist()) - set(split.base_classes):
            raise InputError(
                f"{generator_dir}: has centroids of class {min(other)}, which is not a base class of this split. Use a "
                f"generator trained with the same split"
            )
        self.max_per_label, self.distinct = settings.max_per_label, settings.pairs == "features"
        self.pool = _feature_pool(train, split) if self.distinct else _centroid_pool(self.model)
        self.superclass_of = split.superclass_of if settings.pair_scope == "superclass" else [0] * split.n_classes
        self.split = split

    def extend(self, run: Run, benchmark: Any, seed: int) -> Run:
        """Add rows until each class has `max_per_label`.

        Seeds are drawn with replacement from the class's rows in `run`; generated rows are never used as seeds. Row j
        of a class depends only on (seed, trial, class, j) and these rows, so that a larger `max_per_label` does not
        change the first rows.
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
        """Draw the inputs for new rows of one class, each (n_new,): seed rows, pool rows `from`, pool rows `to`."""
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
        """Return the positions of the pool's classes from which pairs for class `label` may be drawn."""
        superclass = self.superclass_of[label]
        inside = np.array([self.superclass_of[c] == superclass for c in self.pool.classes])
        if superclass is None or not inside.any():
            name = self.split.class_names[label]
            raise InputError(
                f"class {label} ({name}): no base class has the same superclass. Use --add.generator.pair_scope all"
            )
        return np.flatnonzero(inside)

    @torch.inference_mode()
    def _generate(self, seeds: Tensor, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        vectors = self.pool.vectors
        chunks = [slice(i, i + _CHUNK) for i in range(0, len(seeds), _CHUNK)]
        return torch.cat([self.model(seeds[c], vectors[starts[c]], vectors[ends[c]]) for c in chunks]).numpy()
