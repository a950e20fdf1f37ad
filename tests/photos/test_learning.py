"""What a classifier of photos knows of itself: held-out accuracy, the choice of a method, calibration, typicality."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm

from lowshot.classifiers.methods import fit_head, score_tasks
from lowshot.classifiers.settings import INDUCTIVE_METHODS, NearestMeanOptions, SupportLogisticOptions
from lowshot.classifiers.tasks import Tasks
from lowshot.core.errors import InputError
from lowshot.photos.accuracy import Accuracy
from lowshot.photos.calibration import calibrate, expected_calibration_error, row_losses
from lowshot.photos.classifier import Support
from lowshot.photos.held_out import DEFAULT, assign_folds, choose, held_out_scores, leave_out, mean_recall
from lowshot.photos.learning import learn, sizes_of
from lowshot.photos.typicality import Typicality, typicality_of


def clusters(sizes, dim=20, spread=1.0, seed=0):
    """Return unit-length features around random class means, and their labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    means = torch.randn(len(sizes), dim, generator=random)
    rows = means[labels] + spread * torch.randn(len(labels), dim, generator=random)
    return F.normalize(rows), labels


@pytest.mark.parametrize("sizes", [[4, 4, 4], [3, 9]])
@pytest.mark.parametrize("name", [*INDUCTIVE_METHODS.classes, "cosine similarity"])
def test_a_classifier_that_is_fitted_once_scores_as_its_method(sizes, name):
    features, labels = clusters(sizes)
    queries, _ = clusters([5] * len(sizes), seed=1)
    method = NearestMeanOptions("cosine") if name == "cosine similarity" else INDUCTIVE_METHODS.classes[name]()
    expected = score_tasks(method, Tasks(features[None], labels[None], queries[None], len(sizes)), 0)[0]
    scores = fit_head(method, features, labels, len(sizes))(queries)
    assert torch.allclose(scores.softmax(1), expected.softmax(1), atol=1e-5)


def test_folds_spread_classes_evenly_and_leave_single_rows_alone():
    labels = torch.tensor([0] * 7 + [1] + [2] * 12)
    folds = assign_folds(labels, 5)
    assert folds[7] == -1 and set(folds[:7]) == set(range(5))
    for c in (0, 2):
        counts = np.bincount(folds[(labels == c).numpy()], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_held_out_scores_are_those_of_classifiers_without_the_row():
    features, labels = clusters([3, 4, 1])
    scores = leave_out(DEFAULT, features, labels, 3)
    assert scores[-1].isnan().all()
    for row in (0, 5):
        rest = torch.arange(len(labels)) != row
        assert torch.allclose(scores[row], fit_head(DEFAULT, features[rest], labels[rest], 3)(features[row]), atol=1e-5)


def test_the_temperature_that_made_the_labels_is_found():
    random = torch.Generator().manual_seed(0)
    scores = 6 * torch.randn(20_000, 5, generator=random)
    labels = torch.multinomial((scores / 3).softmax(1), 1, generator=random)[:, 0]
    found = calibrate(scores, labels, torch.full((5,), 7))
    assert found.temperature == pytest.approx(3, rel=0.03) and found.size_bias == 0
    counts = torch.tensor([1, 2, 4, 8, 16])
    assert calibrate(scores + 1.5 * counts.log(), labels, counts).size_bias == pytest.approx(0.5, abs=0.03)


def test_right_answers_do_not_make_sure():
    """If all N held-out answers are right, the classifier is not surer than N answers can make it."""
    features, labels = clusters([5] * 3, dim=50, spread=0.1)
    scores = leave_out(DEFAULT, features, labels, 3)
    assert (scores.argmax(1) == labels).all()
    counts = torch.full((3,), 5)
    probabilities = calibrate(scores, labels, counts)(scores, counts).softmax(1)
    assert 0.9 < probabilities.amax(1).mean() < 1 - 0.5 / 16


def test_losses_weigh_classes_alike():
    scores, labels = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 0, 1])
    plain = F.cross_entropy(scores, labels, reduction="none")
    expected = (plain[:3].mean() + plain[3]) / 2
    assert row_losses(scores, labels).mean() == pytest.approx(float(expected))


def test_the_calibration_error_by_hand():
    confidence = np.array([0.9, 0.9, 0.6, 0.6])
    is_right = np.array([True, False, True, True])
    assert expected_calibration_error(confidence, is_right, 2) == pytest.approx((0.4 + 0.4) / 2)
    assert expected_calibration_error(confidence, is_right, 1) == pytest.approx(0.0)


def test_the_default_stands_unless_another_method_is_clearly_better():
    features, labels = clusters([5] * 4)
    assert choose(features, labels, 4)[0].method == DEFAULT
    # Length, which means nothing here, is larger than the direction that tells the classes apart: weak weights fail.
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(60)
    features = torch.cat([0.01 * (2.0 * labels[:, None] - 1), torch.randn(120, 1, generator=random)], dim=1)
    best = choose(features, labels, 2)
    assert best[0].method == SupportLogisticOptions(C=1000.0) and best[0].loss < 0.9 * best[1].loss
    many = torch.arange(2).repeat_interleave(torch.tensor([3000, 3]))
    assert choose(torch.randn(3003, 4, generator=random), many, 2)[0].accuracy <= 1  # a small class stays in
    assert len(best) == 5 and best[0].accuracy == 1


