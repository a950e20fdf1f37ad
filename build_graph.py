"""Build the graph that labels diffuse over: `background` once for a large unlabelled set, `complete` once for a setup.

background  reads   FEATURES (.h5, .npy, or raw float32), or the published lists of it
            writes  OUT: PCA, unit vectors and the neighbour lists of the set among itself
complete    reads   train and test features, split, BACKGROUND if there is one
            writes  OUT: the same with the training images, and the lists of the test images; no trial changes it

python build_graph.py background --features yfcc.raw --dim 256 --n_rows 1000000 --out background.h5
python build_graph.py complete --train features/train.h5 --test features/test.h5 --split split.json \\
    --background background.h5 --out graph-test.h5
CPU, seconds:
python build_graph.py complete --train features/train.h5 --test features/test.h5 --split split.json \\
    --unlabelled novel --out graph-test.h5
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import h5py
import numpy as np

from lowshot import core, diffusion
from lowshot.core.artifacts import Recipe, building, is_done, open_h5, read_recipe, recipe, renamed
from lowshot.core.cli import run_commands
from lowshot.core.errors import InputError
from lowshot.core.settings import PositiveInt, RunOnly, Seed
from lowshot.data.features import Features, check_classes, check_same_space, check_setup, read_features
from lowshot.data.protocol import Setup, read_split
from lowshot.data.rows import Rows, blocks, open_raw, open_rows
from lowshot.diffusion.settings import LISTS, AutoIndex, Background, PublishedLists

PCA_DIM = 256


@dataclass(kw_only=True)
class GraphConfig:
    """The settings that both commands have."""

    out: Path
    """The graph file to write (.h5)."""
    k: PositiveInt = 32
    """Neighbours of a node, itself included; diffusion may use fewer."""
    pca_dim: PositiveInt | None = PCA_DIM
    """Dimensions that a PCA leaves of features which have more; null for none. A graph completed from a background has
    the PCA of that."""
    seed: Seed = 0
    """Of the rows that the PCA and the index are fitted on."""
    overwrite: RunOnly[bool] = False
    """Make it again even if it is there."""


@dataclass(kw_only=True)
class BackgroundConfig(GraphConfig):
    """Neighbour lists of a large unlabelled set among itself."""

    features: Path
    """Unlabelled features: .h5 in the published layout, .npy, or headerless float32 (.raw, .float32)."""
    dim: PositiveInt | None = None
    """Columns of a headerless file."""
    n_rows: PositiveInt | None = None
    """Rows to take from the start; all if not given."""
    precision: Literal["float32", "float16"] = "float32"
    """In which vectors are stored and searched."""
    index: Annotated[Any, LISTS] = field(default_factory=AutoIndex)
    """How neighbours are found: auto is exact below a million rows and IVF-Flat above; published takes lists that are
    there in place of a search."""

    renamed: ClassVar = {
        "index": "index.name",
        "n_probe": "index.n_probe",
        "ids": "index.ids",
        "similarities": "index.similarities",
    }

    @staticmethod
    def older(stored: dict) -> dict:
        """The recipe of a graph from before indices had settings of their own."""
        names, inputs = BackgroundConfig.renamed, stored["inputs"]
        published = {"index.name": "published"} if "ids" in inputs else {}
        inputs = {names[name] if name in ("ids", "similarities") else name: one for name, one in inputs.items()}
        return renamed(names, {**stored, "config": {**published, **stored["config"]}, "inputs": inputs})


@dataclass(kw_only=True)
class CompleteConfig(GraphConfig):
    """The graph of a setup: its training images, the background, the lists of the test images."""

    train: Path
    """Features of the training images."""
    test: Path
    """Features of the test images."""
    split: Path
    """split.json, or the published label_idx.json."""
    background: Background | None = None
    """The background whose nodes the graph has as well."""
    setup: Setup = "test"
    """Halves of the classes that the graph is for."""
    unlabelled: Literal["none", "novel", "all"] = "none"
    """Training images that are nodes beside those of the setup's base classes: none, those of its novel classes, or all
    there are."""

    renamed: ClassVar = {
        "index": "background.index.name",
        "n_probe": "background.index.n_probe",
        "index.n_probe": "background.index.n_probe",
    }

    def __post_init__(self) -> None:
        if self.background is None:
            return
        if self.pca_dim not in (None, PCA_DIM):
            raise InputError(f"pca_dim {self.pca_dim}: the PCA is that of the background {self.background.file}")
        self.pca_dim = None

    @staticmethod
    def older(stored: dict) -> dict:
        """The recipe of a graph from before indices had settings of their own; with a background it had no pca_dim."""
        pca = {"pca_dim": None} if "background" in stored["inputs"] else {}
        return renamed(CompleteConfig.renamed, {**stored, "config": {**pca, **stored["config"]}})


def background(config: BackgroundConfig) -> Path:
    """Write the graph of the background and return its path."""
    made_from = _background_recipe(config)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    rows = open_rows(config.features, config.dim, config.n_rows)
    _check_size(len(rows), config.k)
    published = read_published(config.index, len(rows), config.k) if isinstance(config.index, PublishedLists) else None
    with building(config.out, made_from) as partial:
        if not partial.exists():
            pca = diffusion.fit_projection(rows, config.pca_dim, config.seed)
            dim = pca.output_dim(rows.shape[1])
            diffusion.create_graph(partial, made_from, len(rows), config.k, dim, config.precision, pca)
        share = write_background(partial, rows, published, config)
        with h5py.File(partial, "r+") as file:
            file.attrs["recall"] = share
    print(f"build_graph: {len(rows)} nodes, recall@{config.k} {share:.4f} -> {config.out}")
    return config.out


def _background_recipe(config: BackgroundConfig) -> Recipe:
    inputs = {"features": config.features, "extractor": _extractor(config.features)}
    return recipe("build_graph background", config, inputs)


def _extractor(features: Path) -> str | None:
    """The digest of what made the features, if the file says."""
    made_from = read_recipe(features) if features.suffix in {".h5", ".hdf5"} else None
    return made_from and made_from["inputs"].get("extractor")


def _check_size(n_nodes: int, k: int) -> None:
    if k > n_nodes:
        raise InputError(f"k {k}: more than the {n_nodes} nodes of the graph")
    if n_nodes >= 2**31:
        raise InputError(f"{n_nodes} nodes: ids are of 32 bits, which number 2^31 - 1 at most")


def read_published(lists: PublishedLists, n_rows: int, k: int) -> diffusion.Lists:
    """The first k of the raw lists, ids int32 and similarities float32 (n_rows, k), as read-only maps.

    Raises InputError unless both have one length, no less than k, and hold rows 0..n_rows-1, none twice in a list, and
    no NaN.
    """
    arrays = _open_list(lists.ids, np.int32, n_rows, k), _open_list(lists.similarities, np.float32, n_rows, k)
    lengths = [array.shape[1] for array in arrays]
    if lengths[0] != lengths[1]:
        raise InputError(f"{lists.similarities}: lists of {lengths[1]}, but {lists.ids} has {lengths[0]}")
    ids, similarities = (array[:, :k] for array in arrays)
    diffusion.check_lists(ids, similarities, n_rows, f"{lists.ids}, {lists.similarities.name}")
    diffusion.check_distinct(ids, f"{lists.ids}")
    return ids, similarities


def _open_list(path: Path, dtype: type, n_rows: int, k: int) -> np.ndarray:
    n_bytes = path.stat().st_size
    n_columns, rest = divmod(n_bytes, 4 * n_rows)
    if rest or n_columns < k:
        raise InputError(f"{path}: {n_bytes} bytes are no lists of k {k} or more for {n_rows} rows")
    named = re.fullmatch(r"\.(?:int|float)(\d+)", path.suffix)
    if named and int(named[1]) != n_columns:
        raise InputError(f"{path}: has lists of {n_columns} for {n_rows} rows, but its name says {named[1]}")
    return open_raw(path, dtype, n_columns)


def write_background(partial: Path, rows: Rows, published: diffusion.Lists | None, config: BackgroundConfig) -> float:
    """Fill a file that is laid out; returns the recall of its lists."""
    arrays, device = diffusion.map_graph(partial), core.pick_device()
    with open_h5(partial) as file:
        pca = diffusion.read_projection(file)
    nodes, vectors = slice(0, len(rows)), arrays["vectors"]
    diffusion.fill(arrays, diffusion.VECTORS, ("vectors",), nodes, lambda part: [pca(rows[part])])
    _report_zeros(vectors, config.features)
    if published:
        _check_published(published, vectors, config)
    else:
        index = diffusion.Index(vectors, config.index, device, config.seed)

    def lists_of(part: slice) -> diffusion.Lists:
        found = _in_order(published, part) if published else index.search(vectors[part], config.k)
        return diffusion.with_self(found, np.arange(part.start, part.stop), vectors[part])

    diffusion.fill(arrays, diffusion.LISTS, ("ids", "similarities"), nodes, lists_of)
    return diffusion.recall(arrays["ids"], vectors, device, config.seed)


def _in_order(published: diffusion.Lists, part: slice) -> diffusion.Lists:
    """Published lists with the best first and what is missing last."""
    ids, similarities = (one[part] for one in published)
    return diffusion.merge((ids[:, :0], similarities[:, :0]), (ids, similarities), ids.shape[1])


def _check_published(published: diffusion.Lists, vectors: np.ndarray, config: BackgroundConfig) -> None:
    """InputError where the similarities are not those of the features."""
    ids, similarities = published
    rows = diffusion.sampled_rows(len(ids), 1000, config.seed)
    listed = ids[rows] >= 0
    error = np.abs(diffusion.listed_products(ids, vectors, rows) - similarities[rows])[listed]
    if len(error) == 0 or np.median(error) > 0.01:
        raise InputError(
            f"{config.index.ids}: not the lists of {config.features}: similarities differ from inner products"
        )


def _report_zeros(vectors: np.ndarray, features: Path) -> None:
    n_zeros = sum(int((~vectors[rows].any(axis=1)).sum()) for rows in blocks(len(vectors)))
    if n_zeros:
        print(f"build_graph: {features}: {n_zeros} rows are zero; they have no neighbours but themselves")


def complete(config: CompleteConfig) -> Path:
    """Write the graph of a setup and return its path."""
    far_file = config.background and config.background.file
    inputs = {"train": config.train, "test": config.test, "split": config.split, "background": far_file}
    made_from = recipe("build_graph complete", config, inputs)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    chosen = choose_rows(config)
    far = read_background(far_file, config.k, chosen.train) if far_file else None
    n_nodes = len(chosen.node_rows) + (far.n_nodes if far else 0)
    _check_size(n_nodes, config.k)

    feats = chosen.train.feats
    pca = far.pca if far else diffusion.fit_projection(feats[chosen.base_rows], config.pca_dim, config.seed)
    dtype = far.vectors.dtype if far else np.dtype(np.float32)
    vectors, test_vectors = (pca(one).astype(dtype) for one in (feats[chosen.node_rows], chosen.test_feats))
    _report_zeros(vectors, config.train)
    _report_zeros(test_vectors, config.test)
    with building(config.out, made_from) as partial:
        if not partial.exists():
            shape = n_nodes, config.k, vectors.shape[1]
            diffusion.create_graph(partial, made_from, *shape, dtype, pca, chosen.node_rows, len(test_vectors))
        write_completed(partial, vectors, test_vectors, far, config)
    print(f"build_graph: {len(vectors)} training images of {n_nodes} nodes -> {config.out}")
    return config.out


@dataclass(frozen=True)
class Chosen:
    """What a setup takes of the features: rows (B,) and (M,) of `train`, ascending, and test features (T, D)."""

    train: Features
    base_rows: np.ndarray
    node_rows: np.ndarray
    test_feats: np.ndarray


def choose_rows(config: CompleteConfig) -> Chosen:
    """Read and check the features; test rows are those that `read_benchmark` keeps."""
    split = read_split(config.split)
    train, test = (read_features(path, split.n_classes) for path in (config.train, config.test))
    check_same_space(train, test)
    check_setup(train, config.setup)
    base, novel = split.setup(config.setup)
    setup_classes = np.concatenate([base, novel])
    check_classes(train, base, split.class_names)
    check_classes(test, setup_classes, split.class_names)
    nodes = {"none": base, "novel": setup_classes, "all": np.arange(split.n_classes)}[config.unlabelled]
    base_rows, node_rows = (np.flatnonzero(np.isin(train.labels, classes)) for classes in (base, nodes))
    return Chosen(train, base_rows, node_rows, test.feats[np.isin(test.labels, setup_classes)])


def read_background(path: Path, k: int, train: Features) -> diffusion.Graph:
    """The graph of a background; InputError if it cannot be completed, to lists of k, with the features `train`."""
    graph = diffusion.read_graph(path)
    if graph.train_rows is not None:
        raise InputError(f"{graph.path}: is completed already; --background takes what `background` wrote")
    if graph.input_dim != train.dim:
        raise InputError(f"{graph.path}: of features of {graph.input_dim} dimensions, but {train.path} has {train.dim}")
    if graph.k < k:
        raise InputError(f"{graph.path}: has lists of {graph.k} neighbours, fewer than k {k}")
    known = graph.inputs.get("extractor")
    if known and train.extractor and known != train.extractor:
        raise InputError(f"{graph.path}: from another extractor than {train.path}")
    return graph


def write_completed(
    partial: Path, vectors: np.ndarray, test_vectors: np.ndarray, far: diffusion.Graph | None, config: CompleteConfig
) -> None:
    """Fill a file that is laid out: nodes are `vectors` (M, d), compared exactly, then the background `far`."""
    arrays, device, k, n_train = diffusion.map_graph(partial), core.pick_device(), config.k, len(vectors)
    arrays["vectors"][:n_train], arrays["test_vectors"][:] = vectors, test_vectors

    @cache  # not made where a killed run is past it
    def index() -> diffusion.Index:
        return diffusion.Index(far.vectors, config.background.index, device, config.seed)

    def lists_of(queries: np.ndarray) -> diffusion.Lists:
        found = diffusion.exact_search(queries, vectors, k, device)
        return diffusion.merge(found, diffusion.shifted(index().search(queries, k), n_train), k) if far else found

    def train_lists(part: slice) -> diffusion.Lists:
        return diffusion.with_self(lists_of(vectors[part]), np.arange(part.start, part.stop), vectors[part])

    def background_lists(part: slice) -> diffusion.Lists:
        lists, queries = (far.ids[part, :k], far.similarities[part, :k]), far.vectors[part]
        near = diffusion.exact_search(queries, vectors, k, device)
        found = diffusion.merge(near, diffusion.shifted(lists, n_train), k)
        return diffusion.with_self(found, np.arange(n_train + part.start, n_train + part.stop), queries)

    diffusion.fill(arrays, diffusion.TRAIN_LISTS, ("ids", "similarities"), slice(0, n_train), train_lists)
    tests = slice(0, len(test_vectors))
    diffusion.fill(
        arrays,
        diffusion.TEST_LISTS,
        ("test_ids", "test_similarities"),
        tests,
        lambda part: lists_of(test_vectors[part]),
    )
    if far:
        index.cache_clear()  # an inverted file is a copy of the background
        rest = slice(n_train, n_train + far.n_nodes)
        diffusion.fill(arrays, diffusion.VECTORS, ("vectors",), rest, lambda part: [far.vectors[part]])
        diffusion.fill(arrays, diffusion.LISTS, ("ids", "similarities"), rest, background_lists)


def after_background(config: BackgroundConfig) -> list:
    """The command that takes the output, with capitals for what is not known here."""
    inputs = ["--train", "TRAIN.h5", "--test", "TEST.h5", "--split", "SPLIT.json", "--background", config.out]
    return ["build_graph.py", "complete", *inputs, "--out", config.out.with_name("graph.h5")]


def after_complete(config: CompleteConfig) -> list:
    """The command that takes the output, with capitals for what is not known here."""
    inputs = ["--train", config.train, "--test", config.test, "--split", config.split, "--draws", "DRAWS.json"]
    setup = ["--graph", config.out, "--setup", config.setup]
    return ["diffusion.py", *inputs, *setup, "--out", config.out.parent / "results/diffusion.json"]


COMMANDS = {
    "background": (background, BackgroundConfig, after_background),
    "complete": (complete, CompleteConfig, after_complete),
}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__)
