"""low_shot.py on tiny features: the results schema, parts of a run, augmentations, published files, bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest
from conftest import OF_RESULTS, assert_refused, run_script

import diffusion
import low_shot
from lowshot import evaluation, hallucination
from lowshot.classifiers.settings import (
    BENCHMARK_CLASSIFIERS,
    CLASSIFIERS,
    METHODS,
    AlphaTIMOptions,
    AttentionOptions,
    BalancedSGDOptions,
    CosineOptions,
    FeatureTransform,
    ImprintingOptions,
    MLPOptions,
    NearestMeanOptions,
    PTMapOptions,
    SGDOptions,
    TIMOptions,
)
from lowshot.core.cli import parse
from lowshot.core.errors import InputError
from lowshot.core.files import write_json
from lowshot.core.parts import parts_of
from lowshot.data.additions import Repetition
from lowshot.data.features import write_features
from lowshot.data.protocol import Split, draws_to_json, make_draws, read_split
from lowshot.diffusion.settings import EdgeOptions, Labelling, Propagated
from lowshot.evaluation.outcomes import Outcomes
from lowshot.evaluation.settings import Metric, Selection
from lowshot.hallucination.settings import Generator

N_CLASSES, DIM, ROWS = 8, 5, 12
NUMBERS = set(get_args(Metric))


def tiny_config(tmp_path):
    """A configuration with its features, split and draws in a folder."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.random((N_CLASSES, DIM))
    folder = tmp_path / "tiny_extractor" / "features"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        labels = np.repeat(np.arange(N_CLASSES), ROWS)
        feats = np.maximum(centres[labels] + rng.normal(size=(len(labels), DIM)), 0).astype(np.float32)
        made_from = {"stage": "save_features", "config": {}, "inputs": {"extractor": "x"}, "lineage": {}}
        write_features(folder / f"{name}.h5", feats, labels, made_from)
    names = [f"c{c}" for c in range(N_CLASSES)]
    split = Split("tiny", names, [], [None] * N_CLASSES, [0, 1, 2, 3], [4, 5, 6, 7], [0, 1], [4, 5], [2, 3], [6, 7])
    write_json(tmp_path / "split.json", split.to_json())
    draws = make_draws(labels, names, n_trials=3, max_shots=6, seed=0)
    write_json(tmp_path / "draws.json", draws_to_json(draws, split, 0))
    for trial, rows in draws.items():
        write_json(tmp_path / f"splitfile_{trial}.json", [r.tolist() for r in rows])
    files = {"train": folder / "train.h5", "test": folder / "test.h5", "split": tmp_path / "split.json"}
    draws, out = tmp_path / "draws.json", tmp_path / "out" / "r.json"
    return low_shot.Config(
        **files, draws=draws, out=out, shots=[1, 5], classifier=SGDOptions(n_steps=20, batch_size=20)
    )


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


def results(config, **changes):
    return json.loads(low_shot.main(replace(config, overwrite=True, **changes)).read_text())


def test_results_file(config):
    content = results(config)
    assert set(content) == OF_RESULTS | {"trials", "classes", "confusions"}
    assert (
        content["method"] == "linear_sgd" and content["dataset"] == "tiny" and content["extractor"] == "tiny_extractor"
    )
    assert content["protocol"]["setup"] == "test" and content["protocol"]["setting"] == "inductive"
    assert content["protocol"]["split_digest"] == json.loads(config.split.read_text())["digest"]
    assert [(one["trial"], one["n_shot"]) for one in content["trials"]] == [(t, n) for t in (1, 2, 3) for n in (1, 5)]
    for one in content["trials"]:
        assert set(one) == {"trial", "n_shot", "class_hits", "base_novel", *NUMBERS}
        assert all(0 <= one[key] <= 1 for key in NUMBERS)
        curve = one["base_novel"]
        assert np.trapezoid(curve["base"], curve["novel"]) == pytest.approx(one["ausuc"], abs=0.005)
        assert sum(one["class_hits"]) == round(one["top1_all"] * sum(of["n_images"] for of in content["classes"]))
        assert one["top1_all"] == pytest.approx((one["top1_novel"] + one["top1_base"]) / 2)
        assert one["top1_novel"] <= one["top5_novel"]


