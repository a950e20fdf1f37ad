"""What the images of few-shot classes are for: supports, an unlabelled pool, and validation images; and the endless
stream of batches that training takes of some."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowshot.core.errors import InputError
from lowshot.core.seeds import stream
from lowshot.data.datasets.images import Images
from lowshot.data.protocol import Split, check_draws, read_draws
from lowshot.representation.loading import to_tensor


class Examples(NamedTuple):
    """Images uint8 (N, C, S, S) and their classes int64 (N,), on the device that trains on them."""

    pixels: Tensor
    labels: Tensor


def examples(images: Images, rows: np.ndarray, device: torch.device) -> Examples:
    """The stored images `rows`."""
    return Examples(to_tensor(images.pixels[rows]).to(device), torch.from_numpy(images.labels[rows]).to(device))


class Shuffled:
    """Endless passes over `n_rows` rows in batches, each pass in an order of its own that depends on (seed, name, pass)
    only; a batch may end one pass and begin the next."""

    def __init__(self, n_rows: int, batch_size: int, seed: int, name: str) -> None:
        self.n_rows, self.batch_size = n_rows, batch_size
        self._order = lru_cache(maxsize=2)(lambda number: stream(seed, name, number).permutation(n_rows))

    def batch(self, step: int) -> np.ndarray:
        """The rows of a step, int64 (batch_size,)."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        passes = range(places[0] // self.n_rows, places[-1] // self.n_rows + 1)
        orders = np.concatenate([self._order(number) for number in passes])
        return orders[places - passes[0] * self.n_rows]


class FewShotRows(NamedTuple):
    """Rows of training images, int64: `supports` class after class in the order of the draws; `unlabelled`, whose
    labels are never read; `validation`, real images to compare generated ones with. The last two ascend."""

    supports: np.ndarray
    unlabelled: np.ndarray
    validation: np.ndarray


def few_shot_rows(
    labels: np.ndarray, split: Split, draws: list[np.ndarray], k: int, where: Path, shared_pool: bool = False
) -> FewShotRows:
    """Divide the training images (or their features) of `labels` (N,) that are of the split's novel classes.

    The first `k` of a class's `draws` (of one trial) are its supports. What stands nowhere in its draws is halved at
    random, class by class, into unlabelled and validation images: the same ones for every k and seed. With
    `shared_pool` both are all training images of these classes, supports included, as released (spec 2.2): the pool
    that a GAN learns from is then also what chooses its checkpoint. Raises InputError, naming the draws `where`, for a
    class with fewer draws than k, or without two images beside them.
    """
    supports, halves = [], []
    for c in split.novel_classes:
        name = f"{where}: few-shot class {c} ({split.class_names[c]})"
        if len(draws[c]) < k:
            raise InputError(f"{name} has {len(draws[c])} shots, fewer than k = {k}")
        supports.append(draws[c][:k])
        rest = np.setdiff1d(np.flatnonzero(labels == c), draws[c])
        if len(rest) < 2 and not shared_pool:
            raise InputError(f"{name} has no images beside its shots")
        halves.append(np.array_split(stream(0, "unlabelled", c).permutation(rest), 2))
    if shared_pool:
        pool = np.flatnonzero(np.isin(labels, split.novel_classes))
        return FewShotRows(np.concatenate(supports), pool, pool)
    return FewShotRows(np.concatenate(supports), *(np.sort(np.concatenate(half)) for half in zip(*halves)))


def read_few_shot_rows(
    images: Images, split: Split, data: Path, k: int, trial: int, shared_pool: bool = False
) -> FewShotRows:
    """`few_shot_rows` of the images of the folder `data`, by its draws.json, as rows of the images file."""
    drawn_at, train = data / "draws.json", images.rows(test=False)
    draws = read_draws(drawn_at, [trial])
    check_draws(draws, images.labels[train], np.array(split.novel_classes), k, drawn_at, data / "images.h5")
    rows = few_shot_rows(images.labels[train], split, draws[trial], k, drawn_at, shared_pool)
    return FewShotRows(*(train[part] for part in rows))
