"""Low-shot classifiers: published batches and SGD, independence of runs, the convex optimum, MLPs."""

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from lowshot.classifiers import mlp as mlp_module
from lowshot.classifiers.convex import fit_logistic_regression, objective
from lowshot.classifiers.linear import TrialTrainer, _advance_in_turn, _draw_novel, _Pool, fit_linear_sgd
from lowshot.classifiers.methods import fit_classifier
from lowshot.classifiers.mlp import MLPs, _split_and_repeat, fit_mlp
from lowshot.classifiers.problem import Problem, Run
from lowshot.classifiers.settings import LogisticOptions, MLPOptions, SGDOptions
from lowshot.core.errors import InputError
from lowshot.data.additions import Repetition

DIM, N_BASE, N_NOVEL, N_CLASSES = 6, 3, 2, 7  # two classes are neither base nor novel


def make_problem(keys, rows_per_base=20, seed=0):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.random((N_CLASSES, DIM))

    def rows(classes, n, rng):
        labels = np.repeat(classes, n)
        return np.maximum(centres[labels] + rng.normal(size=(len(labels), DIM)), 0).astype(np.float32), labels

    runs = [Run(t, n, *rows(np.arange(N_BASE, N_BASE + N_NOVEL), n, np.random.default_rng([t, n]))) for t, n in keys]
    return Problem(*rows(np.arange(N_BASE), rows_per_base, rng), runs, N_BASE, N_NOVEL, N_CLASSES)


def only(problem, i):
    return Problem(problem.base_feats, problem.base_labels, [problem.runs[i]], N_BASE, N_NOVEL, N_CLASSES)


def weights_of(score):
    """Weights (n_runs, n_classes, D + 1) of a linear scorer, from its scores of the unit vectors."""
    bias = score(torch.zeros(1, DIM)).transpose(1, 2)
    return torch.cat([score(torch.eye(DIM)).transpose(1, 2) - bias, bias], -1).numpy()


def test_batch_composition_of_the_imagenet_benchmark():
    feats = np.zeros((0, DIM), np.float32), np.zeros(0, np.int64)
    assert Problem(*feats, [], 196, 311, 1000).batch_composition(1000) == (387, 613)
    assert Problem(*feats, [], 193, 300, 1000).batch_composition(1000) == (391, 609)
    assert Problem(*feats, [], 1, 1, 2).batch_composition(5) == (2, 3)  # half to even


def test_draws_hold_distinct_base_rows_and_all_novel_draws():
    problem = make_problem([(1, 2), (1, 5)])
    base = _Pool(problem.base_feats, problem.base_labels, "cpu")
    trainer = TrialTrainer(problem, problem.runs, base, SGDOptions(batch_size=40), 0, "cpu")
    base_draws, novel_draws = trainer.draw(0)
    assert base_draws.shape == (100, 24)
    assert all(len(set(rows.tolist())) == 24 for rows in base_draws)
    for draws, run in zip(novel_draws, problem.runs):
        assert len(draws) == 100
        for one in draws:
            assert (
                one.counts.sum() == 16 and len(one.rows.unique()) == len(one.rows) and one.rows.max() < len(run.labels)
            )


def test_novel_counts_are_uniform_draws():
    total = np.zeros(4)
    for one in _draw_novel(np.random.default_rng(0), 4, 1000, "cpu"):
        total[one.rows.numpy()] += one.counts[:, 0].numpy()
    assert total.sum() == 100_000 and np.abs(total / 25_000 - 1).max() < 0.03


def reference_loop(problem, run, trainer, weights, options, n_steps):
    """The published step with torch's layer, loss and optimiser, on the same draws."""
    model = torch.nn.Linear(DIM, N_CLASSES)
    model.weight.data, model.bias.data = weights[:, :-1].clone(), weights[:, -1].clone()
    dampened = {"momentum": options.momentum, "dampening": options.momentum, "weight_decay": options.weight_decay}
    optimiser = torch.optim.SGD(model.parameters(), lr=options.lr, **dampened)
    base_draws, novel_draws = trainer.draw(0)
    i = trainer.runs.index(run)
    for step in range(n_steps):
        base, novel = base_draws[step].numpy(), novel_draws[i][step]
        shots = novel.rows.repeat_interleave(novel.counts[:, 0].long()).numpy()
        feats = np.concatenate([problem.base_feats[base], run.feats[shots]])
        labels = np.concatenate([problem.base_labels[base], run.labels[shots]])
        assert len(labels) == options.batch_size
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(feats)), torch.from_numpy(labels)).backward()
        optimiser.step()
    return torch.cat([model.weight, model.bias[:, None]], 1).detach()


