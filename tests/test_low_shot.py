"""low_shot.py on tiny features: the results schema, parts of a run, augmentations, published files, bad input."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import h5py
import numpy as np
import pytest
from conftest import assert_refused

import low_shot
from lowshot.artifacts import write_json
from lowshot.classifiers import CLASSIFIERS, METHODS, FeatureTransform, MethodOptions, SGDOptions
from lowshot.classifiers.cosine import CosineOptions
from lowshot.classifiers.support_logistic import SupportLogisticOptions
from lowshot.errors import InputError
from lowshot.features import write_features
from lowshot.protocol import Split, draws_to_json, make_draws

ROOT = Path(__file__).resolve().parents[1]
N_CLASSES, DIM, ROWS = 8, 5, 12
SIX = {f"top{k}_{name}" for k in (1, 5) for name in ("novel", "base", "all")}


def tiny_config(tmp_path):
    """Features, split and draws in a folder, and a configuration for them."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.random((N_CLASSES, DIM))
    folder = tmp_path / "tiny_extractor" / "features"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        labels = np.repeat(np.arange(N_CLASSES), ROWS)
        feats = np.maximum(centres[labels] + rng.normal(size=(len(labels), DIM)), 0).astype(np.float32)
        made_from = {"stage": "save_features", "config": {}, "inputs": {"extractor": "x"}}
        write_features(folder / f"{name}.h5", feats, labels, made_from)
    names = [f"c{c}" for c in range(N_CLASSES)]
    split = Split("tiny", names, [], [None] * N_CLASSES, [0, 1, 2, 3], [4, 5, 6, 7], [0, 1], [4, 5], [2, 3], [6, 7])
    write_json(tmp_path / "split.json", split.to_json())
    draws = make_draws(labels, names, n_trials=3, max_shots=6, seed=0)
    write_json(tmp_path / "draws.json", draws_to_json(draws, split, 0))
    for trial, rows in draws.items():
        write_json(tmp_path / f"splitfile_{trial}.json", [r.tolist() for r in rows])
    files = {"train": folder / "train.h5", "test": folder / "test.h5", "split": tmp_path / "split.json"}
    sgd = SGDOptions(n_steps=20, batch_size=20)
    return low_shot.Config(
        **files, draws=tmp_path / "draws.json", out=tmp_path / "out" / "r.json", shots=[1, 5], sgd=sgd
    )


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


def results(config, **changes):
    return json.loads(low_shot.main(replace(config, overwrite=True, **changes)).read_text())


def test_results_file(config):
    content = results(config)
    assert {"stage", "config", "inputs", "method", "dataset", "extractor", "protocol", "provenance", "trials"} == set(
        content
    )
    assert (
        content["method"] == "linear_sgd" and content["dataset"] == "tiny" and content["extractor"] == "tiny_extractor"
    )
    assert content["protocol"]["setup"] == "test" and content["protocol"]["setting"] == "inductive"
    assert content["protocol"]["split_digest"] == json.loads(config.split.read_text())["digest"]
    assert [(one["trial"], one["n_shot"]) for one in content["trials"]] == [(t, n) for t in (1, 2, 3) for n in (1, 5)]
    for one in content["trials"]:
        assert set(one) == {"trial", "n_shot", *SIX} and all(0 <= one[key] <= 1 for key in SIX)
        assert one["top1_all"] == pytest.approx((one["top1_novel"] + one["top1_base"]) / 2)
        assert one["top1_novel"] <= one["top5_novel"]


@pytest.mark.parametrize("classifier", ["linear_sgd", "cosine", "pt_map"])
def test_a_part_gives_the_numbers_of_the_whole(config, classifier):
    settings = {"classifier": classifier, "methods": MethodOptions(cosine=CosineOptions(lr=1.0, batch_size=8))}
    whole = {(one["trial"], one["n_shot"]): one for one in results(config, **settings)["trials"]}
    part = results(config, **settings, shots=[5], trials=[2])["trials"]
    assert len(part) == 1 and part[0] == whole[2, 5]


