"""Episodes: composition of tasks, what they depend on, accuracies by hand, the script, bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import OF_RESULTS, assert_refused, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import episodes as stage
from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.settings import (
    METHODS,
    FeatureTransform,
    LaplacianShotOptions,
    NearestMeanOptions,
    PTMapOptions,
    is_transductive,
)
from lowshot.core.errors import InputError
from lowshot.core.files import write_json
from lowshot.data.features import read_features, write_features
from lowshot.data.protocol import Split
from lowshot.evaluation import episodes
from lowshot.evaluation.episodes import draw_tasks, evaluate_episodes, gather_tasks, make_pool, tasks_digest
from lowshot.evaluation.settings import Sampling

# Classes 0..5 are base. Of the novel classes, 6..15 are of superclass 0, 16..19 of superclass 1, 20 of superclass 2.
SUPERCLASS_OF = [None] * 6 + [0] * 10 + [1] * 4 + [2]
NOVEL = np.arange(6, 21)
SPLIT = Split("tiny", [f"c{c}" for c in range(21)], ["s", "t", "u"], SUPERCLASS_OF, list(range(6)), NOVEL.tolist(),
              [0, 1, 2], [], [3, 4, 5], NOVEL.tolist())  # fmt: skip
# Novel class c has 24 + c images, in random order.
LABELS = np.random.default_rng(0).permutation(np.repeat(NOVEL, 24 + NOVEL))


def pool_of(sampling, labels=LABELS):
    return make_pool(labels, SPLIT, NOVEL, sampling, "pool.h5")


def draw(sampling, numbers=range(200)):
    (rows,) = draw_tasks(pool_of(sampling), sampling, numbers)
    return rows


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


# Composition of tasks


@settings(max_examples=20, deadline=None)
@given(
    n_way=st.integers(2, 15),
    n_shot=st.integers(1, 5),
    n_queries=st.integers(1, 3),
    alpha=st.none() | st.floats(0.5, 50),
    seed=st.integers(0, 2**40),
)
def test_shots_and_queries_are_distinct_images_of_the_tasks_classes(n_way, n_shot, n_queries, alpha, seed):
    big = np.repeat(NOVEL, 60)
    sampling = Sampling(n_way=n_way, n_shots=[n_shot], n_queries=n_queries, dirichlet=alpha, seed=seed)
    (rows,) = draw_tasks(pool_of(sampling, big), sampling, range(3, 13))
    assert rows.support.shape == (10, n_way, n_shot) and rows.queries.shape == (10, n_way * n_queries)
    assert (big[rows.support] == rows.classes[:, :, None]).all()
    assert (big[rows.queries] == np.take_along_axis(rows.classes, rows.query_labels, 1)).all()
    for classes, support, queries in zip(rows.classes, rows.support, rows.queries):
        assert len(np.unique(classes)) == n_way and np.isin(classes, NOVEL).all()
        used = np.concatenate([support.ravel(), queries])
        assert len(np.unique(used)) == len(used)


def test_balanced_queries():
    rows = draw(Sampling(n_queries=3))
    assert (rows.query_labels == np.repeat(np.arange(5), 3)).all()


def test_classes_and_images_are_drawn_evenly():
    rows = draw(Sampling(n_shots=[2], n_queries=3), range(6000))
    assert stats.chisquare(np.bincount(rows.classes[:, 0], minlength=21)[NOVEL]).pvalue > 1e-4
    assert stats.chisquare(np.bincount(rows.classes.ravel(), minlength=21)[NOVEL]).pvalue > 1e-4
    images = np.flatnonzero(LABELS == 20)
    for drawn in (rows.support[:, :, 1], rows.support, rows.queries):
        assert stats.chisquare(np.bincount(drawn.ravel(), minlength=len(LABELS))[images]).pvalue > 1e-4


def test_dirichlet_totals_and_spread():
    sampling = Sampling(n_queries=15, dirichlet=2.0)
    (rows,) = draw_tasks(pool_of(sampling, np.repeat(NOVEL, 100)), sampling, range(4000))
    assert rows.queries.shape == (4000, 75)
    counts = np.stack([(rows.query_labels == way).sum(1) for way in range(5)], 1)
    # A proportion of Dirichlet(2) over 5 classes is Beta(2, 8): mean 0.2, variance 16 / 1100. Rounding adds little.
    assert counts.mean(0) == pytest.approx([15] * 5, rel=0.04)
    assert (counts / 75).var(0) == pytest.approx([16 / 1100] * 5, rel=0.1)
    assert stats.kstest(counts[:, 0] / 75, stats.beta(2, 8).cdf).statistic < 0.05


def test_dirichlet_of_tiny_and_huge_parameters():
    tiny, huge = (
        next(draw_tasks(pool_of(s, np.repeat(NOVEL, 100)), s, range(50)))
        for s in (Sampling(dirichlet=1e-4), Sampling(dirichlet=1e7))
    )
    assert (tiny.query_labels == tiny.query_labels[:, :1]).mean() > 0.99
    assert (huge.query_labels == np.repeat(np.arange(5), 15)).all()


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_queries_of_some_classes_only(alpha):
    rows = draw(Sampling(n_queries=3, n_present=2, dirichlet=alpha), range(500))
    assert rows.queries.shape == (500, 15)  # as many as with all classes
    counts = np.stack([(rows.query_labels == way).sum(1) for way in range(5)], 1)
    assert not counts[:, 2:].any() and counts.sum(1).tolist() == [15] * 500
    assert alpha or (np.abs(counts[:, 0] - counts[:, 1]) == 1).all()
    present = np.bincount(rows.classes[:, 0], minlength=len(NOVEL))
    assert (present > 0).sum() > 5  # any class may be the one


def test_largest_remainders_by_hand():
    # With alpha 1 the proportions are normalised exponential variables -log(1 - u), computed as Gamma(2) x U.
    first, second = np.array([[0.3, 0.6, 0.9]]), np.array([[0.5, 0.2, 0.7]])
    gamma = stats.gamma(2).ppf(1 - first) * (1 - second)
    exact = 10 * gamma / gamma.sum()
    counts = episodes._query_counts(np.array([[4, 3, 3]]), 3, 1.0, (first, second))
    short = 10 - np.floor(exact).sum()
    up = np.argsort(np.floor(exact) - exact)[0, : int(short)]
    expected = np.floor(exact[0])
    expected[up] += 1
    assert counts.sum() == 10 and counts[0].tolist() == expected.tolist()


def test_tasks_within_a_superclass():
    rows = draw(Sampling(n_way=4, n_queries=3, within_superclass=True), range(2000))
    superclasses = np.array([-1 if s is None else s for s in SUPERCLASS_OF])[rows.classes]
    assert (superclasses == superclasses[:, :1]).all()
    assert stats.chisquare(np.bincount(superclasses[:, 0], minlength=2)).pvalue > 1e-4  # superclass 2 is too small
    assert set(draw(Sampling(n_queries=3, within_superclass=True)).classes.ravel()) == set(range(6, 16))


def test_all_classes_of_the_setup_or_of_a_superclass():
    assert (np.sort(draw(Sampling(n_way="all", n_queries=3)).classes, 1) == NOVEL).all()
    sampling = Sampling(n_way="all", n_queries=3, within_superclass=True)
    parts = {rows.n_way: rows for rows in draw_tasks(pool_of(sampling), sampling, range(100))}
    assert set(parts) == {4, 10} and (np.sort(parts[4].classes, 1) == np.arange(16, 20)).all()
    assert sorted(np.concatenate([rows.episodes for rows in parts.values()])) == list(range(100))
    alone = {rows.n_way: rows for rows in draw_tasks(pool_of(sampling), sampling, range(50, 60))}
    for n_way, rows in alone.items():
        whole = np.isin(parts[n_way].episodes, rows.episodes)
        assert np.array_equal(parts[n_way].queries[whole], rows.queries)


# What tasks depend on


@pytest.mark.parametrize("settings", [{}, {"dirichlet": 5.0}, {"n_way": 4, "within_superclass": True}])
def test_an_episode_is_the_same_whatever_is_beside_it(settings):
    sampling = Sampling(n_queries=4, **settings)
    whole, part = draw(sampling, range(100)), draw(sampling, range(30, 40))
    assert same(part, next(whole.parts(30)).__class__(*(value[30:40] for value in vars(whole).values())))
    assert same(draw(sampling, range(100)), whole)
    assert not np.array_equal(draw(replace(sampling, seed=1), range(100)).classes, whole.classes)
    assert len(np.unique(whole.queries, axis=0)) == 100


@pytest.mark.parametrize("alpha", [None, 5.0])
def test_shots_are_nested_and_queries_the_same(alpha):
    one, five = (draw(Sampling(n_shots=shots, n_queries=4, dirichlet=alpha)) for shots in ([1], [5, 2]))
    assert np.array_equal(one.queries, five.queries) and np.array_equal(one.classes, five.classes)
    assert np.array_equal(one.support, five.support[:, :, :1])
    feats = torch.arange(len(LABELS), dtype=torch.float32)[:, None]
    (_, large), (n_shot, small) = gather_tasks(feats, five, [5, 2])
    assert n_shot == 2 and small.support_features.shape == (200, 10, 1) and small.n_way == 5
    nested = large.support_features.view(200, 5, 5)[:, :, :2]
    assert torch.equal(small.support_features.view(200, 5, 2), nested)
    assert torch.equal(small.support_labels[0], torch.arange(5).repeat_interleave(2))


def test_the_digest_tells_kinds_of_task_and_pools_apart_but_not_shots():
    plain = Sampling()
    others = [Sampling(n_way=4), Sampling(n_queries=3), Sampling(dirichlet=2.0), Sampling(within_superclass=True),
              Sampling(n_present=2), Sampling(seed=1)]  # fmt: skip
    digests = {tasks_digest(sampling, LABELS, ["a"]) for sampling in [plain, *others]}
    digests |= {tasks_digest(plain, LABELS[1:], ["a"]), tasks_digest(plain, LABELS, ["b"])}
    assert len(digests) == 9
    assert tasks_digest(Sampling(n_shots=[2]), LABELS, ["a"]) == tasks_digest(plain, LABELS, ["a"])


# Accuracies


def clusters(dim=8, scale=1.0):
    rng = np.random.default_rng(1)
    centres = scale * rng.random((21, dim))
    return torch.from_numpy(np.maximum(centres[LABELS] + rng.normal(size=(len(LABELS), dim)), 0).astype(np.float32))


def evaluated(name="nearest_mean", n_episodes=20, feats=None, **changes):
    sampling = Sampling(**{"n_queries": 4, **changes})
    feats = clusters() if feats is None else feats
    return evaluate_episodes(feats, pool_of(sampling), sampling, n_episodes, METHODS.classes[name]())


def test_accuracies_by_hand():
    """Nearest mean of every episode, with plain loops."""
    feats, rows = clusters(), draw(Sampling(n_queries=4), range(20))
    found = evaluated(feats=feats)
    assert [(one["episode"], one["n_way"], one["n_shot"]) for one in found] == [
        (e, 5, n) for e in range(20) for n in (1, 5)
    ]
    for one in found:
        e = one["episode"]
        means = [feats[rows.support[e, way, : one["n_shot"]]].mean(0) for way in range(5)]
        hits = [
            min(range(5), key=lambda way: (feats[query] - means[way]).square().sum()) == truth
            for query, truth in zip(rows.queries[e], rows.query_labels[e])
        ]
        assert one["accuracy"] == sum(hits) / 20


def test_separate_classes_are_always_right_and_equal_ones_never():
    assert {one["accuracy"] for one in evaluated(feats=clusters(scale=1000.0))} == {1.0}
    assert {one["accuracy"] for one in evaluated(feats=torch.ones(len(LABELS), 3))} == {0.0}


@pytest.mark.parametrize("name", METHODS.classes)
def test_batches_and_numbers_of_episodes_change_nothing(name, monkeypatch):
    whole = evaluated(name, n_episodes=12)
    assert evaluated(name, n_episodes=5) == whole[:10]
    assert evaluated(name, n_episodes=5, n_shots=[5]) == whole[1:10:2]
    monkeypatch.setattr(episodes, "_GATHERED_BYTES", {"cpu": 3 * 45 * 8 * 4})
    monkeypatch.setattr(episodes, "_DRAWN_BYTES", 7 * 5 * 44 * 4)
    assert evaluated(name, n_episodes=12) == whole


def test_transductive_methods_are_the_ones_that_look_at_other_queries():
    sampling = Sampling(n_queries=4, n_shots=[1])
    ((_, tasks),) = gather_tasks(clusters(), draw(sampling, range(10)), [1])
    fewer = replace(tasks, query_features=tasks.query_features[:, ::2].contiguous())
    for name, method in METHODS.classes.items():
        whole, part = (score_tasks(method(), some, 0) for some in (tasks, fewer))
        alone = torch.allclose(whole[:, ::2], part, atol=1e-4)
        assert alone != is_transductive(method), name


# The stage


@pytest.fixture
def config(tmp_path):
    """Base classes in train.h5, novel classes in test.h5, shifted far from the origin.

    The validation half has the classes 6..12, the test half 13..20.
    """
    split = replace(SPLIT, novel_classes_1=list(range(6, 13)), novel_classes_2=list(range(13, 21)))
    made_from = {"stage": "save_features", "config": {}, "inputs": {"extractor": "x"}, "lineage": {}}
    rng = np.random.default_rng(2)
    folder = tmp_path / "conv" / "features"
    folder.mkdir(parents=True)
    base = rng.random((30, 8)).astype(np.float32) + 100
    write_features(folder / "train.h5", base, np.repeat(np.arange(6), 5), made_from)
    write_features(folder / "test.h5", clusters().numpy() + 100, LABELS, made_from)
    write_json(tmp_path / "split.json", split.to_json())
    return stage.Config(features=folder / "test.h5", split=tmp_path / "split.json", out=tmp_path / "out" / "r.json",
                        n_episodes=10, n_queries=4)  # fmt: skip


def results(config, **changes):
    return json.loads(stage.main(replace(config, overwrite=True, **changes)).read_text())


def test_results_file(config, capsys):
    content = results(config)
    assert set(content) == OF_RESULTS | {"episodes", "classes"}
    assert (content["method"], content["dataset"], content["extractor"]) == ("nearest_mean", "tiny", "conv")
    protocol = content["protocol"]
    assert (protocol["setup"], protocol["setting"]) == ("test", "inductive")
    assert protocol["split_digest"] == json.loads(config.split.read_text())["digest"]
    assert content["config"]["n_queries"] == 4
    assert content["config"]["method"] == {"name": "nearest_mean", "metric": "euclidean"}
    values = [one["accuracy"] for one in content["episodes"] if one["n_shot"] == 1]
    half = stats.t.ppf(0.975, 9) * np.std(values, ddof=1) / np.sqrt(10)
    expected = f"nearest_mean, 1-shot: {100 * np.mean(values):.2f} ± {100 * half:.2f} %"
    assert len(values) == 10 and expected in capsys.readouterr().out


def test_only_the_setups_classes_are_used(config):
    validation, test = (results(config, setup=setup, n_way="all") for setup in ("validation", "test"))
    assert {one["n_way"] for one in validation["episodes"]} == {7} and validation["protocol"]["setup"] == "validation"
    assert {one["n_way"] for one in test["episodes"]} == {8}


def test_names_say_the_transform_and_other_settings(config):
    both = [config.features.with_name("train.h5"), config.features]
    content = results(config, features=both, transform=FeatureTransform(power=0.5, centre=True, normalise=True))
    assert content["method"] == "nearest_mean (power 0.5, CL2N)" and "features_1" in content["inputs"]
    assert results(config, method=NearestMeanOptions("cosine"))["method"] == "nearest_mean (metric=cosine)"
    content = results(config, method=PTMapOptions(), name="mine", extractor="theirs")
    assert (content["method"], content["extractor"]) == ("mine", "theirs")
    assert content["protocol"]["setting"] == "transductive"


def test_a_method_brings_its_transform(config):
    content = results(config, method=PTMapOptions())
    assert content["method"] == "pt_map (power 0.5)" and content["config"]["transform"]["power"] == 0.5
    same = results(config, method=PTMapOptions(), transform=FeatureTransform(power=0.5))
    assert same["config"] == content["config"] and same["episodes"] == content["episodes"]
    plain = results(config, method=PTMapOptions(), transform=FeatureTransform())
    assert plain["method"] == "pt_map" and plain["episodes"] != content["episodes"]


def test_the_centre_is_the_mean_of_the_base_images(config):
    both = [config.features.with_name("train.h5"), config.features]
    content = results(config, features=both, transform=FeatureTransform(centre=True, normalise=True))
    base, novel = (read_features(path).feats for path in both)
    inside = np.isin(LABELS, NOVEL[7:])
    feats = torch.nn.functional.normalize(torch.from_numpy(novel - base.mean(0)))[inside]
    pool = make_pool(LABELS[inside], SPLIT, NOVEL[7:], config, "pool.h5")
    expected = evaluate_episodes(feats, pool, config, 10, NearestMeanOptions())
    assert content["episodes"] == expected
    plain = results(config, features=both, transform=FeatureTransform(normalise=True))
    assert plain["episodes"] != expected
    assert plain["protocol"]["tasks_digest"] == content["protocol"]["tasks_digest"]


def test_second_run_does_nothing_and_other_settings_stop(config, capsys):
    stage.main(config)
    before = config.out.stat().st_mtime_ns
    stage.main(config)
    assert "already exists" in capsys.readouterr().out and config.out.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="setting n_queries was 4, now 3"):
        stage.main(replace(config, n_queries=3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_way": 9}, ["n_way 9: there are only 8 classes to evaluate. Use --n_way 8 or --classes all"]),
        ({"n_way": 1}, ["n_way 1", "at least two classes"]),
        ({"n_queries": 33}, ["test.h5", "class 13 (c13) has 37 images", "5 + 33", "--n_shots or --n_queries"]),
        ({"n_shots": [38], "dirichlet": 2.0}, ["class 13 (c13) has 37 images", "38 + 0"]),
        ({"n_queries": 30, "dirichlet": 0.1}, ["test.h5", "images, but episode", " needs "]),
        ({"n_way": 5, "within_superclass": True}, ["n_way 5", "no superclass has more than 4 classes", "--n_way 4"]),
        ({"n_shots": [1, 1]}, ["n_shots", "without duplicates"]),
        ({"n_shots": []}, ["n_shots", "one or more"]),
        ({"transform": FeatureTransform(centre=True)}, ["test.h5", "base class", "transform.centre"]),
        ({"method": LaplacianShotOptions()}, ["no image of a base class", "--features", "--transform.normalise"]),
        ({"method": LaplacianShotOptions(), "classes": "all"}, ["--classes all", "such as --transform.normalise"]),
    ],
)
def test_bad_input(config, changes, words):
    with pytest.raises(InputError) as error:
        stage.main(replace(config, **changes))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value) and not config.out.exists()


def test_a_pool_without_a_class_and_a_split_without_superclasses(config, tmp_path):
    with pytest.raises(InputError, match=r"train\.h5: no image of novel class 13 \(c13\) of the test setup"):
        stage.main(replace(config, features=config.features.with_name("train.h5")))
    split = json.loads(config.split.read_text())
    del split["digest"]
    write_json(config.split, {**split, "superclass_of": [None] * 21})
    with pytest.raises(InputError, match="has no superclasses for the classes to evaluate"):
        stage.main(replace(config, within_superclass=True))


def test_script_on_real_features(features, data, tmp_path):
    """Several files as one pool, and every kind of setting on the command line."""
    files = json.dumps([str(features / "train.h5"), str(features / "test.h5")])
    arguments = ["--split", data / "split.json", "--n_way", "2", "--n_shots", "[1,3]", "--n_queries", "4"]
    more = ["--n_episodes", "30", "--dirichlet", "2", "--transform.centre", "true", "--method.metric"]
    out = tmp_path / "r.json"
    done = run_script("episodes.py", "--features", files, *arguments, *more, "cosine", "--out", out)
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    assert len(content["episodes"]) == 60 and content["method"] == "nearest_mean (centred, metric=cosine)"
    assert "3-shot" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "svm"], ["method", "nearest_mean", "pt_map"]),
        (["--dirichlet", "0"], ["dirichlet"]),
        (["--n_way", "2", "--n_present", "3"], ["--n_present 3", "a task has only 2 classes"]),
        (["--n_way", "all", "--n_present", "500"], ["--n_present 500", "a task has only"]),
    ],
)
def test_script_refuses_in_one_line(features, data, tmp_path, arguments, words):
    out = tmp_path / "r.json"
    done = run_script("episodes.py", "--features", features / "test.h5", "--split", data / "split.json", "--out", out,
                      *arguments)  # fmt: skip
    assert_refused(done, *words)
    assert not list(tmp_path.iterdir())


def test_settings_are_finite(tmp_path, features, data):
    result = run_script("episodes.py", "--features", features / "test.h5", "--split", data / "split.json",
                        "--out", tmp_path / "x.json", "--dirichlet", "inf")  # fmt: skip
    assert_refused(result, "--dirichlet: 'inf': must be a number > 0")
