"""The splits of Beckham et al. (arXiv 2203.16662) for few-shot GANs: EMNIST, Omniglot and CIFAR-100.

The few-shot (novel) classes are the last classes of a random permutation, drawn with the seed. The images of a class,
train and test together, are shuffled with the class number as seed. The first images are its shots; the last fifth are
its test images. Both use numpy's legacy generator, whose streams never change. As in every data set, one half of the
novel classes belongs to the validation setup and the other to the test setup.

Departs from the release, which tests few-shot classes only: a fifth of the images of base classes is held out too,
because low_shot.py evaluates both.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lowshot.core.errors import InputError
from lowshot.data.datasets import cifar100, emnist, omniglot
from lowshot.data.datasets.content import Content, Found, Source, only_rows, rows_by_class
from lowshot.data.datasets.settings import Cifar100, DrawingsFewShotGan, Emnist, FewShotGan, Omniglot
from lowshot.data.protocol import make_draws

TRAIN_SHARE = 0.8


class FewShotSet(NamedTuple):
    """A data set that `find` reads, its number of classes, and how many of them are few-shot classes."""

    find: Callable[[FewShotGan, Source], Found]
    n_classes: int
    n_novel: int


def _find_emnist(settings: DrawingsFewShotGan, source: Source) -> Found:
    as_it_is = Emnist(image_size=settings.image_size, resampling=settings.resampling)
    return emnist.find(as_it_is, source, preferred="balanced")


def _find_omniglot(settings: DrawingsFewShotGan, source: Source) -> Found:
    as_it_is = Omniglot(image_size=settings.image_size, resampling=settings.resampling, test_per_class=1)
    return omniglot.find(as_it_is, source)


def _find_cifar(settings: FewShotGan, source: Source) -> Found:
    return cifar100.find(Cifar100(), source)


SETS = {
    "emnist_fs": FewShotSet(_find_emnist, 47, 10),
    "omniglot_fs": FewShotSet(_find_omniglot, 1623, 212),
    "cifar100_fs": FewShotSet(_find_cifar, 100, 20),
}


def find(settings: FewShotGan, source: Source) -> Found:
    """Find a data set of SETS. Its own test flags are not used."""
    found = SETS[settings.name].find(settings, source)
    return Found(found.digests, lambda: _read(settings, source, found.read()))


def novel_classes(n_classes: int, n_novel: int, seed: int) -> list[int]:
    """Return the few-shot classes, ascending."""
    return sorted(np.random.RandomState(seed).permutation(n_classes)[-n_novel:].tolist())


def shuffled_rows(labels: np.ndarray, n_classes: int) -> list[np.ndarray]:
    """Return the shuffled rows of `labels` (N,) of each class. The order decides which images are shots or test
    images."""
    rows_of = rows_by_class(labels, n_classes)
    for c, rows in enumerate(rows_of):
        np.random.RandomState(c).shuffle(rows)
    return rows_of


def _read(settings: FewShotGan, source: Source, content: Content) -> Content:
    s, n = settings, len(content.class_names)
    if n != SETS[s.name].n_classes:
        raise InputError(f"{source.folder}: {n} classes, but the split of {s.name} needs {SETS[s.name].n_classes}")
    images = content.images
    counts = np.bincount(images.labels, minlength=n)
    if s.name == "emnist_fs" and s.max_per_class is None and counts.min() < counts.max():
        raise InputError(
            f"{source.folder}: classes have {counts.min()} to {counts.max()} images, but emnist_fs needs equally many. "
            f"Use the balanced split of EMNIST, or --dataset.max_per_class {counts.min()}"
        )
    kept = [rows[: s.max_per_class] for rows in shuffled_rows(images.labels, n)]
    train = [rows[: int(TRAIN_SHARE * len(rows))] for rows in kept]
    is_test = np.ones(len(images), bool)
    is_test[np.concatenate(train)] = False
    row_of = np.cumsum(~is_test) - 1  # row of a training image among the training images
    images = only_rows(replace(images, is_test=is_test), np.sort(np.concatenate(kept)))
    train_labels = images.labels[images.rows(test=False)]
    draws = make_draws(train_labels, content.class_names, s.n_trials, s.max_shots, source.seed)
    draws[1] = [row_of[rows[: s.max_shots]] for rows in train]
    return replace(
        content, images=images, novel_classes=novel_classes(n, SETS[s.name].n_novel, source.seed), draws=draws
    )