@pytest.mark.parametrize("n_steps", [1, 2, 60])
def test_steps_are_those_of_torch_sgd(n_steps):
    problem, options = make_problem([(1, 1), (1, 4)]), SGDOptions(batch_size=40, weight_decay=0.01)
    base = _Pool(problem.base_feats, problem.base_labels, "cpu")
    trainer = TrialTrainer(problem, problem.runs, base, options, 0, "cpu")
    start = trainer.weights.clone()
    base_draws, novel_draws = trainer.draw(0)
    for step in range(n_steps):
        trainer.step(base_draws[step], [draws[step] for draws in novel_draws])
    for i, run in enumerate(problem.runs):
        expected = reference_loop(problem, run, trainer, start[i], options, n_steps)
        torch.testing.assert_close(trainer.weights[i], expected, atol=1e-4, rtol=0)


SMALL = {
    "linear_sgd": SGDOptions(n_steps=130, batch_size=20),
    "logistic_regression": LogisticOptions(),
    "mlp": MLPOptions(lr=1e-3, hidden=8, max_epochs=4),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_run_does_not_depend_on_the_others(name):
    problem = make_problem([(1, 1), (1, 5), (2, 1), (3, 5)])
    queries = torch.rand(9, DIM)
    together = fit_classifier(SMALL[name], problem, 0, "cpu")(queries)
    assert together.shape == (4, 9, N_CLASSES)
    for i in range(4):
        alone = fit_classifier(SMALL[name], only(problem, i), 0, "cpu")(queries)[0]
        torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[0], together[2])


