"""Which data sets there are, and which settings of preprocessing each of them heeds."""

from collections.abc import Callable
from typing import NamedTuple

from lowshot.datasets import cifar100, emnist, folder, glyphs, imagenet, omniglot
from lowshot.datasets.content import Found, Source


class Reader(NamedTuple):
    """`find` looks for the data set; `heeds` names those settings that only some data sets have a use for."""

    find: Callable[[Source], Found]
    heeds: set[str]


READERS = {
    "glyphs": Reader(glyphs.find, {"max_per_class"}),
    "omniglot": Reader(omniglot.find, {"root", "max_per_class", "test_per_class", "image_size"}),
    "cifar100": Reader(cifar100.find, {"root", "max_per_class"}),
    "emnist": Reader(emnist.find, {"root", "max_per_class", "test_per_class"}),
    "folder": Reader(folder.find, {"root", "max_per_class", "test_per_class", "image_size"}),
    "imagenet": Reader(imagenet.find, {"root", "protocol"}),
}