def test_a_classifier_is_named_by_its_registry():
    names = get_args(get_type_hints(low_shot.Config)["classifier"])
    assert len(set(names)) == len(names) and set(names) == CLASSIFIERS.keys() | METHODS.keys()


TRANSDUCTIVE = {"laplacian_shot", "prototype_refinement", "pt_map"}


@pytest.mark.parametrize("classifier", sorted(CLASSIFIERS.keys() | METHODS.keys()))
def test_both_setups_and_every_classifier(config, classifier):
    small = {"mlp": low_shot.MLPOptions(hidden=4, max_epochs=2)}
    for setup in ("validation", "test"):
        content = results(config, classifier=classifier, setup=setup, **small)
        assert content["protocol"]["setup"] == setup and len(content["trials"]) == 6
        assert content["protocol"]["setting"] == ("transductive" if classifier in TRANSDUCTIVE else "inductive")
        assert content["method"] == classifier
        if classifier not in CLASSIFIERS:  # four ways: every image is among its five best
            assert {one["top5_novel"] for one in content["trials"]} == {1.0}
            assert np.mean([one["top1_all"] for one in content["trials"]]) > 0.4


def six_by_hand(config, trial, n_shot, transform):
    """Nearest mean over the classes 2, 3 (base), 6, 7 (novel) of the test setup, one image after the other."""
    with h5py.File(config.train) as file, h5py.File(config.test) as other:
        train, labels = file["all_feats"][:], file["all_labels"][:]
        test, truth = other["all_feats"][:], other["all_labels"][:]
    rows = json.loads(config.draws.read_text())["trials"][str(trial)]
    centre = train[np.isin(labels, [2, 3])].mean(0)
    means = {c: transform(train[labels == c], centre).mean(0) for c in (2, 3)}
    means |= {c: transform(train[rows[c][:n_shot]], centre).mean(0) for c in (6, 7)}
    right = {c: [] for c in means}
    for image, c in zip(transform(test, centre), truth):
        if c in means:
            right[c].append(min(means, key=lambda way: ((image - means[way]) ** 2).sum()) == c)
    share = {c: np.mean(hits) for c, hits in right.items()}
    return (share[6] + share[7]) / 2, (share[2] + share[3]) / 2


def unit(feats):
    return feats / np.linalg.norm(feats, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("transform", "name", "by_hand"),
    [
        (FeatureTransform(), "nearest_mean", lambda feats, centre: feats),
        (FeatureTransform(normalise=True), "nearest_mean (L2N)", lambda feats, centre: unit(feats)),
        (
            FeatureTransform(centre=True, normalise=True),
            "nearest_mean (CL2N)",
            lambda feats, centre: unit(feats - centre),
        ),
    ],
)
def test_simple_shot_by_hand(config, transform, name, by_hand):
    content = results(config, classifier="nearest_mean", transform=transform)
    assert content["method"] == name
    for one in content["trials"]:
        expected = six_by_hand(config, one["trial"], one["n_shot"], by_hand)
        assert (one["top1_novel"], one["top1_base"]) == pytest.approx(expected)


def test_every_classifier_sees_transformed_features(config, monkeypatch, tmp_path):
    """The centre is that of the setup's base rows, and generated rows are transformed as well."""
    (tmp_path / "generator").mkdir()
    monkeypatch.setattr(low_shot, "Hallucinator", StubHallucinator)
    added = {"generator": tmp_path / "generator", "max_per_label": 4}
    problem, content = captured_problem(config, monkeypatch, transform=FeatureTransform(centre=True), **added)
    assert content["method"].startswith("linear_sgd (centred) + generator")
    raw, _ = captured_problem(config, monkeypatch, **added)
    centre = raw.base_feats.mean(0)
    assert np.abs(problem.base_feats.mean(0)).max() < 1e-5
    for one, before in zip(problem.runs, raw.runs):
        assert np.allclose(one.feats, before.feats - centre, atol=1e-5)