SMALL_SGD = SGDOptions(n_steps=20, batch_size=20)


@pytest.mark.parametrize("classifier", [SMALL_SGD, CosineOptions(lr=1.0, batch_size=8), PTMapOptions()])
def test_a_part_gives_the_numbers_of_the_whole(config, classifier):
    whole = {(one["trial"], one["n_shot"]): one for one in results(config, classifier=classifier)["trials"]}
    part = results(config, classifier=classifier, shots=[5], trials=[2])["trials"]
    assert len(part) == 1 and part[0] == whole[2, 5]


def test_a_classifier_is_named_by_its_registry():
    assert parts_of(low_shot.Config)["classifier"].what is BENCHMARK_CLASSIFIERS
    assert BENCHMARK_CLASSIFIERS.classes.keys() == CLASSIFIERS.classes.keys() | METHODS.classes.keys()


TRANSDUCTIVE = {"laplacian_shot": "CL2N", "prototype_refinement": "CL2N", "pt_map": "power 0.5", "bd_cspn": "CL2N"}
TRANSDUCTIVE |= {"tim": "L2N", "alpha_tim": "L2N", "adaptive_transport": "power 0.5, CL2N"}  # by its own transform
TRANSFORMS = TRANSDUCTIVE | {"imprinting": "CL2N", "attention": "CL2N"}


SMALL = {"linear_sgd": SMALL_SGD, "balanced_sgd": BalancedSGDOptions(n_steps=20, batch_size=20)}
SMALL |= {"mlp": MLPOptions(hidden=4, max_epochs=2), "attention": AttentionOptions(n_steps=20)}
SMALL |= {"tim": TIMOptions(n_steps=20), "alpha_tim": AlphaTIMOptions(n_steps=20)}


@pytest.mark.parametrize("classifier", sorted(BENCHMARK_CLASSIFIERS.classes.keys() - {"own_head"}))
def test_both_setups_and_every_classifier(config, classifier):
    for setup in ("validation", "test"):
        chosen = SMALL.get(classifier) or BENCHMARK_CLASSIFIERS.classes[classifier]()
        content = results(config, classifier=chosen, setup=setup)
        assert content["protocol"]["setup"] == setup and len(content["trials"]) == 6
        assert content["protocol"]["setting"] == ("transductive" if classifier in TRANSDUCTIVE else "inductive")
        step = TRANSFORMS.get(classifier)
        assert content["method"] == (f"{classifier} ({step})" if step else classifier)
        if classifier not in CLASSIFIERS.classes:  # with four classes, every top-5 accuracy is 1
            assert {one["top5_novel"] for one in content["trials"]} == {1.0}
            assert np.mean([one["top1_all"] for one in content["trials"]]) > 0.4


def six_by_hand(config, trial, n_shot, transform):
    """Nearest mean over the classes 2, 3 (base), 6, 7 (novel) of the test setup, one image at a time."""
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
    content = results(config, classifier=NearestMeanOptions(), transform=transform)
    assert content["method"] == name
    for one in content["trials"]:
        expected = six_by_hand(config, one["trial"], one["n_shot"], by_hand)
        assert (one["top1_novel"], one["top1_base"]) == pytest.approx(expected)


def test_every_classifier_sees_transformed_features(config, monkeypatch, tmp_path):
    """The centre is the mean of the base rows of the setup. Generated rows are transformed as well."""
    (tmp_path / "generator").mkdir()
    monkeypatch.setattr(hallucination, "Hallucinator", StubHallucinator)
    added = {"add": {"generator": Generator(tmp_path / "generator", max_per_label=4)}}
    problem, content = captured_problem(config, monkeypatch, transform=FeatureTransform(centre=True), **added)
    assert content["method"] == "linear_sgd (centred) + generator (centroids, all)"
    raw, _ = captured_problem(config, monkeypatch, **added)
    centre = raw.base_feats.mean(0)
    assert np.abs(problem.base_feats.mean(0)).max() < 1e-5
    for one, before in zip(problem.runs, raw.runs):
        assert np.allclose(one.feats, before.feats - centre, atol=1e-5)


