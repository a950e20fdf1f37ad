"""The numbers of the benchmark: ties, NaN, chunks, values by hand and from independent computations."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowshot.core.errors import InputError
from lowshot.evaluation.by_class import class_hits, confused, most_confused
from lowshot.evaluation.metrics import N_PLACES, accuracies, ausuc, base_novel_curve, chance, sampled
from lowshot.evaluation.outcomes import Columns, Outcomes
from lowshot.evaluation.ranks import outcomes_in_chunks, outcomes_of, true_class_ranks

# The fixture of the specification: eight images of two base classes (0, 1) and two novel classes (3, 4).
BASE = [[3, 1, 0], [2, 1, 0], [0, 2, 1], [1, 3, 0], [2, 0, 1], [0, 1, 2], [0, 0, 3], [1, 2, 1]]
NOVEL = [[1, 0], [2.5, 0], [1, 0], [0, 2.2], [2.4, 1], [1.5, 0], [0, 1], [3, 1.5]]
SCORES = torch.tensor(np.hstack([BASE, NOVEL]), dtype=torch.float32)
LABELS = np.array([0, 0, 1, 1, 3, 3, 4, 4])
BASE_CLASSES, NOVEL_CLASSES = np.arange(3), np.array([3, 4])
COLUMNS = Columns.of(np.arange(5), BASE_CLASSES, NOVEL_CLASSES)


def test_ranks_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert true_class_ranks(scores, torch.tensor([0, 1, 0, 2])).tolist() == [0, 2, 1, 2]


def test_ranks_of_several_runs_at_once():
    scores = torch.randn(3, 7, 5)
    labels = torch.randint(0, 5, (7,))
    together = true_class_ranks(scores, labels)
    assert torch.equal(together, torch.stack([true_class_ranks(one, labels) for one in scores]))


def test_minus_infinity_ranks_last_and_nan_is_refused():
    scores = torch.tensor([[0.0, -torch.inf, 1.0]])
    assert true_class_ranks(scores, torch.tensor([1])).tolist() == [2]
    with pytest.raises(InputError, match="NaN"):
        true_class_ranks(torch.tensor([[0.0, torch.nan]]), torch.tensor([0]))


def test_ties_that_the_lowest_class_wins():
    scores = torch.tensor([[3.0, 1.0, 3.0, 3.0], [3.0, 1.0, 3.0, 3.0], [3.0, 1.0, 3.0, 3.0], [3.0, 1.0, 3.0, 3.0]])
    assert true_class_ranks(scores, torch.arange(4), "lowest_class").tolist() == [0, 3, 1, 2]
    assert true_class_ranks(scores, torch.arange(4)).tolist() == [2, 3, 2, 2]


def test_a_row_of_zeros_has_the_lowest_five_classes_as_its_best():
    """An image that no label has reached scores 0 for every class."""
    ranks = true_class_ranks(torch.zeros(12, 12), torch.arange(12), "lowest_class")
    assert ranks.tolist() == list(range(12))
    assert ((ranks < 5) == (torch.arange(12) < 5)).all()


@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_ranks_are_those_of_a_stable_sort(n_classes, seed):
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 3, (2, 4, n_classes)).astype(np.float32), rng.integers(0, n_classes, 4)
    order = np.argsort(-scores, axis=-1, kind="stable")
    expected = (order == truth[None, :, None]).argmax(-1)
    ranks = true_class_ranks(torch.from_numpy(scores), torch.from_numpy(truth), "lowest_class")
    assert np.array_equal(ranks, expected)


def test_all_scores_are_given_away():
    feats, labels, kept = np.random.default_rng(0).normal(size=(23, 6)).astype(np.float32), np.arange(23) % 5, []
    weights = torch.randn(2, 6, 5)
    keep = lambda *given: kept.append(given)  # noqa: E731
    outcomes_in_chunks(lambda rows: rows @ weights, feats, labels, COLUMNS, chunk_rows=5, keep=keep)
    assert np.concatenate([np.arange(23)[rows] for rows, _ in kept]).tolist() == list(range(23))
    torch.testing.assert_close(torch.cat([scores for _, scores in kept], 1), torch.from_numpy(feats) @ weights)


def alike(one, other):
    return all(np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=1e-5) for name in vars(one))


def test_chunks_and_runs_change_nothing():
    feats, labels = np.random.default_rng(0).normal(size=(23, 6)).astype(np.float32), np.arange(23) % 5
    weights = torch.randn(2, 6, 5)

    def score(rows):
        return rows @ weights

    whole = outcomes_in_chunks(score, feats, labels, COLUMNS, chunk_rows=100)
    assert whole.ranks.shape == (2, 23)
    assert alike(whole, outcomes_in_chunks(score, feats, labels, COLUMNS, chunk_rows=5))
    assert alike(whole[1], outcomes_of(score(torch.from_numpy(feats))[1], torch.from_numpy(labels), COLUMNS))


def test_six_numbers_by_hand():
    ranks, labels = np.array([0, 3, 5, 0]), np.array([0, 0, 1, 2])
    found = accuracies(Outcomes(*[ranks] * 5), labels, base_classes=np.array([0]), novel_classes=np.array([1, 2]))
    six = [f"top{k}_{group}" for group in ("novel", "base", "all") for k in (1, 5)]
    assert [found[name] for name in six] == [0.5, 0.5, 0.5, 1.0, 0.5, 0.75]


def outcomes_by_the_definition(scores, labels, columns):
    """One image, one class at a time."""
    found = []
    for row, true in zip(np.asarray(scores, float), labels):
        own, other = (columns.novel, columns.base) if true in columns.novel else (columns.base, columns.novel)
        shares = {int(c): np.exp(row[c]) / np.exp(row[own]).sum() for c in own}
        shares |= {int(c): np.exp(row[c]) / np.exp(row[other]).sum() for c in other}
        weighed = {c: share * (0.8 if c in columns.novel else 0.2) for c, share in shares.items()}
        rival = max((c for c in range(len(row)) if c != true), key=lambda c: (row[c], -c))
        found.append(
            (
                sum(row[c] >= row[true] for c in range(len(row)) if c != true),
                sum(row[c] >= row[true] for c in own if c != true),
                sum(one >= weighed[true] for c, one in weighed.items() if c != true),
                rival if row[rival] >= row[true] else true,
                max(row[columns.base]) - max(row[columns.novel]),
            )
        )
    return [np.array(one) for one in zip(*found)]


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_outcomes_are_those_of_the_definition(seed, with_outside):
    rng = np.random.default_rng(seed)
    columns = Columns(np.arange(6), np.array([0, 2, 5]), np.array([1, 3]) if with_outside else np.array([1, 3, 4]))
    scores = rng.normal(size=(9, 6)).astype(np.float32)
    labels = rng.permutation(np.resize(np.concatenate([columns.base, columns.novel]), 9))
    found = outcomes_of(torch.from_numpy(scores), torch.from_numpy(labels), columns)
    expected = outcomes_by_the_definition(scores, labels, columns)
    for name, one in zip(vars(found), expected):
        np.testing.assert_allclose(getattr(found, name), one, atol=1e-5, err_msg=name)


def test_probabilities_give_the_same_outcomes_as_their_logarithms():
    scores, labels = SCORES.softmax(1), torch.from_numpy(LABELS)
    as_probabilities = outcomes_of(3 * scores, labels, COLUMNS, form="probabilities")
    as_logits = outcomes_of(scores.log(), labels, COLUMNS)
    np.testing.assert_allclose(as_probabilities.leads, as_logits.leads, atol=1e-6)
    assert np.array_equal(as_probabilities.prior_ranks, as_logits.prior_ranks)


@pytest.mark.parametrize("form", ["logits", "probabilities"])
def test_an_image_without_any_score_is_never_a_hit(form):
    nothing = torch.zeros(2, 5) if form == "probabilities" else torch.full((2, 5), -torch.inf)
    found = outcomes_of(nothing, torch.tensor([0, 3]), COLUMNS, form=form)
    assert (found.ranks > 0).all() and (found.group_ranks > 0).all() and (found.prior_ranks > 0).all()
    assert found.leads.tolist() == [0, 0] and found.predicted[0] != 0 and found.predicted[1] != 3


def test_numbers_of_the_fixture():
    outcomes = outcomes_of(SCORES, torch.from_numpy(LABELS), COLUMNS)
    assert outcomes.predicted.tolist() == [0, 3, 1, 1, 3, 2, 2, 3]
    found = accuracies(outcomes, LABELS, BASE_CLASSES, NOVEL_CLASSES)
    expected = {"top1_base": 0.75, "top1_novel": 0.25, "top1_all": 0.5, "top1_base_among_base": 1, "ausuc": 0.40625,
                "top1_novel_among_novel": 0.75, "top1_harmonic_mean": 0.375, "top1_all_with_prior": 0.375}  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def ausuc_by_sweeping(scores, labels, columns):
    """Classify all images once for each bias between and beyond the differences of scores."""
    scores = np.asarray(scores, float)
    leads = scores[:, columns.base].max(1) - scores[:, columns.novel].max(1)
    steps = np.unique(leads)
    biases = [steps[0] - 1, *((steps[1:] + steps[:-1]) / 2), steps[-1] + 1]
    points = []
    for bias in biases:
        biased = scores.copy()
        biased[:, columns.novel] += bias
        hits = biased.argmax(1) == labels
        points.append(
            [
                np.mean([hits[labels == c].mean() for c in np.unique(labels) if c in group])
                for group in (columns.novel, columns.base)
            ]
        )
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))


@given(st.integers(0, 2**32 - 1), st.floats(0, 6), st.floats(0.05, 1))
def test_the_area_under_the_sampled_curve_is_ausuc(seed, lead, share):
    """From groups that cannot be told apart to groups that are separated."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(20), 30))
    novel = labels >= 12
    truth = rng.normal(np.where(novel, -lead, lead)), rng.random(len(labels)) < share, labels, novel
    base, novel = sampled(*base_novel_curve(*truth)).values()
    assert len(base) == len(novel) == N_PLACES and novel[0] == 0 and base[-1] == 0
    assert np.all(np.diff(base) <= 0) and np.all(np.diff(novel) >= 0)
    assert np.trapezoid(base, novel) == pytest.approx(ausuc(*truth), abs=0.005)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_ausuc_harmonic_mean_and_class_means_are_those_of_an_independent_computation(seed, with_equal_leads):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(40 * 5).reshape(40, 5) / 7  # no equal scores within a row
    if with_equal_leads:
        scores[20:] = scores[:20][rng.permutation(20)]
    scores, labels = (
        scores.astype(np.float32),
        np.concatenate([[0, 3], rng.choice([0, 1, 3, 4], 38, p=[0.5, 0.1, 0.1, 0.3])]),
    )
    found = accuracies(
        outcomes_of(torch.from_numpy(scores), torch.from_numpy(labels), COLUMNS), labels, BASE_CLASSES, NOVEL_CLASSES
    )
    assert found["ausuc"] == pytest.approx(ausuc_by_sweeping(scores, labels, COLUMNS), abs=1e-12)
    hits = scores.argmax(1) == labels
    novel = np.isin(labels, NOVEL_CLASSES)
    of_class = {c: hits[labels == c].mean() for c in np.unique(labels)}
    assert found["top1_all_class_mean"] == pytest.approx(np.mean(list(of_class.values())), abs=1e-12)
    assert found["top1_novel_class_mean"] == pytest.approx(np.mean([of_class[c] for c in of_class if c > 2]), abs=1e-12)
    assert found["top1_base_class_mean"] == pytest.approx(np.mean([of_class[c] for c in of_class if c < 3]), abs=1e-12)
    shares = hits[novel].mean(), hits[~novel].mean()
    expected = scipy.stats.hmean(shares) if min(shares) else 0
    assert found["top1_harmonic_mean"] == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1))
