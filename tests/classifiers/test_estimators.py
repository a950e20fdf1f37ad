"""Few-shot methods and low-shot classifiers on arrays: the same numbers as the stages', checked arguments."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import accuracy_score

import lowshot
from lowshot import FewShotClassifier, LowShotClassifier, few_shot_scores
from lowshot.classifiers.methods import CLASSIFIERS, METHODS
from lowshot.classifiers.problem import Problem, Run
from lowshot.classifiers.settings import (
    ClassifierName,
    CosineOptions,
    FeatureTransform,
    FewShotMethod,
    InductiveMethod,
    LogisticOptions,
    MLPOptions,
    SGDOptions,
)
from lowshot.classifiers.tasks import Tasks
from lowshot.classifiers.transform import fit_transform

N_WAY, DIM = 4, 6
RNG = np.random.default_rng(0)
CENTRES = 3 * RNG.random((2 * N_WAY, DIM))
BASE = np.float32(RNG.random((50, DIM)))


def rows(classes, n, rng):
    """`n` rows of each class about its centre, and their classes."""
    labels = np.repeat(classes, n)
    return np.float32(CENTRES[labels] + 0.3 * rng.random((len(labels), DIM))), labels


@pytest.fixture
def task():
    rng = np.random.default_rng(1)
    return *rows(np.arange(N_WAY), 2, rng), *rows(np.arange(N_WAY), 5, rng)


def test_names_of_methods_are_those_of_their_settings():
    assert list(METHODS) == list(FewShotMethod.__args__)
    assert [name for name in METHODS if not METHODS[name].transductive] == list(InductiveMethod.__args__)
    assert set(ClassifierName.__args__) == {*METHODS, *CLASSIFIERS}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_comes_with_its_transform(task, method):
    support, labels, queries, truth = task
    chosen = METHODS[method]
    transform = fit_transform(chosen.transform, BASE)
    tasks = Tasks(*(torch.from_numpy(one)[None] for one in (transform(support), labels, transform(queries))), N_WAY)
    expected = chosen.score(tasks, chosen.options, 0)[0].numpy()
    assert np.allclose(few_shot_scores(method, support, labels, queries, base_features=BASE), expected, atol=1e-6)

    names = np.array(["oak", "elm", "ash", "yew"])
    classifier = FewShotClassifier(method).fit(support, names[labels], base_features=BASE)
    assert classifier.classes_.tolist() == sorted(names)
    assert accuracy_score(names[truth], classifier.predict(queries)) == classifier.score(queries, names[truth]) > 0.9
    proba = classifier.predict_proba(queries)
    assert np.allclose(proba.sum(1), 1, atol=1e-5) and proba.shape == (len(queries), N_WAY)
    assert (classifier.classes_[proba.argmax(1)] == classifier.predict(queries)).all()


def test_one_task_is_a_batch_of_one(task):
    support, labels, queries, _ = task
    one = few_shot_scores("nearest_mean", support, labels, queries)
    both = few_shot_scores("nearest_mean", *(np.stack([part, part]) for part in (support, labels, queries)))
    assert one.shape == (len(queries), N_WAY) and both.shape == (2, len(queries), N_WAY)
    assert one.dtype == np.float32 and np.array_equal(both[0], one) and np.array_equal(both[1], one)


def test_transform_and_options_can_be_chosen(task):
    support, labels, queries, _ = task
    plain = few_shot_scores("nearest_mean", support, labels, queries, transform=FeatureTransform())
    means = np.stack([support[labels == c].mean(0) for c in range(N_WAY)])
    distances = ((queries[:, None] - means) ** 2).sum(-1)
    assert np.allclose(plain, distances.min(1, keepdims=True) - distances, atol=1e-4)
    untrained = few_shot_scores("cosine", support, labels, queries, options=CosineOptions(n_steps=0))
    assert not np.allclose(untrained, few_shot_scores("cosine", support, labels, queries))


def test_estimators_are_those_of_scikit_learn():
    classifier = FewShotClassifier("cosine", options=CosineOptions(lr=0.1), seed=3)
    assert clone(classifier).get_params() == classifier.get_params()
    assert clone(LowShotClassifier("mlp")).classifier == "mlp"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "svm"}, "method 'svm': there are nearest_mean, "),
        ({"labels": np.array([0, 0, 1, 1, 3, 3, 3, 3])}, "task 0 has no shot of class 2"),
        ({"labels": np.array([0, 0, 0, 0, 0, 0, 0, 2**60])}, "task 0 has no shot of class 1"),
        ({"labels": np.zeros(8, int)}, "needs two classes"),
        ({"labels": np.linspace(0, 1, 8)}, "must be integers"),
        ({"labels": np.arange(8) - 1}, "must be integers 0"),
        ({"labels": np.arange(7)}, "support_labels \\(1, 7\\)"),
        ({"queries": np.zeros((3, DIM + 1), np.float32)}, "dimensions D are needed"),
        ({"queries": np.zeros((0, DIM), np.float32)}, "an empty side"),
        ({"queries": np.full((3, DIM), np.nan, np.float32)}, "query_features: must be finite"),
        ({"support": np.full((8, DIM), np.inf, np.float32)}, "support_features: must be finite"),
        ({"support": np.full((8, DIM), "x")}, "support_features: must be finite"),
        ({"method": "pt_map", "base_features": BASE[:, 1:]}, "base_features: 5 dimensions, but the features have 6"),
        ({"method": "laplacian_shot"}, "give base_features, or another transform"),
    ],
)
def test_refused_tasks(task, change, message):
    support, labels, queries, _ = task
    given = {"method": "nearest_mean", "support": support, "labels": labels, "queries": queries} | change
    arrays = [given.pop(name) for name in ("method", "support", "labels", "queries")]
    with pytest.raises(lowshot.InputError, match=message):
        few_shot_scores(*arrays, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"y": ["a"] * 8}, "holds one class"), ({"y": list("ab")}, "inconsistent"), ({"X": np.zeros(8)}, "2D array")],
)
def test_refused_shots(task, change, message):
    given = {"X": task[0], "y": task[1]} | change
    with pytest.raises(ValueError, match=message):
        FewShotClassifier().fit(given["X"], given["y"])


def test_queries_of_another_dimension(task):
    with pytest.raises(lowshot.InputError, match="X: 5 dimensions, but the classifier was fitted on 6"):
        FewShotClassifier().fit(*task[:2]).predict(task[2][:, 1:])


@pytest.fixture
def low_shot():
    """Base rows, shots of novel classes, and test rows of all: labels are 10 times the classes' numbers, as text."""
    rng = np.random.default_rng(2)
    parts = rows(np.arange(N_WAY), 40, rng), rows(np.arange(N_WAY, 2 * N_WAY), 3, rng), rows(np.arange(8), 10, rng)
    return [array if array.ndim == 2 else np.char.mod("%02d", 10 * array) for part in parts for array in part]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("logistic_regression", LogisticOptions()),
        ("linear_sgd", SGDOptions(n_steps=400, batch_size=80)),
        ("mlp", MLPOptions(lr=0.01, hidden=16, max_epochs=40)),
    ],
)
def test_a_low_shot_classifier_is_that_of_the_benchmark(low_shot, name, options):
    base, base_labels, novel, novel_labels, test, truth = low_shot
    classifier = LowShotClassifier(name, options=options, device="cpu")
    classifier.fit(base, base_labels, novel, novel_labels)
    assert classifier.classes_.tolist() == [f"{10 * c:02d}" for c in range(8)]
    assert classifier.novel_classes_.tolist() == ["40", "50", "60", "70"]

    numbers = [np.array([int(label) // 10 for label in labels]) for labels in (base_labels, novel_labels)]
    problem = Problem(base, numbers[0], [Run(1, 3, novel, numbers[1])], 4, 4, 8)
    expected = CLASSIFIERS[name](problem, options, 0, "cpu")(torch.from_numpy(test))[0].numpy()
    assert np.allclose(classifier.decision_function(test), expected, atol=1e-5)
    assert np.allclose(classifier.predict_proba(test).sum(1), 1, atol=1e-5)
    assert classifier.score(test, truth) > 0.8


def test_a_low_shot_classifier_transforms_all_rows_alike(low_shot):
    base, base_labels, novel, novel_labels, test, _ = low_shot
    transform = FeatureTransform(centre=True, normalise=True)
    whole = LowShotClassifier(transform=transform).fit(base, base_labels, novel, novel_labels)
    by_hand = fit_transform(transform, base)
    plain = LowShotClassifier().fit(by_hand(base), base_labels, by_hand(novel), novel_labels)
    assert np.allclose(whole.decision_function(test), plain.decision_function(by_hand(test)), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": "own_head"}, "classifier 'own_head': there are linear_sgd, "),
        ({"novel": np.zeros((12, 2))}, "base rows have 6 dimensions, novel ones 2"),
        ({"novel_labels": ["00"] * 12}, "class '00': has base and novel rows"),
        ({"base_labels": ["00"]}, "inconsistent"),
    ],
)
def test_refused_low_shot_rows(low_shot, change, message):
    names = ("base", "base_labels", "novel", "novel_labels")
    given = dict(zip(names, low_shot)) | change
    with pytest.raises(ValueError, match=message):
        LowShotClassifier(given.get("classifier", "logistic_regression")).fit(*(given[name] for name in names))
