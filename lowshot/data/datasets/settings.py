"""The data sets and their settings.

A data set has its own settings, and inherits the settings of shots, caps and random splits that apply to it. Your own
data sets can inherit the same classes; settings that are not inherited keep their defaults.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from lowshot.core.choices import Registry
from lowshot.core.settings import ClosedUnitInterval, NonNegativeInt, OpenUnitInterval, PositiveInt, RunOnly
from lowshot.data.datasets.images import Resampling
from lowshot.data.protocol import Halves

_Part = TypeVar("_Part")


@dataclass(kw_only=True)
class Shots:
    """How shots are drawn."""

    n_trials: PositiveInt = 5
    """Number of trials to draw shots for."""
    max_shots: PositiveInt = 20
    """Number of shots per trial and class. n-shot uses the first n of them. Novel classes must have as many training
    images."""
    draw_rule: Literal["streams", "douze2018"] = "streams"
    """How to draw shots: with a random stream per class, or as in the release of Douze et al. (2018)."""


@dataclass(kw_only=True)
class Capped:
    """How many images are kept."""

    max_per_class: PositiveInt | None = None
    """Maximum number of train images per class, and of test images per class. The kept ones are random."""


@dataclass(kw_only=True)
class HalvedSplit(Shots):
    """How a split with fixed novel classes is drawn, and its shots."""

    halves: Halves = "classes"
    """What to divide between the validation and the test setup: classes, or whole superclasses."""
    validation_share: OpenUnitInterval | None = None
    """Drop the test images and use this share of each class's train images instead, to choose settings. Results then
    have "validation part" after the data set's name."""


@dataclass(kw_only=True)
class DrawnSplit(HalvedSplit):
    """How a split with random novel classes is drawn, and its shots."""

    novel_fraction: ClosedUnitInterval = 0.4
    """Share of the classes that become novel."""
    novel_per_superclass: NonNegativeInt = 0
    """Number of novel classes per superclass. If above 0, it replaces novel_fraction."""


@dataclass(kw_only=True)
class Resized:
    """Size of the stored images, and how they are made smaller."""

    image_size: PositiveInt | None = None
    """Side of the stored images in pixels. Default: 28 for drawings; photos stay on disk, with their own sizes."""
    resampling: Resampling = "antialiased"
    """How images get this size: antialiased (bilinear over all pixels), or nearest, which keeps 1-bit drawings 1-bit.
    predict.py and save_features.py treat pictures in the same way."""


def part_of(dataset: object, part: type[_Part]) -> _Part:
    """Return a data set as one of the base classes (`Shots`, `Capped`, ...), or the defaults if it does not inherit
    it."""
    return dataset if isinstance(dataset, part) else part()


@dataclass(kw_only=True)
class Glyphs(DrawnSplit, Capped):
    """Rendered characters of twelve scripts; needs no files."""


@dataclass(kw_only=True)
class Omniglot(HalvedSplit, Capped, Resized):
    """Omniglot with background alphabets as base classes, evaluation alphabets as novel classes. The official drawings
    are 1-bit images of 105 px."""

    test_per_class: PositiveInt | None = None
    """Number of test images held out per class (default: 10)."""


@dataclass(kw_only=True)
class Cifar100(DrawnSplit, Capped):
    """CIFAR-100 with its own test images."""


@dataclass(kw_only=True)
class Emnist(DrawnSplit, Capped, Resized):
    """EMNIST with its own test images if the test files are present."""

    test_per_class: PositiveInt | None = None
    """Number of test images held out per class if the train or test files are missing (default: a fifth)."""


@dataclass(kw_only=True)
class Folder(DrawnSplit, Capped, Resized):
    """Your own images, in class folders, which may be divided into train/ and test/ (or val/). With an image size,
    square images are stored instead of paths."""

    test_per_class: PositiveInt | None = None
    """Number of test images held out per class (default: a fifth)."""
    novel_classes: RunOnly[list[str] | None] = None  # the recipe has the digest of the names instead
    """Names of the novel classes, or a file with a name per line. Default: they are drawn."""
    base_min: PositiveInt | None = None
    """Make the classes with fewer training images than this novel, and all others base classes."""
    skip_corrupt: bool = False
    """Leave out images that cannot be decoded, instead of refusing all."""


@dataclass(kw_only=True)
class FeatureFile(Shots):
    """The classes of a feature file that you already have (--root FILE): a split and shots, without images."""

    novel_classes: list[NonNegativeInt] | None = None
    """Labels of the novel classes. Default: 40 % of all, drawn."""


@dataclass(kw_only=True)
class ImageNet(Shots):
    """ImageNet with the published split and shots."""

    protocol: RunOnly[Path]  # the recipe has the digests of its files instead
    """Folder with the published label_idx.json and splitfile_{1..5}.json."""


@dataclass(kw_only=True)
class Breeds(DrawnSplit, Capped):
    """BREEDS: superclasses of ImageNet classes."""

    name: Literal["living17", "nonliving26", "entity13", "entity30"]


@dataclass(kw_only=True)
class CifarFewShot(Shots, Capped):
    """Published few-shot splits of CIFAR-100."""

    name: Literal["cifar_fs", "fc100"]


@dataclass(kw_only=True)
class OmniglotVinyals(Shots, Capped, Resized):
    """The published few-shot split of Omniglot, with rotations."""


@dataclass(kw_only=True)
class MiniImageNet(Shots, Capped):
    """mini-ImageNet with its published few-shot split."""


@dataclass(kw_only=True)
class TieredImageNet(Shots, Capped):
    """tieredImageNet with its published few-shot split."""


@dataclass(kw_only=True)
class FewShotGan(Shots, Capped):
    """Published splits for few-shot GANs."""

    name: Literal["emnist_fs", "omniglot_fs", "cifar100_fs"]


@dataclass(kw_only=True)
class DrawingsFewShotGan(FewShotGan, Resized):
    """Published splits of Omniglot and EMNIST for few-shot GANs."""


@dataclass(kw_only=True)
class Yfcc100m:
    """Unlabelled images of YFCC100M, without split and draws."""

    count: PositiveInt
    """Number of images to read."""
    start: NonNegativeInt = 0
    """Index of the first image to read."""


DATASETS = Registry(
    "data set",
    {
        "glyphs": Glyphs,
        "omniglot": Omniglot,
        "cifar100": Cifar100,
        "emnist": Emnist,
        "folder": Folder,
        "features": FeatureFile,
        "imagenet": ImageNet,
        "cifar_fs": CifarFewShot,
        "fc100": CifarFewShot,
        "omniglot_vinyals": OmniglotVinyals,
        "mini_imagenet": MiniImageNet,
        "tiered_imagenet": TieredImageNet,
        "emnist_fs": DrawingsFewShotGan,
        "omniglot_fs": DrawingsFewShotGan,
        "cifar100_fs": FewShotGan,
        "living17": Breeds,
        "nonliving26": Breeds,
        "entity13": Breeds,
        "entity30": Breeds,
        "yfcc100m": Yfcc100m,
    },
    "read(source)",
)
