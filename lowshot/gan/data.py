"""What the images of few-shot classes are for: supports, an unlabelled pool, and validation images."""

from typing import NamedTuple

import numpy as np

from lowshot.datasets.images import Images
from lowshot.errors import InputError
from lowshot.protocol import Split
from lowshot.seeds import stream


class FewShotRows(NamedTuple):
    """Rows of the images file, int64: `supports` class after class in the order of the draws; `unlabelled`, whose
    labels are never read; `validation`, real images to compare generated ones with. The last two ascend."""

    supports: np.ndarray
    unlabelled: np.ndarray
    validation: np.ndarray


def few_shot_rows(
    images: Images, split: Split, draws: list[np.ndarray], k: int, seed: int, where: str, shared_pool: bool = False
) -> FewShotRows:
    """Divide the training images of the split's novel classes.

    The first `k` of a class's `draws` (rows among training images, one trial) are its supports. What stands nowhere in
    its draws is halved at random, class by class, into unlabelled and validation images: the same ones for every k.
    With `shared_pool` both are all training images of these classes, supports included, as released (spec 2.2): the
    pool that a GAN learns from is then also what chooses its checkpoint. Raises InputError, naming `where`, for a class
    with fewer draws than k, or without two images beside them.
    """
    train = images.rows(test=False)
    supports, halves = [], []
    for c in split.novel_classes:
        if len(draws[c]) < k:
            name = split.class_names[c]
            raise InputError(f"{where}: few-shot class {c} ({name}) has {len(draws[c])} shots, fewer than k = {k}")
        supports.append(train[draws[c][:k]])
        rest = np.setdiff1d(train[images.labels[train] == c], train[draws[c]])
        if len(rest) < 2 and not shared_pool:
            raise InputError(f"{where}: few-shot class {c} ({split.class_names[c]}) has no images beside its shots")
        halves.append(np.array_split(stream(seed, "unlabelled", c).permutation(rest), 2))
    if shared_pool:
        pool = train[np.isin(images.labels[train], split.novel_classes)]
        return FewShotRows(np.concatenate(supports), pool, pool)
    return FewShotRows(np.concatenate(supports), *(np.sort(np.concatenate(half)) for half in zip(*halves)))