def test_a_few_shot_method_brings_its_transform(config, capsys):
    content = results(config, classifier=PTMapOptions())
    assert content["config"]["transform"] == {"power": 0.5, "centre": False, "normalise": False}
    same = replace(config, classifier=PTMapOptions(), transform=FeatureTransform(power=0.5))
    low_shot.main(same)
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"setting transform\.power was 0\.5, now 0\.0"):
        low_shot.main(replace(same, transform=FeatureTransform()))
    assert results(config, classifier=NearestMeanOptions())["method"] == "nearest_mean"


PATHS = [word for name in ("train", "test", "split", "draws", "out") for word in (f"--{name}", f"{name}.h5")]


@pytest.mark.parametrize("classifier", [[], ["--classifier", "attention"], ["--classifier", "laplacian_shot"]])
def test_a_given_part_replaces_the_transform_of_the_classifier(classifier):
    for words, expected in (
        ([], FeatureTransform(centre=True, normalise=True)),
        (["--transform.normalise"], FeatureTransform(normalise=True)),
        (["--transform.normalise", "false"], FeatureTransform()),
    ):
        assert low_shot._transform(parse(low_shot.Config, [*PATHS, *classifier, *words])) == expected


def test_the_default_classifier(config):
    default = parse(low_shot.Config, PATHS)
    assert default.classifier == ImprintingOptions()
    content = results(config, classifier=default.classifier)
    assert content["method"] == "imprinting (CL2N)"
    assert content["config"]["transform"] == {"power": 0.0, "centre": True, "normalise": True}


def test_weights_of_an_extractor_are_for_features_without_a_transform():
    config = parse(low_shot.Config, [*PATHS, "--classifier.extractor", "extractor"])
    assert config.classifier == ImprintingOptions(extractor=Path("extractor"))
    assert low_shot._transform(config) == FeatureTransform()


def test_results_hold_the_settings_of_what_was_at_work(config):
    """A change in anything else does not affect the results, so they are kept."""
    plain = {"setup": "test", "shots": [1, 5], "trials": None, "name": None, "extractor": None, "select": None,
             "transform": {"power": 0.0, "centre": False, "normalise": False}, "seed": 0}  # fmt: skip
    plain |= {"novel_bias": 0.0}
    content = results(config, classifier=CosineOptions(n_steps=1))["config"]
    assert content == {
        **plain, "classifier": {"name": "cosine", "scale": 10.0, "lr": 0.01, "n_steps": 1, "batch_size": 1000},
        "add": {"names": []},
    }  # fmt: skip
    filled = results(config, classifier=NearestMeanOptions(), add={"repetition": Repetition(3)})["config"]
    assert filled == {
        **plain, "classifier": {"name": "nearest_mean", "metric": "euclidean"},
        "add": {"names": ["repetition"], "repetition": {"max_per_label": 3}},
    }  # fmt: skip


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
    assert "already exists" in capsys.readouterr().out and config.out.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="setting seed was 0, now 1"):
        low_shot.main(replace(config, seed=1))


def test_novel_classes_that_are_never_found_are_said(config, monkeypatch, capfd):
    def never(classifier, problem, benchmark, *rest):
        is_novel = np.isin(benchmark.test_labels, benchmark.novel_classes)
        for run in problem.runs:
            ranks = np.where(is_novel, 3, 0)
            outcomes = Outcomes(ranks, np.zeros_like(ranks), ranks, benchmark.test_labels, ranks.astype(float))
            yield [{run.key: outcomes}]

    monkeypatch.setattr(evaluation, "evaluate_runs", never)
    results(config)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("CHECK")]
    assert len(said) == 1 and "novel top-1 is not above chance at n = 1, 5" in said[0]
    assert "100 % among novel classes alone" in said[0] and "--classifier imprinting" in said[0]


def captured_problem(config, monkeypatch, **changes):
    """The problem that main passes to the classifier."""
    seen, real = [], evaluation.evaluate_runs

    def evaluate_runs(classifier, problem, *rest):
        seen.append(problem)
        return real(classifier, problem, *rest)

    monkeypatch.setattr(evaluation, "evaluate_runs", evaluate_runs)
    content = results(config, **changes)
    monkeypatch.setattr(evaluation, "evaluate_runs", real)
    return seen[0], content


