"""Build the graph that diffusion spreads labels over.

background  builds the graph of a large unlabelled set, once for all setups
            reads   FEATURES (.h5, .npy, or raw float32), and optionally published neighbour lists
            writes  OUT: PCA, unit vectors, and neighbour lists within the set
complete    builds the graph of a setup, once for all trials
            reads   train and test features, split, and optionally BACKGROUND
            writes  OUT: PCA, unit vectors and neighbour lists of the training images and the background, and
                    neighbour lists of the test images

python build_graph.py background --features yfcc.raw --dim 256 --n_rows 1000000 --out background.h5
python build_graph.py background --features concatenated_PCAR256.raw --dim 256 --n_rows 1000000 \\
    --projection PCAR256.vt --out background.h5
python build_graph.py complete --train features/train.h5 --test features/test.h5 --split split.json \\
    --background background.h5 --out graph-test.h5
Small example (seconds on a CPU):
python build_graph.py complete --train features/train.h5 --test features/test.h5 --split split.json \\
    --unlabelled novel --out graph-test.h5
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from lowshot import core, diffusion
from lowshot.core.artifacts import Recipe, read_recipe, recipe, renamed
from lowshot.core.cli import run_commands
from lowshot.core.errors import InputError
from lowshot.core.h5 import open_h5, update_h5
from lowshot.core.publishing import building, is_done
from lowshot.core.settings import PositiveInt, RunOnly, Seed
from lowshot.data.features import Features, check_classes, check_same_space, read_features
from lowshot.data.lineage import ANY, Lineage, lineage_of
from lowshot.data.protocol import Setup, read_split, setup_of
from lowshot.data.rows import Rows, blocks, open_raw, open_rows
from lowshot.diffusion.settings import LISTS, AutoIndex, Background, PublishedLists

PCA_DIM = 256


@dataclass(kw_only=True)
class GraphConfig:
    """The settings of both commands."""

    out: Path
    """Graph file to write (.h5)."""
    k: PositiveInt = 32
    """Number of neighbours of a node, itself included. Diffusion may use fewer."""
    pca_dim: PositiveInt | None = PCA_DIM
    """Number of PCA dimensions; null for no PCA. Features with fewer dimensions are not projected. With a background,
    its PCA is used."""
    seed: Seed = 0
    """Seed of the rows drawn to fit the PCA and the index."""
    overwrite: RunOnly[bool] = False
    """Build the graph again even if it exists."""


@dataclass(kw_only=True)
class BackgroundConfig(GraphConfig):
    """Build the graph of a large unlabelled set."""

    features: Path
    """Unlabelled features: .h5 in the published layout, .npy, or headerless float32 (.raw, .float32)."""
    dim: PositiveInt | None = None
    """Number of columns of a headerless file."""
    n_rows: PositiveInt | None = None
    """Number of rows to use, from the start of the file; all by default."""
    precision: Literal["float32", "float16"] = "float32"
    """Precision in which vectors are stored and searched."""
    projection: Path | None = None
    """Projection to use instead of fitting a PCA: a linear transform written by faiss, such as the published
    PCAR256.vt. --features can be projected with it already. `complete` projects train and test features with it."""
    index: Annotated[Any, LISTS] = field(default_factory=AutoIndex)
    """How to find neighbours: auto is exact below a million rows and IVF-Flat above; published reads precomputed lists
    instead of searching."""

    renamed: ClassVar = {
        "index": "index.name",
        "n_probe": "index.n_probe",
        "ids": "index.ids",
        "similarities": "index.similarities",
    }

    @staticmethod
    def older(stored: dict) -> dict:
        """Convert the recipe of a graph from before indices had their own settings."""
        names, inputs = BackgroundConfig.renamed, stored["inputs"]
        published = {"index.name": "published"} if "ids" in inputs else {}
        inputs = {names[name] if name in ("ids", "similarities") else name: one for name, one in inputs.items()}
        return renamed(names, {**stored, "config": {**published, **stored["config"]}, "inputs": inputs})


@dataclass(kw_only=True)
class CompleteConfig(GraphConfig):
    """Build the graph of a setup from its training images, test images and an optional background."""

    train: Path
    """Features of the training images."""
    test: Path
    """Features of the test images."""
    split: Path
    """split.json, or the published label_idx.json."""
    background: Background | None = None
    """Background to add to the graph."""
    setup: Setup = "test"
    """Setup that the graph is for; it selects the base and novel classes."""
    unlabelled: Literal["none", "novel", "all"] = "none"
    """Unlabelled training images to add to those of the base classes: none, those of the novel classes, or all."""

    renamed: ClassVar = {
        "index": "background.index.name",
        "n_probe": "background.index.n_probe",
        "index.n_probe": "background.index.n_probe",
    }

    def __post_init__(self) -> None:
        if self.background is None:
            return
        if self.pca_dim not in (None, PCA_DIM):
            raise InputError(
                f"--pca_dim {self.pca_dim}: the graph uses the PCA of the background {self.background.file}. "
                "Leave --pca_dim out, or set it when you build the background"
            )
        self.pca_dim = None

    @staticmethod
    def older(stored: dict) -> dict:
        """Convert the recipe of a graph from before indices had their own settings. With a background it had no
        pca_dim."""
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
            pca = _projection(config, rows)
            dim = pca.output_dim(rows.shape[1])
            diffusion.create_graph(partial, made_from, len(rows), config.k, dim, config.precision, pca)
        share = write_background(partial, rows, published, config)
        with update_h5(partial) as file:
            file.attrs["recall"] = share
    print(f"build_graph: {len(rows)} nodes, recall@{config.k} {share:.4f} -> {config.out}")
    return config.out


def _projection(config: BackgroundConfig, rows: Rows) -> diffusion.Projection:
    """Read the projection, or fit a PCA."""
    if config.projection is None:
        return diffusion.fit_projection(rows, config.pca_dim, config.seed)
    if config.pca_dim != PCA_DIM:
        raise InputError(f"--pca_dim {config.pca_dim}: --projection has its own dimensions. Leave --pca_dim out")
    pca = diffusion.read_projection_file(config.projection)
    if pca.input_dim <= len(pca.components):
        raise InputError(f"{config.projection}: does not reduce the dimensions. Use a PCA to fewer dimensions")
    if not pca.accepts(rows.shape[1]):
        form = f"from {pca.input_dim} to {len(pca.components)} dimensions"
        raise InputError(f"{config.projection}: projects {form}, but {config.features} has {rows.shape[1]}")
    return pca


def _background_recipe(config: BackgroundConfig) -> Recipe:
    inputs = {"features": config.features, "extractor": _extractor(config.features), "projection": config.projection}
    seen = lineage_of(config.features) | Lineage(unlabelled=frozenset({ANY}))
    return recipe("build_graph background", config, inputs, seen.to_json())


def _extractor(features: Path) -> str | None:
    """Return the digest of the extractor that made the features, if the file states it."""
    made_from = read_recipe(features) if features.suffix in {".h5", ".hdf5"} else None
    return made_from and made_from["inputs"].get("extractor")


def _check_size(n_nodes: int, k: int) -> None:
    if k > n_nodes:
        raise InputError(f"--k {k}: the graph has only {n_nodes} nodes. Use --k {n_nodes} or less")
    if n_nodes >= 2**31:
        raise InputError(f"{n_nodes} nodes: ids are 32-bit, so a graph can have at most 2^31 - 1. Use fewer --n_rows")


def read_published(lists: PublishedLists, n_rows: int, k: int) -> diffusion.Lists:
    """Open raw neighbour lists and return their first k columns as read-only maps: ids int32, similarities float32
    (n_rows, k).

    Raises InputError if the two files differ in length, have fewer than k columns, ids outside 0..n_rows-1, an id twice
    in a list, or NaN.
    """
    arrays = _open_list(lists.ids, np.int32, n_rows, k), _open_list(lists.similarities, np.float32, n_rows, k)
    lengths = [array.shape[1] for array in arrays]
    if lengths[0] != lengths[1]:
        raise InputError(
            f"{lists.similarities}: has lists of {lengths[1]} neighbours, but {lists.ids} has lists of {lengths[0]}"
        )
    ids, similarities = (array[:, :k] for array in arrays)
    diffusion.check_lists(ids, similarities, n_rows, f"{lists.ids}, {lists.similarities.name}")
    diffusion.check_distinct(ids, f"{lists.ids}")
    return ids, similarities


def _open_list(path: Path, dtype: type, n_rows: int, k: int) -> np.ndarray:
    n_bytes = path.stat().st_size
    n_columns, rest = divmod(n_bytes, 4 * n_rows)
    if rest or n_columns < k:
        raise InputError(
            f"{path}: its {n_bytes} bytes are not lists of k {k} or more neighbours for {n_rows} rows. "
            "Check --k and --n_rows"
        )
    named = re.fullmatch(r"\.(?:int|float)(\d+)", path.suffix)
    if named and int(named[1]) != n_columns:
        raise InputError(
            f"{path}: with {n_rows} rows it has lists of {n_columns} neighbours, but its name says {named[1]}. "
            "Check --n_rows"
        )
    return open_raw(path, dtype, n_columns)


def write_background(partial: Path, rows: Rows, published: diffusion.Lists | None, config: BackgroundConfig) -> float:
    """Fill the arrays of an unfinished background file and return the recall of its lists."""
    arrays, device = diffusion.map_graph(partial), core.pick_device()
    with open_h5(partial) as file:
        pca = diffusion.read_projection(file)
    nodes, vectors = slice(0, len(rows)), arrays["vectors"]
    diffusion.fill(arrays, diffusion.VECTORS, ("vectors",), nodes, lambda part: [pca.finish(rows[part])])
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
    """Sort published lists: most similar first, missing entries last."""
    ids, similarities = (one[part] for one in published)
    return diffusion.merge((ids[:, :0], similarities[:, :0]), (ids, similarities), ids.shape[1])


def _check_published(published: diffusion.Lists, vectors: np.ndarray, config: BackgroundConfig) -> None:
    """Raise InputError if the similarities are not the inner products of the features."""
    ids, similarities = published
    rows = diffusion.sampled_rows(len(ids), 1000, config.seed)
    listed = ids[rows] >= 0
    error = np.abs(diffusion.listed_products(ids, vectors, rows) - similarities[rows])[listed]
    if len(error) == 0 or np.median(error) > 0.01:
        raise InputError(
            f"{config.index.ids}: not the lists of {config.features}; the similarities differ from the inner products. "
            "Give the features, --n_rows and --pca_dim that the lists were made with"
        )


def _report_zeros(vectors: np.ndarray, features: Path) -> None:
    n_zeros = sum(int((~vectors[rows].any(axis=1)).sum()) for rows in blocks(len(vectors)))
    if n_zeros:
        print(f"build_graph: {features}: {n_zeros} rows are zero; their only neighbour is the row itself")


def complete(config: CompleteConfig) -> Path:
    """Write the graph of a setup and return its path."""
    far_file = config.background and config.background.file
    inputs = {"train": config.train, "test": config.test, "split": config.split, "background": far_file}
    made_from = recipe("build_graph complete", config, inputs, _lineage(config, far_file).to_json())
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
    print(f"build_graph: {n_nodes} nodes, {len(vectors)} of them training images -> {config.out}")
    return config.out


def _lineage(config: CompleteConfig, background: Path | None) -> Lineage:
    """Return what the features, and the unlabelled training images and the background of the graph have seen."""
    split, seen = read_split(config.split), lineage_of(config.train) | lineage_of(config.test)
    novel = setup_of(split, config.setup, config.split)[1]
    classes = {"none": [], "novel": novel, "all": range(split.n_classes)}[config.unlabelled]
    seen |= Lineage(unlabelled=frozenset(split.origins[c] for c in classes))
    return seen | lineage_of(background) if background else seen


@dataclass(frozen=True)
class Chosen:
    """The features of a setup: base rows (B,) and node rows (M,) of `train`, ascending, and test features (T, D)."""

    train: Features
    base_rows: np.ndarray
    node_rows: np.ndarray
    test_feats: np.ndarray


def choose_rows(config: CompleteConfig) -> Chosen:
    """Read and check the features. The test rows are the same as in `read_benchmark`."""
    split = read_split(config.split)
    train, test = (read_features(path, split.n_classes) for path in (config.train, config.test))
    check_same_space(train, test)
    base, novel = setup_of(split, config.setup, config.split)
    setup_classes = np.concatenate([base, novel])
    check_classes(train, base, split.class_names)
    check_classes(test, setup_classes, split.class_names)
    nodes = {"none": base, "novel": setup_classes, "all": np.arange(split.n_classes)}[config.unlabelled]
    base_rows, node_rows = (np.flatnonzero(np.isin(train.labels, classes)) for classes in (base, nodes))
    return Chosen(train, base_rows, node_rows, test.feats[np.isin(test.labels, setup_classes)])


def read_background(path: Path, k: int, train: Features) -> diffusion.Graph:
    """Read the graph of a background. Raises InputError if it cannot be completed to lists of k with `train`."""
    graph = diffusion.read_graph(path)
    if graph.train_rows is not None:
        raise InputError(
            f"{graph.path}: is the graph of a setup. Give --background a graph written by build_graph.py background"
        )
    if graph.input_dim != train.dim:
        raise InputError(
            f"{graph.path}: built from features of {graph.input_dim} dimensions, but {train.path} has {train.dim}. "
            "Use features of the same extractor; for a background of projected features (PCAR256.vt), build it with "
            "--projection"
        )
    if graph.k < k:
        raise InputError(
            f"{graph.path}: has lists of {graph.k} neighbours, fewer than k {k}. Use --k {graph.k}, or build the "
            f"background with --k {k}"
        )
    known = graph.inputs.get("extractor")
    if known and train.extractor and known != train.extractor:
        raise InputError(
            f"{graph.path}: its features are from a different extractor than {train.path}. "
            "Use features of the same extractor"
        )
    return graph


def write_completed(
    partial: Path, vectors: np.ndarray, test_vectors: np.ndarray, far: diffusion.Graph | None, config: CompleteConfig
) -> None:
    """Fill the arrays of an unfinished graph. Its nodes are `vectors` (M, d), searched exactly, then the background
    `far`."""
    arrays, device, k, n_train = diffusion.map_graph(partial), core.pick_device(), config.k, len(vectors)
    arrays["vectors"][:n_train], arrays["test_vectors"][:] = vectors, test_vectors

    @cache  # not built if an interrupted run has already done this phase
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
        index.cache_clear()  # frees the inverted file, which is a copy of the background
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
