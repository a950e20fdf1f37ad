"""Mining of analogies: published fixtures, equality with brute force, and the script make_quadruplet.py."""

import json
from itertools import permutations
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import assert_refused, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

from lowshot.core.artifacts import read_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import write_json
from lowshot.data.features import write_features
from lowshot.data.protocol import make_split
from lowshot.hallucination import quadruplets
from lowshot.hallucination.quadruplets import TIE, mine, partner_classes, read_quadruplets
from make_quadruplet import Config, main


def all_others(n_classes: int) -> list[np.ndarray]:
    return [np.flatnonzero(np.arange(n_classes) != a) for a in range(n_classes)]


def brute_force(
    centroids: np.ndarray, partners: list[np.ndarray], epsilon: float
) -> dict[tuple[int, int], tuple[float, set[tuple[int, int]]]]:
    """Return the best score of each ordered source pair and all partner pairs with this score (flat indices)."""
    n_classes, n_clusters, dim = centroids.shape
    pairs = np.array(list(permutations(range(n_clusters), 2)))
    source = (np.arange(n_classes)[:, None, None] * n_clusters + pairs).reshape(-1, 2)
    ends = centroids.astype(np.float64).reshape(-1, dim)[source]
    difference = ends[:, 0] - ends[:, 1]
    length = np.linalg.norm(difference, axis=1)
    unit = difference / np.where(length > 0, length + epsilon, 1)[:, None]
    best = {}
    for a, own in enumerate(partners):
        allowed = np.flatnonzero(np.isin(source[:, 0] // n_clusters, own))
        for row in np.flatnonzero(source[:, 0] // n_clusters == a) if len(own) else []:
            scores = unit[allowed] @ unit[row]
            if (top := scores.max()) > TIE:
                winners = source[allowed[scores > top - 1e-9]]
                best[tuple(source[row].tolist())] = (float(top), set(map(tuple, winners.tolist())))
    return best


def assert_best(centroids: np.ndarray, partners: list[np.ndarray], epsilon: float) -> None:
    numbers, scores = mine(centroids, partners, epsilon, progress=False)
    expected = brute_force(centroids, partners, epsilon)
    sources = [(a, b) for a, b, _, _ in numbers.tolist()]
    assert sources == sorted(expected)
    for (a, b, c, d), score in zip(numbers.tolist(), scores):
        top, winners = expected[a, b]
        assert score == pytest.approx(top, abs=1e-6)
        assert (c, d) in winners


def test_fixture_of_hariharan2017():
    centroids = np.array([[[0, 0], [1, 0]], [[0, 0], [2, 1]]], np.float32)
    numbers, scores = mine(centroids, all_others(2), 1e-5, progress=False)
    assert numbers.dtype == np.int32 and numbers.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    assert scores.dtype == np.float32 and scores == pytest.approx([0.894414] * 4, abs=1e-6)


def test_fixture_of_ghosted2018():
    centroids = np.array([[[0, 0], [1, 0], [0, 2]], [[5, 5], [6, 5], [5, 6]], [[0, 0], [1, 1], [3, 0]]], np.float32)
    numbers, scores = mine(centroids, all_others(3), 0.0, progress=False)
    half, third = np.sqrt(0.5), 0.9 / np.sqrt(0.9)
    # (source pair, partner pair, cosine). In the fourth row class 2's (0,0) -> (3,0) ties at 1: the first class wins.
    forward = [
        ([0, 1], [3, 4], 1), ([0, 2], [3, 5], 1), ([1, 2], [4, 5], third),
        ([3, 4], [0, 1], 1), ([3, 5], [0, 2], 1), ([4, 5], [1, 2], third),
        ([6, 7], [0, 1], half), ([6, 8], [0, 1], 1), ([7, 8], [5, 4], third),
    ]  # fmt: skip
    expected = sorted(
        [s + t + [score] for s, t, score in forward] + [s[::-1] + t[::-1] + [score] for s, t, score in forward]
    )
    assert numbers.tolist() == [row[:4] for row in expected]
    assert scores == pytest.approx([row[4] for row in expected], abs=1e-6)


@pytest.mark.parametrize("scope", ["global", "superclass"])
def test_every_pair_of_random_classes_finds_a_partner(scope: str):
    centroids = np.random.default_rng(0).normal(size=(12, 10, 16)).astype(np.float32)
    groups = np.arange(12) // 3
    partners = [np.flatnonzero((np.arange(12) != a) & ((groups == groups[a]) | (scope == "global"))) for a in range(12)]
    assert len(mine(centroids, partners, 0.0, progress=False)[0]) == 12 * 45 * 2


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(2, 7), st.integers(1, 6), st.sampled_from([0.0, 1e-5]),
    st.booleans(), st.sampled_from(["normal", "grid", "near_copies", "relu"]),
)  # fmt: skip
def test_equals_brute_force(
    seed: int, n_classes: int, n_clusters: int, dim: int, epsilon: float, halved: bool, kind: str
):
    random = np.random.default_rng(seed)
    centroids = random.normal(size=(n_classes, n_clusters, dim)) * random.gamma(1, size=(n_classes, n_clusters, 1))
    if kind == "grid":  # many ties and copies
        centroids = centroids.round()
    elif kind == "near_copies":  # differences much shorter than the centroids, where float32 products are only noise
        centroids[:, 1::2] = centroids[:, :1] + 1e-4 * centroids[:, 1::2] + 100
    elif kind == "relu":
        centroids = np.maximum(centroids, 0)
    group = np.arange(n_classes) % 2 if halved else np.zeros(n_classes)
    partners = [np.flatnonzero((np.arange(n_classes) != a) & (group == group[a])) for a in range(n_classes)]
    assert_best(centroids.astype(np.float32), partners, epsilon)


def test_equals_brute_force_when_lanes_and_rows_are_many():
    centroids = np.random.default_rng(3).gamma(0.5, size=(3, 21, 40)).astype(np.float32)
    assert_best(centroids, all_others(3), 1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_properties(seed: int):
    random = np.random.default_rng(seed)
    centroids = random.normal(size=(4, 5, 3)).astype(np.float32)
    numbers, scores = mine(centroids, all_others(4), 1e-5, progress=False)
    source, partner = numbers // 5, numbers[:, 2:] // 5
    assert (source[:, 0] == source[:, 1]).all() and (partner[:, 0] == partner[:, 1]).all()
    assert (source[:, 0] != partner[:, 0]).all()
    assert (numbers[:, 0] != numbers[:, 1]).all() and (numbers[:, 2] != numbers[:, 3]).all()
    assert len(np.unique(numbers[:, :2], axis=0)) == len(numbers)
    assert (scores > 0).all() and (scores <= 1 + 1e-6).all()
    mirrored = numbers[:, [1, 0, 3, 2]]
    assert np.array_equal(mirrored[np.lexsort((mirrored[:, 1], mirrored[:, 0]))], numbers)


def test_moving_a_class_changes_nothing():
    # Integers, so that moving a class does not change its differences by rounding.
    centroids = np.random.default_rng(5).integers(-50, 50, size=(4, 9, 6)).astype(np.float32)
    moved = centroids + np.array([0, 1000, -300, 7], np.float32)[:, None, None]
    for before, after in zip(mine(centroids, all_others(4), 0.0, False), mine(moved, all_others(4), 0.0, False)):
        assert np.array_equal(before, after)


def test_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    centroids = np.random.default_rng(6).normal(size=(5, 20, 30)).astype(np.float32)
    found = []
    for n in (1, 3):
        monkeypatch.setattr(quadruplets, "_N_THREADS", n)
        found.append(mine(centroids, all_others(5), 1e-5, progress=False))
    one, several = found
    assert np.array_equal(several[0], one[0]) and np.array_equal(several[1], one[1])


def test_copies_of_a_centroid_pair_with_nothing():
    centroids = np.array([[[1, 2], [1, 2], [1, 2]], [[0, 0], [3, 0], [0, 5]]], np.float32)
    assert len(mine(centroids, all_others(2), 0.0, progress=False)[0]) == 0


def test_a_class_without_partners_yields_none():
    centroids = np.random.default_rng(7).normal(size=(3, 4, 5)).astype(np.float32)
    numbers, _ = mine(centroids, [np.array([1]), np.array([0]), np.array([], np.int64)], 0.0, progress=False)
    assert set(np.unique(numbers // 4)) == {0, 1} and len(numbers) == 2 * 12


# --- partner classes and the script ---

SUPERCLASS_OF = [0, 0, 0, 1, 1, 2, 2]  # base 0, 1, 3, 5 and 6: class 3 has no sibling


def small_split(superclass_of: list[int | None] = SUPERCLASS_OF, novel: tuple[int, ...] = (2, 4)):
    names = [f"class{c}" for c in range(len(superclass_of))]
    return make_split("tiny", names, ["x", "y", "z"], superclass_of, seed=0, novel_classes=list(novel))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(7), 12)
    feats = np.maximum(random.normal(size=(7, 8))[labels] + random.normal(size=(len(labels), 8)), 0).astype(np.float32)
    made_from = {
        "stage": "save_features",
        "config": {},
        "inputs": {"extractor": "e" * 64, "images": "i" * 64},
        "lineage": {},
    }
    write_features(tmp_path / "train.h5", feats, labels, made_from)
    write_json(tmp_path / "split.json", small_split().to_json())
    return {
        "features": tmp_path / "train.h5",
        "split": tmp_path / "split.json",
        "out": tmp_path / "new" / "quadruplets.h5",
    }


def test_superclass_scope_searches_siblings_only():
    found = partner_classes(np.array([0, 1, 3, 5, 6]), small_split(), "superclass", Path("split.json"))
    assert [own.tolist() for own in found] == [[1], [0], [], [4], [3]]
    found = partner_classes(np.array([0, 1, 3]), small_split(), "global", Path("split.json"))
    assert [own.tolist() for own in found] == [[1, 2], [0, 2], [0, 1]]


def test_no_superclasses_or_no_sibling_anywhere_is_refused():
    with pytest.raises(InputError, match=r"split.json: has no superclasses"):
        partner_classes(np.arange(5), small_split([None] * 7), "superclass", Path("split.json"))
    with pytest.raises(InputError, match=r"split.json: no base class has a partner class"):
        partner_classes(np.array([0, 3, 5]), small_split(), "superclass", Path("split.json"))
    with pytest.raises(InputError, match=r"split.json: no base class has a partner class"):
        partner_classes(np.array([0]), small_split(), "global", Path("split.json"))


def test_unknown_superclasses_are_no_siblings():
    found = partner_classes(np.arange(4), small_split([0, 0, None, None, 1, 1, 1]), "superclass", Path("split.json"))
    assert [own.tolist() for own in found] == [[1], [0], [], []]


@pytest.mark.parametrize("scope,n_rows", [("global", 5 * 12), ("superclass", 4 * 12)])
def test_script_writes_the_contract(files: dict[str, Path], scope: str, n_rows: int):
    assert main(Config(**files, n_clusters=4, scope=scope)) == files["out"]
    with h5py.File(files["out"]) as file:
        assert {name: (file[name].shape, file[name].dtype) for name in file} == {
            "centroids": ((5, 4, 8), np.float32), "centroid_labels": ((5,), np.int32),
            "quadruplets": ((n_rows, 4), np.int32), "scores": ((n_rows,), np.float32),
            "lineage": (file["lineage"].shape, np.uint8),
        }  # fmt: skip
        assert file["centroid_labels"][:].tolist() == [0, 1, 3, 5, 6]
        assert file.attrs["schema"] == "lowshot-quadruplets-1"
        centroids, rows, scores = file["centroids"][:].reshape(-1, 8), file["quadruplets"][:], file["scores"][:]
    a, b, c, d = centroids[rows.T].astype(np.float64)
    length = np.linalg.norm(a - b, axis=1) + 1e-5, np.linalg.norm(c - d, axis=1) + 1e-5
    assert scores == pytest.approx(((a - b) * (c - d)).sum(1) / length[0] / length[1], abs=1e-6)
    made_from = read_recipe(files["out"])
    assert made_from["inputs"]["extractor"] == "e" * 64
    assert made_from["config"] == {
        "rule": "hariharan2017",
        "n_clusters": 4,
        "kmeans": "faiss",
        "scope": scope,
        "seed": 0,
    }
    assert read_quadruplets(files["out"]).extractor == "e" * 64


def test_rules_bring_their_own_number_of_clusters(files: dict[str, Path]):
    main(Config(**files, rule="ghosted2018"))
    assert read_quadruplets(files["out"]).centroids.shape == (5, 10, 8)
    with pytest.raises(
        InputError, match=r"base class 0 has 12 rows, fewer than the 100 clusters\. Use at most --n_clusters 12"
    ):
        main(Config(**files, overwrite=True))


def test_second_run_skips_and_other_settings_stop(files: dict[str, Path], capsys: pytest.CaptureFixture):
    main(Config(**files, n_clusters=3))
    first = files["out"].read_bytes()
    main(Config(**files, n_clusters=3))
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(InputError, match="setting kmeans was faiss, now published"):
        main(Config(**files, n_clusters=3, kmeans="published"))
    main(Config(**files, n_clusters=3, overwrite=True))
    again = read_quadruplets(files["out"])
    files["out"].write_bytes(first)
    assert np.array_equal(again.numbers, read_quadruplets(files["out"]).numbers)


def test_command_line(files: dict[str, Path]):
    flags = [f"--{name}={path}" for name, path in files.items()]
    wrong = run_script("make_quadruplet.py", *flags, "--n_clusters=1")
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1 and not files["out"].exists()
    done = run_script("make_quadruplet.py", *flags, "--n_clusters=3")
    assert done.returncode == 0, done.stderr
    assert "30 quadruplets; 5 of 5 base classes have one" in done.stdout


def truncated(files: dict[str, Path]) -> None:
    files["features"].write_bytes(files["features"].read_bytes()[:3000])


def with_nan(files: dict[str, Path]) -> None:
    with h5py.File(files["features"], "a") as file:
        file["all_feats"][3, 2] = np.nan


def with_label_outside(files: dict[str, Path]) -> None:
    with h5py.File(files["features"], "a") as file:
        file["all_labels"][0] = 7


def without_split(files: dict[str, Path]) -> None:
    files["split"].write_text(json.dumps({"dataset": "tiny"}))


def without_superclasses(files: dict[str, Path]) -> None:
    write_json(files["split"], small_split([None] * 7).to_json())


def without_differences(files: dict[str, Path]) -> None:
    with h5py.File(files["features"], "a") as file:
        file["all_feats"][:] = 0


@pytest.mark.parametrize(
    "spoil,message",
    [
        (truncated, r"train.h5: not a readable HDF5 file"),
        (with_nan, r"train.h5: all_feats: row 3 contains NaN"),
        (with_label_outside, r"train.h5: label 7 is outside"),
        (without_split, r"split.json: not a split file"),
        (without_superclasses, r"split.json: has no superclasses"),
        (without_differences, r"train.h5: no quadruplet"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(files: dict[str, Path], spoil, message: str):
    spoil(files)
    scope = "superclass" if spoil is without_superclasses else "global"
    with pytest.raises(InputError, match=message):
        main(Config(**files, n_clusters=3, scope=scope))
    assert not files["out"].exists() and not list(files["out"].parent.glob(".lowshot"))


def test_reader_refuses_numbers_past_the_centroids(files: dict[str, Path]):
    main(Config(**files, n_clusters=3))
    with h5py.File(files["out"], "a") as file:
        file["quadruplets"][0, 0] = 15
    with pytest.raises(InputError, match="indices outside its 15 centroids"):
        read_quadruplets(files["out"])


@pytest.mark.parametrize("stage", ["make_quadruplet.py --features f.h5", "sample_gan.py --gan g --n_per_class 2"])
def test_an_output_of_another_format_is_refused(tmp_path, stage):
    script, *words = stage.split()
    done = run_script(script, *words, "--split", "s.json", "--out", tmp_path / "o")
    assert_refused(done, f"--out {tmp_path / 'o'}: must end in .h5. Use --out {tmp_path / 'o'}.h5")
