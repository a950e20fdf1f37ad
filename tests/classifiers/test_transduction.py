"""Transductive few-shot methods: numbers of a small task that the published code gives, and gradients.

The numbers were computed in float64, by the public implementations where there are any, and by hand.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lowshot.classifiers.adaptive_transport import believed
from lowshot.classifiers.bd_cspn import rectified, shifted
from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.pt_map import balanced
from lowshot.classifiers.settings import (
    AdaptiveTransportOptions,
    AlphaTIMOptions,
    BDCSPNOptions,
    FeatureTransform,
    LaplacianShotOptions,
    NearestMeanOptions,
    PTMapOptions,
    TIMOptions,
)
from lowshot.classifiers.tasks import Tasks, class_means, squared_distances
from lowshot.classifiers.tim import _alpha, entropies_slope
from lowshot.classifiers.transform import fitted_transform

SUPPORT = [[4, 1, 0, 1], [3, 0, 1, 2], [0, 4, 1, 1], [1, 3, 2, 0], [1, 0, 4, 1], [0, 2, 3, 1]]
LABELS = torch.tensor([[0, 0, 1, 1, 2, 2]])
QUERIES = [[3, 1, 1, 1], [2, 2, 0, 1], [4, 0, 2, 1], [1, 4, 1, 2], [0, 3, 3, 1], [1, 1, 3, 0]]
BASE_MEAN = torch.tensor([[1, 1.5, 1, 0.5]])
CL2N, L2N = FeatureTransform(centre=True, normalise=True), FeatureTransform(normalise=True)


def small_task(transform):
    apply = fitted_transform(transform, BASE_MEAN)
    support, queries = (apply(torch.tensor(rows, dtype=torch.float32))[None] for rows in (SUPPORT, QUERIES))
    return Tasks(support, LABELS, queries, 3)


def check(found, expected, atol=1e-5):
    np.testing.assert_allclose(found.numpy().reshape(-1, np.shape(expected)[-1]), expected, rtol=0, atol=atol)


# ---------------------------------------------------------------- LaplacianShot and BD-CSPN

PUBLISHED = [
    [0.681003, -0.202760, -0.067901, 0.250746],
    [-0.190443, 0.855665, 0.213066, 0.131776],
    [-0.234623, -0.042577, 0.807455, 0.041769],
]
BOUNDED = [
    [0.807160, -0.202598, -0.131583, 0.272434],
    [-0.163303, 0.804698, 0.271888, 0.150308],
    [-0.140393, -0.157202, 0.893669, 0.040604],
]


def test_rectified_prototypes():
    tasks = small_task(CL2N)
    means = class_means(tasks.support_features, LABELS, 3)
    check(rectified(tasks, shifted(tasks.query_features, means), means, "published"), PUBLISHED)
    check(rectified(tasks, tasks.query_features, means, "bounded"), BOUNDED)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            LaplacianShotOptions(rectification="none"),
            [[0.925791, 0.028141, 0.046068], [0.780012, 0.184862, 0.035125], [0.791086, 0.035499, 0.173415],
             [0.139423, 0.712871, 0.147706], [0.025532, 0.506810, 0.467658], [0.117282, 0.154263, 0.728455]],
        ),
        (
            LaplacianShotOptions(rectification="published", shift=True),
            [[0.844189, 0.055697, 0.100114], [0.651216, 0.285546, 0.063238], [0.662255, 0.047669, 0.290076],
             [0.109665, 0.716927, 0.173408], [0.026519, 0.419062, 0.554419], [0.088191, 0.097219, 0.814590]],
        ),
        (
            LaplacianShotOptions(),
            [[0.914377, 0.035223, 0.050400], [0.773959, 0.198065, 0.027976], [0.763097, 0.042434, 0.194469],
             [0.154405, 0.750387, 0.095209], [0.033837, 0.560908, 0.405255], [0.118555, 0.147931, 0.733515]],
        ),
    ],
)  # fmt: skip
def test_laplacian_shot(options, expected):
    check(score_tasks(options, small_task(CL2N), 0).softmax(-1), expected)


def test_bd_cspn():
    distances = np.array(
        [[0.074464, 2.531540, 2.113237], [0.594715, 1.717084, 3.029235], [0.212102, 2.722640, 1.604050],
         [1.662077, 0.228144, 1.740628], [2.299426, 0.395458, 0.391270], [1.723018, 1.894914, 0.187657]]
    )  # fmt: skip
    check(score_tasks(BDCSPNOptions(), small_task(CL2N), 0), distances.min(1, keepdims=True) - distances)


def test_a_class_that_no_row_joins_keeps_its_prototype():
    tasks = Tasks(torch.tensor([[[1.0, 0], [1, 0.1]]]), torch.tensor([[0, 1]]), torch.tensor([[[2.0, 0], [3, 0]]]), 2)
    prototypes = torch.tensor([[[1.0, 0], [-5, -5]]])
    moved = rectified(tasks, tasks.query_features, prototypes, "published")
    assert torch.equal(moved[0, 1], prototypes[0, 1]) and not torch.equal(moved[0, 0], prototypes[0, 0])


@pytest.mark.parametrize("n_present", [1, 2])
def test_the_default_loses_nothing_if_classes_have_no_queries(n_present):
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 5, 1, 16, generator=random)
    rows = F.normalize(centres + 0.7 * torch.randn(40, 5, 11, 16, generator=random), dim=-1)
    tasks = Tasks(rows[:, :, 0], torch.arange(5).expand(40, 5), rows[:, :n_present, 1:].flatten(1, 2), 5)
    truth = torch.arange(n_present).repeat_interleave(10)
    plain, smooth, published = (
        (score_tasks(one, tasks, 0).argmax(-1) == truth).float().mean()
        for one in (
            LaplacianShotOptions(smoothing=0, rectification="none"),
            LaplacianShotOptions(),
            LaplacianShotOptions(rectification="published", shift=True),
        )
    )
    assert smooth >= plain > published + 0.05


# ---------------------------------------------------------------- PT-MAP


def test_pt_map():
    """In float32, rounding can move the round in which a task stops: the numbers then agree to 1e-4."""
    assignment = np.array(
        [[0.999036, 0, 0], [0.001968, 0.998044, 0], [0.998996, 0, 0.000040], [0, 1.000011, 0.000003],
         [0, 0.001944, 0.999006], [0, 0.000001, 1.000951]]
    )  # fmt: skip
    rows = [F.normalize((torch.tensor(one).double() + 1e-6).sqrt(), dim=-1)[None] for one in (SUPPORT, QUERIES)]
    exact, rounded = Tasks(rows[0], LABELS, rows[1], 3), small_task(FeatureTransform(power=0.5))
    for tasks, atol in ((exact, 1e-5), (rounded, 1e-4)):
        check(score_tasks(PTMapOptions(), tasks, 0).exp(), assignment / assignment.max(1, keepdims=True), atol)


def test_assignments_stop_as_published():
    """Rounds of the plan in plain numbers, for each task until its query sums change by at most 1e-6."""
    logits = torch.randn(8, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    found, _ = balanced(logits)
    for one, mine in zip(logits.exp(), found):
        plan, before = one / one.sum(), torch.zeros(7)
        while (plan.sum(0) - before).abs().max() > 1e-6:
            before = plan.sum(0)
            plan = plan / before
            plan = plan * (7 / 3) / plan.sum(1, keepdim=True)
        assert torch.allclose(plan, mine, atol=1e-12)


# ---------------------------------------------------------------- TIM and alpha-TIM


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            TIMOptions(n_steps=0),
            [[0.996505, 0.001661, 0.001835], [0.763786, 0.235045, 0.001169], [0.994611, 0.000136, 0.005253],
             [0.001677, 0.992516, 0.005807], [0.000049, 0.627253, 0.372699], [0.000531, 0.017308, 0.982161]],
        ),
        (
            TIMOptions(),
            [[0.994833, 0.003742, 0.001425], [0.183215, 0.814869, 0.001916], [0.998409, 0.000094, 0.001497],
             [0.000133, 0.990292, 0.009575], [0.000009, 0.246019, 0.753973], [0.000353, 0.005019, 0.994628]],
        ),
        (
            AlphaTIMOptions(alpha=2),
            [[0.999360, 0.000232, 0.000408], [0.959296, 0.040641, 0.000063], [0.996761, 0.000020, 0.003219],
             [0.007178, 0.991420, 0.001403], [0.000144, 0.769843, 0.230013], [0.000841, 0.010581, 0.988579]],
        ),
        (
            AlphaTIMOptions(alpha=7),
            [[0.999470, 0.000170, 0.000360], [0.965032, 0.034870, 0.000098], [0.998026, 0.000015, 0.001959],
             [0.008750, 0.987048, 0.004202], [0.000136, 0.514433, 0.485430], [0.000711, 0.005746, 0.993543]],
        ),
    ],
)  # fmt: skip
def test_tim(options, expected):
    check(score_tasks(options, small_task(L2N), 0).softmax(-1), expected)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 7.0])
def test_slopes_of_the_entropies_equal_autograds(alpha):
    options = TIMOptions(marginal_weight=0.7, conditional_weight=0.3)
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, generator=random, dtype=torch.float64, requires_grad=True)
    probabilities = logits.softmax(-1)

    def entropy(p):
        return -(p * p.log()).sum(-1) if alpha == 1 else (1 - (p**alpha).sum(-1)) / (alpha - 1)

    (0.3 * entropy(probabilities).mean(1) - 0.7 * entropy(probabilities.mean(1))).sum().backward()
    order = None if alpha == 1 else torch.full((2, 1, 1), alpha)
    assert torch.allclose(entropies_slope(logits.detach(), options, order), logits.grad, atol=1e-12)


def test_one_step_of_tim_goes_down_the_gradient():
    """Adam's first step is the rate times the sign. The signs are those of the published gradient at the start."""
    gradient = [[-0.028975, 0.069444, -0.013548, -0.007192], [-0.085280, -0.033069, 0.123477, -0.008000],
                [0.016207, -0.067317, 0.025133, 0.009123]]  # fmt: skip
    tasks = small_task(L2N)
    moved = class_means(tasks.support_features, LABELS, 3)[0] - 0.01 * torch.tensor(gradient).sign()
    distances = torch.cdist(tasks.query_features[0], moved).square()
    scores = score_tasks(TIMOptions(lr=0.01, n_steps=1), tasks, 0)[0]
    check(scores.diff(dim=-1), -7.5 * distances.diff(dim=-1), atol=1e-4)


