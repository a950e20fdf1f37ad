"""Which networks a GAN has, and how they are trained."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Gt, Le

from lowshot.core.choices import Registry
from lowshot.core.settings import (
    ClosedUnitInterval,
    Momentum,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunOnly,
    TwoOrMore,
)
from lowshot.representation.settings import LaunchSettings

FinetuneMode = Literal["embed", "linear", "all"]
# What generated images get, as results files name it.
SCORES = ("fid", "kid", "precision", "recall", "density", "coverage", "class_accuracy")


@dataclass
class Samples:
    """Features of a GAN's images, each run's of a GAN that was fine-tuned on its own shots."""

    setting: ClassVar[str] = "semi_supervised"  # a GAN's checkpoint is chosen by unlabelled images

    files: RunOnly[str]
    """Features of the images of sample_gan.py, by a name in which {trial} and {n_shot} stand for those of a run."""
    per_shot: PositiveInt = 3
    """Samples of a novel class for each of its shots."""


@dataclass(kw_only=True)
class NetworkSizes:
    """How large the networks are."""

    ngf: PositiveInt = 64
    """channels of the generator's constant, halved by every doubling of the side"""
    blocks_per_res: list[NonNegativeInt] | None = None
    """blocks behind each doubling of the side (published: [1, 1, 1, 1] at 32 px); the constant's side is the image's,
    halved as often. If not given, one behind each of as many as there can be, four at most"""
    z_dim: PositiveInt = 16
    """dimensions of the noise, and of the generator's embedding of a class"""
    ndf: PositiveInt = 16
    """channels of the discriminator's first block, an eighth of its last"""
    spectral_norm: bool = False
    """of the discriminator's layers, as published; without it, r1 keeps the discriminator smooth"""


@dataclass
class PublishedNetwork:
    """The published generator: FiLM by noise and class in every block."""

    film: Literal["relu", "affine"] = "relu"
    """relu, scales and shifts are never negative, half of them zero at first, as released; affine, they start around 1
    and 0 and take any sign"""


@dataclass
class ModulatedNetwork:
    """A generator whose convolutions are modulated by a style."""

    class_embedding: Literal["table", "features"] = "table"
    """what networks know a class by: a vector of its own, drawn at random and learned, as published; or the mean of its
    images' features (when fine-tuning: of its shots'), which weights common to all classes map: for classes that are
    too many to be learned one by one"""


NETWORKS = Registry("network", {"published": PublishedNetwork, "modulated": ModulatedNetwork})


Change = Literal["flip", "rotate90", "translate", "rotate"]


@dataclass(kw_only=True)
class _Changes:
    changes: list[Change] = field(default_factory=lambda: list(get_args(Change)))
    """mirror left to right; turn by a multiple of 90 degrees; shift by up to an eighth of the side, in whole pixels;
    rotate by any angle, once before and once after the others"""


@dataclass
class NoChanges:
    """Images as they are."""


@dataclass
class FixedChanges(_Changes):
    """Each change with a fixed probability, as published."""

    p: Annotated[float, Gt(0), Le(1)]
    """the probability"""


@dataclass
class AdaptiveChanges(_Changes):
    """Each change with a probability that grows from 0 while the discriminator is surer of real images than `target`
    says, and shrinks while it is less."""

    target: ClosedUnitInterval = 0.6
    """mean sign of the discriminator's logits of real images to be kept"""
    n_images: PositiveInt = 100_000
    """real images seen while the probability moves by 1 at most"""


# One of the user's own changes images (B, C, S, S) in [-1, 1] by `uniforms` (B, n_uniforms) in [0, 1), and lets
# gradients pass; it may say how many `n_uniforms` an image needs, 9 unless it does.
CHANGES = Registry(
    "discriminator augmentation",
    {"none": NoChanges, "fixed": FixedChanges, "adaptive": AdaptiveChanges},
    "__call__(images, uniforms)",
)


@dataclass(kw_only=True)
class GanSettings(LaunchSettings):
    """How a GAN is trained. The published values are those of configs/few_shot_gan/train_gan-*-published-*.yaml."""

    steps: PositiveInt = 100_000
    """updates of the discriminator"""
    batch_size: PositiveInt = 32
    """labelled images a step, and as many generated and unlabelled ones, over all processes together"""
    lr: PositiveFloat = 4e-4
    """learning rate of AdamW for the generator"""
    d_lr: PositiveFloat = 1e-3
    """and for the discriminator; slower ones let the generator make one image a class"""
    beta1: Momentum = 0.5
    """of AdamW"""
    beta2: Momentum = 0.99
    """of AdamW"""
    weight_decay: NonNegativeFloat = 1e-6
    """of AdamW"""
    d_steps_per_g: PositiveInt = 1
    """updates of the discriminator for each of the generator"""
    gamma: NonNegativeFloat = 1.0
    """weight of the noise regression, for both networks"""
    alpha: NonNegativeFloat = 0.0
    """weight of the unconditional loss, for both networks"""
    mismatch: PositiveFloat | None = None
    """weight of the discriminator's loss of real images that are given out for the class of another image of the batch
    (Reed et al., ICML 2016); none if not given, as published"""
    r1: NonNegativeFloat = 1.0
    """weight of half the squared gradient of the discriminator's logits by real images (Mescheder et al., ICML 2018),
    taken every 16th step for all of them (Karras et al., 2020)"""
    ema: ClosedUnitInterval = 0.999
    """share of the past in the running average of the generator's weights, reached after ten thousand updates (n / (n +
    10) in the n-th, if that is less); 0 takes the last weights"""
    augment: Annotated[Any, CHANGES] = field(default_factory=AdaptiveChanges)
    """changes of all images that the discriminator sees"""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """of the networks; losses are always float32"""
    score_every: PositiveInt = 2000
    """steps from one FID, log record and checkpoint to the next"""
    score_images: TwoOrMore = 5000
    """most real images that FID compares as many generated ones with"""
