"""Classifiers of base and novel classes: logit adjustment, weight imprinting, the attention-based generator."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_classifiers import N_BASE, N_CLASSES, N_NOVEL, make_problem, weights_of

from lowshot.classifiers.attention import WeightGenerator, _base_trained, _BaseRows, _generator_trained, fit_attention
from lowshot.classifiers.imprinting import fit_imprinting
from lowshot.classifiers.logit_adjusted import fit_logit_adjusted, log_shares
from lowshot.classifiers.methods import fit_classifier
from lowshot.classifiers.problem import Problem, Run
from lowshot.classifiers.settings import (
    AttentionOptions,
    ImprintingOptions,
    LogitAdjustedOptions,
)
from lowshot.core.errors import Diverged, InputError
from lowshot.representation.backbones import CosineHead, Head

SMALL = {
    "logit_adjusted": LogitAdjustedOptions(weight_decay=1e-3),
    "imprinting": ImprintingOptions(n_steps=20),
    "imprinting, means": ImprintingOptions(n_steps=0),
    "attention": AttentionOptions(n_steps=100, batch_size=32, dropout=0.0),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_run_does_not_depend_on_the_others(name):
    problem = make_problem([(1, 1), (1, 5), (2, 1), (3, 5)])
    queries = torch.rand(9, problem.dim)
    together = fit_classifier(SMALL[name], problem, 0, "cpu")(queries)
    assert together.shape == (4, 9, N_CLASSES)
    for i, run in enumerate(problem.runs):
        alone = fit_classifier(SMALL[name], replace(problem, runs=[run]), 0, "cpu")(queries)[0]
        torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[0], together[2])


@pytest.mark.parametrize("name", SMALL)
def test_they_learn_and_leave_out_other_classes(name):
    problem = make_problem([(1, 5)], rows_per_base=60)
    test = make_problem([(9, 40)], rows_per_base=1).runs[0]
    scorer = fit_classifier(SMALL[name], problem, 0, "cpu")
    feats, labels = np.concatenate([problem.base_feats, test.feats]), np.concatenate([problem.base_labels, test.labels])
    scores = scorer(torch.from_numpy(feats))[0]
    assert (scores[:, N_BASE + N_NOVEL :] == -torch.inf).all() and scores[:, : N_BASE + N_NOVEL].isfinite().all()
    assert (scores.argmax(1).numpy() == labels).mean() > 0.4  # chance is 0.2, and classes overlap
    head = scorer.head(0)
    torch.testing.assert_close(head(torch.from_numpy(feats)), scores, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- logit adjustment

# The fixture of the specification, 5.4: scores of 5.6 as logits.
SCORES = np.hstack(
    [
        [[3, 1, 0], [2, 1, 0], [0, 2, 1], [1, 3, 0], [2, 0, 1], [0, 1, 2], [0, 0, 3], [1, 2, 1]],
        [[1, 0], [2.5, 0], [1, 0], [0, 2.2], [2.4, 1], [1.5, 0], [0, 1], [3, 1.5]],
    ]
)
SHARES = log_shares(np.repeat(np.arange(5), [100, 100, 100, 2, 2]))


def test_adjusted_logits_of_the_specification():
    adjusted = SCORES - SHARES
    assert adjusted[0] == pytest.approx([4.111858, 2.111858, 1.111858, 6.023881, 5.023881], abs=1e-6)
    assert adjusted.argmax(1).tolist() == [3, 3, 3, 4, 3, 3, 4, 3]
    losses = F.cross_entropy(
        torch.from_numpy(SCORES + SHARES), torch.tensor([0, 0, 1, 1, 3, 3, 4, 4]), reduction="none"
    )
    expected = [0.172965, 0.431065, 0.414279, 0.178234, 3.944071, 4.829451, 6.010307, 5.001062]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6) and losses.mean() == pytest.approx(2.622679258)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.7])
def test_the_optimum_is_that_of_the_loss_with_adjusted_logits(tau):
    """At the optimum, the gradient of that loss is zero. With tau 1 it is the balanced softmax."""
    problem, decay = make_problem([(1, 2)]), 1e-3
    options = LogitAdjustedOptions(tau=tau, weight_decay=decay, tolerance=1e-8)
    found = torch.from_numpy(weights_of(fit_logit_adjusted(problem, options, 0, "cpu"))[0, : N_BASE + N_NOVEL]).double()
    weights, biases = (one.requires_grad_() for one in (found[:, :-1].clone(), found[:, -1].clone()))
    run = problem.runs[0]
    feats = torch.from_numpy(np.concatenate([problem.base_feats, run.feats])).double()
    labels = torch.from_numpy(np.concatenate([problem.base_labels, run.labels]))
    counts = labels.bincount().double()
    loss = F.cross_entropy(feats @ weights.T + biases + tau * counts.log(), labels)
    (loss + decay / 2 * weights.square().sum()).backward()
    assert weights.grad.abs().max() < 1e-5 and biases.grad.abs().max() < 1e-5


def test_adjustment_finds_the_classes_that_are_rare():
    problem = make_problem([(1, 2)], rows_per_base=200)
    test = torch.from_numpy(make_problem([(9, 40)]).runs[0].feats)
    n_novel = [
        (fit_logit_adjusted(problem, LogitAdjustedOptions(tau, 1e-3), 0, "cpu")(test)[0].argmax(1) >= N_BASE).sum()
        for tau in (0, 1, 2)
    ]
    assert n_novel[0] < n_novel[1] < n_novel[2]


def test_one_base_and_one_novel_class():
    rows = np.array([[0.0], [1], [4]], np.float32)
    problem = Problem(rows[:2], np.zeros(2, np.int64), [Run(1, 1, rows[2:], np.array([1]))], 1, 1, 2)
    scores = fit_logit_adjusted(problem, LogitAdjustedOptions(), 0, "cpu")(torch.from_numpy(rows))[0]
    assert scores.argmax(1).tolist() == [0, 0, 1]


# ---------------------------------------------------------------- imprinting


def two_classes(*novel):
    """The fixture of the specification, 5.1: the first class is base, the second novel, with further rows `novel`."""
    base = np.array([[3, 4, 0], [0, 0, 5]], np.float32)
    run = Run(1, 2, np.array([[1, 2, 2], [2, 0, 0], *novel], np.float32), np.full(2 + len(novel), 1))
    return Problem(base, np.zeros(2, np.int64), [run], 1, 1, 2)


def test_imprinting_by_the_specification():
    options = ImprintingOptions(scale=1.0, n_steps=0)
    scorer = fit_imprinting(two_classes(), options, 0, "cpu")
    expected = torch.tensor([[0.424264, 0.565685, 0.707107], [0.816497, 0.408248, 0.408248]])
    torch.testing.assert_close(scorer.head(0).layers[0][0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scorer(torch.ones(1, 3))[0], torch.tensor([[0.979796, 0.942809]]), atol=1e-5, rtol=0)
    more = fit_imprinting(two_classes([0, 3, 0]), options, 0, "cpu").head(0).layers[0][0][1]
    torch.testing.assert_close(more, F.normalize(torch.tensor([4 / 3, 5 / 3, 2 / 3]), dim=0))


def test_weights_of_a_cosine_head(monkeypatch):
    problem, head = make_problem([(1, 5)]), CosineHead(6, N_CLASSES)
    monkeypatch.setattr("lowshot.classifiers.own_head.load_head", lambda folder: Head(head, 6, N_CLASSES))
    queries = torch.rand(9, 6)
    options = ImprintingOptions(extractor="folder")
    scores = fit_imprinting(problem, options, 0, "cpu")(queries)[0]
    torch.testing.assert_close(scores[:, :N_BASE], head(queries)[:, :N_BASE].detach())
    for c in range(N_BASE, N_BASE + N_NOVEL):
        shots = F.normalize(torch.from_numpy(problem.runs[0].feats[problem.runs[0].labels == c]), dim=1)
        torch.testing.assert_close(scores[:, c], 20 * F.cosine_similarity(queries, shots.mean(0, keepdim=True)))
    linear = torch.nn.Linear(6, N_CLASSES, bias=False)
    monkeypatch.setattr("lowshot.classifiers.own_head.load_head", lambda folder: Head(linear, 6, N_CLASSES))
    with pytest.raises(InputError, match="folder: has no cosine head"):
        fit_imprinting(problem, options, 0, "cpu")
    monkeypatch.setattr("lowshot.classifiers.own_head.load_head", lambda folder: Head(head, 6, 3))
    with pytest.raises(InputError, match="the head has 3 classes and 6 dimensions, but the data has 7 classes"):
        fit_imprinting(problem, options, 0, "cpu")


# ---------------------------------------------------------------- the generator of weights


def generator_of_the_specification():
    model = WeightGenerator(3, 4, 10.0, 10.0, torch.Generator())
    values = {
        "base": [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 1]],
        "keys": [[1, 0.5, 0, 0], [0, 1, 0, 0.5], [0, 0.5, 1, 1]],
        "query": [[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        "query_bias": np.zeros(4),
        "average": [1, 1, 1, 0.5],
        "attended": [0.5, 0.5, 0.5, 1],
    }
    state = {name: torch.tensor(np.array(one), dtype=torch.float32) for name, one in values.items()}
    model.load_state_dict({**model.state_dict(), **state})
    return model


@torch.no_grad()
def test_the_generator_by_the_specification():
    model, nobody = generator_of_the_specification(), torch.zeros(1, 3, dtype=torch.bool)
    shots = torch.tensor([[[4.0, 1, 0, 1], [0, 2, 3, 1]]])
    attention = model.attention(F.normalize(shots, dim=-1), nobody)[0]
    expected = torch.tensor([[0.997572, 0.001669, 0.000759], [0.002275, 0.050653, 0.947073]])
    torch.testing.assert_close(attention, expected, atol=1e-5, rtol=0)
    weights = model.novel_weights(shots, torch.tensor([[0, 1]]), 2, nobody)
    expected = torch.tensor([[1.441595, 0.236537, 0.000268, 0.118388], [0.001137, 0.559849, 1.136624, 0.803312]])
    torch.testing.assert_close(weights[0], expected, atol=1e-5, rtol=0)
    scores = model(torch.tensor([[[3.0, 1, 1, 1]]]), weights, nobody)[0, 0]
    expected = torch.tensor([8.660254, 2.886751, 4.082483, 9.217640, 4.816702])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_absent_classes_give_nothing():
    """The scores are those of a generator without these classes."""
    model, absent = generator_of_the_specification(), torch.tensor([[False, True, False]])
    rows, shots = torch.rand(1, 5, 4), torch.rand(1, 6, 4)
    labels = torch.tensor([[0, 0, 1, 1, 1, 0]])
    scores = model(rows, model.novel_weights(shots, labels, 2, absent), absent)
    assert (scores[..., 1] == -torch.inf).all()
    smaller = WeightGenerator(2, 4, 10.0, 10.0, torch.Generator())
    state = model.state_dict()
    smaller.load_state_dict({**state, "base": state["base"][[0, 2]], "keys": state["keys"][[0, 2]]})
    nobody = torch.zeros(1, 2, dtype=torch.bool)
    expected = smaller(rows, smaller.novel_weights(shots, labels, 2, nobody), nobody)
    torch.testing.assert_close(scores[..., [0, 2, 3, 4]], expected)


def test_episodes():
    """A row has its number as its feature. Fake novel classes are absent, and no row is shot and query."""
    labels = np.repeat([2, 5, 7, 8], [9, 12, 7, 30])
    numbers = np.arange(1, len(labels) + 1, dtype=np.float32)[:, None]
    rows = _BaseRows(Problem(numbers, labels, [], 4, 0, 9), "cpu")
    drawn = rows.draw(4, 2, 50, 0.0, torch.Generator().manual_seed(0))
    assert drawn.shots.shape == (50, 8, 1) and drawn.queries.shape == (50, 12, 1) and (drawn.absent.sum(1) == 2).all()
    ways = np.searchsorted([2, 5, 7, 8], labels)
    for absent, shots, queries, targets in zip(*(one.squeeze(-1).numpy() for one in drawn)):
        assert len({*shots, *queries[:6]}) == 14
        fake = ways[shots.astype(int) - 1].reshape(2, 4)
        assert (fake == fake[:, :1]).all() and set(fake[:, 0]) == set(np.flatnonzero(absent))
        of_query = ways[queries.astype(int) - 1]
        assert np.array_equal(targets[:6], [4, 4, 4, 5, 5, 5]) and np.array_equal(of_query[:6], fake[:, 0].repeat(3))
        assert np.array_equal(targets[6:], of_query[6:]) and not absent[of_query[6:]].any()
    few = rows.draw(6, 2, 3, 0.0, torch.Generator().manual_seed(0))
    assert few.queries.shape == (3, 4, 1)  # the smallest class has one row beside six shots
    halved = rows.draw(4, 2, 50, 0.5, torch.Generator().manual_seed(0)).queries
    assert 0.4 < (halved == 0).float().mean() < 0.6


def test_the_generator_learns_what_base_classes_teach():
    """The cross-entropy of new episodes falls in the second stage, and is below that of equal scores."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 20)
    feats = (random.normal(size=(12, 8))[labels] + 0.5 * random.normal(size=(240, 8))).astype(np.float32)
    rows = _BaseRows(Problem(feats, labels, [], 12, 0, 12), "cpu")
    options = AttentionOptions(n_steps=100, batch_size=32, dropout=0.0)
    before = _base_trained(rows, options, 0)
    after = _generator_trained(copy.deepcopy(before), rows, 1, options, 0)
    drawn = rows.draw(1, 5, 100, 0.0, torch.Generator().manual_seed(1))
    shots = torch.arange(5).expand(100, -1)
    losses = [
        F.cross_entropy(
            model(drawn.queries, model.novel_weights(drawn.shots, shots, 5, drawn.absent), drawn.absent).flatten(0, 1),
            drawn.targets.flatten(),
        ).item()
        for model in (before, after)
    ]
    assert losses[1] < 0.9 * losses[0] and losses[1] < 0.7 * np.log(12), losses


def test_attention_hangs_on_the_seed_alone():
    problem, options, test = make_problem([(1, 1)]), AttentionOptions(n_steps=5), torch.rand(3, 6)
    scores, again, other = (fit_attention(problem, options, seed, "cpu")(test)[0] for seed in (0, 0, 1))
    assert torch.equal(scores, again) and not torch.allclose(scores[:, 0], other[:, 0])


def test_what_attention_cannot_learn_from():
    problem = make_problem([(1, 5)], rows_per_base=5)
    with pytest.raises(InputError, match=r"learns from 5 shots .* but one has only 5 rows\. Use --shots below 5"):
        fit_attention(problem, AttentionOptions(), 0, "cpu")
    with pytest.raises(InputError, match="has one base class"):
        fit_attention(two_classes(), AttentionOptions(), 0, "cpu")
    with pytest.raises(Diverged, match=r"attention\.lr 1e\+20: the weights are not finite"):
        fit_attention(make_problem([(1, 1)]), AttentionOptions(lr=1e20, n_steps=30), 0, "cpu")