def test_alpha_follows_the_shots_of_the_smallest_class():
    counts = torch.tensor([[1, 500], [2, 2], [4, 9], [5, 7], [20, 20]])
    assert _alpha(AlphaTIMOptions(), counts).flatten().tolist() == [2, 5, 5, 7, 7]
    assert _alpha(AlphaTIMOptions(alpha=3), counts).flatten().tolist() == [3] * 5
    assert _alpha(AlphaTIMOptions(alpha=1), counts) is None and _alpha(TIMOptions(), counts) is None


def test_tim_with_order_one_is_shannons():
    tasks = small_task(L2N)
    options = {"support_weight": 0.1, "conditional_weight": 0.1, "lr": 0.01, "n_steps": 50}
    assert torch.equal(
        score_tasks(AlphaTIMOptions(alpha=1, **options), tasks, 0), score_tasks(TIMOptions(**options), tasks, 0)
    )


def test_all_classes_have_the_same_weight_in_tim():
    """Copies of the shots of one class change nothing."""
    tasks = small_task(L2N)
    rows = [0, 1, 0, 1, 0, 1, 2, 3, 4, 5]
    copied = Tasks(tasks.support_features[:, rows], LABELS[:, rows], tasks.query_features, 3)
    options = TIMOptions(n_steps=50, lr=0.01)
    assert torch.allclose(score_tasks(options, copied, 0), score_tasks(options, tasks, 0), atol=1e-4)


