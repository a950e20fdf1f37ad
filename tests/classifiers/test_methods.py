"""Few-shot methods on batched tasks: cases computed by hand, comparison with scikit-learn, symmetries, sizes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid, NearestNeighbors

from lowshot.classifiers import settings as module
from lowshot.classifiers.cosine import _batches, cross_entropy_gradient
from lowshot.classifiers.laplacian_shot import nearest_queries
from lowshot.classifiers.methods import _FITS, _SCORES, score_tasks
from lowshot.classifiers.pt_map import balanced
from lowshot.classifiers.settings import (
    BENCHMARK_CLASSIFIERS,
    CLASSIFIERS,
    INDUCTIVE_METHODS,
    METHODS,
    RECOMMENDED,
    AlphaTIMOptions,
    CosineOptions,
    FeatureTransform,
    LaplacianShotOptions,
    NearestMeanOptions,
    PTMapOptions,
    Recommended,
    TIMOptions,
    is_transductive,
)
from lowshot.classifiers.tasks import Tasks, class_means, squared_distances
from lowshot.classifiers.transform import fitted_transform
from lowshot.core.choices import Registry

INDUCTIVE = [name for name, method in METHODS.classes.items() if not is_transductive(method)]
TRANSDUCTIVE = [name for name, method in METHODS.classes.items() if is_transductive(method)]


def score(name, tasks, method=None, seed=0):
    return score_tasks(method or METHODS.classes[name](), tasks, seed)


def random_tasks(n_tasks=6, n_way=4, n_shot=2, n_queries=5, dim=8, noise=1.0, seed=0):
    """Tasks of Gaussian classes and the true classes (n_way * n_queries,) of the queries, class after class."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_tasks, n_way, 1, dim, generator=random)
    rows = centres + noise * torch.randn(n_tasks, n_way, n_shot + n_queries, dim, generator=random)
    labels = torch.arange(n_way).repeat_interleave(n_shot).repeat(n_tasks, 1)
    tasks = Tasks(rows[:, :, :n_shot].flatten(1, 2), labels, rows[:, :, n_shot:].flatten(1, 2), n_way)
    return tasks, torch.arange(n_way).repeat_interleave(n_queries)


def one_task(support, labels, queries):
    as_rows = [torch.tensor(rows, dtype=torch.float32).view(1, len(rows), -1) for rows in (support, queries)]
    return Tasks(as_rows[0], torch.tensor([labels]), as_rows[1], max(labels) + 1)


# ---------------------------------------------------------------- computed by hand


def test_nearest_mean_by_hand():
    tasks = one_task([[0.0, 0], [0, 2], [4, 0]], [0, 0, 1], [[1, 0], [3, 0]])  # means (0, 1) and (4, 0)
    scores = score("nearest_mean", tasks)
    assert scores.tolist() == [[[0, -7], [-9, 0]]]  # squared distances 2, 9 and 10, 1
    cosines = score("nearest_mean", tasks, NearestMeanOptions("cosine"))
    assert cosines.tolist() == [[[-1, 0], [-1, 0]]]


def test_logistic_regression_of_two_classes_by_hand():
    """Rows -1 and 1 with C = 1: the weight w solves w = 2 sigmoid(-w), and the bias is 0."""
    tasks = one_task([-1.0, 1.0], [0, 1], [2.0, -2.0])
    w = 2 * math.log(3)
    for _ in range(100):
        w = 2 / (1 + math.exp(w)) * 0.5 + w * 0.5
    gaps = score("logistic_regression", tasks)[0].diff(dim=-1).flatten()
    assert gaps.tolist() == pytest.approx([2 * w, -2 * w], abs=1e-3)


def test_cosine_without_steps_is_the_scaled_cosine_with_the_means_of_unit_rows():
    tasks = one_task([[3.0, 0], [0, 1], [0, -5]], [0, 0, 1], [[7, 7], [0, -2]])  # directions (1, 1)/sqrt 2 and (0, -1)
    scores = score("cosine", tasks, CosineOptions(scale=2.0, n_steps=0))
    half = 2**-0.5
    assert torch.allclose(scores, torch.tensor([[[2, -2 * half], [-2 * half, 2]]]), atol=1e-6)


