"""Health checks: when they speak, and that every training and benchmark asks."""

import math

import numpy as np
import pytest
import torch

from lowshot.core import health
from lowshot.data.features import constant_features, write_features


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (health.at_chance("x", 0.03, 50, "Use a smaller --lr"), "x is at chance: top-1 3.0 %, chance 2.0 %. Use"),
        (health.at_chance("x", 0.05, 50, ""), None),
        (health.at_chance("x", 0.70, 2, ""), "top-1 70.0 %, chance 50.0 %"),
        (health.at_chance("x", 0.80, 2, ""), None),
        (health.at_chance("x", 1.0, 1, ""), None),
        (health.constant("f.h5", 0.0, 3.0), "the features of f.h5 are constant"),
        (health.constant("f.h5", 1e-3, 3.0), None),
        (health.generator(0.0, 1.0, 1.0), "the generator is dead"),
        (health.generator(0.5, 1.2, 1.0), "worse than the mean of its targets"),
        (health.generator(0.5, 0.4, 1.0), None),
        (health.one_image_a_class(0.04), "nearly one image a class: its images of a class differ 4 %"),
        (health.one_image_a_class(0.6), None),
        (health.discriminator(math.log(2), 0.7), "the discriminator is at chance. Use a larger --d_lr"),
        (health.discriminator(0.001, 12.0), "the discriminator has won"),
        (health.discriminator(0.5, 1.0), None),
        (health.subclasses(20, 100, 20), "only 20 of 100 subclasses"),
        (health.subclasses(90, 100, 20), None),
        (health.novel_at_chance({1: 0.002, 5: 0.3}, {1: 0.4, 5: 0.6}, 0.03, 0.06), "not above chance at n = 1 (0.20 %"),
        (health.novel_at_chance({1: 0.002}, {1: 0.4}, 0.03, 0.06), "40 % among novel classes alone: base classes"),
        (health.novel_at_chance({1: 0.002}, {1: 0.06}, 0.03, 0.06), "do not tell these classes apart"),
        (health.novel_at_chance({1: 0.1}, {1: 0.4}, 0.03, 0.06), None),
    ],
)  # fmt: skip
def test_what_is_said(finding, words):
    assert (finding is None) if words is None else (words in finding and "\n" not in finding)


def test_each_finding_is_a_line_on_stderr(capsys):
    health.warn(None, "one", None, "two")
    assert capsys.readouterr().err == "CHECK: one\nCHECK: two\n"


def test_constant_features(tmp_path):
    feats = np.tile(np.array([3.0, 0.0, 1.0], np.float32), (9, 1))
    made_from = {"stage": "x", "config": {}, "inputs": {}}
    write_features(tmp_path / "f.h5", feats, np.zeros(9, int), made_from)
    assert "constant" in constant_features(tmp_path / "f.h5")
    feats[0, 1] = 0.5
    write_features(tmp_path / "g.h5", feats, np.zeros(9, int), made_from)
    assert constant_features(tmp_path / "g.h5") is None


def test_the_spread_of_generated_images():
    from lowshot.gan.training import _spread

    labels = torch.tensor([0, 0, 1, 1])
    assert _spread(torch.tensor([[0.0], [2.0], [5.0], [7.0]]), labels) == pytest.approx(1)
    assert _spread(torch.tensor([[1.0], [1.0], [6.0], [6.0]]), labels) == 0
