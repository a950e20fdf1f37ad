"""The six accuracies: ties, NaN, chunks, and the identity between novel, base and all."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowshot.core.errors import InputError
from lowshot.evaluation.metrics import six_accuracies
from lowshot.evaluation.ranks import ranks_in_chunks, true_class_ranks


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
    feats, labels, kept = np.random.default_rng(0).normal(size=(23, 6)).astype(np.float32), np.arange(23) % 4, []
    weights = torch.randn(2, 6, 4)
    ranks_in_chunks(lambda rows: rows @ weights, feats, labels, chunk_rows=5, keep=lambda *given: kept.append(given))
    assert np.concatenate([np.arange(23)[rows] for rows, _ in kept]).tolist() == list(range(23))
    torch.testing.assert_close(torch.cat([scores for _, scores in kept], 1), torch.from_numpy(feats) @ weights)


def test_chunks_change_nothing():
    feats, labels = np.random.default_rng(0).normal(size=(23, 6)).astype(np.float32), np.arange(23) % 4
    weights = torch.randn(2, 6, 4)

    def score(rows):
        return rows @ weights

    whole = ranks_in_chunks(score, feats, labels, chunk_rows=100)
    assert whole.shape == (2, 23)
    assert np.array_equal(whole, ranks_in_chunks(score, feats, labels, chunk_rows=5))


def test_six_numbers_by_hand():
    ranks, labels = np.array([0, 3, 5, 0, 7]), np.array([0, 0, 1, 2, 9])
    six = six_accuracies(ranks, labels, base_classes=np.array([0]), novel_classes=np.array([1, 2]))
    expected = {
        "top1_novel": 0.5,
        "top5_novel": 0.5,
        "top1_base": 0.5,
        "top5_base": 1.0,
        "top1_all": 0.5,
        "top5_all": 0.75,
    }
    assert six == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1))
def test_all_is_the_mean_of_novel_and_base_weighted_by_images(images):
    ranks, labels = np.array([*images, (0, 0), (9, 3)]).T
    base, novel = np.arange(3), np.arange(3, 6)
    six = six_accuracies(ranks, labels, base, novel)
    n_base = np.isin(labels, base).sum()
    for k in (1, 5):
        parts = six[f"top{k}_base"] * n_base + six[f"top{k}_novel"] * (len(labels) - n_base)
        assert six[f"top{k}_all"] == pytest.approx(parts / len(labels))


def test_a_side_without_images_is_refused():
    with pytest.raises(InputError, match="novel"):
        six_accuracies(np.zeros(2), np.array([0, 0]), np.array([0]), np.array([1]))