def clustered(seed, n_queries, spread=0.35, n_shot=1):
    """Return a task of five classes around orthogonal unit vectors, with `n_queries` of each class, and the truth."""
    random = np.random.default_rng(seed)
    shot_labels, labels = np.arange(5).repeat(n_shot), np.arange(5).repeat(n_queries)
    classes = np.concatenate([shot_labels, labels])
    rows = np.eye(5, 32)[classes] + spread * random.normal(size=(len(classes), 32))
    rows = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
    task = Tasks(rows[None, : 5 * n_shot], torch.from_numpy(shot_labels)[None], rows[None, 5 * n_shot :], 5)
    return task, torch.from_numpy(labels)


def accuracy(method, n_queries):
    tasks = [clustered(seed, n_queries) for seed in range(20)]
    hits = [(score_tasks(method, task, 0)[0].argmax(-1) == labels).float().mean() for task, labels in tasks]
    return float(torch.stack(hits).mean())


@pytest.mark.parametrize("n_queries", [[15] * 5, [75, 0, 0, 0, 0], [40, 35, 0, 0, 0], [50, 10, 10, 5, 0]])
def test_adaptive_transport_gains_from_balance_and_does_not_need_it(n_queries):
    inductive, adaptive = accuracy(NearestMeanOptions(), n_queries), accuracy(AdaptiveTransportOptions(), n_queries)
    balanced = accuracy(AdaptiveTransportOptions(equality=1e9), n_queries)
    if len(set(n_queries)) == 1:
        assert adaptive - inductive > 0.8 * (balanced - inductive) > 0
    else:
        assert adaptive > inductive > balanced


def test_proportions_are_believed_by_their_evidence():
    sure, open_ = torch.tensor([1.0, 0.0]).expand(12, 2), torch.full((12, 2), 0.5)
    leaning = torch.tensor([0.75, 0.25]).expand(12, 2)
    found = believed(torch.tensor([0.9, 0.1]).expand(3, 2), torch.stack([sure, open_, leaning]), equality=2.0)
    # Numbers of 9 and 3 deviate by 3 from 6: 18 in all. Their variance is 2 * 12 * 3 / 16 = 4.5: weight 18 / (18 + 9).
    assert found.numpy() == pytest.approx(
        np.array([[0.9, 0.1], [0.5, 0.5], [0.5 + 0.4 * 2 / 3, 0.5 - 0.4 * 2 / 3]]), abs=1e-6
    )


def test_without_belief_in_equal_numbers_proportions_are_the_estimated_ones():
    task, _ = clustered(0, [30, 10, 5, 5, 0])
    probabilities = torch.softmax(-10 * squared_distances(task.query_features, task.support_features), -1)
    estimated = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]])
    assert torch.allclose(believed(estimated, probabilities, 0.0), estimated, atol=1e-6)