def test_cosine_takes_one_step_down_the_gradient():
    tasks = one_task([[1.0, 0], [0, 1]], [0, 1], [[1, 0]])
    # The cross-entropy pulls each weight by scale * share * probability of the other class, away from the other row.
    probability, lr, scale = 1 / (1 + math.e**3), 0.5, 3.0
    pull = lr * scale * 0.5 * probability
    weights = torch.tensor([[1, -pull], [-pull, 1]])
    expected = scale * torch.nn.functional.normalize(weights, dim=1)[:, 0]
    scores = score("cosine", tasks, CosineOptions(scale=scale, lr=lr, n_steps=1))
    assert torch.allclose(scores[0, 0], expected, atol=1e-6)


def test_refinement_by_hand():
    """Prototypes 0 and 2, queries at 0 and 1: their shares of the first class are 1 / (1 + e^-4) and 1/2."""
    tasks = one_task([0.0, 2.0], [0, 1], [0.0, 1.0])
    near = 1 / (1 + math.exp(-4))
    first = (0 * 1 + near * 0 + 0.5 * 1) / (1 + near + 0.5)
    second = (2 * 1 + (1 - near) * 0 + 0.5 * 1) / (1 + (1 - near) + 0.5)
    gaps = [(q - first) ** 2 - (q - second) ** 2 for q in (0, 1)]  # score of the second class minus score of the first
    assert score("prototype_refinement", tasks)[0].diff(dim=-1).flatten().tolist() == pytest.approx(gaps, abs=1e-5)


def test_laplacian_shot_by_hand():
    """Two queries that are neighbours of each other; one update of the assignments softmax(-distances)."""
    tasks = one_task([0.0, 2.0], [0, 1], [0.0, 1.5])
    options = LaplacianShotOptions(smoothing=0.5, n_neighbours=1, rectification="none", n_steps=1)
    first = [1 / (1 + math.exp(-4)), 1 / (1 + math.exp(2.25 - 0.25))]  # shares of the first class
    gaps = [0.5 * (1 - 2 * first[1]) - 4, 0.5 * (1 - 2 * first[0]) + 2]
    assert score("laplacian_shot", tasks, options)[0].diff(dim=-1).flatten().tolist() == pytest.approx(gaps, abs=1e-5)


def test_a_shift_undoes_one_of_all_queries():
    tasks, truth = random_tasks(noise=0.2)
    moved = Tasks(tasks.support_features, tasks.support_labels, tasks.query_features + 3, tasks.n_way)
    plain, there = (score("laplacian_shot", t, LaplacianShotOptions(shift=True)) for t in (tasks, moved))
    assert torch.allclose(plain, there, atol=1e-3)
    assert (there.argmax(-1) == truth).float().mean() > 0.95
    unshifted = score("laplacian_shot", moved, LaplacianShotOptions(rectification="none"))
    assert (unshifted.argmax(-1) == truth).float().mean() < 0.8


def test_rectified_prototypes_by_hand():
    """One shot per class, at right angles. Each query joins the class of highest cosine, with its softmax as weight."""
    tasks = one_task([[1.0, 0], [0, 1]], [0, 1], [[0.8, 0.6]])
    own, weight = (1 / (1 + math.exp(10 * (other - one))) for one, other in ((1, 0), (0.8, 0.6)))
    prototypes = {
        "bounded": [(own * np.array([1, 0]) + weight * np.array([0.8, 0.6])) / (own + weight), np.array([0, 1])],
        "published": [(own * np.array([1, 0]) + weight * np.array([0.8, 0.6])) / 2, own * np.array([0, 1])],
    }
    for form, expected in prototypes.items():
        gap = np.subtract(*[((np.array([0.8, 0.6]) - one) ** 2).sum() for one in expected])
        scores = score("laplacian_shot", tasks, LaplacianShotOptions(smoothing=0, rectification=form))
        assert scores[0].diff(dim=-1).flatten().tolist() == pytest.approx([gap], abs=1e-5)


def test_pt_map_by_hand():
    """Mirror-symmetric task: the assignment is a softmax, and the centres move to the mirror-symmetric estimates."""
    tasks = one_task([-1.0, 1.0], [0, 1], [-2.0, 2.0])
    options = PTMapOptions(scale=0.1, rate=0.5, n_steps=1)
    share = 1 / (1 + math.exp(-0.4))  # share of a query in its class: at unit length the distances are 0 and 4
    estimate = (1 + share - (1 - share)) / 2  # one shot, and queries of total mass 1
    centre = 0.5 * 1 + 0.5 * estimate
    gap = 0.1 * ((1 + centre) ** 2 - (1 - centre) ** 2)
    scores = score("pt_map", tasks, options)
    assert scores[0].diff(dim=-1).flatten().tolist() == pytest.approx([-gap, gap], abs=1e-4)


