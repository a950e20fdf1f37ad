"""low_shot.py with augmented copies of the shots, with the unlabelled pool and with calibrated rows."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from conftest import assert_refused, run_script
from test_low_shot import DIM, captured_problem, tiny_config

import low_shot
from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.settings import (
    FeatureTransform,
    LaplacianShotOptions,
    NearestMeanOptions,
    PTMapOptions,
    RefinementOptions,
)
from lowshot.classifiers.tasks import Tasks
from lowshot.classifiers.transform import fitted_transform
from lowshot.core.errors import InputError
from lowshot.data.additions import CopiesOfShots, Repetition
from lowshot.data.features import read_copies, read_features
from lowshot.data.protocol import read_draws, read_split
from lowshot.evaluation.benchmark import read_benchmark
from lowshot.evaluation.settings import Pool
from lowshot.evaluation.unlabelled import PoolRows, most_confident
from lowshot.gan.data import few_shot_rows
from lowshot.hallucination.calibration import CalibratedRows
from lowshot.hallucination.settings import Calibrated

NOVEL = np.array([6, 7])


@pytest.fixture
def config(tmp_path):
    config = replace(tiny_config(tmp_path), classifier=NearestMeanOptions())
    with h5py.File(config.train, "r+") as file:  # copy j of a row is the row + 100 (j + 1)
        feats = file["all_feats"][:]
        file["augmented_feats"] = feats[:, None] + 100 * np.arange(1, 4, dtype=np.float32)[:, None]
    return config


def of_runs(problem):
    """(trial, n) -> run."""
    return {run.key: run for run in problem.runs}


def numbers_of(rows, feats):
    """Return the row numbers of `rows` (m, D) in `feats` (N, D), -1 for those that are not in it."""
    same = (rows[:, None] == feats).all(2)
    return np.where(same.any(1), same.argmax(1), -1)


# --- copies ---


def test_every_shot_gets_its_copies(config, monkeypatch):
    problem, content = captured_problem(config, monkeypatch, add={"copies": CopiesOfShots()})
    assert content["method"] == "nearest_mean + augmented copies"
    for run in problem.runs:
        n = 2 * run.n_shot
        assert run.labels[:n].tolist() == np.repeat(NOVEL, run.n_shot).tolist() and (run.feats[:n] < 100).all()
        added = run.feats[n:].reshape(n, 3, DIM) - run.feats[:n, None]
        assert np.allclose(added, np.array([100, 200, 300])[:, None], atol=1e-4)
        assert run.labels[n:].tolist() == np.repeat(NOVEL, 3 * run.n_shot).tolist()


def test_fewer_copies_than_there_are(config, monkeypatch):
    problem, content = captured_problem(config, monkeypatch, add={"copies": CopiesOfShots(2)})
    assert content["method"] == "nearest_mean + 2 augmented copies"
    run = of_runs(problem)[1, 5]
    assert len(run.labels) == 30 and run.feats.max() < 300
    with pytest.raises(InputError, match=r"train\.h5: has 3 augmented copies of each image\. Use --add\.copies 3, or"):
        low_shot.main(replace(config, add={"copies": CopiesOfShots(4)}, overwrite=True))


def test_copies_are_of_the_shots_in_any_order(config, monkeypatch):
    repeated, copies = {"repetition": Repetition(7)}, {"copies": CopiesOfShots()}
    first, _ = captured_problem(config, monkeypatch, add=copies | repeated)
    last, _ = captured_problem(config, monkeypatch, add=repeated | copies)
    assert [len(run.labels) for run in first.runs] == [14, 40] * 3  # four rows of each shot, and then filled
    assert [len(run.labels) for run in last.runs] == [20, 44] * 3


def test_files_without_copies_are_refused(config, tmp_path):
    words = "has no augmented copies. Make them with save_features.py --copies 5"
    with h5py.File(config.train, "r+") as file:
        del file["augmented_feats"]
        feats, labels = file["all_feats"][:], file["all_labels"][:]
    options = [word for name in ("test", "split", "draws", "out") for word in (f"--{name}", getattr(config, name))]
    options += ["--shots", "1", "--add", "copies"]
    assert_refused(run_script("low_shot.py", "--train", config.train, *options), words)
    np.savez(tmp_path / "train.npz", feats=feats, labels=labels.astype(np.int64))
    assert_refused(run_script("low_shot.py", "--train", tmp_path / "train.npz", *options), words)


def test_copies_of_chosen_rows(config):
    features = read_features(config.train)
    rows = np.array([7, 3, 7, 90])
    assert np.array_equal(read_copies(features, rows), read_copies(features)[rows])


# --- the pool ---


def test_the_pool_holds_all_training_images_but_the_shots(config, monkeypatch):
    problem, content = captured_problem(config, monkeypatch, add={"pool": Pool()})
    assert content["method"] == "nearest_mean + pool (prototype_refinement)"
    train, test, draws = read_features(config.train), read_features(config.test), read_draws(config.draws)
    for run in problem.runs:
        added = numbers_of(run.feats[2 * run.n_shot :], train.feats)
        shots = {row for c in NOVEL for row in draws[run.trial][c][: run.n_shot].tolist()}
        assert sorted([*added, *shots]) == np.flatnonzero(np.isin(train.labels, NOVEL)).tolist()
        assert (numbers_of(run.feats, test.feats) == -1).all()


def test_no_test_image_is_in_the_pool(config, monkeypatch):
    """Other test images, and their labels, change nothing in the training rows."""
    before, _ = captured_problem(config, monkeypatch, add={"pool": Pool()})
    with h5py.File(config.test, "r+") as file:
        file["all_feats"][:] = 7
        file["all_labels"][:] = file["all_labels"][:][::-1]
    after, _ = captured_problem(config, monkeypatch, add={"pool": Pool()})
    for one, other in zip(before.runs, after.runs):
        assert np.array_equal(one.feats, other.feats) and np.array_equal(one.labels, other.labels)


def test_the_pool_of_a_gan(config, monkeypatch):
    problem, _ = captured_problem(config, monkeypatch, add={"pool": Pool(images="gan")})
    train, split, draws = read_features(config.train), read_split(config.split), read_draws(config.draws)
    for run in problem.runs:
        rows = few_shot_rows(train.labels, split, draws[run.trial], run.n_shot, config.draws)
        added = numbers_of(run.feats[2 * run.n_shot :], train.feats)
        assert sorted(added) == rows.unlabelled[np.isin(train.labels[rows.unlabelled], NOVEL)].tolist()
        assert not set(added) & set(rows.validation)


def test_labels_are_those_of_the_method_with_its_transform(config):
    benchmark = read_benchmark(config)
    for method, transform in ((NearestMeanOptions(), FeatureTransform()), (PTMapOptions(), FeatureTransform(power=0.5)),
                              (RefinementOptions(2, 10), FeatureTransform(centre=True, normalise=True))):  # fmt: skip
        changed = fitted_transform(transform, benchmark.train.feats[benchmark.base_rows])
        addition = PoolRows(Pool(method), benchmark)
        for run in benchmark.shots_of_runs([2]):
            rows = addition.rows(run, benchmark)
            support, queries = (torch.from_numpy(changed(one))[None]
                                for one in (run.feats, benchmark.train.feats[rows]))  # fmt: skip
            scores = score_tasks(method, Tasks(support, torch.tensor([[0, 0, 1, 1]]), queries, 2), 0)[0]
            expected = dict(zip(rows.tolist(), NOVEL[scores.argmax(1)].tolist()))
            after = addition.extend(run, benchmark, 0)
            added = numbers_of(after.feats[4:], benchmark.train.feats)
            assert dict(zip(added.tolist(), after.labels[4:].tolist())) == expected
            assert (after.labels[4:] == np.sort(after.labels[4:])).all()


def test_only_shots_are_the_support(config):
    benchmark = read_benchmark(config)
    addition, run = PoolRows(Pool(), benchmark), next(benchmark.shots_of_runs([2]))
    longer = run.joined(np.full((1, DIM), 50, np.float32), NOVEL[:1])
    one, other = addition.extend(run, benchmark, 0), addition.extend(longer, benchmark, 0)
    assert np.array_equal(one.feats[4:], other.feats[5:]) and np.array_equal(one.labels[4:], other.labels[5:])


SCORES = np.array([[0, -3, -9], [0, -1, -9], [-8, 0, -2], [0, -2, -2], [-40, -99, 0], [-39, -99, 0]], float)


@pytest.mark.parametrize(
    ("share", "rows"),
    [(1.0, [0, 3, 1, 2, 4, 5]), (0.7, [0, 3, 2, 4]), (0.34, [0, 2, 4]), (0.01, [0, 2, 4])],
)
def test_most_confident_by_hand(share, rows):
    """Doubts: e^-3, e^-1, e^-2, 2 e^-2, e^-40 and e^-39, the last two too small beside 1."""
    chosen, ways = most_confident(SCORES, share)
    assert chosen.tolist() == rows and ways.tolist() == SCORES.argmax(1)[rows].tolist()


def test_a_class_without_images_gets_none():
    chosen, ways = most_confident(np.array([[0.0, -1, -2]]), 0.5)
    assert chosen.tolist() == [0] and ways.tolist() == [0]


def test_a_share_of_the_pool(config, monkeypatch):
    whole, _ = captured_problem(config, monkeypatch, add={"pool": Pool()})
    half, _ = captured_problem(config, monkeypatch, add={"pool": Pool(share=0.5)})
    for one, other in zip(whole.runs, half.runs):
        n = 2 * one.n_shot
        for c in NOVEL:
            of_class = one.feats[n:][one.labels[n:] == c]
            assert np.array_equal(other.feats[n:][other.labels[n:] == c], of_class[: max(1, round(len(of_class) / 2))])


def test_where_all_images_are_shots_there_is_no_pool(config, tmp_path):
    draws = json.loads(config.draws.read_text())
    labels = read_features(config.train).labels
    draws["trials"] = {"1": [np.flatnonzero(labels == c).tolist() for c in range(8)]}
    draws.pop("checksum")
    path = tmp_path / "all.json"
    path.write_text(json.dumps(draws))
    for images, way_out in (("others", "fewer shots"), ("gan", "--add.pool.images others")):
        whole = replace(config, draws=path, shots=[12], add={"pool": Pool(images=images)})
        with pytest.raises(InputError, match=rf"train\.h5: trial 1, n = 12 leaves no images of .*Use {way_out}"):
            low_shot.main(whole)


def tagged(config, **changes):
    """The setting that results are tagged with. The features have seen nothing."""
    return json.loads(low_shot.main(replace(config, overwrite=True, **changes)).read_text())["protocol"]["setting"]


def test_results_are_tagged_by_what_their_rows_have_seen(config):
    assert tagged(config, add={"copies": CopiesOfShots(), "calibrated": Calibrated(9)}) == "inductive"
    for method in (NearestMeanOptions(), LaplacianShotOptions()):
        assert tagged(config, add={"pool": Pool(method)}) == "semi_supervised"


def test_settings_of_the_method_are_settings(config):
    options = [word for name in ("train", "test", "split", "draws", "out")
               for word in (f"--{name}", getattr(config, name))]  # fmt: skip
    more = ["--shots", "1", "--add.pool", "pt_map", "--add.pool.method.n_steps", "3", "--add.pool.share", "0.5"]
    done = run_script("low_shot.py", *options, "--classifier", "nearest_mean", *more)
    assert done.returncode == 0, done.stderr
    content = json.loads(config.out.read_text())
    assert content["config"]["add"]["pool"]["method"] == {"name": "pt_map", "scale": 10.0, "rate": 0.2, "n_steps": 3}
    assert content["method"] == "nearest_mean + pool (pt_map)"
    again = run_script("low_shot.py", *options, "--classifier", "nearest_mean", *more)
    assert "already exists" in again.stdout


# --- calibrated rows ---


def test_calibrated_rows_have_statistics_of_the_setups_base_classes(config, monkeypatch):
    added = {"calibrated": Calibrated(max_per_label=30, base_space="powered")}
    problem, content = captured_problem(config, monkeypatch, add=added)
    assert content["method"] == "nearest_mean + calibrated"
    train = read_features(config.train)
    alone = CalibratedRows(added["calibrated"], train, np.flatnonzero(np.isin(train.labels, [2, 3])))
    for run in problem.runs:
        assert np.bincount(run.labels)[NOVEL].tolist() == [30, 30]
        shots = replace(run, feats=run.feats[: 2 * run.n_shot], labels=run.labels[: 2 * run.n_shot])
        assert np.array_equal(alone.extend(shots, None, 0).feats, run.feats)
