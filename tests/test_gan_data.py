"""Supports, unlabelled pool and validation images of few-shot classes."""

import numpy as np
import pytest

from lowshot.datasets.images import read_images
from lowshot.errors import InputError
from lowshot.gan.data import few_shot_rows
from lowshot.protocol import read_draws, read_split


@pytest.fixture(scope="module")
def given(data):
    """Ten training images a class, five of them drawn; four novel classes."""
    images, split = read_images(data / "images.h5"), read_split(data / "split.json")
    return images, split, read_draws(data / "draws.json")[1]


def test_few_shot_images_are_divided(given):
    images, split, draws = given
    rows = few_shot_rows(images, split, draws, 3, seed=0, where="draws.json")
    train = images.rows(test=False)
    assert rows.supports.tolist() == [r for c in split.novel_classes for r in train[draws[c][:3]]]
    parts = [set(part.tolist()) for part in rows]
    assert [len(part) for part in parts] == [12, 4 * 3, 4 * 2]  # five are left of a class
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    drawn = {r for c in split.novel_classes for r in train[draws[c]].tolist()}
    assert not drawn & (parts[1] | parts[2])
    for part in rows:
        assert set(images.labels[part]) == set(split.novel_classes) and not images.is_test[part].any()


def test_more_shots_leave_the_other_images_alone(given):
    few, more = (few_shot_rows(*given, k, seed=0, where="d") for k in (1, 5))
    assert np.array_equal(few.unlabelled, more.unlabelled) and np.array_equal(few.validation, more.validation)
    assert set(few.supports) < set(more.supports)
    other = few_shot_rows(*given, 1, seed=1, where="d")
    assert not np.array_equal(few.unlabelled, other.unlabelled)


def test_the_released_pool_holds_everything(given):
    images, split, draws = given
    rows = few_shot_rows(images, split, draws, 3, seed=0, where="d", shared_pool=True)
    assert np.array_equal(rows.unlabelled, rows.validation) and len(rows.validation) == 40
    assert set(rows.supports) < set(rows.unlabelled)


def test_too_few_images_are_named(given):
    images, split, draws = given
    c = split.novel_classes[0]
    with pytest.raises(InputError, match=rf"draws\.json: few-shot class {c} \(\S+\) has 5 shots, fewer than k = 6"):
        few_shot_rows(images, split, draws, 6, seed=0, where="draws.json")
    all_drawn = [np.flatnonzero(images.labels[images.rows(test=False)] == c) for c in range(split.n_classes)]
    with pytest.raises(InputError, match=rf"class {c} \(\S+\) has no images beside its shots"):
        few_shot_rows(images, split, all_drawn, 6, seed=0, where="draws.json")
    assert len(few_shot_rows(images, split, all_drawn, 6, 0, "d", shared_pool=True).supports) == 24