def test_only_the_setups_classes_are_used(config, monkeypatch):
    problem, _ = captured_problem(config, monkeypatch)
    assert (
        set(problem.base_labels) == {2, 3} and len(problem.base_labels) == 2 * ROWS and problem.n_classes == N_CLASSES
    )
    assert [len(run.labels) for run in problem.runs] == [2, 10] * 3 and set(problem.runs[0].labels) == {6, 7}


def test_repetition_fills_every_novel_class(config, monkeypatch):
    problem, content = captured_problem(config, monkeypatch, add={"repetition": Repetition(4)})
    assert content["method"] == "linear_sgd + repetition"
    assert [len(run.labels) for run in problem.runs] == [8, 10] * 3
    one_shot = problem.runs[0]
    assert len(np.unique(one_shot.feats, axis=0)) == 2 and (np.bincount(one_shot.labels)[6:] == 4).all()


class StubHallucinator:
    """Fills every class with rows whose values are the number of the trial."""

    def __init__(self, settings, split, train):
        self.settings, self.dim = settings, train.dim

    def extend(self, run, benchmark, seed):
        counts = np.bincount(run.labels)
        classes = np.unique(run.labels)
        new = np.repeat(classes, np.maximum(self.settings.max_per_label - counts[classes], 0))
        return run.joined(np.full((len(new), self.dim), run.trial, np.float32), new)


def test_generated_rows_join_the_shots(config, monkeypatch, tmp_path):
    (tmp_path / "generator").mkdir()
    monkeypatch.setattr(hallucination, "Hallucinator", StubHallucinator)
    added = {"generator": Generator(tmp_path / "generator", max_per_label=4)}
    problem, content = captured_problem(config, monkeypatch, add=added)
    assert content["method"] == "linear_sgd + generator (centroids, all)"
    assert "add.generator.folder" in content["inputs"] and content["protocol"]["setting"] == "unknown"
    assert [len(run.labels) for run in problem.runs] == [8, 10] * 3
    assert (problem.runs[2].feats[2:] == 2).all() and problem.runs[2].labels.dtype == np.int64


# --- stored scores ---


def test_kept_scores_are_those_that_were_evaluated(config, tmp_path):
    """Scores of a method that scores the classes of the setup only, and of one that scores all classes."""
    path = tmp_path / "scores.h5"
    for classifier in (NearestMeanOptions(), SMALL_SGD):
        content = results(config, classifier=classifier, scores=path)
        with h5py.File(path) as file, h5py.File(config.test) as test:
            assert file.attrs["schema"] == "lowshot-scores-1" and file["classes"][:].tolist() == [2, 3, 6, 7]
            runs = list(zip(file["trials"][:].tolist(), file["n_shots"][:].tolist()))
            scores, truth = file["log_probabilities"][:], test["all_labels"][:]
        truth = truth[np.isin(truth, [2, 3, 6, 7])]
        np.testing.assert_allclose(np.exp(scores).sum(2), 1, rtol=1e-5)
        assert runs == [(one["trial"], one["n_shot"]) for one in content["trials"]]
        for one, own in zip(content["trials"], scores):
            share = (np.array([2, 3, 6, 7])[own.argmax(1)] == truth).mean()
            assert share == pytest.approx(one["top1_all"]) if classifier != SMALL_SGD else share >= one["top1_all"]


def test_scores_of_a_choice_for_every_n(config, tmp_path):
    grid, path = tmp_path / "grid.yaml", tmp_path / "scores.h5"
    grid.write_text("transform.power: [0.25, 1.0]\ntransform.centre: [true, false]\ntransform.normalise: [false, true]")
    own = {"classifier": NearestMeanOptions(), "scores": path}
    content = results(config, select=Selection(grid, per_shot=True), **own)
    with h5py.File(path) as file:
        together, n_shots = file["log_probabilities"][:], file["n_shots"][:]
    for n, values in content["selection"]["chosen"].items():
        transform = FeatureTransform(**{name.split(".")[1]: value for name, value in values.items()})
        results(config, shots=[int(n)], transform=transform, **own)
        with h5py.File(path) as file:
            np.testing.assert_array_equal(together[n_shots == int(n)], file["log_probabilities"][:])


