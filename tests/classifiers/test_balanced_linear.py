"""The logistic regression of Douze et al. (2018): draws, steps by hand, classes outside the setup."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lowshot.classifiers.balanced_linear import draw_rows, fit_balanced_sgd
from lowshot.classifiers.problem import Problem, Run
from lowshot.classifiers.settings import BalancedSGDOptions
from lowshot.core.errors import Diverged
from lowshot.core.seeds import stream, torch_stream

DIM = 3


def problem(n_shot=2, n_trials=1):
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 3, (6, DIM))
    labels = np.repeat([0, 3], [40, 10])
    base = (centres[labels] + rng.normal(size=(50, DIM))).astype(np.float32)
    novel = np.repeat([1, 5], n_shot)
    runs = [Run(trial, n_shot, (centres[novel] + rng.normal(size=(len(novel), DIM))).astype(np.float32), novel)
            for trial in range(1, n_trials + 1)]  # fmt: skip
    return Problem(base, labels, runs, 2, 2, 7), centres


def test_every_class_is_drawn_equally_often_and_every_row_of_it():
    targets = np.repeat([0, 1, 2], [90, 9, 1])
    rows, classes = draw_rows(np.random.default_rng(0), targets, 60)
    assert np.array_equal(targets[rows], classes)
    assert np.bincount(classes.ravel()) / classes.size == pytest.approx([1 / 3] * 3, abs=0.01)
    of_second = np.bincount(rows[classes == 1] - 90)
    assert of_second / of_second.sum() == pytest.approx([1 / 9] * 9, abs=0.01)


def test_the_steps_are_those_of_torch_sgd():
    given, _ = problem()
    options = BalancedSGDOptions(lr=0.1, weight_decay=0.05, n_steps=7, batch_size=5)
    scores = fit_balanced_sgd(given, options, 3, "cpu")(torch.eye(DIM))[0]
    run, classes = given.runs[0], np.array([0, 1, 3, 5])
    feats = torch.from_numpy(np.concatenate([given.base_feats, run.feats]))
    targets = np.searchsorted(classes, np.concatenate([given.base_labels, run.labels]))
    layer = torch.nn.Linear(DIM, 4)
    drawn = torch.rand(4, DIM + 1, generator=torch_stream(3, "balanced", *run.key)) * 2 * DIM**-0.5 - DIM**-0.5
    with torch.no_grad():
        layer.weight.copy_(drawn[:, :-1])
        layer.bias.copy_(drawn[:, -1])
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, weight_decay=0.05)
    rows, chosen = draw_rows(stream(3, "balanced rows", *run.key, 0), targets, 5)
    for step in range(7):
        optimizer.zero_grad()
        F.cross_entropy(layer(feats[rows[step]]), torch.from_numpy(chosen[step])).backward()
        optimizer.step()
    torch.testing.assert_close(scores[:, classes], layer(torch.eye(DIM)), atol=1e-5, rtol=1e-4)
    outside = [2, 4, 6]
    assert (scores[:, outside] == -torch.inf).all()


def test_novel_classes_are_not_lost_among_base_classes():
    """In class-proportional batches base class 0 has four times the rows of base class 3; here all are alike."""
    given, centres = problem(n_shot=5, n_trials=2)
    score = fit_balanced_sgd(given, BalancedSGDOptions(lr=0.05, n_steps=1500, batch_size=32), 0, "cpu")
    predicted = score(torch.from_numpy(centres[[0, 1, 3, 5]].astype(np.float32))).argmax(-1)
    assert predicted.tolist() == [[0, 1, 3, 5]] * 2


def test_a_rate_that_is_too_large():
    with pytest.raises(Diverged, match=r"balanced_sgd\.lr 1e\+20"):
        fit_balanced_sgd(problem()[0], BalancedSGDOptions(lr=1e20, n_steps=50), 0, "cpu")
