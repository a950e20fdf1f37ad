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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from lowshot import core, diffusion
from lowshot.core.artifacts import building, is_done, open_h5, read_recipe, recipe
from lowshot.core.cli import run_commands
from lowshot.core.errors import InputError
from lowshot.core.settings import NonNegativeInt, PositiveInt, RunOnly
from lowshot.data.features import Features, check_classes, check_same_space, check_setup, read_features
from lowshot.data.protocol import Setup, read_split
from lowshot.data.rows import Rows, blocks, open_raw, open_rows
from lowshot.diffusion.settings import IndexKind

# Above, comparing all vectors of a set among themselves takes hours on a CPU.
EXACT_BELOW = 1_000_000


@dataclass(kw_only=True)
class GraphConfig:
    """The settings that both commands have."""

    out: Path
    """The graph file to write (.h5)."""
    k: PositiveInt = 32
    """Neighbours of a node, itself included; diffusion may use fewer."""
    pca_dim: PositiveInt | None = 256
    """Dimensions that a PCA leaves of features which have more; null for none (`complete` follows its background)."""
    index: Literal["auto", IndexKind] = "auto"
    """Search of the background: exact, IVF-Flat, or (auto) exact below a million rows."""
    n_probe: PositiveInt = 256
    """ivf: lists that a query looks into; fewer are faster and find less."""
    seed: NonNegativeInt = 0
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
    ids: Path | None = None
    """Published lists in place of a search: headerless int32 (rows, K), K being the number in the extension."""
    similarities: Path | None = None
    """Their inner products: headerless float32 (rows, K)."""


@dataclass(kw_only=True)
class CompleteConfig(GraphConfig):
    """The graph of a setup: its training images, the background, the lists of the test images."""

    train: Path
    """Features of the training images."""
    test: Path
    """Features of the test images."""
    split: Path
    """split.json, or the published label_idx.json."""
    background: Path | None = None
    """Graph that `background` wrote; none if not given."""
    setup: Setup = "test"
    """Halves of the classes that the graph is for."""
    unlabelled: Literal["none", "novel", "all"] = "none"
    """Training images that are nodes beside those of the setup's base classes: none, those of its novel classes, or all
    there are."""


def background(config: BackgroundConfig) -> Path:
    """Write the graph of the background and return its path."""
    made_from = _background_recipe(config)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    rows = open_rows(config.features, config.dim, config.n_rows)
    _check_size(len(rows), config.k)
    published = read_published(config, len(rows)) if config.ids else None
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


def _background_recipe(config: BackgroundConfig) -> dict:
    if (config.ids is None) != (config.similarities is None):
        raise InputError("ids, similarities: published lists are two files; give both or none")
    inputs = {"features": config.features, "ids": config.ids, "similarities": config.similarities}
    made_from = recipe("build_graph background", config, inputs)
    if extractor := _extractor(config.features):
        made_from["inputs"]["extractor"] = extractor
    if config.ids:
        _drop_unread(made_from, "index", "n_probe")
    return made_from


def _extractor(features: Path) -> str | None:
    """The digest of what made the features, if the file says."""
    made_from = read_recipe(features) if features.suffix in {".h5", ".hdf5"} else None
    return made_from and made_from["inputs"].get("extractor")


def _drop_unread(made_from: dict, *names: str) -> None:
    """Settings that are not read are no difference between two graphs."""
    for name in names:
        del made_from["config"][name]


def _check_size(n_nodes: int, k: int) -> None:
    if k > n_nodes:
        raise InputError(f"k {k}: more than the {n_nodes} nodes of the graph")
    if n_nodes >= 2**31:
        raise InputError(f"{n_nodes} nodes: ids are of 32 bits, which number 2^31 - 1 at most")


def read_published(config: BackgroundConfig, n_rows: int) -> diffusion.Lists:
    """The raw lists, ids int32 and similarities float32 (n_rows, K), as read-only maps.

    Raises InputError unless both have one K, no less than k, and hold rows 0..n_rows-1, none twice in a list, and no
    NaN.
    """
    lists = []
    for path, dtype in ((config.ids, np.int32), (config.similarities, np.float32)):
        n_columns, rest = divmod(path.stat().st_size, 4 * n_rows)
        if rest or n_columns < config.k:
            raise InputError(
                f"{path}: {path.stat().st_size} bytes are no lists of k {config.k} or more for {n_rows} rows"
            )
        named = re.fullmatch(r"\.(?:int|float)(\d+)", path.suffix)
        if named and int(named[1]) != n_columns:
            raise InputError(f"{path}: has lists of {n_columns} for {n_rows} rows, but its name says {named[1]}")
        lists.append(open_raw(path, dtype, n_columns))
    if lists[0].shape != lists[1].shape:
        raise InputError(
            f"{config.similarities}: lists of {lists[1].shape[1]}, but {config.ids} has {lists[0].shape[1]}"
        )
    ids, similarities = (one[:, : config.k] for one in lists)
    diffusion.check_lists(ids, similarities, n_rows, f"{config.ids}, {config.similarities.name}")
    diffusion.check_distinct(ids, f"{config.ids}")
    return ids, similarities


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
        index = diffusion.Index(vectors, _index_kind(config, len(rows)), device, config.n_probe, config.seed)

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
        raise InputError(f"{config.ids}: not the lists of {config.features}: similarities differ from inner products")


def _report_zeros(vectors: np.ndarray, features: Path) -> None:
    n_zeros = sum(int((~vectors[rows].any(axis=1)).sum()) for rows in blocks(len(vectors)))
    if n_zeros:
        print(f"build_graph: {features}: {n_zeros} rows are zero; they have no neighbours but themselves")


def _index_kind(config: GraphConfig, n_vectors: int) -> IndexKind:
    return ("exact" if n_vectors < EXACT_BELOW else "ivf") if config.index == "auto" else config.index


def complete(config: CompleteConfig) -> Path:
    """Write the graph of a setup and return its path."""
    inputs = {name: getattr(config, name) for name in ("train", "test", "split", "background")}
    made_from = recipe("build_graph complete", config, inputs)
    _drop_unread(made_from, *(("pca_dim",) if config.background else ("index", "n_probe")))
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    chosen = choose_rows(config)
    far = read_background(config, chosen.train) if config.background else None
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


def read_background(config: CompleteConfig, train: Features) -> diffusion.Graph:
    """The graph of the background; InputError if it cannot be completed with the features `train`."""
    graph = diffusion.read_graph(config.background)
    if graph.train_rows is not None:
        raise InputError(f"{graph.path}: is completed already; --background takes what `background` wrote")
    if graph.input_dim != train.dim:
        raise InputError(f"{graph.path}: of features of {graph.input_dim} dimensions, but {train.path} has {train.dim}")
    if graph.k < config.k:
        raise InputError(f"{graph.path}: has lists of {graph.k} neighbours, fewer than k {config.k}")
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
        return diffusion.Index(far.vectors, _index_kind(config, far.n_nodes), device, config.n_probe, config.seed)

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


COMMANDS = {"background": (background, BackgroundConfig), "complete": (complete, CompleteConfig)}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__)
