"""Few-shot methods and low-shot classifiers on arrays: same scores as the batched methods, checks of arguments."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, roc_auc_score

import lowshot
from lowshot import FewShotClassifier, LowShotClassifier, few_shot_scores
from lowshot.classifiers.methods import fit_classifier, score_tasks
from lowshot.classifiers.problem import Problem, Run
from lowshot.classifiers.settings import (
    METHODS,
    RECOMMENDED,
    CosineOptions,
    FeatureTransform,
    ImprintingOptions,
    LogisticOptions,
    LogitAdjustedOptions,
    MLPOptions,
    NearestMeanOptions,
    OwnHead,
    SGDOptions,
)
from lowshot.classifiers.tasks import Tasks
from lowshot.classifiers.transform import fitted_transform

N_WAY, DIM = 4, 6
RNG = np.random.default_rng(0)
CENTRES = 3 * RNG.random((2 * N_WAY, DIM))
BASE = np.float32(RNG.random((50, DIM)))
CL2N = FeatureTransform(centre=True, normalise=True)


def rows(classes, n, rng):
    """`n` rows of each class around its centre, and their classes."""
    labels = np.repeat(classes, n)
    return np.float32(CENTRES[labels] + 0.3 * rng.random((len(labels), DIM))), labels


@pytest.fixture
def task():
    rng = np.random.default_rng(1)
    return *rows(np.arange(N_WAY), 2, rng), *rows(np.arange(N_WAY), 5, rng)


@pytest.mark.parametrize("name", METHODS.classes)
def test_defaults_are_those_of_the_recipe(name):
    config = yaml.safe_load((ROOT / f"configs/few_shot/episodes-{name}.yaml").read_text())
    method = config["method"] if isinstance(config["method"], dict) else {"name": config["method"]}
    assert method.pop("name") == name
    transform = FeatureTransform(**config.get("transform", {}))
    assert RECOMMENDED[name] == (METHODS.classes[name](**method), transform)


@pytest.mark.parametrize("method", METHODS.classes)
def test_a_method_comes_with_its_transform(task, method):
    support, labels, queries, truth = task
    chosen = RECOMMENDED[method]
    transform = fitted_transform(chosen.transform, BASE)
    tasks = Tasks(*(torch.from_numpy(one)[None] for one in (transform(support), labels, transform(queries))), N_WAY)
    expected = score_tasks(chosen.method, tasks, 0)[0].numpy()
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


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64])
@pytest.mark.parametrize("method", METHODS.classes)
def test_arrays_of_any_kind(task, method, kind):
    support, labels, queries, _ = task
    expected = few_shot_scores(method, support, labels, queries, base_features=BASE)
    given = support[::-1], labels[::-1].astype(kind), torch.from_numpy(queries).requires_grad_()
    found = few_shot_scores(method, *given, base_features=BASE.astype(np.float64))
    assert np.allclose(found, expected, atol=1e-4)


def test_transform_and_settings_can_be_chosen(task):
    support, labels, queries, _ = task
    plain = few_shot_scores("nearest_mean", support, labels, queries)
    means = np.stack([support[labels == c].mean(0) for c in range(N_WAY)])
    distances = ((queries[:, None] - means) ** 2).sum(-1)
    assert np.allclose(plain, distances.min(1, keepdims=True) - distances, atol=1e-4)
    unit = few_shot_scores("nearest_mean", support, labels, queries, feature_transform=FeatureTransform(normalise=True))
    assert not np.allclose(plain, unit)
    untrained = few_shot_scores(CosineOptions(n_steps=0), support, labels, queries)
    assert not np.allclose(untrained, few_shot_scores("cosine", support, labels, queries))


def test_estimators_are_those_of_scikit_learn():
    classifier = FewShotClassifier(CosineOptions(lr=0.1), seed=3)
    assert clone(classifier).get_params() == classifier.get_params()
    assert clone(LowShotClassifier("mlp")).classifier == "mlp"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "svm"}, "method 'svm': unknown; available: nearest_mean, "),
        ({"labels": np.array([0, 0, 1, 1, 3, 3, 3, 3])}, "task 0 has no shot of class 2"),
        ({"labels": np.array([0, 0, 0, 0, 0, 0, 0, 2**60])}, "task 0 has no shot of class 1"),
        ({"labels": np.zeros(8, int)}, "needs at least two classes"),
        ({"labels": np.linspace(0, 1, 8)}, "must be integers"),
        ({"labels": np.arange(8) - 1}, "must be integers 0"),
        ({"labels": np.arange(7)}, "support_labels \\(1, 7\\)"),
        ({"queries": np.zeros((3, DIM + 1), np.float32)}, "same number of tasks and of dimensions"),
        ({"queries": np.zeros((0, DIM), np.float32)}, "no axis may have length 0"),
        ({"queries": np.full((3, DIM), np.nan, np.float32)}, "query_features: contains NaN"),
        ({"support": np.full((8, DIM), np.inf, np.float32)}, "support_features: contains NaN, inf"),
        ({"support": np.full((8, DIM), "x")}, "support_features: has dtype <U1, must be numbers"),
        ({"method": "laplacian_shot", "base_features": BASE[:, 1:]}, "base_features: has 5 dimensions, must have 6"),
        ({"method": SGDOptions()}, "is not a few-shot method. Use a name, an instance of NearestMeanOptions, "),
        ({"method": CosineOptions}, "is not a few-shot method. Use a name, an instance of NearestMeanOptions, "),
        ({"method": None}, "None: is not a few-shot method"),
        ({"method": CosineOptions(lr=-1)}, "CosineOptions: lr: -1: must be a number > 0"),
        ({"method": NearestMeanOptions("l2")}, "NearestMeanOptions: metric: 'l2': must be one of euclidean, cosine"),
        ({"feature_transform": "L2N"}, "feature_transform: must be a FeatureTransform, not str"),
        ({"method": "pt_map", "queries": np.zeros((1, DIM), np.float32)}, "one query: a transductive method"),
        ({"queries": np.full((3, DIM), 1e300)}, "query_features: contains NaN, infinity or values too large for"),
        ({"method": "laplacian_shot"}, "Give base_features or another transform"),
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
    [
        ({"y": ["a"] * 8}, "contains only one class"),
        ({"y": list("ab")}, "y: has shape \\(2,\\), must be \\(8,\\)"),
        ({"y": np.zeros((8, 2))}, "y: "),
        ({"X": np.zeros(8)}, "X: has shape \\(8,\\)"),
        ({"X": np.full((8, DIM), np.nan)}, "X: contains NaN"),
        ({"X": [["a"] * DIM] * 8}, "X: has dtype <U1, must be numbers"),
        ({"y": np.array([1, "a"] * 4, object)}, "y: mixes types"),
        ({"method": "svm"}, "method 'svm': unknown; available: "),
    ],
)
def test_refused_shots(task, change, message):
    given = {"X": task[0], "y": task[1]} | change
    with pytest.raises(lowshot.InputError, match=message):
        FewShotClassifier(given.get("method", "cosine")).fit(given["X"], given["y"])


def test_two_classes_have_one_score(task):
    """As in scikit-learn, the score is positive for the second class."""
    support, labels, queries, truth = (
        part[half] for part, half in zip(task, [slice(4), slice(4), slice(10), slice(10)])
    )
    classifier = FewShotClassifier().fit(support, labels)
    scores = classifier.decision_function(queries)
    assert scores.shape == (10,) and ((scores > 0) == truth).all()
    assert roc_auc_score(truth, scores) == 1 and classifier.predict_proba(queries).shape == (10, 2)


def test_the_fitted_classifier_is_its_own(task):
    support, labels, queries, _ = (part.copy() for part in task)
    classifier = FewShotClassifier().fit(support, labels)
    expected = classifier.predict_proba(queries)
    support[:] = 0
    with pytest.raises(lowshot.InputError):
        classifier.fit(support, np.zeros(8))
    assert np.array_equal(classifier.predict_proba(queries), expected)
    with pytest.raises(NotFittedError):
        FewShotClassifier().predict(queries)


def test_queries_of_another_dimension(task):
    with pytest.raises(lowshot.InputError, match="X: has 5 dimensions, must have 6"):
        FewShotClassifier().fit(*task[:2]).predict(task[2][:, 1:])


@pytest.fixture
def low_shot():
    """Base rows, shots of novel classes and test rows of all classes. A label is 10 times the class, as a string."""
    rng = np.random.default_rng(2)
    parts = rows(np.arange(N_WAY), 40, rng), rows(np.arange(N_WAY, 2 * N_WAY), 3, rng), rows(np.arange(8), 10, rng)
    return [array if array.ndim == 2 else np.char.mod("%02d", 10 * array) for part in parts for array in part]


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ("logistic_regression", LogisticOptions()),
        (sgd := SGDOptions(n_steps=400, batch_size=80), sgd),
        (mlp := MLPOptions(lr=0.01, hidden=16, max_epochs=40), mlp),
        ("logit_adjusted", LogitAdjustedOptions()),
        (imprinting := ImprintingOptions(n_steps=0), imprinting),
    ],
)
def test_a_low_shot_classifier_is_that_of_the_benchmark(low_shot, given, settings):
    base, base_labels, novel, novel_labels, test, truth = low_shot
    classifier = LowShotClassifier(given, feature_transform=FeatureTransform(), device="cpu")
    classifier.fit(base, base_labels, novel, novel_labels)
    assert classifier.classes_.tolist() == [f"{10 * c:02d}" for c in range(8)]
    assert classifier.novel_classes_.tolist() == ["40", "50", "60", "70"]

    numbers = [np.array([int(label) // 10 for label in labels]) for labels in (base_labels, novel_labels)]
    problem = Problem(base, numbers[0], [Run(1, 3, novel, numbers[1])], 4, 4, 8)
    expected = fit_classifier(settings, problem, 0, "cpu")(torch.from_numpy(test))[0].numpy()
    assert np.allclose(classifier.decision_function(test), expected, atol=1e-5)
    assert pickle.dumps(classifier)  # so that joblib can hand it to other processes
    assert np.allclose(classifier.predict_proba(test).sum(1), 1, atol=1e-5)
    assert classifier.score(test, truth) > 0.8


def test_a_novel_bias(low_shot):
    base, base_labels, novel, novel_labels, test, _ = low_shot
    plain, biased, novel_only = (
        LowShotClassifier(novel_bias=bias, device="cpu").fit(base, base_labels, novel, novel_labels)
        for bias in (0.0, 1.5, 100.0)
    )
    is_novel = np.isin(plain.classes_, plain.novel_classes_)
    assert np.allclose(biased.decision_function(test), plain.decision_function(test) + 1.5 * is_novel)
    assert set(novel_only.predict(test)) == set(plain.novel_classes_)


@pytest.mark.parametrize("given", [{}, {"feature_transform": CL2N, "classifier": "logistic_regression"}])
def test_a_low_shot_classifier_transforms_all_rows_alike(low_shot, given):
    """The default, imprinting, brings this transform."""
    base, base_labels, novel, novel_labels, test, _ = low_shot
    whole = LowShotClassifier(**given).fit(base, base_labels, novel, novel_labels)
    by_hand, given = fitted_transform(CL2N, base), given | {"feature_transform": FeatureTransform()}
    plain = LowShotClassifier(**given).fit(by_hand(base), base_labels, by_hand(novel), novel_labels)
    assert np.allclose(whole.decision_function(test), plain.decision_function(by_hand(test)), atol=1e-4)


def test_divergence_is_an_error(low_shot):
    base, base_labels, novel, novel_labels, test, _ = low_shot
    diverging = SGDOptions(lr=1e30, n_steps=50, batch_size=80)
    classifier = LowShotClassifier(diverging).fit(base, base_labels, novel, novel_labels)
    with pytest.raises(lowshot.InputError, match="training diverged"):
        classifier.predict(test)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": "own_head"}, "classifier 'own_head': unknown; available: linear_sgd, "),
        ({"novel": np.zeros((12, 2))}, "novel_features: has 2 dimensions, must have 6"),
        ({"novel_labels": ["00"] * 12}, "class 00: is in both base_labels and novel_labels"),
        ({"base_labels": ["00"]}, "base_labels: has shape \\(1,\\), must be \\(160,\\)"),
        ({"novel_labels": np.arange(12)}, "novel_labels are int64: both must be integers or both strings"),
        ({"classifier": OwnHead("extractor")}, "is not a classifier"),
        (
            {"classifier": NearestMeanOptions()},
            "NearestMeanOptions.* is not a classifier. Use a name, an instance of SGDOptions, ",
        ),
        ({"classifier": LogisticOptions}, "is not a classifier"),
        ({"classifier": MLPOptions(lr=0)}, "MLPOptions: lr: 0: must be a number > 0"),
        ({"classifier": ImprintingOptions(extractor=Path("x"))}, "weights of an extractor need the classes of a split"),
        ({"novel_bias": float("nan")}, "novel_bias: nan: must be a finite number"),
        ({"novel_bias": "x"}, "novel_bias: 'x': must be a finite number"),
    ],
)
def test_refused_low_shot_rows(low_shot, change, message):
    names = ("base", "base_labels", "novel", "novel_labels")
    given = dict(zip(names, low_shot)) | change
    classifier = LowShotClassifier(
        given.get("classifier", "logistic_regression"), novel_bias=given.get("novel_bias", 0)
    )
    with pytest.raises(lowshot.InputError, match=message):
        classifier.fit(*(given[name] for name in names))
