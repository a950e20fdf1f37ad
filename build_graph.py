"""Build the graph that labels diffuse over: `background` once for a large unlabelled set, `complete` once for a setup.

background  reads   FEATURES (.h5, .npy or raw float32)
            writes  background.h5: PCA, unit vectors and the neighbour lists of the set among itself
complete    reads   train and test features, split, the background if there is one
            writes  graph.h5: lists of all that no trial changes

python build_graph.py background --features yfcc.raw --dim 256 --n_rows 1000000 --out background.h5
python build_graph.py complete --train features/train.h5 --test features/test.h5 --split split.json \\
    --background background.h5 --setup test --out graph-test.h5
CPU, seconds:
python build_graph.py complete --train features/train.h5 --test features/test.h5 --split split.json --k 8 \\
    --unlabelled novel --out graph-test.h5
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt

from lowshot.artifacts import is_done, recipe, writing
from lowshot.cli import run_commands
from lowshot.errors import InputError
from lowshot.features import check_same_space, check_setup, read_features
from lowshot.graph import create_graph, map_arrays
from lowshot.neighbours import exact_search, with_self
from lowshot.projection import fit_projection
from lowshot.protocol import Setup, read_split
from lowshot.runtime import pick_device


@dataclass(kw_only=True)
class CompleteConfig:
    train: Path
    """Features of the training images."""
    test: Path
    """Features of the test images."""
    split: Path
    """split.json, or the published label_idx.json."""
    out: Path
    """The graph file to write (.h5)."""
    setup: Setup = "test"
    """Halves of the classes that the graph is for."""
    unlabelled: Literal["none", "novel", "all"] = "none"
    """Training images that are nodes beside those of the base classes: none, those of the novel classes, or all."""
    k: PositiveInt = 32
    """Neighbours of a node, itself included."""
    pca_dim: PositiveInt | None = 256
    """Dimensions to keep."""
    seed: NonNegativeInt = 0
    """Of the sample that the PCA is fitted on."""
    overwrite: bool = False
    """Make it again even if it is there."""


def complete(config: CompleteConfig) -> Path:
    made_from = recipe(
        "build_graph complete", config, {"train": config.train, "test": config.test, "split": config.split}
    )
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    split = read_split(config.split)
    train, test = (read_features(path, split.n_classes) for path in (config.train, config.test))
    check_same_space(train, test)
    check_setup(train, config.setup)
    base, novel = split.setup(config.setup)
    nodes = {"none": base, "novel": np.concatenate([base, novel]), "all": np.arange(split.n_classes)}[config.unlabelled]
    rows = np.flatnonzero(np.isin(train.labels, nodes))
    judged = np.isin(test.labels, np.concatenate([base, novel]))
    if config.k > len(rows):
        raise InputError(f"k {config.k}: more than the {len(rows)} nodes of the graph")
    projection = fit_projection(train.feats[np.isin(train.labels, base)], config.pca_dim, config.seed)
    vectors, test_vectors = projection(train.feats[rows]), projection(test.feats[judged])
    with writing(config.out, made_from) as partial:
        create_graph(partial, made_from, len(rows), config.k, vectors.shape[1], "float32", projection, 1, rows,
                     judged.sum())  # fmt: skip
        arrays = map_arrays(partial)
        device = pick_device()
        lists = with_self(exact_search(vectors, vectors, config.k, device), np.arange(len(rows)), vectors)
        arrays["ids"][:], arrays["similarities"][:] = lists
        arrays["vectors"][:], arrays["test_vectors"][:] = vectors, test_vectors
        arrays["test_ids"][:], arrays["test_similarities"][:] = exact_search(test_vectors, vectors, config.k, device)
    return config.out


if __name__ == "__main__":
    run_commands({"complete": (complete, CompleteConfig)}, __doc__)
