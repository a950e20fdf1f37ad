"""Splits for few-shot GANs: the published classes, shots and test images, by numpy's legacy generator."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_refused, run_script
from test_datasets import save_idx

from lowshot.core.errors import InputError
from lowshot.data.datasets import emnist, few_shot_gan
from lowshot.data.datasets.content import Source
from lowshot.data.datasets.few_shot_gan import novel_classes, shuffled_rows
from lowshot.data.datasets.images import read_images
from lowshot.data.datasets.settings import DrawingsFewShotGan, Emnist
from lowshot.data.protocol import read_draws, read_split

REAL = Path(os.environ.get("LOWSHOT_DATA", "../shared/data")) / "emnist"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"LOWSHOT_DATA: no folder {REAL}")

EMNIST_FS = DrawingsFewShotGan(name="emnist_fs")
EMNIST = [[0, 3, 9, 19, 21, 23, 36, 39, 44, 46], [0, 5, 8, 9, 11, 12, 15, 16, 37, 43],
          [7, 8, 11, 15, 18, 22, 31, 34, 40, 46], [0, 3, 8, 10, 19, 21, 24, 39, 41, 42],
          [1, 5, 8, 9, 23, 30, 36, 39, 40, 46]]  # fmt: skip
CIFAR100 = [[9, 12, 21, 25, 36, 37, 39, 44, 46, 47, 58, 64, 65, 67, 70, 81, 83, 87, 88, 96],
            [1, 5, 6, 9, 11, 12, 16, 18, 20, 25, 28, 29, 37, 50, 64, 71, 72, 75, 76, 79],
            [4, 7, 15, 20, 22, 31, 34, 37, 39, 40, 43, 47, 49, 63, 67, 72, 75, 82, 85, 93],
            [0, 3, 10, 14, 19, 20, 21, 22, 24, 26, 38, 39, 41, 44, 56, 66, 72, 74, 81, 94],
            [0, 1, 3, 9, 36, 38, 44, 46, 50, 52, 55, 57, 58, 69, 72, 87, 89, 90, 93, 98]]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_published_few_shot_classes(seed):
    assert novel_classes(47, 10, seed) == EMNIST[seed]
    assert novel_classes(100, 20, seed) == CIFAR100[seed]
    omniglot = novel_classes(1623, 212, seed)
    assert sum(omniglot) == [163663, 180647, 188388, 170922, 178585][seed]
    assert seed or omniglot[:5] == [11, 23, 24, 25, 28]


@pytest.mark.parametrize(
    ("n", "c", "first"),
    [
        (2800, 0, [1390, 196, 253, 2586, 1043]),
        (2800, 3, [630, 2587, 2445, 1011, 1772]),
        (2800, 23, [734, 2411, 1289, 2643, 203]),
        (20, 11, [3, 5, 10, 6, 14]),
        (20, 23, [0, 10, 2, 1, 4]),
        (600, 9, [532, 185, 60, 141, 551]),
    ],
)
def test_published_order_of_images(n, c, first):
    labels = np.tile(np.arange(c + 1), n)  # position p of class c is row p * (c + 1) + c
    rows = shuffled_rows(labels, c + 1)[c]
    assert (rows[:5] // (c + 1)).tolist() == first and sorted(rows) == np.flatnonzero(labels == c).tolist()


def small_emnist(monkeypatch, root):
    """A small EMNIST that is read as emnist_fs; two of its four classes are few-shot classes."""
    monkeypatch.setitem(few_shot_gan.SETS, "emnist_fs", few_shot_gan.SETS["emnist_fs"]._replace(n_classes=4, n_novel=2))
    return few_shot_gan.find(DrawingsFewShotGan(name="emnist_fs", max_shots=3, n_trials=2), Source(root, seed=1)).read()


def write_emnist(root, split="bymerge"):
    """Write four classes of 10 train and 5 test images each. One corner of an image contains its index."""
    (root / f"emnist-{split}-mapping.txt").write_text("".join(f"{c} {48 + c}\n" for c in range(4)))
    for part, start, n in (("train", 0, 40), ("test", 40, 20)):
        pixels = np.zeros((n, 28, 28), np.uint8)
        pixels[:, 0, 0] = np.arange(start, start + n)
        save_idx(root / f"emnist-{split}-{part}-images-idx3-ubyte.gz", pixels)
        save_idx(root / f"emnist-{split}-{part}-labels-idx1-ubyte.gz", np.arange(n) % 4)


def test_both_parts_are_one_pool_of_which_a_fifth_is_for_test(tmp_path, monkeypatch):
    write_emnist(tmp_path)
    content = small_emnist(monkeypatch, tmp_path)
    images = content.images
    assert content.novel_classes == novel_classes(4, 2, 1) and content.split is None
    assert np.bincount(images.labels[~images.is_test]).tolist() == [12] * 4
    train = images.rows(test=False)
    for c in range(4):
        numbers = [4 * p + c for p in range(10)] + [40 + 4 * p + c for p in range(5)]  # of the class, in file order
        order = np.arange(15)
        np.random.RandomState(c).shuffle(order)
        held = images.pixels[images.is_test & (images.labels == c), 0, 0, 0]
        assert sorted(held) == sorted(numbers[p] for p in order[12:])
        assert images.pixels[train[content.draws[1][c]], 0, 0, 0].tolist() == [numbers[p] for p in order[:3]]
        assert (images.labels[train[content.draws[2][c]]] == c).all()  # another trial: other shots, of training images


def test_fewer_images_a_class_keep_the_shots(tmp_path, monkeypatch):
    write_emnist(tmp_path)
    whole = small_emnist(monkeypatch, tmp_path)
    few = DrawingsFewShotGan(name="emnist_fs", max_shots=3, max_per_class=5)
    capped = few_shot_gan.find(few, Source(tmp_path, seed=2)).read()
    assert np.bincount(capped.images.labels).tolist() == [5] * 4 and capped.images.is_test.sum() == 4
    for c in range(4):
        shots = [one.images.pixels[one.images.rows(test=False)[one.draws[1][c]]] for one in (whole, capped)]
        assert np.array_equal(*shots)


def test_the_balanced_split_comes_first(tmp_path):
    for split in ("bymerge", "balanced"):
        write_emnist(tmp_path, split)
    found = few_shot_gan.find(EMNIST_FS, Source(tmp_path))
    (tmp_path / "emnist-balanced-train-images-idx3-ubyte.gz").write_bytes(b"changed")
    assert few_shot_gan.find(EMNIST_FS, Source(tmp_path)).digests != found.digests
    assert emnist.find(Emnist(), Source(tmp_path)).digests == found.digests  # from ByMerge, which has the same images


def test_unequal_classes_need_a_bound(tmp_path, monkeypatch):
    write_emnist(tmp_path)
    save_idx(tmp_path / "emnist-bymerge-test-labels-idx1-ubyte.gz", np.repeat([0, 0, 1, 2, 3], 4))
    with pytest.raises(InputError, match=r"classes have 14 to 18 images, .* or --dataset.max_per_class 14"):
        small_emnist(monkeypatch, tmp_path)


def test_another_number_of_classes_is_refused(tmp_path):
    write_emnist(tmp_path)
    with pytest.raises(InputError, match="4 classes, but the split of emnist_fs needs 47"):
        few_shot_gan.find(EMNIST_FS, Source(tmp_path)).read()


@needs_real
def test_emnist_from_the_command_line(tmp_path):
    options = ["--dataset", "emnist_fs", "--root", REAL, "--dataset.max_per_class", 50,
               "--dataset.max_shots", 25, "--dataset.n_trials", 1]  # fmt: skip
    result = run_script("preprocessing.py", *options, "--out", tmp_path / "data")
    assert result.returncode == 0, result.stderr
    split, images = read_split(tmp_path / "data/split.json"), read_images(tmp_path / "data/images.h5")
    assert split.novel_classes == EMNIST[0] and split.dataset == "emnist_fs"
    assert "".join(split.class_names[c] for c in split.novel_classes) == "039JLNaeqt"
    assert np.bincount(images.labels).tolist() == [50] * 47 and images.is_test.sum() == 47 * 10
    draws = read_draws(tmp_path / "data/draws.json")[1]
    assert all((images.labels[images.rows(test=False)[rows]] == c).all() for c, rows in enumerate(draws))
    refused = run_script("preprocessing.py", *options, "--dataset.validation_share", 0.1, "--out", tmp_path / "other")
    assert_refused(refused, "--dataset.validation_share: no setting of emnist_fs")
