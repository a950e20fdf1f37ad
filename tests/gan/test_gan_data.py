"""Supports, unlabelled pool and validation images of few-shot classes, and the order of training images."""

import numpy as np
import pytest

from lowshot.core.errors import InputError
from lowshot.data.datasets.images import read_images
from lowshot.data.protocol import read_draws, read_split
from lowshot.gan.data import Shuffled, few_shot_rows


@pytest.fixture(scope="module")
def given(data):
    """Labels of ten training images per class, five of them drawn; four novel classes."""
    images, split = read_images(data / "images.h5"), read_split(data / "split.json")
    return images.labels[images.rows(test=False)], split, read_draws(data / "draws.json")[1]


def test_few_shot_images_are_divided(given):
    labels, split, draws = given
    rows = few_shot_rows(labels, split, draws, 3, "draws.json")
    assert rows.supports.tolist() == [r for c in split.novel_classes for r in draws[c][:3]]
    parts = [set(part.tolist()) for part in rows]
    assert [len(part) for part in parts] == [12, 4 * 3, 4 * 2]  # five images per class are not drawn
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    drawn = {r for c in split.novel_classes for r in draws[c].tolist()}
    assert not drawn & (parts[1] | parts[2])
    for part in rows:
        assert set(labels[part]) == set(split.novel_classes)


def test_more_shots_leave_the_other_images_alone(given):
    few, more = (few_shot_rows(*given, k, "d") for k in (1, 5))
    assert np.array_equal(few.unlabelled, more.unlabelled) and np.array_equal(few.validation, more.validation)
    assert set(few.supports) < set(more.supports)


def test_the_released_pool_holds_everything(given):
    rows = few_shot_rows(*given, 3, "d", shared_pool=True)
    assert np.array_equal(rows.unlabelled, rows.validation) and len(rows.validation) == 40
    assert set(rows.supports) < set(rows.unlabelled)


def test_too_few_images_are_named(given):
    labels, split, draws = given
    c = split.novel_classes[0]
    named = rf"draws\.json: few-shot class {c} \(\S+\)"
    with pytest.raises(InputError, match=rf"{named} has 5 shots, but k is 6\. Use --k 5"):
        few_shot_rows(labels, split, draws, 6, "draws.json")
    all_drawn = [np.flatnonzero(labels == c) for c in range(split.n_classes)]
    with pytest.raises(InputError, match=rf"{named} has fewer than two images that are not shots"):
        few_shot_rows(labels, split, all_drawn, 6, "draws.json")
    assert len(few_shot_rows(labels, split, all_drawn, 6, "d", shared_pool=True).supports) == 24


@pytest.mark.parametrize(("n_rows", "batch_size"), [(10, 4), (3, 8), (8, 8)])
def test_a_stream_covers_all_images_in_each_pass_and_shuffles_anew(n_rows, batch_size):
    """The released code repeats the first batches of a single order."""
    stream = Shuffled(n_rows, batch_size, seed=1, name="order")
    drawn = np.concatenate([stream.batch(step) for step in range(30)])
    assert len(drawn) == 30 * batch_size
    passes = drawn[: len(drawn) // n_rows * n_rows].reshape(-1, n_rows)
    assert (np.sort(passes, axis=1) == np.arange(n_rows)).all()
    assert len({tuple(one) for one in passes}) > 1
    assert np.array_equal(Shuffled(n_rows, batch_size, 1, "order").batch(17), stream.batch(17))
    assert not np.array_equal(Shuffled(n_rows, batch_size, 1, "unlabelled order").batch(17), stream.batch(17))
