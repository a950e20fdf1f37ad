"""low_shot.py --novel_bias: a number added to the scores of novel classes, chosen without fitting again."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from test_low_shot import SMALL_SGD, results, tiny_config
from test_metrics import BASE_CLASSES, COLUMNS, LABELS, NOVEL_CLASSES, SCORES

import low_shot
from lowshot.classifiers.settings import NearestMeanOptions, PTMapOptions
from lowshot.core.files import read_yaml
from lowshot.evaluation import runs
from lowshot.evaluation.metrics import accuracies
from lowshot.evaluation.ranks import outcomes_of, with_novel_bias
from lowshot.evaluation.settings import Selection

# Leads of the fixture in ascending order, and (base, novel) accuracy as the bias passes them (specification, 5.6).
LEADS = [-1, -0.5, -0.4, 0.5, 0.8, 1, 2]
CURVE = [(1, 0), (1, 0), (0.75, 0), (0.75, 0.25), (0.75, 0.5), (0.5, 0.5), (0.25, 0.5), (0, 0.75)]
SAME = ["ausuc", *(f"top{k}_{name}" for k in (1, 5) for name in ("base_among_base", "novel_among_novel",
                                                                   "all_with_prior"))]  # fmt: skip


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


def numbers(bias):
    outcomes = outcomes_of(with_novel_bias(SCORES, COLUMNS, bias), torch.from_numpy(LABELS), COLUMNS)
    return accuracies(outcomes, LABELS, BASE_CLASSES, NOVEL_CLASSES)


def test_top1_follows_the_curve_of_ausuc():
    for bias, point in zip([-9, *(lead + 0.05 for lead in LEADS)], CURVE):
        found = numbers(bias)
        assert (found["top1_base"], found["top1_novel"]) == point
        assert found["ausuc"] == pytest.approx(0.40625, abs=1e-6)


def test_a_large_bias_keeps_the_order_of_the_novel_classes():
    """In float32, scores would be rounded to multiples of 64."""
    outcomes = outcomes_of(with_novel_bias(SCORES, COLUMNS, 1e9), torch.from_numpy(LABELS), COLUMNS)
    novel = np.isin(LABELS, NOVEL_CLASSES)
    assert np.array_equal(outcomes.ranks[novel], outcomes.group_ranks[novel])
    assert (outcomes.ranks[~novel] >= 2).all()


def test_no_bias_leaves_the_scores():
    assert with_novel_bias(SCORES, COLUMNS, 0.0) is SCORES


@pytest.mark.parametrize("classifier", [SMALL_SGD, NearestMeanOptions(), PTMapOptions()])
def test_what_a_bias_changes(config, classifier):
    plain, biased, all_novel = (results(config, classifier=classifier, novel_bias=bias) for bias in (0.0, 0.3, 1e6))
    assert biased["method"] == f"{plain['method']}, novel bias 0.3" and biased["config"]["novel_bias"] == 0.3
    for before, after, last in zip(plain["trials"], biased["trials"], all_novel["trials"]):
        assert [before[name] for name in SAME] == pytest.approx([after[name] for name in SAME])
        assert before["top1_novel"] <= after["top1_novel"] and before["top1_base"] >= after["top1_base"]
        assert last["top1_novel"] == last["top1_novel_among_novel"] and last["top1_base"] == 0
    assert plain["trials"] != biased["trials"]


def test_scores_are_stored_with_the_bias(config, tmp_path):
    stored = []
    for bias in (0.0, 2.0):
        results(config, classifier=SMALL_SGD, novel_bias=bias, scores=tmp_path / "s.h5")
        with h5py.File(tmp_path / "s.h5") as file:
            stored.append(file["log_probabilities"][:])
    is_novel = np.array([0, 0, 1, 1])  # classes 2, 3, 6 and 7 of the test setup
    np.testing.assert_allclose(stored[1], log_softmax(stored[0] + 2 * is_novel, axis=-1), atol=1e-5)


@pytest.mark.parametrize("lines", ["{bias}\n{other}", "{other}\n{bias}"])
def test_a_grid_of_biases_fits_once(config, tmp_path, monkeypatch, lines):
    grid, n_fits, real = tmp_path / "grid.yaml", [], runs.fit_classifier
    monkeypatch.setattr(runs, "fit_classifier", lambda *given: n_fits.append(1) or real(*given))
    grid.write_text(lines.format(bias="novel_bias: [0, 0.5, 4]", other="classifier.lr: [0.1, 0.3]"))
    validation = replace(config, trials=[1], shots=[5], setup="validation")
    evidence = low_shot.main(replace(validation, select=Selection(grid, "top1_harmonic_mean")))
    assert len(n_fits) == 2
    for cell in read_yaml(evidence)["cells"]:
        options = replace(config.classifier, lr=cell["values"]["classifier.lr"])
        one = results(validation, classifier=options, novel_bias=cell["values"]["novel_bias"], out=tmp_path / "o.json")
        numbers = [{k: v for k, v in run.items() if k in cell["trials"][0]} for run in one["trials"]]
        assert numbers == cell["trials"]


def test_a_bias_for_every_n_is_named(config, tmp_path):
    """Criteria of base and of novel accuracy choose the ends of the grid."""
    grid = tmp_path / "grid.yaml"
    grid.write_text("novel_bias: [-1.0e+6, 1.0e+6]")
    for criterion, bias in (("top1_novel", 1e6), ("top1_base", -1e6)):
        one = replace(config, select=Selection(grid, criterion, per_shot=True), overwrite=True)
        content = json.loads(low_shot.main(one).read_text())
        assert content["selection"]["chosen"] == {"1": {"novel_bias": bias}, "5": {"novel_bias": bias}}
        assert content["method"] == f"linear_sgd, novel bias {bias:g}"
    names = [replace(config, shots=[n], novel_bias=n / 2) for n in (1, 5)]
    assert low_shot._joint_name(names) == "linear_sgd, novel bias by n"
