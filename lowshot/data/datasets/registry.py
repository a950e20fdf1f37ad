"""Which data sets there are, and which settings of preprocessing each of them heeds."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from lowshot.data.datasets import (
    breeds,
    cifar100,
    emnist,
    few_shot,
    few_shot_gan,
    folder,
    glyphs,
    imagenet,
    omniglot,
    yfcc100m,
)
from lowshot.data.datasets.content import Found, Source


class Reader(NamedTuple):
    """`find` looks for the data set; `heeds` names those settings that only some data sets have a use for;
    `fixes_split`: it comes with a published split; without `labelled` there is nothing to split or draw."""

    find: Callable[[Source], Found]
    heeds: set[str]
    fixes_split: bool = False
    labelled: bool = True


READERS = {
    "glyphs": Reader(glyphs.find, {"max_per_class"}),
    "omniglot": Reader(omniglot.find, {"root", "max_per_class", "test_per_class", "image_size"}),
    "cifar100": Reader(cifar100.find, {"root", "max_per_class"}),
    "emnist": Reader(emnist.find, {"root", "max_per_class", "test_per_class"}),
    "folder": Reader(folder.find, {"root", "max_per_class", "test_per_class", "image_size"}),
    "imagenet": Reader(imagenet.find, {"root", "protocol"}, True),
    "cifar_fs": Reader(partial(few_shot.find_cifar, "cifar_fs"), {"root", "max_per_class"}, True),
    "fc100": Reader(partial(few_shot.find_cifar, "fc100"), {"root", "max_per_class"}, True),
    "omniglot_vinyals": Reader(few_shot.find_omniglot, {"root", "max_per_class", "image_size"}, True),
    "mini_imagenet": Reader(few_shot.find_mini_imagenet, {"root", "max_per_class"}, True),
    "tiered_imagenet": Reader(few_shot.find_tiered_imagenet, {"root", "max_per_class"}, True),
    "emnist_fs": Reader(partial(few_shot_gan.find, "emnist_fs"), {"root", "max_per_class"}, True),
    "omniglot_fs": Reader(partial(few_shot_gan.find, "omniglot_fs"), {"root", "max_per_class", "image_size"}, True),
    "cifar100_fs": Reader(partial(few_shot_gan.find, "cifar100_fs"), {"root", "max_per_class"}, True),
    **{name: Reader(partial(breeds.find, name), {"root", "max_per_class"}) for name in breeds.BENCHMARKS},
    "yfcc100m": Reader(yfcc100m.find, {"root", "start", "count"}, labelled=False),
}