def test_keeping_scores_changes_no_results_and_is_done_once(config, tmp_path, capsys):
    path = tmp_path / "out" / "scores.h5"
    before = json.loads(low_shot.main(config).read_text())["trials"]
    with pytest.raises(InputError, match="setting seed was 0, now 1"):
        low_shot.main(replace(config, seed=1, scores=path))
    assert not path.exists() and json.loads(config.out.read_text())["config"]["seed"] == 0
    assert json.loads(low_shot.main(replace(config, scores=path)).read_text())["trials"] == before
    made = path.stat().st_mtime_ns, config.out.stat().st_mtime_ns
    capsys.readouterr()
    low_shot.main(replace(config, scores=path))
    assert (path.stat().st_mtime_ns, config.out.stat().st_mtime_ns) == made
    assert capsys.readouterr().out.count("already exists") == 2


def test_no_scores_of_a_run_that_failed(config, tmp_path):
    path = tmp_path / "out" / "scores.h5"
    with pytest.raises(InputError, match="NaN"):
        low_shot.main(replace(config, classifier=replace(SMALL_SGD, lr=1e30), scores=path))
    assert not config.out.exists() and not list(path.parent.glob("scores*"))
    with pytest.raises(InputError, match=r"^--scores .*scores\.json: must end in \.h5\. Use --scores .*scores\.h5$"):
        low_shot.main(replace(config, scores=tmp_path / "scores.json"))


# --- propagated labels ---


@pytest.fixture(scope="module", params=["graph", "images"])
def propagated(request, clusters, tmp_path_factory):
    """(configuration of low_shot.py on `clusters`, rows that diffusion.py labelled, their source)."""
    folder = tmp_path_factory.mktemp("propagated")
    files = {name: getattr(clusters, name) for name in ("train", "test", "split", "draws")}
    label = Labelling(folder / "p.h5", 9, clusters.unlabelled if request.param == "graph" else None)
    own = diffusion.Config(**files, graph=getattr(clusters, request.param), out=folder / "d.json", shots=[1, 4],
                           n_steps=2, edges=EdgeOptions(k=6), label=label)  # fmt: skip
    diffusion.main(own)
    config = low_shot.Config(**files, out=folder / "r.json", shots=[1, 4], classifier=SMALL_SGD,
                             add={"propagated": Propagated(label.out, max_per_label=7)})  # fmt: skip
    with h5py.File(label.out) as file:
        return config, {name: file[name][:] for name in file if name != "lineage"}, np.load(clusters.unlabelled)


def is_among(feats, others):
    return (feats[:, None] == others[None]).all(2).any(1)


def test_propagated_rows_join_the_shots(propagated, monkeypatch):
    """Only unlabelled images are added, up to max_per_label including the shots, the most confident first."""
    config, rows, background = propagated
    problem, content = captured_problem(config, monkeypatch)
    assert content["method"] == "linear_sgd + propagated labels" and "add.propagated.file" in content["inputs"]
    of_npy_file = "unknown" in content["lineage"]
    assert content["protocol"]["setting"] == ("unknown" if of_npy_file else "semi_supervised")
    assert content["config"]["add"] == {"names": ["propagated"], "propagated": {"max_per_label": 7}}
    with h5py.File(config.train) as file:
        train, labels = file["all_feats"][:], file["all_labels"][:]
    with h5py.File(config.test) as file:
        test = file["all_feats"][:]
    for one in problem.runs:
        n_shots = 3 * one.n_shot
        shots, added = one.feats[:n_shots], one.feats[n_shots:]
        assert is_among(shots, train).all() and len(added) and added.dtype == np.float32
        assert not is_among(added, shots).any() and not is_among(added, test).any()
        assert not is_among(added, train[np.isin(labels, [1, 3, 5])]).any()
        assert (is_among(added, background) | is_among(added, train)).all()
        for c in (7, 9, 11):
            own = (rows["trials"] == one.trial) & (rows["n_shots"] == one.n_shot) & (rows["labels"] == c)
            surest = rows["feats"][own][np.argsort(rows["places"][own])][: 7 - one.n_shot]
            np.testing.assert_array_equal(added[one.labels[n_shots:] == c], surest)
            assert (one.labels == c).sum() <= 7
    assert max(np.bincount(one.labels).max() for one in problem.runs) == 7


