"""The reader of each data set."""

from collections.abc import Callable
from typing import Any

from lowshot.core.choices import is_own
from lowshot.data.datasets import (
    breeds,
    cifar100,
    emnist,
    features,
    few_shot,
    few_shot_gan,
    folder,
    glyphs,
    imagenet,
    omniglot,
    own,
    yfcc100m,
)
from lowshot.data.datasets import settings as s
from lowshot.data.datasets.content import Found, Source

READERS: dict[type, Callable[[Any, Source], Found]] = {
    s.Glyphs: glyphs.find,
    s.Omniglot: omniglot.find,
    s.Cifar100: cifar100.find,
    s.Emnist: emnist.find,
    s.Folder: folder.find,
    s.FeatureFile: features.find,
    s.ImageNet: imagenet.find,
    s.CifarFewShot: few_shot.find_cifar,
    s.OmniglotVinyals: few_shot.find_omniglot,
    s.MiniImageNet: few_shot.find_mini_imagenet,
    s.TieredImageNet: few_shot.find_tiered_imagenet,
    s.FewShotGan: few_shot_gan.find,
    s.DrawingsFewShotGan: few_shot_gan.find,
    s.Breeds: breeds.find,
    s.Yfcc100m: yfcc100m.find,
}


def find(dataset: Any, source: Source) -> Found:
    """Find a data set by its settings. The user's own classes read their data themselves."""
    return own.find(dataset, source) if is_own(dataset) else READERS[type(dataset)](dataset, source)
