"""Which data sets there are, and what can be set of each.

A data set has the settings that something reads: those of its own, and by the classes they inherit those of what is
drawn here. A data set of the user's own inherits what it wants to have set; of the rest the defaults hold.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from lowshot.core.choices import Registry
from lowshot.core.settings import ClosedUnitInterval, NonNegativeInt, OpenUnitInterval, PositiveInt, RunOnly
from lowshot.data.protocol import Halves

_Part = TypeVar("_Part")


@dataclass(kw_only=True)
class Shots:
    """Which images are the shots of a trial."""

    n_trials: PositiveInt = 5
    """Trials to draw shots for."""
    max_shots: PositiveInt = 20
    """Shots drawn for every trial and class; n-shot takes the first n of them."""
    draw_rule: Literal["streams", "douze2018"] = "streams"
    """How shots are drawn: each class from a stream of its own, or as the diffusion paper's release does."""


@dataclass(kw_only=True)
class Capped:
    """How much of a data set is taken."""

    max_per_class: PositiveInt | None = None
    """Keep at most this many random images of a class in the train part, and as many in the test part."""


@dataclass(kw_only=True)
class HalvedSplit(Shots):
    """What is drawn of a split whose novel classes are fixed, and the shots."""

    halves: Halves = "classes"
    """What is dealt to the validation and the test setup: single classes or whole superclasses."""
    validation_share: OpenUnitInterval | None = None
    """If given, this share of every class's training images stands in place of the test images, which are left out: to
    choose settings on. Results then say "validation part" behind the data set's name."""


@dataclass(kw_only=True)
class DrawnSplit(HalvedSplit):
    """What is drawn of a split whose novel classes are drawn too, and the shots."""

    novel_fraction: ClosedUnitInterval = 0.4
    """Share of the classes that become novel."""
    novel_per_superclass: NonNegativeInt = 0
    """If above 0: this many novel classes in every superclass, instead of novel_fraction."""


def part_of(dataset: object, part: type[_Part]) -> _Part:
    """The settings of one of the classes above that a data set has; their defaults if it has none of them."""
    return dataset if isinstance(dataset, part) else part()


@dataclass(kw_only=True)
class Glyphs(DrawnSplit, Capped):
    """Characters that are rendered here; from no files."""


@dataclass(kw_only=True)
class Omniglot(HalvedSplit, Capped):
    """The background alphabets are base, the evaluation alphabets novel."""

    image_size: PositiveInt | None = None
    """Side of the stored images; 28 if not given."""
    test_per_class: PositiveInt | None = None
    """Images of a class held out for test; 10 if not given."""


@dataclass(kw_only=True)
class Cifar100(DrawnSplit, Capped):
    """With its own test part."""


@dataclass(kw_only=True)
class Emnist(DrawnSplit, Capped):
    """With its own test part where its file is there."""

    test_per_class: PositiveInt | None = None
    """Images of a class held out for test where the train or the test file is missing; a fifth if not given."""


@dataclass(kw_only=True)
class Folder(DrawnSplit, Capped):
    """The user's own images, in folders."""

    image_size: PositiveInt | None = None
    """Store square images of this side instead of paths."""
    test_per_class: PositiveInt | None = None
    """Images of a class held out for test; a fifth if not given."""


@dataclass(kw_only=True)
class ImageNet(Shots):
    """With the published split and the published shots."""

    protocol: RunOnly[Path]  # a recipe has the digests of its files
    """Folder with the published label_idx.json and splitfile_{1..5}.json."""


@dataclass(kw_only=True)
class Breeds(DrawnSplit, Capped):
    """Superclasses of ImageNet's classes."""

    name: Literal["living17", "nonliving26", "entity13", "entity30"]


@dataclass(kw_only=True)
class CifarFewShot(Shots, Capped):
    """Published few-shot splits of CIFAR-100."""

    name: Literal["cifar_fs", "fc100"]


@dataclass(kw_only=True)
class OmniglotVinyals(Shots, Capped):
    """The published few-shot split of Omniglot, with rotations."""

    image_size: PositiveInt | None = None
    """Side of the stored images; 28 if not given."""


@dataclass(kw_only=True)
class MiniImageNet(Shots, Capped):
    """With its published few-shot split."""


@dataclass(kw_only=True)
class TieredImageNet(Shots, Capped):
    """With its published few-shot split."""


@dataclass(kw_only=True)
class FewShotGan(Shots, Capped):
    """Published splits for few-shot GANs."""

    name: Literal["emnist_fs", "omniglot_fs", "cifar100_fs"]


@dataclass(kw_only=True)
class OmniglotFewShotGan(FewShotGan):
    """The one of Omniglot."""

    image_size: PositiveInt | None = None
    """Side of the stored images; 28 if not given."""


@dataclass(kw_only=True)
class Yfcc100m:
    """Unlabelled images: nothing to split or draw."""

    count: PositiveInt
    """How many images to take."""
    start: NonNegativeInt = 0
    """Number of the first image to take."""


DATASETS = Registry(
    "data set",
    {
        "glyphs": Glyphs,
        "omniglot": Omniglot,
        "cifar100": Cifar100,
        "emnist": Emnist,
        "folder": Folder,
        "imagenet": ImageNet,
        "cifar_fs": CifarFewShot,
        "fc100": CifarFewShot,
        "omniglot_vinyals": OmniglotVinyals,
        "mini_imagenet": MiniImageNet,
        "tiered_imagenet": TieredImageNet,
        "emnist_fs": FewShotGan,
        "omniglot_fs": OmniglotFewShotGan,
        "cifar100_fs": FewShotGan,
        "living17": Breeds,
        "nonliving26": Breeds,
        "entity13": Breeds,
        "entity30": Breeds,
        "yfcc100m": Yfcc100m,
    },
    "read(source)",
)