def test_a_balanced_assignment_gives_every_class_the_same_mass_of_queries():
    logits = 3 * torch.randn(5, 4, 30, generator=torch.Generator().manual_seed(0))
    assignment, offsets = balanced(logits)
    assert torch.allclose(assignment.sum(-1), torch.full((5, 4), 7.5))
    assert torch.allclose(assignment.sum(1), torch.ones(5, 30), atol=1e-4)
    assert torch.allclose(assignment / assignment.sum(1, keepdim=True), torch.softmax(logits + offsets, 1), atol=1e-5)
    assert torch.equal(balanced(logits[3:4])[0], assignment[3:4])  # the other tasks stop sooner or later


# ---------------------------------------------------------------- comparison with scikit-learn


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_nearest_mean_equals_scikit_learns_to_the_last_query(offset):
    tasks, _ = random_tasks(n_tasks=150, n_way=5, n_shot=3, n_queries=15, dim=32, noise=2.0)
    support, queries = tasks.support_features + offset, tasks.query_features + offset
    found = score("nearest_mean", Tasks(support, tasks.support_labels, queries, 5)).argmax(-1)
    for s, labels, q, mine in zip(support.double(), tasks.support_labels, queries.double(), found):
        assert np.array_equal(NearestCentroid().fit(s, labels).predict(q), mine)


def test_nearest_mean_tells_apart_what_float32_cannot():
    """Distances of two classes differ by less than float32 resolves: there is no tie, the nearer class wins."""
    tasks = one_task([1 - 2**-24, -1.0], [0, 1], [0.0])
    scores = score("nearest_mean", tasks)[0, 0]
    assert scores[0] == 0 and -1e-6 < scores[1] < 0


@pytest.mark.parametrize("n_way", [2, 5])
def test_logistic_regression_equals_scikit_learns_to_the_last_query(n_way):
    tasks, _ = random_tasks(n_tasks=8, n_way=n_way, n_shot=2, n_queries=15, dim=16, noise=2.0)
    found = score("logistic_regression", tasks)
    for e in range(8):
        solver = LogisticRegression(max_iter=1000)
        solver.fit(tasks.support_features[e].double().numpy(), tasks.support_labels[e].numpy())
        queries = tasks.query_features[e].double().numpy()
        assert np.array_equal(solver.predict(queries), found[e].argmax(-1))
        assert np.allclose(solver.predict_proba(queries), torch.softmax(found[e], -1), atol=1e-6)


def test_logistic_regression_names_small_classes_too():
    """Ten classes on the unit sphere, of which five have 4 shots and five have 30."""
    random = np.random.default_rng(0)
    counts = [4] * 5 + [30] * 5
    centres = random.normal(size=(10, 64))

    def drawn(labels):
        rows = centres[labels] + 2 * random.normal(size=(len(labels), 64))
        return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()[None]

    labels, true = np.repeat(np.arange(10), counts), np.repeat(np.arange(10), 40)
    tasks = Tasks(drawn(labels), torch.from_numpy(labels)[None], drawn(true), 10)
    found = score("logistic_regression", tasks)[0]
    hits = (found.argmax(-1).numpy() == true).reshape(10, 40).mean(1)
    assert hits[:5].mean() > 0.65 and hits[5:].mean() > 0.65
    solver = LogisticRegression(class_weight="balanced", max_iter=1000)
    solver.fit(tasks.support_features[0].double().numpy(), labels)
    expected = solver.predict_proba(tasks.query_features[0].double().numpy())
    assert np.allclose(expected, torch.softmax(found, -1), atol=1e-6)


def test_nearest_queries_equal_scikit_learns(monkeypatch):
    monkeypatch.setattr("lowshot.classifiers.laplacian_shot._BLOCK_DISTANCES", 200)  # 3 rows of 3 tasks per block
    queries = random_tasks(n_tasks=3, n_queries=5)[0].query_features
    found = nearest_queries(queries, 4)
    for rows, mine in zip(queries, found):
        expected = NearestNeighbors(n_neighbors=4).fit(rows).kneighbors(return_distance=False)
        assert np.array_equal(np.sort(expected), mine.sort().values)


