"""Distribution calibration: mean and covariance of the drawn rows, the power, and how far classes are filled."""

from dataclasses import replace

import numpy as np
import pytest

from lowshot.core.errors import InputError
from lowshot.data.additions import Run, check_extended
from lowshot.data.features import Features
from lowshot.hallucination.calibration import CalibratedRows
from lowshot.hallucination.settings import Calibrated

MEANS = np.array([[2, 1, 0.5, 1], [0.5, 2, 1, 1], [1, 0.5, 2, 1], [3, 3, 3, 3]])
COVARIANCES = np.stack([np.diag(one) for one in ([0.4, 0.2, 0.1, 0.3], [0.1, 0.4, 0.2, 0.2], [1.0] * 4, [1.0] * 4)])
COVARIANCES[0, 0, 1] = COVARIANCES[0, 1, 0] = 0.05
SHOT = np.array([[4, 1, 0.25, 1]])
MEAN = np.array([1.5, 4 / 3, 2 / 3, 1])
DIAGONAL = np.array([0.25, 0.3, 0.15, 0.25])


def rows_with(mean, covariance):
    """Eight rows with exactly this mean and covariance."""
    scaled = np.sqrt(7 / 2) * np.linalg.cholesky(covariance).T
    return np.concatenate([mean + scaled, mean - scaled])


def train_features(power=1.0):
    """Four base classes with the statistics above in the space of `power`, in mixed order, and a novel class 4."""
    feats = np.concatenate([*map(rows_with, MEANS, COVARIANCES), SHOT])
    labels = np.append(np.repeat(np.arange(4), 8), 4)
    order = np.random.default_rng(0).permutation(len(labels))
    feats = (np.sign(feats) * np.abs(feats) ** (1 / power))[order].astype(np.float32)
    return Features(feats, labels[order], "train.h5")


def opened(**settings):
    train = train_features(settings["power"] if settings.get("base_space") == "powered" else 1.0)
    return CalibratedRows(Calibrated(**settings), train, np.flatnonzero(train.labels < 4))


def statistics(rows, shots):
    """Mean and covariance of what is drawn, from its response to no noise and to each number of the noise."""
    shots = np.asarray(shots, np.float32)
    noise = np.concatenate([np.zeros((1, rows.n_normals)), np.eye(rows.n_normals)]).astype(np.float32)
    drawn = rows.draw(shots, np.repeat(noise[:, None], len(shots), axis=1))
    responses = (drawn[1:] - drawn[0]).swapaxes(0, 1)
    return drawn[0], responses.swapaxes(1, 2) @ responses


def test_mean_and_covariance_as_published():
    """The second nearest class is a tie of classes 1 and 2."""
    mean, covariance = statistics(opened(), np.sqrt(SHOT))
    expected = np.full((4, 4), 0.21) + np.diag(DIAGONAL)
    expected[0, 1] = expected[1, 0] = 0.235
    assert np.allclose(mean, MEAN, atol=1e-5) and np.allclose(covariance, expected, atol=1e-5)


def test_alpha_on_the_diagonal_is_a_multiple_of_the_mean_variance():
    variance = np.trace(COVARIANCES, axis1=1, axis2=2).mean() / 4
    _, covariance = statistics(opened(alpha=0.5, alpha_on="diagonal"), np.sqrt(SHOT))
    expected = np.diag(DIAGONAL + 0.5 * variance)
    expected[0, 1] = expected[1, 0] = 0.025
    assert np.allclose(covariance, expected, atol=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_statistics_of_powered_base_features(power):
    rows = opened(power=power, base_space="powered", n_nearest=1, alpha=0)
    mean, covariance = statistics(rows, np.sqrt(SHOT))
    assert np.allclose(mean, MEANS[:1], atol=1e-5) and np.allclose(covariance, COVARIANCES[:1], atol=1e-5)


def test_each_shot_has_its_own_nearest_classes():
    rows = opened(n_nearest=1, alpha=0)
    mean, covariance = statistics(rows, MEANS[[3, 0]])
    assert np.allclose(mean, MEANS[[3, 0]], atol=1e-5) and np.allclose(covariance, COVARIANCES[[3, 0]], atol=1e-5)


def test_classes_of_different_sizes():
    train = train_features()
    few = np.concatenate([rows_with(MEANS[0], COVARIANCES[0]), [MEANS[1] - 1, MEANS[1] + 1]])
    train = replace(train, feats=few.astype(np.float32), labels=np.repeat([0, 1], [8, 2]))
    rows = CalibratedRows(Calibrated(n_nearest=1, alpha=0), train, np.arange(10))
    _, covariance = statistics(rows, MEANS[[1]])
    assert np.allclose(covariance, np.full((4, 4), 2.0), atol=1e-5)  # two rows that are 2 apart in every dimension


def extended(seed=0, **settings):
    shots = np.array([[4, 1, 0.25, 1], [1, 1, 1, 1], [9, -4, 1, 0]], np.float32)
    run = Run(1, 1, shots, np.array([4, 5, 5]))
    after = opened(**settings).extend(run, None, seed)
    return check_extended("add.calibrated", run, after)


def test_classes_are_filled_and_shots_stay():
    after = extended(max_per_label=7)
    assert np.bincount(after.labels).tolist() == [0] * 4 + [7, 7]
    assert after.feats[:3].tolist() == [[4, 1, 0.25, 1], [1, 1, 1, 1], [9, -4, 1, 0]]
    assert len(extended(max_per_label=1).labels) == 3


def test_rows_depend_on_seed_and_class_only():
    few, many = (extended(max_per_label=n) for n in (6, 40))
    for c in (4, 5):
        new = many.feats[3:][many.labels[3:] == c]
        assert np.array_equal(few.feats[3:][few.labels[3:] == c], new[: 6 - (few.labels[:3] == c).sum()])
    assert not np.allclose(extended(seed=1, max_per_label=40).feats[3:], many.feats[3:])


def test_drawn_rows_come_back_through_the_inverse_power():
    """With one base class of variance zero every row is the mean of it and the powered shot, in turn over the shots."""
    train = Features(np.array([[4, 16], [4, 16]], np.float32), np.zeros(2, int), "train.h5")
    rows = CalibratedRows(
        Calibrated(max_per_label=6, n_nearest=1, alpha=0, base_space="powered"), train, np.array([0, 1])
    )
    run = Run(1, 2, np.array([[16, -4], [0, 0]], np.float32), np.array([3, 3]))
    new = rows.extend(run, None, 0).feats[2:]
    assert np.allclose(new, [[9, 1], [1, 4], [9, 1], [1, 4]])  # ((2, 4) + (4, -2)) / 2 squared, and (2, 4) / 2 squared


def test_many_rows_have_the_distribution():
    powered = extended(max_per_label=20_000)
    drawn = powered.feats[powered.labels == 4][1:]
    drawn = np.sign(drawn) * np.sqrt(np.abs(drawn))
    mean, covariance = statistics(opened(), np.sqrt(SHOT))
    assert np.allclose(drawn.mean(0), mean, atol=0.02) and np.allclose(np.cov(drawn.T), covariance, atol=0.02)


def test_too_few_base_classes_or_rows():
    train = train_features()
    with pytest.raises(InputError, match=r"--add\.calibrated\.n_nearest 3: there are only 2 base classes"):
        CalibratedRows(Calibrated(n_nearest=3), train, np.flatnonzero(train.labels < 2))
    with pytest.raises(InputError, match=r"train\.h5: class 4 has a single row, but --add\.calibrated needs"):
        CalibratedRows(Calibrated(), train, np.arange(33))