def test_settings_of_other_classifiers_are_not_part_of_the_results(config, capsys):
    """What did not influence a result does not make it another one."""
    content = results(config, classifier="cosine")
    assert set(content["config"]["methods"]) == {"cosine"} and not {"sgd", "mlp", "criterion"} & set(content["config"])
    low_shot.main(replace(config, classifier="cosine", sgd=SGDOptions(lr=9.0)))
    assert "there already" in capsys.readouterr().out
    plain = results(config)["config"]
    assert "sgd" in plain and not {"methods", "mlp", "max_per_label", "pairs", "pair_scope"} & set(plain)
    filled = results(config, repetition=True)["config"]
    assert "max_per_label" in filled and not {"pairs", "pair_scope"} & set(filled)


def test_published_files_give_the_same_numbers(config, tmp_path):
    expected = results(config)["trials"]
    published = {}
    for name in ("train", "test"):
        with h5py.File(getattr(config, name)) as ours, h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            n_rows = len(ours["all_labels"])
            file["all_feats"] = np.concatenate([ours["all_feats"], np.zeros((7, DIM), np.float32)])
            file["all_labels"] = np.concatenate([ours["all_labels"], np.zeros(7, np.int32)])
            file["count"] = np.array([n_rows], np.int32)
        published[name] = tmp_path / f"{name}.hdf5"
    content = results(config, **published, draws=tmp_path / "splitfile_{trial}.json", trials=[1, 2, 3])
    assert content["trials"] == expected


def test_second_run_does_nothing_and_other_settings_stop(config, capsys):
    low_shot.main(config)
    before = config.out.stat().st_mtime_ns
    low_shot.main(config)
    assert "there already" in capsys.readouterr().out and config.out.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="setting seed was 0, now 1"):
        low_shot.main(replace(config, seed=1))


def captured_problem(config, monkeypatch, **changes):
    """The problem that main hands to the classifier."""
    seen = []
    real = low_shot.CLASSIFIERS["linear_sgd"]
    monkeypatch.setitem(low_shot.CLASSIFIERS, "linear_sgd", lambda p, *rest: seen.append(p) or real(p, *rest))
    content = results(config, **changes)
    return seen[0], content


def test_only_the_setups_classes_are_used(config, monkeypatch):
    problem, _ = captured_problem(config, monkeypatch)
    assert (
        set(problem.base_labels) == {2, 3} and len(problem.base_labels) == 2 * ROWS and problem.n_classes == N_CLASSES
    )
    assert [len(run.labels) for run in problem.runs] == [2, 10] * 3 and set(problem.runs[0].labels) == {6, 7}


def test_repetition_fills_every_novel_class(config, monkeypatch):
    problem, content = captured_problem(config, monkeypatch, repetition=True, max_per_label=4)
    assert content["method"] == "linear_sgd + repetition"
    assert [len(run.labels) for run in problem.runs] == [8, 10] * 3
    one_shot = problem.runs[0]
    assert len(np.unique(one_shot.feats, axis=0)) == 2 and (np.bincount(one_shot.labels)[6:] == 4).all()


class StubHallucinator:
    def __init__(self, generator_dir, split, train, pairs, scope):
        self.dim = train.dim

    def extend(self, feats, labels, max_per_label, seed, trial):
        n_shot = np.bincount(labels).max()
        new = np.repeat(np.unique(labels), max(0, max_per_label - n_shot))
        return np.full((len(new), self.dim), trial, np.float32), new


def test_generated_rows_join_the_shots(config, monkeypatch, tmp_path):
    (tmp_path / "generator").mkdir()
    monkeypatch.setattr(low_shot, "Hallucinator", StubHallucinator)
    problem, content = captured_problem(config, monkeypatch, generator=tmp_path / "generator", max_per_label=4)
    assert content["method"].startswith("linear_sgd + generator") and "generator" in content["inputs"]
    assert [len(run.labels) for run in problem.runs] == [8, 10] * 3
    assert (problem.runs[2].feats[2:] == 2).all() and problem.runs[2].labels.dtype == np.int64