def test_all_is_the_mean_of_novel_and_base_weighted_by_images(images):
    ranks, labels = np.array([*images, (0, 0), (9, 3)]).T
    base, novel = np.arange(3), np.arange(3, 6)
    found = accuracies(Outcomes(*[ranks] * 5), labels, base, novel)
    n_base = np.isin(labels, base).sum()
    for k in (1, 5):
        parts = found[f"top{k}_base"] * n_base + found[f"top{k}_novel"] * (len(labels) - n_base)
        assert found[f"top{k}_all"] == pytest.approx(parts / len(labels))


def test_chance_is_the_mean_of_random_scores():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3, 4], 20000)
    scores = torch.from_numpy(rng.random((len(labels), 5), np.float32))
    found = accuracies(outcomes_of(scores, torch.from_numpy(labels), COLUMNS), labels, BASE_CLASSES, NOVEL_CLASSES)
    for metric, value in found.items():
        expected = chance(metric, n_base=3, n_novel=2)
        assert expected is None or value == pytest.approx(expected, abs=0.02), metric
    assert chance("ausuc", 3, 2) == pytest.approx(found["ausuc"], rel=0.03)


def test_a_side_without_images_is_refused():
    with pytest.raises(InputError, match="novel"):
        accuracies(Outcomes(*[np.zeros(2)] * 5), np.array([0, 0]), np.array([0]), np.array([1]))


def test_classes_and_what_they_are_taken_for():
    outcomes = outcomes_of(SCORES, torch.from_numpy(LABELS), COLUMNS)
    assert class_hits(outcomes, LABELS) == [1, 2, 1, 0]
    pairs = confused(outcomes, LABELS)
    assert pairs == [[0, 3, 1], [3, 2, 1], [4, 2, 1], [4, 3, 1]]
    names = ["a", "b", "c", "d", "e"]
    assert most_confused([(1, pairs), (1, [[4, 3, 2]]), (2, [])], names) == [
        {"n_shot": 1, "class": 0, "predicted": 3, "name": "d", "n_images": 1},
        {"n_shot": 1, "class": 3, "predicted": 2, "name": "c", "n_images": 1},
        {"n_shot": 1, "class": 4, "predicted": 3, "name": "d", "n_images": 3},
        {"n_shot": 1, "class": 4, "predicted": 2, "name": "c", "n_images": 1},
    ]
    assert most_confused([(1, [])], names) == []
    many = [[0, c, c] for c in range(1, 9)]
    assert [one["predicted"] for one in most_confused([(5, many)], [*map(str, range(9))])] == [8, 7, 6, 5, 4]