def test_cosine_gradient_equals_autograds():
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 3, 4, generator=random, dtype=torch.float64, requires_grad=True)
    rows = torch.nn.functional.normalize(torch.randn(2, 7, 4, generator=random, dtype=torch.float64), dim=-1)
    labels = torch.randint(3, (2, 7), generator=random)
    shares = torch.rand(2, 7, 1, generator=random, dtype=torch.float64)
    logits = 5 * rows @ torch.nn.functional.normalize(weights, dim=-1).mT
    loss = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
    (loss * shares[..., 0]).sum().backward()
    mine = cross_entropy_gradient(weights.detach(), rows, labels, shares, 5.0)
    assert torch.allclose(mine, weights.grad, atol=1e-12)


@given(st.integers(1, 4), st.floats(-1e4, 1e4))
@settings(max_examples=20, deadline=None)
def test_squared_distances_far_from_the_origin(dim, offset):
    random = torch.Generator().manual_seed(dim)
    rows, centres = (torch.randn(2, n, dim, generator=random).double() for n in (5, 3))
    expected = (rows[:, :, None] - centres[:, None]).square().sum(-1)
    assert torch.allclose(squared_distances(rows + offset, centres + offset), expected, atol=1e-9)


# ---------------------------------------------------------------- symmetries

# Rounding can move the round in which balancing stops.
ROUNDED = {"pt_map": 0.05, "adaptive_transport": 0.2}


@pytest.mark.parametrize("name", METHODS.classes)
def test_a_task_does_not_depend_on_those_beside_it(name, monkeypatch):
    monkeypatch.setattr("lowshot.classifiers.tasks._BLOCK_ELEMENTS", 500)  # two tasks per block
    tasks, _ = random_tasks()
    together = score(name, tasks)
    assert together.dtype == torch.float32 and together.shape == (6, 20, 4)
    alone = torch.cat([score(name, tasks[i : i + 1]) for i in range(6)])
    order, atol = torch.tensor([3, 0, 5, 1, 4, 2]), ROUNDED.get(name, 1e-4)
    assert torch.allclose(together, alone, atol=atol)
    assert torch.allclose(score(name, tasks[order]), together[order], atol=atol)


@pytest.mark.parametrize("name", METHODS.classes)
def test_rows_classes_and_queries_may_come_in_any_order(name):
    tasks, _ = random_tasks()
    rows, classes, queries = (torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (8, 4, 20))
    shuffled = Tasks(
        tasks.support_features[:, rows], classes[tasks.support_labels[:, rows]], tasks.query_features[:, queries], 4
    )
    expected = score(name, tasks)[:, queries]
    assert torch.allclose(score(name, shuffled)[:, :, classes], expected, atol=ROUNDED.get(name, 1e-3))


@pytest.mark.parametrize("name", METHODS.classes)
def test_transductive_is_who_looks_at_the_other_queries(name):
    tasks, _ = random_tasks()
    half = Tasks(tasks.support_features, tasks.support_labels, tasks.query_features[:, :10], 4)
    same = torch.allclose(score(name, half), score(name, tasks)[:, :10], atol=1e-4)
    assert same != is_transductive(METHODS.classes[name])


@pytest.mark.parametrize("name", METHODS.classes)
def test_one_query_and_uneven_shots(name):
    tasks = one_task([[0.0, 9], [2, 9], [1, 8], [9, 0]], [0, 0, 0, 1], [[8, 1]])
    scores = score(name, tasks)
    assert scores.isfinite().all()
    assert scores.argmax() == 1 or name == "pt_map"  # PT-MAP gives half of the query to each class


@pytest.mark.parametrize("name", METHODS.classes)
def test_scores_are_finite_for_features_of_any_size(name):
    tasks, _ = random_tasks()
    for factor in (1e-4, 1e4):
        large = Tasks(factor * tasks.support_features, tasks.support_labels, factor * tasks.query_features, 4)
        assert score(name, large).isfinite().all()