def damage(config, name, change):
    """Rewrite one input as JSON or HDF5 after `change`."""
    path = getattr(config, name)
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        with h5py.File(path, "r+") as file:
            change(file)


def relabel(old, new):
    def change(file):
        labels = file["all_labels"][:]
        labels[labels == old] = new
        file["all_labels"][:] = labels

    return change


def narrow(file):
    feats = file["all_feats"][:, :3]
    del file["all_feats"]
    file["all_feats"] = feats


def spoil(file):
    file["all_feats"][3, 2] = np.nan


BAD_FILES = [
    ("train", spoil, "NaN"),
    ("train", relabel(2, 99), "outside the split"),
    ("train", relabel(3, 2), "no row of base class 3"),
    ("test", relabel(6, 7), "no image of class 6"),
    ("test", narrow, "3 dimensions"),
    ("test", lambda f: f.attrs.update(inputs='{"extractor": "y"}'), "another extractor"),
    ("draws", lambda d: d["trials"]["1"].__setitem__(7, [0, 1, 2, 3, 4]), "is of class 0"),
    ("draws", lambda d: d["trials"]["1"].__setitem__(7, [90]), "fewer than the largest n"),
]


@pytest.mark.parametrize("name, change, message", BAD_FILES)
def test_bad_files_are_named_and_nothing_is_written(config, name, change, message):
    damage(config, name, change)
    with pytest.raises(InputError, match=message):
        low_shot.main(config)
    assert not config.out.parent.exists() or not list(config.out.parent.iterdir())


BAD_SETTINGS = [
    ({"shots": []}, "shots"),
    ({"shots": [1, 1]}, "each once"),
    ({"shots": [7]}, "largest n of 7"),
    ({"trials": [4]}, "no trial 4"),
    ({"generator": Path("g"), "repetition": True}, "one of the two"),
    ({"methods": MethodOptions(logistic_regression=SupportLogisticOptions(C=2.0))}, "methods.logistic_regression"),
    ({"out": Path("results.txt")}, ".json"),
    ({"train": Path("missing.h5")}, "missing.h5"),
    ({"sgd": SGDOptions(n_steps=5, batch_size=1000)}, "batch_size 1000"),
]


@pytest.mark.parametrize("changes, message", BAD_SETTINGS)
def test_bad_settings(config, changes, message):
    with pytest.raises(InputError, match=message):
        low_shot.main(replace(config, **changes))


def test_divergence_is_reported(config):
    with pytest.raises(InputError, match="NaN"):
        low_shot.main(replace(config, sgd=SGDOptions(lr=1e30, n_steps=20, batch_size=20)))
    assert not config.out.exists()


def command(config, *more):
    names = ("train", "test", "split", "draws", "out")
    files = [word for name in names for word in (f"--{name}", str(getattr(config, name)))]
    return subprocess.run([sys.executable, ROOT / "low_shot.py", *files, *more], capture_output=True, text=True)


def test_script(config):
    done = command(config, "--shots", "[1,5]", "--trials", "[1,2]", "--sgd.n_steps", "5", "--sgd.batch_size", "20")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(config.out.read_text())["trials"]) == 4


def test_script_with_a_transductive_method(config):
    done = command(config, "--shots", "[1]", "--classifier", "laplacian_shot", "--transform.centre", "true")
    assert done.returncode == 0, done.stderr
    content = json.loads(config.out.read_text())
    assert content["method"] == "laplacian_shot (centred)" and content["protocol"]["setting"] == "transductive"


def test_script_lists_the_classifiers(config):
    done = command(config, "--classifier", "knn")
    assert_refused(done, "knn", *METHODS, *CLASSIFIERS)


def test_script_refuses_in_one_line(config):
    done = command(config, "--shots", "[0]")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not config.out.exists()
