"""The files of the release of Douze et al. (CVPR 2018) in a small copy: features that a PCA has projected (.raw), the
PCA (.vt), neighbour lists (.int32, .float32), features of both parts (.hdf5), label_idx.json and splitfile_{t}.json."""

import json
from types import SimpleNamespace

import faiss
import h5py
import numpy as np
import pytest
from conftest import run_script

import build_graph
from lowshot.core.errors import InputError
from lowshot.diffusion.projection import read_projection_file

DIM, PCA, K, N_FAR, N_CLASSES, ROWS, TESTS = 24, 8, 6, 300, 12, 15, 5


def write_features(path, feats, labels):
    """The published layout, with padding rows."""
    with h5py.File(path, "w") as file:
        file["all_feats"] = np.concatenate([feats, np.zeros((7, feats.shape[1]), np.float32)])
        file["all_labels"] = np.concatenate([labels, np.zeros(7, np.int32)]).astype(np.int32)
        file["count"] = np.array([len(feats)], np.int32)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("release"), np.random.default_rng(0)
    centres = rng.normal(0, 2, (N_CLASSES, DIM)) + 5
    far = (centres[rng.integers(N_CLASSES, size=N_FAR)] + rng.normal(size=(N_FAR, DIM))).astype(np.float32)
    pca = faiss.PCAMatrix(DIM, PCA, 0, True)
    pca.train(far)
    faiss.write_VectorTransform(pca, str(root / "PCAR8.vt"))
    projected = pca.apply(far)
    unit = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    projected.tofile(root / "concatenated_PCAR8.raw")
    products = unit @ unit.T
    ids = np.argsort(-products, axis=1)[:, :K].astype(np.int32)
    ids.tofile(root / f"knn.int{K}")
    np.take_along_axis(products, ids, 1).astype(np.float32).tofile(root / f"knn.float{K}")
    parts = {}
    for name, n in (("train", ROWS), ("val", TESTS)):
        labels = np.repeat(np.arange(N_CLASSES), n)
        parts[name] = (centres[labels] + rng.normal(size=(len(labels), DIM))).astype(np.float32)
        write_features(root / f"{name}.hdf5", parts[name], labels)
    names = [f"n{i:08d}" for i in range(N_CLASSES)]
    halves = {"base_classes_1": [1, 2, 3], "novel_classes_1": [4, 5, 6], "base_classes_2": [7, 8, 9],
              "novel_classes_2": [10, 11, 12]}  # fmt: skip
    (root / "label_idx.json").write_text(json.dumps({"label_names": names, **halves}))
    for trial in (1, 2):
        shots = [(rng.permutation(ROWS)[:2] + c * ROWS).tolist() for c in range(N_CLASSES)]
        (root / f"splitfile_{trial}.json").write_text(json.dumps(shots))
    return SimpleNamespace(root=root, far=far, pca=pca, **parts)


def test_the_projection_is_that_of_faiss(released):
    read = read_projection_file(released.root / "PCAR8.vt")
    for feats in (released.far, released.train):
        expected = released.pca.apply(feats)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(read(feats), expected, atol=2e-5)
    np.testing.assert_allclose(read.finish(released.pca.apply(released.far)), read(released.far), atol=2e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_any_linear_transform(tmp_path, bias):
    rng = np.random.default_rng(1)
    transform = faiss.LinearTransform(5, 3, bias)
    faiss.copy_array_to_vector(rng.normal(size=15).astype(np.float32), transform.A)
    if bias:
        faiss.copy_array_to_vector(rng.normal(size=3).astype(np.float32), transform.b)
    transform.is_trained = True
    faiss.write_VectorTransform(transform, str(tmp_path / "x.vt"))
    feats = rng.normal(size=(9, 5)).astype(np.float32)
    expected = transform.apply(feats)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(read_projection_file(tmp_path / "x.vt")(feats), expected, atol=1e-5)


def test_files_that_are_no_projection(tmp_path, released):
    (tmp_path / "a.vt").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"a\.vt: not a linear transform of faiss"):
        read_projection_file(tmp_path / "a.vt")
    faiss.write_VectorTransform(faiss.NormalizationTransform(4), str(tmp_path / "b.vt"))
    with pytest.raises(InputError, match=r"b\.vt: not a linear transform of faiss"):
        read_projection_file(tmp_path / "b.vt")
    with pytest.raises(InputError, match="no such file"):
        read_projection_file(tmp_path / "c.vt")
    config = {"features": released.root / "concatenated_PCAR8.raw", "dim": 6, "out": tmp_path / "far.h5", "k": K}
    with pytest.raises(InputError, match=r"projects from 24 to 8 dimensions, but .* has 6"):
        build_graph.background(build_graph.BackgroundConfig(**config, projection=released.root / "PCAR8.vt"))
    with pytest.raises(InputError, match="--projection has its own dimensions"):
        far = build_graph.BackgroundConfig(**config, projection=released.root / "PCAR8.vt", pca_dim=4)
        build_graph.background(far)


def test_the_released_files_chain_through(released, tmp_path):
    """Three commands, whose results are those of a graph that was built here from the features as they were."""
    root, setup = released.root, ["--setup", "test"]
    inputs = ["--train", root / "train.hdf5", "--test", root / "val.hdf5", "--split", root / "label_idx.json"]
    published = ["--index", "published", "--index.ids", root / f"knn.int{K}", "--index.similarities",
                 root / f"knn.float{K}"]  # fmt: skip
    np.save(tmp_path / "far.npy", released.far)
    sources = {
        "released": ["--features", root / "concatenated_PCAR8.raw", "--dim", PCA, *published],
        "own": ["--features", tmp_path / "far.npy"],
    }
    found = {}
    for name, features in sources.items():
        far, graph, projection = tmp_path / f"{name}-far.h5", tmp_path / f"{name}.h5", root / "PCAR8.vt"
        shots = ["--draws", root / "splitfile_{trial}.json", "--trials", 1, 2, "--shots", 1, 2, "--edges.k", K]
        out = tmp_path / f"{name}.json"
        commands = [
            ["build_graph.py", "background", *features, "--projection", projection, "--k", K, "--out", far],
            ["build_graph.py", "complete", *inputs, *setup, "--k", K, "--background", far, "--out", graph],
            ["diffusion.py", *inputs, *setup, *shots, "--graph", graph, "--out", out],
        ]
        for command in commands:
            done = run_script(*command)
            assert done.returncode == 0, done.stderr
        found[name] = json.loads(out.read_text())["trials"]
    assert found["released"] == found["own"]
    assert np.mean([one["top1_novel"] for one in found["own"]]) > 0.5