@pytest.mark.parametrize("name", METHODS.classes)
def test_inputs_are_left_alone(name):
    tasks, _ = random_tasks()
    before = tasks.support_features.clone(), tasks.query_features.clone()
    score(name, tasks)
    assert torch.equal(tasks.support_features, before[0]) and torch.equal(tasks.query_features, before[1])


# ---------------------------------------------------------------- accuracy


@pytest.mark.parametrize("name", TRANSDUCTIVE)
def test_transductive_methods_find_the_clusters_that_misleading_shots_miss(name):
    """Two tight clusters of queries and one shot per class. The second shot is far to the right of its cluster."""
    queries = torch.randn(1, 40, 2, generator=torch.Generator().manual_seed(0)) * 0.2
    queries[:, :20, 0] -= 1
    queries[:, 20:, 0] += 1
    support = torch.tensor([[[-1.0, 0], [2.8, 0]]])  # the border of nearest mean, 0.9, cuts the second cluster
    tasks, truth = Tasks(support, torch.tensor([[0, 1]]), queries, 2), torch.arange(2).repeat_interleave(20)
    # The published scale and rate are for unit-length features.
    faster = {"tim": TIMOptions(scale=3, lr=0.01), "alpha_tim": AlphaTIMOptions(scale=3, lr=0.01)}
    accuracy = {
        method: (score(method, tasks, faster.get(method))[0].argmax(-1) == truth).float().mean()
        for method in (name, "nearest_mean")
    }
    assert accuracy["nearest_mean"] < 0.9 and accuracy[name] > accuracy["nearest_mean"] + 0.1


@pytest.mark.parametrize("name", METHODS.classes)
def test_methods_learn(name):
    tasks, truth = random_tasks(n_tasks=40, n_way=5, n_shot=5, n_queries=8, dim=16, noise=0.8, seed=1)
    assert (score(name, tasks).argmax(-1) == truth).float().mean() > 0.9


def test_cosine_learns_what_the_means_miss():
    """A class with 9 rows in one direction and 1 in another: trained weights fit both, the mean only the first."""
    support = [[1.0, 0.1]] * 9 + [[0.55, 1.0]] + [[0.0, 1.0]] * 10
    tasks = one_task(support, [0] * 10 + [1] * 10, [[0.55, 1.0]])
    assert score("cosine", tasks, CosineOptions(n_steps=0)).argmax() == 1
    assert score("cosine", tasks, CosineOptions(lr=0.3, n_steps=300)).argmax() == 0


def test_cosine_draws_classes_evenly_from_a_large_support():
    labels = torch.stack([torch.tensor([0] * 90 + [1] * 10), torch.tensor([1, 0] * 50)])
    rows = torch.arange(200.0).view(2, 100, 1)  # the value of a row is its number
    batch = _batches(rows, labels, 2, 80, seed=0)
    drawn, classes, shares = (torch.cat(parts, 1) for parts in zip(*(batch(step) for step in range(50))))
    assert torch.equal(labels.flatten()[drawn[..., 0].long()], classes)
    assert (classes.float().mean(1) - 0.5).abs().max() < 0.03  # 4000 draws: 3.8 standard deviations
    assert len(drawn.unique()) == 200 and torch.allclose(shares.sum(1), torch.tensor(50.0))