def test_shots_alone_where_they_are_enough(propagated, monkeypatch):
    config, _, _ = propagated
    few = {"propagated": replace(config.add["propagated"], max_per_label=4)}
    problem, _ = captured_problem(config, monkeypatch, add=few)
    assert all((np.bincount(one.labels)[[7, 9, 11]] == 4).all() for one in problem.runs if one.n_shot == 4)
    assert all(len(one.labels) > 3 for one in problem.runs if one.n_shot == 1)


def test_a_generator_fills_what_propagated_rows_leave(propagated, monkeypatch, tmp_path):
    config, rows, _ = propagated
    (tmp_path / "generator").mkdir()
    monkeypatch.setattr(hallucination, "Hallucinator", StubHallucinator)
    both = {name: replace(one, max_per_label=12) for name, one in config.add.items()}
    both["generator"] = Generator(tmp_path / "generator", max_per_label=12)
    problem, content = captured_problem(config, monkeypatch, add=both)
    assert content["method"] == "linear_sgd + propagated labels + generator (centroids, all)"
    for one in problem.runs:
        assert (np.bincount(one.labels)[[7, 9, 11]] == 12).all()
        for c in (7, 9, 11):
            own = (rows["trials"] == one.trial) & (rows["n_shots"] == one.n_shot) & (rows["labels"] == c)
            n_real = one.n_shot + min(own.sum(), 12 - one.n_shot)
            assert ((one.feats == one.trial).all(1) & (one.labels == c)).sum() == 12 - n_real


def test_additions_work_in_the_order_in_which_they_are_named(propagated, monkeypatch, tmp_path):
    """The first addition has already filled the classes when the next one is applied."""
    config, _, _ = propagated
    (tmp_path / "generator").mkdir()
    monkeypatch.setattr(hallucination, "Hallucinator", StubHallucinator)
    first, second = config.add["propagated"], Generator(tmp_path / "generator", max_per_label=7)
    problem, content = captured_problem(config, monkeypatch, add={"generator": second, "propagated": first})
    assert content["config"]["add"]["names"] == ["generator", "propagated"]
    assert content["method"] == "linear_sgd + generator (centroids, all) + propagated labels"
    for one in problem.runs:
        assert (np.bincount(one.labels)[[7, 9, 11]] == 7).all()
        assert (one.feats[3 * one.n_shot :] == one.trial).all()  # no propagated row is added
    with pytest.raises(InputError, match=r"setting add\.names was \['generator', 'propagated'\], now \['propagated', "):
        low_shot.main(replace(config, add={"propagated": first, "generator": second}))


def test_where_nothing_was_labelled_nothing_is_added(propagated, monkeypatch, tmp_path):
    config, _, _ = propagated
    path = tmp_path / "p.h5"
    path.write_bytes(config.add["propagated"].file.read_bytes())
    with h5py.File(path, "r+") as file:
        kept = file["n_shots"][:] == 4
        for name in ("feats", "labels", "trials", "n_shots", "places"):
            values = file[name][:][kept]
            del file[name]
            file[name] = values
    problem, _ = captured_problem(config, monkeypatch, add={"propagated": Propagated(path)})
    assert [len(one.labels) for one in problem.runs if one.n_shot == 1] == [3, 3]


def test_propagated_rows_of_something_else_are_refused(propagated, clusters, tmp_path):
    config, _, _ = propagated

    def refused(words, **changes):
        with pytest.raises(InputError, match=words):
            low_shot.main(replace(config, out=tmp_path / "out" / "r.json", **changes))
        assert not (tmp_path / "out").exists()

    draws = json.loads(clusters.draws.read_text())
    draws["trials"]["1"][7] = draws["trials"]["1"][7][::-1]
    write_json(tmp_path / "draws.json", draws)
    with h5py.File(clusters.train) as file:
        made_from = {"stage": "save_features", "config": {}, "inputs": {"extractor": "x"}, "lineage": {}}
        write_features(tmp_path / "train.h5", 2 * file["all_feats"][:], file["all_labels"][:], made_from)
    refused(r"p\.h5: made from another draws file", draws=tmp_path / "draws.json")
    refused(r"p\.h5: made from another train file", train=tmp_path / "train.h5")
    refused(
        r"p\.h5: made in the test setup\. Use --setup test here, or make it again",
        setup="validation",
    )
    refused(r"p\.h5: has no rows of trial 1, n = 2\. Run diffusion\.py --label", shots=[1, 2])
    refused("lacks the dataset 'feats'", add={"propagated": Propagated(clusters.background)})
    refused(r"nowhere\.h5: no such file", add={"propagated": Propagated(tmp_path / "nowhere.h5")})