def test_seed_decides():
    problem, options, queries = make_problem([(1, 1)]), SMALL["linear_sgd"], torch.rand(3, DIM)
    first, again, other = (fit_linear_sgd(problem, options, seed, "cpu")(queries) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_linear_sgd_refuses_batches_it_cannot_fill():
    problem = make_problem([(1, 1)])
    largest = len(problem.base_labels) * (N_BASE + N_NOVEL) // N_BASE
    message = (
        f"classifier.batch_size 1000: 60% of a batch are base rows, .* Use at most --classifier.batch_size {largest}"
    )
    with pytest.raises(InputError, match=message):
        fit_linear_sgd(problem, SGDOptions(), 0, "cpu")
    fit_linear_sgd(problem, SGDOptions(batch_size=largest, n_steps=1), 0, "cpu")
    with pytest.raises(InputError, match=r"batch_size 1: has 1 base and 0 novel rows\. Use a larger one"):
        fit_linear_sgd(problem, SGDOptions(batch_size=1), 0, "cpu")


def test_logistic_regression_is_the_optimum():
    problem = make_problem([(1, 1), (1, 5)])
    exact = weights_of(fit_logistic_regression(problem, LogisticOptions(), 0, "cpu"))
    sgd = weights_of(fit_linear_sgd(problem, SGDOptions(n_steps=2000, batch_size=20), 0, "cpu"))
    for i, run in enumerate(problem.runs):
        best = objective(exact[i], problem, run, 0.001)
        assert best <= objective(sgd[i], problem, run, 0.001)
        rng = np.random.default_rng(0)
        for _ in range(5):  # at the optimum the gradient is 0: only the quadratic term changes the loss
            direction = rng.normal(size=exact[i].shape)
            direction /= np.linalg.norm(direction)
            ahead, behind = (objective(exact[i] + h * direction, problem, run, 0.001) for h in (1e-3, -1e-3))
            assert abs(ahead - behind) / 2e-3 < 1e-4 and min(ahead, behind) >= best


def test_classes_outside_the_setup_stay_outputs_but_never_win():
    problem = make_problem([(1, 5)])
    for settings in (LogisticOptions(), SGDOptions(n_steps=2000, batch_size=20)):
        scores = fit_classifier(settings, problem, 0, "cpu")(torch.from_numpy(problem.base_feats))[0]
        assert scores.shape[1] == N_CLASSES and scores.argmax(1).max() < N_BASE + N_NOVEL


def test_linear_sgd_learns():
    problem = make_problem([(1, 5)])
    scores = fit_linear_sgd(problem, SGDOptions(n_steps=500, batch_size=20), 0, "cpu")(
        torch.from_numpy(problem.base_feats)
    )
    assert (scores[0].argmax(1).numpy() == problem.base_labels).mean() > 0.7


def test_mlp_split_keeps_shots_and_never_holds_a_copy_of_a_training_row():
    for n_shot, n_repeats, n_held in ((1, 20, 0), (5, 4, 1), (20, 1, 4), (40, 1, 8)):
        problem = make_problem([(1, n_shot)])
        train, held = _split_and_repeat(problem, problem.runs[0], 0)
        assert not set(train) & set(held)
        assert set(train) | set(held) == set(range(60 + 2 * n_shot))
        assert (train < 60).sum() == 48 and (train >= 60).sum() == 2 * (n_shot - n_held) * n_repeats
        assert (held >= 60).sum() == 2 * n_held * n_repeats


def test_mlp_holds_all_copies_of_a_row_or_none():
    """Repetition adds copies before the split."""
    problem = make_problem([(1, 7)])
    shots = problem.runs[0]
    repeated = Repetition(max_per_label=20).extend(shots, None, 0)
    train, held = _split_and_repeat(replace(problem, runs=[repeated]), repeated, 0)
    rows = [{row.tobytes() for row in repeated.feats[part[part >= 60] - 60]} for part in (train, held)]
    assert rows[1] and not rows[0] & rows[1] and len(rows[0] | rows[1]) == len(shots.labels)


def test_mlps_are_the_network_of_the_recipe():
    models = MLPs(2, DIM, 5, N_CLASSES)
    models.initialise(make_problem([(1, 1), (2, 1)]).runs, 0)
    feats = torch.rand(2, 10, DIM)
    together = models.train()(feats)
    for i in range(2):
        layers = []
        for matrix in models.matrices[:2]:
            linear = torch.nn.Linear(*matrix.shape[1:], bias=False)
            linear.weight.data = matrix.data[i].T
            layers += [linear, torch.nn.BatchNorm1d(5), torch.nn.ReLU()]
        last = torch.nn.Linear(5, N_CLASSES)
        last.weight.data, last.bias.data = models.matrices[2].data[i].T, models.bias.data[i, 0]
        torch.testing.assert_close(together[i], torch.nn.Sequential(*layers, last)(feats[i]))
    assert 0.01 < models.matrices[0].std() < 0.03 and models.bias.abs().max() == 0


def test_mlp_keeps_the_weights_of_its_best_epoch(monkeypatch):
    losses = iter([[2.0, 1.0], [1.0, 2.0], [3.0, 0.5], [3.0, 3.0], [0.1, 3.0], [9.0, 9.0]])
    seen = []

    def scripted(model, rows):
        seen.append([tensor.clone() for tensor in model.by_run()])
        return torch.tensor(next(losses))

    monkeypatch.setattr(mlp_module, "_validation_loss", scripted)
    problem, options = make_problem([(1, 5), (2, 5)]), MLPOptions(lr=1e-2, hidden=4, patience=2, max_epochs=6)
    rows = mlp_module._split_and_repeat
    parts = [rows(problem, run, 0) for run in problem.runs]
    model = mlp_module._fit_group(problem, problem.runs, parts, options, 0, "cpu")
    # run 0 stops before its loss of 0.1; run 1 improves in epoch 3 although epoch 2 was worse
    for kept, second, third in zip(model.by_run(), seen[1], seen[2]):
        assert torch.equal(kept[0], second[0]) and torch.equal(kept[1], third[1])
    assert len(seen) == 5 and not model.training


def test_mlp_learns_and_refuses_data_too_small_to_validate_on():
    problem = make_problem([(1, 5)])
    scores = fit_mlp(problem, MLPOptions(lr=1e-2, hidden=16, max_epochs=30), 0, "cpu")(
        torch.from_numpy(problem.base_feats)
    )
    assert (scores[0].argmax(1).numpy() == problem.base_labels).mean() > 0.7
    with pytest.raises(InputError, match="five training rows"):
        fit_mlp(make_problem([(1, 1)], rows_per_base=4), MLPOptions(), 0, "cpu")


def test_an_interruption_ends_the_threads():
    """A thread that computes while the process exits would abort it."""
    before, blocks = set(threading.enumerate()), []
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it

    def job():
        while True:
            blocks.append(1)
            if len(blocks) == 5:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            yield

    with pytest.raises(KeyboardInterrupt):
        _advance_in_turn([job(), job()], "cpu")
    signal.signal(signal.SIGINT, handler)
    assert not any(thread.is_alive() for thread in set(threading.enumerate()) - before)
