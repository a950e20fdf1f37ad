"""The graph file and build_graph.py: lists merged from parts equal the lists of the whole."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import assert_refused, run_script, settings

import build_graph
import lowshot.data.rows as rows_room
from build_graph import BackgroundConfig, CompleteConfig
from lowshot import diffusion
from lowshot.core.artifacts import read_recipe, recipe
from lowshot.core.errors import InputError
from lowshot.core.files import digest, write_json
from lowshot.core.publishing import partial_path
from lowshot.data.features import write_features
from lowshot.data.protocol import draws_to_json, make_draws, read_split
from lowshot.data.protocol import make_split as draw_split
from lowshot.data.rows import open_rows
from lowshot.diffusion.graph import Graph, add_nodes, read_graph
from lowshot.diffusion.neighbours import exact_search, with_self
from lowshot.diffusion.settings import ExactIndex
from lowshot.evaluation.benchmark import read_benchmark
from lowshot.evaluation.settings import BenchmarkConfig

N_CLASSES, N_TRAIN, N_TEST, DIM, N_BACKGROUND, K = 10, 12, 3, 20, 150, 6
UNMADE = {"stage": "test", "config": {}, "inputs": {}, "lineage": {}}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> SimpleNamespace:
    """Features of ten clusters, 12 train and 3 test rows each, and 150 unlabelled rows around them; split and draws."""
    folder = tmp_path_factory.mktemp("graph")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((N_CLASSES, DIM))
    made = SimpleNamespace(folder=folder)
    for name, n_rows in (("train", N_TRAIN), ("test", N_TEST)):
        labels = rng.permutation(np.repeat(np.arange(N_CLASSES), n_rows))
        feats = centres[labels] + 0.7 * rng.standard_normal((len(labels), DIM))
        setattr(made, name, folder / f"{name}.h5")
        write_features(getattr(made, name), feats.astype(np.float32), labels, UNMADE)
    made.unlabelled = folder / "unlabelled.raw"
    feats = centres[rng.integers(N_CLASSES, size=N_BACKGROUND)] + 0.9 * rng.standard_normal((N_BACKGROUND, DIM))
    feats.astype(np.float32).tofile(made.unlabelled)
    split = draw_split("toy", [str(c) for c in range(N_CLASSES)], [], [None] * N_CLASSES, 0)
    made.split, made.draws = folder / "split.json", folder / "draws.json"
    write_json(made.split, split.to_json())
    labels = read_features_of(made.train)[1]
    write_json(made.draws, draws_to_json(make_draws(labels, split.class_names, 1, 5, 0), split, 0))
    return made


@pytest.fixture(scope="module")
def background(files) -> Path:
    return build_graph.background(background_config(files, files.folder / "background.h5"))


def background_config(files: SimpleNamespace, out: Path, **more) -> BackgroundConfig:
    inputs = {"features": files.unlabelled, "dim": DIM}
    return settings(BackgroundConfig, out=out, **{**inputs, "k": K, "pca_dim": 8, **more})


def complete_config(files: SimpleNamespace, out: Path, **more) -> CompleteConfig:
    """With a background, pca_dim is not set: the graph uses the PCA of the background."""
    inputs = {"train": files.train, "test": files.test, "split": files.split}
    pca = {} if more.get("background") else {"pca_dim": 8}
    return settings(CompleteConfig, out=out, **{**inputs, "k": K, **pca, **more})


def read_features_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        return file["all_feats"][:], file["all_labels"][:]


def assert_lists(graph: Graph, ids: np.ndarray, similarities: np.ndarray) -> None:
    """Assert that `ids` and `similarities` equal one exact search over all nodes of `graph`."""
    expected = exact_search(graph.vectors, graph.vectors, ids.shape[1])
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_allclose(similarities, expected[1], atol=2e-6)


# --- rows on disk ---


def test_rows_of_every_format(files, tmp_path):
    feats = np.fromfile(files.unlabelled, np.float32).reshape(-1, DIM)
    np.save(tmp_path / "rows.npy", feats)
    with h5py.File(tmp_path / "chunked.h5", "w") as file:  # like some published files: padding past count
        file.create_dataset("all_feats", data=np.concatenate([feats, feats]), chunks=(40, DIM), compression="gzip")
        file["count"] = np.array([len(feats)], np.int32)
    write_features(tmp_path / "ours.h5", feats, np.zeros(len(feats)), UNMADE)
    for path in (files.unlabelled, *sorted(tmp_path.iterdir())):
        rows = open_rows(path, DIM, 100)
        assert rows.shape == (100, DIM)
        np.testing.assert_array_equal(rows[7:33], feats[7:33])
        assert open_rows(path, DIM).shape == feats.shape


def test_a_raw_file_is_never_extended(files, tmp_path):
    path = tmp_path / "short.raw"
    path.write_bytes(files.unlabelled.read_bytes()[:-4])
    path.chmod(0o444)
    with pytest.raises(InputError, match="are not a multiple of rows of 20 float32"):
        open_rows(path, DIM)
    with pytest.raises(InputError, match="has 150 rows, but 151 are needed"):
        open_rows(files.unlabelled, DIM, 151)
    with pytest.raises(InputError, match="Use --dim"):
        open_rows(files.unlabelled)
    assert files.unlabelled.stat().st_size == N_BACKGROUND * DIM * 4


@pytest.mark.parametrize(
    "bad, words",
    [
        ("nan", "row 93 contains NaN"),
        ("dim", "has 20 dimensions, not 8"),
        ("npy", "not a readable"),
        ("count", "count is 999"),
        ("suffix", "features must be a .h5"),
    ],
)
def test_rows_that_are_refused(bad, words, files, tmp_path):
    feats = np.fromfile(files.unlabelled, np.float32).reshape(-1, DIM)
    feats[93, 4] = np.nan
    path = tmp_path / {"count": "rows.h5", "suffix": "rows.txt"}.get(bad, "rows.npy")
    if bad in ("nan", "dim"):
        np.save(path, feats)
    elif bad == "count":
        with h5py.File(path, "w") as file:
            file["all_feats"], file["count"] = feats, [999]
    else:
        path.write_text("no rows")
    with pytest.raises(InputError, match=words):
        open_rows(path, 8 if bad == "dim" else None)[0:150]


# --- background ---


def test_background_has_the_nearest_of_all(background):
    graph = read_graph(background)
    assert graph.pca.components.shape == (8, DIM) and graph.input_dim == DIM
    assert graph.n_background == graph.n_nodes == N_BACKGROUND and graph.k == K
    assert_lists(graph, graph.ids, graph.similarities)
    np.testing.assert_allclose(np.linalg.norm(graph.vectors, axis=1), 1, atol=1e-6)
    with h5py.File(background) as file:
        assert file.attrs["recall"] == 1 and file.attrs["schema"] == "lowshot-graph-1"
        assert all(file[name].chunks is None for name in ("ids", "similarities", "vectors"))


def test_a_prefix_in_half_precision_with_an_inverted_file(files, tmp_path):
    index = {"name": "ivf", "n_probe": 1}
    config = background_config(files, tmp_path / "b.h5", n_rows=120, precision="float16", index=index, pca_dim=None)
    graph = read_graph(build_graph.background(config))
    assert graph.vectors.dtype == np.float16 and graph.vectors.shape == (120, DIM) and graph.pca.mean is None
    assert (graph.ids == np.arange(120)[:, None]).any(axis=1).all()
    with h5py.File(tmp_path / "b.h5") as file:
        assert 0.2 < file.attrs["recall"] < 1


def test_zero_rows_are_isolated_and_counted(files, tmp_path, capsys):
    feats = np.fromfile(files.unlabelled, np.float32).reshape(-1, DIM)
    feats[[3, 70]] = 0
    np.save(tmp_path / "rows.npy", feats)
    config = background_config(files, tmp_path / "b.h5", features=tmp_path / "rows.npy", pca_dim=None)
    graph = read_graph(build_graph.background(config))
    assert "2 rows are zero" in capsys.readouterr().out
    for row in (3, 70):
        assert graph.ids[row].tolist() == [row] + [-1] * (K - 1)
        assert (graph.ids == row).sum() == 1


def published(files: SimpleNamespace, folder: Path, ids: np.ndarray, similarities: np.ndarray) -> dict[str, Path]:
    n_columns = ids.shape[1]
    paths = {"ids": folder / f"lists.int{n_columns}", "similarities": folder / f"lists.float{n_columns}"}
    ids.astype(np.int32).tofile(paths["ids"])
    similarities.astype(np.float32).tofile(paths["similarities"])
    return paths


def test_published_lists_instead_of_a_search(files, background, tmp_path):
    graph = read_graph(background)
    ids, similarities = (np.array(one) for one in exact_search(graph.vectors, graph.vectors, 8))
    ids[4, 1], ids[9, 2] = -1, -1  # missing entries of IVF
    similarities[4, 1], ids[20, 0] = np.nan, -1
    index = {"name": "published", **published(files, tmp_path, ids, similarities)}
    taken = read_graph(build_graph.background(background_config(files, tmp_path / "b.h5", index=index)))
    same = np.setdiff1d(np.arange(N_BACKGROUND), [4, 9, 20])
    np.testing.assert_array_equal(taken.ids[same], graph.ids[same])
    np.testing.assert_array_equal(taken.ids[4], [*graph.ids[4, [0, 2, 3, 4, 5]], -1])  # the first k columns only
    assert set(taken.ids[20]) == {20, *graph.ids[20, 1:]}
    made_from = read_recipe(tmp_path / "b.h5")
    assert made_from["config"]["index"] == {"name": "published"}
    assert made_from["inputs"].keys() == {"features", "index.ids", "index.similarities"}


@pytest.mark.parametrize(
    "bad, words",
    [
        ("id", "row 5 has the id 150"),
        ("nan", "row 6 has the similarity nan"),
        ("twice", "row 7 contains id 3 twice"),
        ("short", "are not lists of k 6 or more neighbours"),
        ("name", "its name says 8"),
        ("width", "has lists of 9 neighbours, but"),
        ("other", "not the lists of"),
        ("one", "index.similarities: is required"),
    ],
)
def test_published_lists_that_are_refused(bad, words, files, background, tmp_path):
    graph = read_graph(background)
    ids, similarities = (np.array(one) for one in exact_search(graph.vectors, graph.vectors, 8))
    if bad == "id":
        ids[5, 2] = N_BACKGROUND
    elif bad == "nan":
        similarities[6, 0] = np.nan
    elif bad == "twice":
        ids[7, [2, 5]] = 3
    elif bad == "other":
        ids = ids[::-1]
    paths = published(files, tmp_path, ids, similarities)
    n_rows = 100 if bad == "name" else None
    if bad == "short":
        paths["ids"].write_bytes(paths["ids"].read_bytes()[:-32])
    elif bad == "width":
        paths["similarities"] = published(files, tmp_path, *(np.zeros((N_BACKGROUND, 9)),) * 2)["similarities"]
    elif bad == "one":
        del paths["similarities"]
    with pytest.raises(InputError, match=words):
        index = {"name": "published", **paths}
        build_graph.background(background_config(files, tmp_path / "b.h5", n_rows=n_rows, index=index))
    assert not (tmp_path / "b.h5").exists() and not partial_path(tmp_path / "b.h5").exists()


# --- completion ---


@pytest.mark.parametrize("with_background", [False, True])
@pytest.mark.parametrize("unlabelled", ["none", "novel", "all"])
def test_completed_graph_equals_one_built_at_once(files, background, tmp_path, with_background, unlabelled):
    far = background if with_background else None
    config = complete_config(files, tmp_path / "g.h5", unlabelled=unlabelled, background=far)
    graph = read_graph(build_graph.complete(config))
    base, novel = read_split(files.split).setup("test")
    nodes = {"none": base, "novel": [*base, *novel], "all": np.arange(N_CLASSES)}[unlabelled]
    feats, labels = read_features_of(files.train)
    np.testing.assert_array_equal(graph.train_rows, np.flatnonzero(np.isin(labels, nodes)))
    assert graph.n_background == (N_BACKGROUND if with_background else 0)
    assert (graph.setup, graph.unlabelled) == ("test", unlabelled)
    np.testing.assert_allclose(graph.vectors[: len(graph.train_rows)], graph.project(feats[graph.train_rows]))
    assert_lists(graph, graph.ids, graph.similarities)
    expected = exact_search(graph.test_vectors, graph.vectors, K)
    np.testing.assert_array_equal(graph.test_ids, expected[0])
    np.testing.assert_allclose(graph.test_similarities, expected[1], atol=2e-6)


@pytest.mark.parametrize("setup", ["validation", "test"])
def test_test_rows_are_those_that_the_benchmark_evaluates(files, tmp_path, setup):
    graph = read_graph(build_graph.complete(complete_config(files, tmp_path / "g.h5", setup=setup)))
    inputs = {"train": files.train, "test": files.test, "split": files.split, "draws": files.draws}
    config = BenchmarkConfig(**inputs, out=tmp_path / "r.json", setup=setup, shots=[5])
    np.testing.assert_allclose(graph.test_vectors, graph.project(read_benchmark(config).test_features))


def test_the_pca_without_a_background_is_fitted_on_the_base_rows(files, tmp_path):
    graph = read_graph(build_graph.complete(complete_config(files, tmp_path / "g.h5", unlabelled="all")))
    feats, labels = read_features_of(files.train)
    base = np.isin(labels, read_split(files.split).setup("test")[0])
    np.testing.assert_allclose(graph.pca.mean, feats[base].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("with_background", [False, True])
@pytest.mark.parametrize("k", [K, 4])
def test_added_nodes_are_found_as_if_built_with_them(files, background, tmp_path, with_background, k):
    far = background if with_background else None
    graph = read_graph(build_graph.complete(complete_config(files, tmp_path / "g.h5", background=far)))
    feats, labels = read_features_of(files.train)
    new = graph.project(feats[np.isin(labels, read_split(files.split).setup("test")[1])][:9])
    ids, similarities, test_ids, test_similarities, multiply_adds = add_nodes(graph, new, k)
    whole = replace(graph, vectors=np.concatenate([graph.vectors, new]))
    assert_lists(whole, ids, similarities)
    expected = exact_search(graph.test_vectors, whole.vectors, k)
    np.testing.assert_array_equal(test_ids, expected[0])
    np.testing.assert_allclose(test_similarities, expected[1], atol=2e-6)
    n_pairs = 9 * (2 * graph.n_nodes + 9 + len(test_ids))
    assert n_pairs * 8 < multiply_adds <= (n_pairs + 9 * graph.n_nodes) * 8


def test_adding_no_node_changes_nothing_and_a_zero_one_only_itself(files, background, tmp_path):
    graph = read_graph(build_graph.complete(complete_config(files, tmp_path / "g.h5", background=background)))
    ids, similarities, test_ids, _, multiply_adds = add_nodes(graph, np.empty((0, 8), np.float32), K)
    np.testing.assert_array_equal(ids, graph.ids)
    np.testing.assert_array_equal(similarities, graph.similarities)
    np.testing.assert_array_equal(test_ids, graph.test_ids)
    assert multiply_adds == 0
    ids = add_nodes(graph, np.zeros((1, 8), np.float32), K)[0]
    np.testing.assert_array_equal(ids[:-1], graph.ids)
    assert ids[-1].tolist() == [graph.n_nodes] + [-1] * (K - 1)


def test_added_nodes_need_lists_that_are_long_enough(files, background):
    with pytest.raises(InputError, match="fewer than k 7"):
        add_nodes(read_graph(background), np.zeros((1, 8), np.float32), K + 1)


# --- skipped, resumed, refused ---


@pytest.mark.parametrize("kill_at", [1, 4, 9])
@pytest.mark.parametrize("command", ["background", "complete"])
def test_an_interrupted_run_resumes(files, background, tmp_path, monkeypatch, command, kill_at):
    monkeypatch.setattr(rows_room, "BLOCK", 25)
    if command == "background":
        build, config = build_graph.background, background_config(files, tmp_path / "g.h5")
    else:
        build, config = build_graph.complete, complete_config(files, tmp_path / "g.h5", background=background)
    calls = count_lists(monkeypatch)
    made_at_once, n_whole = digest(build(config)), calls[0]

    config.out.unlink()
    first = count_lists(monkeypatch, kill_at=min(kill_at, n_whole))
    with pytest.raises(KeyboardInterrupt):
        build(config)
    assert not config.out.exists() and partial_path(config.out).exists()
    second = count_lists(monkeypatch)
    build(config)
    assert digest(config.out) == made_at_once
    assert first[0] + second[0] == n_whole + 1  # only the interrupted block is computed again


def count_lists(monkeypatch, kill_at: int | None = None) -> list[int]:
    """Count the blocks of lists, and interrupt block `kill_at` before it is written."""
    calls = [0]

    def counted(*arguments):
        calls[0] += 1
        if calls[0] == kill_at:
            raise KeyboardInterrupt
        return with_self(*arguments)

    monkeypatch.setattr(diffusion, "with_self", counted)
    return calls


def test_a_finished_graph_is_skipped(files, background, tmp_path, capsys):
    config = complete_config(files, tmp_path / "g.h5", background=background)
    before = build_graph.complete(config).stat().st_mtime_ns
    assert build_graph.complete(config).stat().st_mtime_ns == before
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(InputError, match="seed was 0, now 1"):
        build_graph.complete(replace(config, seed=1))
    assert read_graph(config.out).inputs.keys() == {"train", "test", "split", "background"}


def test_a_completed_graph_uses_the_pca_of_its_background(files, background, tmp_path):
    config = complete_config(files, tmp_path / "g.h5", background=background)
    assert read_recipe(build_graph.complete(config))["config"]["pca_dim"] is None
    with pytest.raises(InputError, match=r"pca_dim 3: the graph uses the PCA of the background .* Leave --pca_dim out"):
        replace(config, pca_dim=3)


OLDER = {
    "auto": ({"index": "auto", "n_probe": 256}, {}),
    "exact": ({"index": "exact", "n_probe": 17}, {"name": "exact"}),  # exact search never read n_probe
    "ivf": ({"index": "ivf", "n_probe": 17}, {"name": "ivf", "n_probe": 17}),
}


@pytest.mark.parametrize(("older", "index"), OLDER.values(), ids=OLDER)
def test_recipes_from_before_indices_had_settings(files, background, tmp_path, older, index):
    config = background_config(files, tmp_path / "b.h5", index=index)
    today = build_graph._background_recipe(config)
    stored = {**today, "config": {**{k: v for k, v in today["config"].items() if k != "index"}, **older}}
    assert today.difference(today) is None and today.difference(stored) is None
    assert today.difference({**stored, "config": {**stored["config"], "n_probe": 18}}) == (
        None if config.index == ExactIndex() else f"setting index.n_probe was 18, now {config.index.n_probe}"
    )
    config = complete_config(files, tmp_path / "g.h5", background={"file": background, "index": index})
    today = recipe("build_graph complete", config, {"background": background})
    plain = {k: v for k, v in today["config"].items() if k not in ("background", "pca_dim")}
    assert today.difference(today) is None and today.difference({**today, "config": {**plain, **older}}) is None


def test_the_script(files, tmp_path):
    command = ["build_graph.py", "background", "--features", files.unlabelled, "--k", K, "--out"]
    made = run_script(*command, tmp_path / "b.h5", "--dim", DIM)
    assert made.returncode == 0 and "recall@6 1.0000" in made.stdout, made.stderr
    assert_refused(run_script(*command, tmp_path / "c.h5"), "unlabelled.raw", "Use --dim")


@pytest.mark.parametrize(
    "bad, words", [("k", "k 101: the graph has only 100 nodes. Use --k 100"), ("nan", "row 93 contains NaN")]
)
def test_a_background_that_is_refused(bad, words, files, tmp_path):
    feats = np.fromfile(files.unlabelled, np.float32).reshape(-1, DIM)
    feats[93, 4] = np.nan
    np.save(tmp_path / "rows.npy", feats)
    more = {"k": 101, "n_rows": 100} if bad == "k" else {"features": tmp_path / "rows.npy", "pca_dim": None}
    with pytest.raises(InputError, match=words):
        build_graph.background(background_config(files, tmp_path / "b.h5", **more))
    assert not partial_path(tmp_path / "b.h5").exists()


def test_a_completion_that_is_refused(files, background, tmp_path):
    def refused(words: str, **more) -> None:
        with pytest.raises(InputError, match=words):
            build_graph.complete(complete_config(files, tmp_path / "g.h5", **more))
        assert list(tmp_path.glob("g*")) == []

    few, labels = np.ones((30, 4), np.float32), np.arange(30) % N_CLASSES
    write_features(tmp_path / "few.h5", few, labels, UNMADE)
    write_features(tmp_path / "one_class.h5", np.ones((5, DIM), np.float32), np.zeros(5), UNMADE)
    refused("4 dimensions, but", test=tmp_path / "few.h5")
    refused("of 20 dimensions, but .*few.h5 has 4", background=background, train=tmp_path / "few.h5",
            test=tmp_path / "few.h5")  # fmt: skip
    refused("lists of 6 neighbours, fewer than k 7. Use --k 6", background=background, k=7)
    refused("k 37: the graph has only 36 nodes. Use --k 36", k=37)
    refused("no rows of class", test=tmp_path / "one_class.h5")
    completed = build_graph.complete(complete_config(files, tmp_path / "done.h5"))
    refused("is the graph of a setup. Give --background", background=completed)
    with h5py.File(completed, "r+") as file:
        file["train_rows"][:] = file["train_rows"][()][::-1]
    with pytest.raises(InputError, match="train_rows are not in ascending order"):
        read_graph(completed)


@pytest.mark.parametrize(
    "bad, words",
    [
        ("id", r"ids: row 3 has the id 150"),
        ("low", "id -2"),
        ("nan", "similarity nan"),
        ("shape", "'similarities' has shape"),
        ("lack", "lacks the dataset 'vectors'"),
        ("cut", "not a readable HDF5 file"),
    ],
)
def test_a_graph_file_that_is_refused(bad, words, background, tmp_path):
    path = tmp_path / "graph.h5"
    path.write_bytes(background.read_bytes())
    if bad == "cut":
        path.write_bytes(background.read_bytes()[:-3000])
    else:
        with h5py.File(path, "r+") as file:
            if bad == "id":
                file["ids"][3, 1] = N_BACKGROUND
            elif bad == "low":
                file["ids"][3, 1] = -2
            elif bad == "nan":
                file["similarities"][3, 1] = np.nan
            elif bad == "shape":
                del file["similarities"]
                file["similarities"] = np.zeros((N_BACKGROUND, K + 1), np.float32)
            else:
                del file["vectors"]
    with pytest.raises(InputError, match=words):
        read_graph(path)