def damage(config, name, change):
    """Apply `change` to one input file (JSON or HDF5)."""
    path = getattr(config, name)
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        content.pop("checksum", None)
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
    ("train", relabel(3, 2), "no rows of class 3"),
    ("test", relabel(6, 7), "no rows of class 6"),
    ("test", narrow, "3 dimensions"),
    ("test", lambda f: f.attrs.update(inputs='{"extractor": "y"}'), "another extractor"),
    ("test", lambda f: f.attrs.update(config='{"mirror": true}'), "features of other views of an image than"),
    ("test", lambda f: f.attrs.update(config='{"views": {"name": "random"}}'), "Use the same --views for both"),
    ("draws", lambda d: d["trials"]["1"].__setitem__(7, [0, 1, 2, 3, 4]), "is of class 0"),
    ("draws", lambda d: d["trials"]["1"].__setitem__(7, [90]), "but the largest n is"),
]


@pytest.mark.parametrize("name, change, message", BAD_FILES)
def test_bad_files_are_named_and_nothing_is_written(config, name, change, message):
    damage(config, name, change)
    with pytest.raises(InputError, match=message):
        low_shot.main(config)
    assert not config.out.parent.exists() or not list(config.out.parent.iterdir())


BAD_SETTINGS = [
    ({"shots": []}, "shots"),
    ({"shots": [1, 1]}, "without duplicates"),
    ({"shots": [7]}, "largest n is 7"),
    ({"trials": [4]}, "no trial 4"),
    ({"add": {"generator": Generator(Path("g"))}}, "g: no such file or folder"),
    ({"out": Path("results.txt")}, ".json"),
    ({"train": Path("missing.h5")}, "missing.h5"),
    ({"classifier": SGDOptions(n_steps=5, batch_size=1000)}, "batch_size 1000"),
]


@pytest.mark.parametrize("changes, message", BAD_SETTINGS)
def test_bad_settings(config, changes, message):
    with pytest.raises(InputError, match=message):
        low_shot.main(replace(config, **changes))


def test_divergence_is_reported(config):
    with pytest.raises(InputError, match="NaN"):
        low_shot.main(replace(config, classifier=replace(SMALL_SGD, lr=1e30)))
    assert not config.out.exists()


def command(config, *more):
    names = ("train", "test", "split", "draws", "out")
    files = [word for name in names for word in (f"--{name}", str(getattr(config, name)))]
    return run_script("low_shot.py", *files, *more)


def test_script(config):
    done = command(
        config, "--shots", "[1,5]", "--trials", "[1,2]", "--classifier.n_steps", "5", "--classifier.batch_size", "20"
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(config.out.read_text())["trials"]) == 4


def test_script_with_a_transductive_method(config):
    done = command(config, "--shots", "[1]", "--classifier", "laplacian_shot", "--transform.centre", "true")
    assert done.returncode == 0, done.stderr
    content = json.loads(config.out.read_text())
    assert content["method"] == "laplacian_shot (centred)" and content["protocol"]["setting"] == "transductive"


def test_script_lists_the_classifiers(config):
    done = command(config, "--classifier", "knn")
    assert_refused(done, "knn", *BENCHMARK_CLASSIFIERS.classes)


def test_script_refuses_in_one_line(config):
    done = command(config, "--shots", "[0]")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not config.out.exists()


def test_a_setup_without_novel_classes_is_refused(config):
    split = read_split(config.split)
    write_json(config.split, replace(split, novel_classes=[4, 5], novel_classes_2=[]).to_json())
    draws = json.loads(config.draws.read_text())
    del draws["split_digest"], draws["checksum"]
    write_json(config.draws, draws)
    with pytest.raises(InputError, match="has no novel classes in the test setup"):
        low_shot.main(config)