def test_one_photo_per_class():
    features, labels = clusters([1, 1, 1])
    learned = learn(Support(features, labels, [], None, is_chosen=True), ["a", "b", "c"])
    assert learned.support.method == NearestMeanOptions("cosine") and learned.temperature is None
    assert learned.evidence()["held_out"] is None and "one photo per class" in learned.lines()[-1]
    assert learned.typicality(features).isnan().all()
    with pytest.raises(InputError, match=r"--false_alarms 0\.1: the classifier has 0 photos to compare with"):
        learned.typicality.check_rate(0.1)


def test_unequal_classes_are_told_and_found():
    """Classes of 4 photos beside 30 have the same weight, and are still seldom named without a bias by size."""
    features, labels = clusters([4, 4, 30, 30], dim=50, spread=4.0)
    names = ["ant", "bee", "cat", "dog"]
    learned = learn(Support(features, labels, [], SupportLogisticOptions(C=10.0)), names)
    queries, truth = clusters([200] * 4, dim=50, spread=4.0)

    def recall(head):
        predicted = head(queries).argmax(1)
        return [(predicted[truth == c] == c).float().mean() for c in range(4)]

    plain = recall(fit_head(learned.support.method, features, labels, 4))
    assert max(plain[:2]) < 0.2 and min(recall(learned.head)) > 0.35 and learned.calibration.size_bias > 0.2
    lines = sizes_of(labels, names)
    assert lines[0] == "4 classes, 4 (ant) to 30 photos each (cat)" and "ant 4, bee 4" in lines[1]
    assert sizes_of(torch.tensor([0, 0, 1, 1]), ["a", "b"]) == ["2 classes, 2 photos each"]


def test_held_out_accuracy_is_that_of_new_photos():
    """With the true direction of two classes the accuracy is known: here 84 %."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(1000)
    features = torch.stack([2.0 * labels - 1, 0 * labels], dim=1) + torch.randn(2000, 2, generator=random)
    learned = learn(Support(features, labels, [], SupportLogisticOptions()), ["a", "b"])
    assert learned.accuracy.over_classes == pytest.approx(norm.cdf(1), abs=0.02)
    assert learned.accuracy.calibration_error < 0.03 and learned.candidates == []


def test_accuracy_by_hand():
    probabilities = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.7, 0.3, 0]], np.float32)
    found = Accuracy(probabilities, np.array([0, 0, 1, 1]), ["a", "b", "c"])
    assert found.is_right.tolist() == [True, True, True, False] and found.over_classes == 0.75
    assert found.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert found.interval == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson, 3 of 4
    lines = found.lines("photos")
    assert lines[-1] == "  1 classes were not judged" and len(lines) == 4
    assert lines[0].startswith("photos: 75.0% of 4 right (95 % interval 30.1% to 95.4%), 75.0% as the mean")
    assert lines[1].split() == ["b", "1", "of", "2", "mistaken", "for", "a", "(1)"]
    assert found.to_json()["classes"][1]["mistaken_for"] == {"a": 1}


def test_typicality_compares_a_photo_with_its_class_without_it():
    features, labels = clusters([3, 4, 1])
    found = typicality_of(features, labels, 3)
    similar = []
    for row in range(7):
        rest = torch.arange(8) != row
        means = torch.stack([F.normalize(features[rest & (labels == c)].sum(0), dim=0) for c in range(3)])
        similar.append(float((means @ features[row]).max()))
    assert found.known.tolist() == pytest.approx(sorted(similar), abs=1e-5)


def test_false_alarms_are_as_rare_as_promised():
    features, labels = clusters([20] * 5, spread=0.7)
    found = typicality_of(features, labels, 5)
    known, _ = clusters([400] * 5, spread=0.7)
    other, _ = clusters([400] * 5, spread=0.7, seed=9)
    assert 0.02 < (found(known) <= 0.1).float().mean() < 0.15 and (found(other) <= 0.1).float().mean() > 0.5
    by_hand = Typicality(torch.tensor([[1.0, 0.0]]), torch.tensor([0.2, 0.6, 0.9]))
    assert by_hand(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])).tolist() == [1.0, 0.25, 0.75]
    with pytest.raises(InputError, match=r"at least 0\.250"):
        by_hand.check_rate(0.2)


def test_the_smallest_rate_is_reached():
    """With 19 known photos, an image that is less typical than all of them has the value 0.05 and no more."""
    found = Typicality(torch.tensor([[1.0, 0.0]]), torch.linspace(0.5, 1, 19))
    found.check_rate(0.05)
    assert found(torch.tensor([[0.0, 1.0]])).tolist() == [0.05] and found.smallest == 0.05


def test_mean_recall_ignores_classes_without_rows():
    assert mean_recall(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 4) == 0.75


def test_scores_of_rows_that_are_never_held_out_are_nan():
    features, labels = clusters([2, 1])
    assert held_out_scores(DEFAULT, features, labels, 2, np.array([-1, -1, -1])).isnan().all()
