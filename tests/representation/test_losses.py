"""Losses: published values, and gradients by autograd."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lowshot.representation.losses import batchsgm, l2, loss_of, sgm, topk_correct
from lowshot.representation.settings import L2, SGM, BatchSGM, Plain

FEATURES = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
SCORES = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 0.0]])
LABELS = torch.tensor([0, 2])


def test_published_fixture():
    assert F.cross_entropy(SCORES, LABELS).item() == pytest.approx(0.932813, abs=1e-6)
    assert l2(SCORES, FEATURES, LABELS).item() == pytest.approx(3.5, abs=1e-6)
    assert sgm(SCORES, FEATURES, LABELS).item() == pytest.approx(4.424246, abs=1e-5)
    assert batchsgm(SCORES, FEATURES, LABELS).item() == pytest.approx(1.901260, abs=1e-5)


@pytest.mark.parametrize(
    ("choice", "term"), [(Plain(), 0), (L2(0.5), 3.5), (SGM(0.5), 4.424246), (BatchSGM(0.5), 1.90126)]
)
def test_total_adds_the_weighted_term(choice, term):
    total = loss_of(choice)(SCORES, FEATURES, LABELS, None).item()
    assert total == pytest.approx(0.932813 + 0.5 * term, abs=1e-5)


def test_weight_zero_is_plain_even_where_features_overflow():
    huge = torch.full((2, 2), 1e30)
    assert torch.isfinite(loss_of(L2(0))(SCORES, huge, LABELS, None))


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_terms_are_gradient_norms_and_obey_jensen(seed):
    """sgm is the mean of the squared per-example gradient norms, batchsgm the squared norm of the mean gradient."""
    g = torch.Generator().manual_seed(seed)
    features = torch.rand(5, 4, generator=g, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(3, (5,), generator=g)
    scores = features @ weight.T
    mean = torch.autograd.grad(F.cross_entropy(scores, labels), weight, retain_graph=True)[0]
    each = [
        torch.autograd.grad(F.cross_entropy(scores[i : i + 1], labels[i : i + 1]), weight, retain_graph=True)[0]
        for i in range(5)
    ]
    per_example = sgm(scores, features, labels)
    assert per_example.item() == pytest.approx(sum(e.square().sum().item() for e in each) / 5)
    assert batchsgm(scores, features, labels).item() == pytest.approx(mean.square().sum().item())
    assert per_example >= batchsgm(scores, features, labels) - 1e-12


def test_topk_correct_counts():
    assert topk_correct(SCORES, LABELS, 1).item() == 1
    assert topk_correct(SCORES, LABELS, 5).item() == 2