def test_cosine_with_batches_hangs_on_the_seed_alone():
    tasks, _ = random_tasks(n_shot=5)
    options = CosineOptions(n_steps=10, lr=0.1, batch_size=8)
    first, again, other = (score("cosine", tasks, options, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.allclose(score("cosine", tasks[3:], options, 0), first[3:], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS.classes if name != "logistic_regression"])
def test_many_classes_rows_and_queries_in_one_task(name):
    """The low-shot benchmark in small."""
    n_way, n_queries, dim = 100, 1500, 16
    random = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(n_way, dim, generator=random)
    labels = torch.arange(n_way).repeat(30)
    truth = torch.randint(n_way, (n_queries,), generator=random)
    support, queries = (centres[y] + torch.randn(len(y), dim, generator=random) for y in (labels, truth))
    scores = score(name, Tasks(support[None], labels[None], queries[None], n_way))
    assert (scores[0].argmax(-1) == truth).float().mean() > 0.9


# ---------------------------------------------------------------- transforms


def test_transform_by_hand():
    base = np.array([[1, 4], [3, 0]], np.float32)  # mean (2, 2)
    apply = fitted_transform(FeatureTransform(centre=True, normalise=True), base)
    assert np.allclose(apply(np.array([[5, 6], [2, 1]], np.float32)), [[0.6, 0.8], [0, -1]])
    power = fitted_transform(FeatureTransform(power=0.5), base)
    assert np.allclose(power(np.array([[9, 16]], np.float32)), [[0.6, 0.8]], atol=1e-5)
    assert np.array_equal(fitted_transform(FeatureTransform(), base)(base), base)


def test_transform_centres_after_the_power():
    base = torch.tensor([[1.0, 0], [0, 1]])
    apply = fitted_transform(FeatureTransform(power=0.5, centre=True), base)
    assert torch.allclose(apply(base), torch.tensor([[0.5, -0.5], [-0.5, 0.5]]), atol=2e-3)


def test_transform_keeps_kind_type_and_shape():
    base = np.random.default_rng(0).random((10, 3), np.float32)
    apply = fitted_transform(FeatureTransform(power=0.5, centre=True, normalise=True), base)
    made = apply(base)
    assert isinstance(made, np.ndarray) and made.dtype == np.float32 and np.allclose(np.linalg.norm(made, axis=1), 1)
    assert torch.allclose(apply(torch.from_numpy(base).view(2, 5, 3)), torch.from_numpy(made).view(2, 5, 3), atol=1e-6)
    assert np.isfinite(apply(np.zeros((1, 3), np.float32))).all()


def test_a_power_keeps_the_sign():
    powered = fitted_transform(FeatureTransform(power=0.5), torch.zeros(0, 2))(torch.tensor([[9.0, -16.0]]))
    assert torch.allclose(powered, torch.tensor([[0.6, -0.8]]), atol=1e-5)


def test_simple_shot_ignores_what_it_removes():
    """After centring and normalisation, shifted and scaled features give the same tasks (SimpleShot, section 3)."""
    tasks, _ = random_tasks()
    base = torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    plain = fitted_transform(FeatureTransform(centre=True, normalise=True), base)
    moved = fitted_transform(FeatureTransform(centre=True, normalise=True), base * 3 + 7)
    scores = [
        score("nearest_mean", Tasks(f(tasks.support_features * a + b), tasks.support_labels,
                                    f(tasks.query_features * a + b), 4))
        for f, a, b in ((plain, 1, 0), (moved, 3, 7))
    ]  # fmt: skip
    assert torch.allclose(*scores, atol=1e-4)


# ---------------------------------------------------------------- available methods


def test_every_choice_has_work_and_every_work_is_a_choice():
    assert set(_FITS) == set(CLASSIFIERS.classes.values()) and set(_SCORES) == set(METHODS.classes.values())
    defined = {one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__}
    choices = [one for one in vars(module).values() if isinstance(one, Registry)]
    registered = {one for choice in choices for one in choice.classes.values()}
    assert defined - {FeatureTransform, Recommended} == registered and len(choices) == 4
    assert all(callable(one) for one in [*_FITS.values(), *_SCORES.values()])


def test_methods_by_name():
    assert INDUCTIVE == list(INDUCTIVE_METHODS.classes) == ["nearest_mean", "logistic_regression", "cosine"]
    assert [
        *("laplacian_shot", "prototype_refinement", "pt_map"),
        *("bd_cspn", "tim", "alpha_tim", "adaptive_transport"),
    ] == TRANSDUCTIVE
    assert list(CLASSIFIERS.classes) == [
        *("linear_sgd", "balanced_sgd", "logistic_regression", "mlp"),
        *("logit_adjusted", "imprinting", "attention", "own_head"),
    ]
    assert {name: type(one.method) for name, one in RECOMMENDED.items()} == METHODS.classes
    both = BENCHMARK_CLASSIFIERS.classes
    assert both == {
        **METHODS.classes,
        **CLASSIFIERS.classes,
    }  # logistic_regression: the benchmark's
    assert len(both) == len(METHODS.classes) + len(CLASSIFIERS.classes) - 1


def test_class_means_of_uneven_classes():
    features = torch.tensor([[[1.0], [3], [8]], [[5], [1], [2]]])
    assert class_means(features, torch.tensor([[0, 0, 1], [1, 0, 1]]), 2).tolist() == [[[2], [8]], [[1], [3.5]]]
