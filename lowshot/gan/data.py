"""Supports, unlabelled pool and validation images of few-shot classes, and the endless stream of training batches."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowshot.core.errors import InputError
from lowshot.core.seeds import stream
from lowshot.data.datasets.images import Images
from lowshot.data.protocol import Split, check_draws, read_draws, unlabelled_halves
from lowshot.representation.loading import to_tensor


class Examples(NamedTuple):
    """Images uint8 (N, C, S, S) and their classes int64 (N,), on the training device."""

    pixels: Tensor
    labels: Tensor


def examples(images: Images, rows: np.ndarray, device: torch.device) -> Examples:
    """Return the stored images `rows`."""
    return Examples(to_tensor(images.pixels[rows]).to(device), torch.from_numpy(images.labels[rows]).to(device))


class Shuffled:
    """Endless passes over `n_rows` rows in batches.

    The order of each pass depends on (seed, name, pass) only. A batch may contain the end of one pass and the start of
    the next.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int, name: str) -> None:
        self.n_rows, self.batch_size = n_rows, batch_size
        self._order = lru_cache(maxsize=2)(lambda number: stream(seed, name, number).permutation(n_rows))

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of a step, int64 (batch_size,)."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        passes = range(places[0] // self.n_rows, places[-1] // self.n_rows + 1)
        orders = np.concatenate([self._order(number) for number in passes])
        return orders[places - passes[0] * self.n_rows]


class FewShotRows(NamedTuple):
    """Rows of training images, int64.

    `supports` are class after class in the order of the draws. The labels of `unlabelled` are never read. `validation`
    are real images to compare generated images with. The last two are in ascending order.
    """

    supports: np.ndarray
    unlabelled: np.ndarray
    validation: np.ndarray


def few_shot_rows(
    labels: np.ndarray, split: Split, draws: list[np.ndarray], k: int, where: Path, shared_pool: bool = False
) -> FewShotRows:
    """Divide the training images with `labels` (N,) that are of the novel classes of the split.

    The first `k` `draws` (of one trial) of a class are its supports. Its images that are not drawn are divided at
    random into two halves, unlabelled and validation images. The halves are the same for every k and seed.

    With `shared_pool`, both are all training images of these classes, supports included, as in the released code. The
    images that a GAN learns from then also select its checkpoint.

    Raises InputError for a class with fewer draws than k, or with fewer than two images that are not drawn.
    """
    supports, halves = [], []
    for c in split.novel_classes:
        name = f"{where}: few-shot class {c} ({split.class_names[c]})"
        if len(draws[c]) < k:
            raise InputError(f"{name} has {len(draws[c])} shots, but k is {k}. Use --k {len(draws[c])}")
        supports.append(draws[c][:k])
        halves.append(unlabelled_halves(labels, c, draws[c]))
        if min(map(len, halves[-1])) == 0 and not shared_pool:
            raise InputError(
                f"{name} has fewer than two images that are not shots. "
                "Add images, or use train_gan.py finetune --shared_pool"
            )
    if shared_pool:
        pool = np.flatnonzero(np.isin(labels, split.novel_classes))
        return FewShotRows(np.concatenate(supports), pool, pool)
    return FewShotRows(np.concatenate(supports), *(np.sort(np.concatenate(half)) for half in zip(*halves)))


def read_few_shot_rows(
    images: Images, split: Split, data: Path, k: int, trial: int, shared_pool: bool = False
) -> FewShotRows:
    """Return `few_shot_rows` for the images and draws.json of the folder `data`, as rows of the images file."""
    drawn_at, train = data / "draws.json", images.rows(test=False)
    draws = read_draws(drawn_at, [trial])
    check_draws(draws, images.labels[train], np.array(split.novel_classes), k, drawn_at, data / "images.h5")
    rows = few_shot_rows(images.labels[train], split, draws[trial], k, drawn_at, shared_pool)
    return FewShotRows(*(train[part] for part in rows))
