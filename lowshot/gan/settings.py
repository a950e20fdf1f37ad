"""Settings of the networks of a GAN, of their training and of samples."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

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
# Scores of generated images, as named in results files.
SCORES = ("fid", "kid", "precision", "recall", "density", "coverage", "class_accuracy")


@dataclass
class Samples:
    """Features of GAN samples. The GAN of each run was fine-tuned on the shots of the run."""

    files: RunOnly[str]
    """Template of the feature files of the samples (from sample_gan.py), with {trial} and {n_shot} of a run."""
    per_shot: PositiveInt = 3
    """Number of samples per shot of a novel class."""


@dataclass(kw_only=True)
class NetworkSizes:
    """Sizes of the networks."""

    ngf: PositiveInt = 64
    """Number of channels of the generator's constant. Every doubling of the side halves it."""
    blocks_per_res: list[NonNegativeInt] | None = None
    """Number of blocks after each doubling of the side, one entry per doubling (published: 1 1 1 1 at 32 px). Default:
    1 for each possible doubling, up to four."""
    z_dim: PositiveInt = 16
    """Dimensions of the noise and of the generator's class embedding."""
    ndf: PositiveInt = 16
    """Number of channels of the discriminator's first block. The last has eight times as many."""
    spectral_norm: bool = False
    """Apply spectral norm to the discriminator, as published. Without it, r1 regularises the discriminator."""


@dataclass
class PublishedNetwork:
    """The published generator: FiLM by noise and class in every block."""

    film: Literal["relu", "affine"] = "relu"
    """relu: scales and shifts are not negative and half of them are initially zero, as in the released code. affine:
    they start near 1 and 0 and can have any sign."""


@dataclass
class ModulatedNetwork:
    """Generator with convolutions modulated by a style."""

    class_embedding: Literal["table", "features"] = "table"
    """table: every class has a learned vector, as published. features: a linear map, shared by all classes, of the mean
    feature of the images of a class (in fine-tuning, of its shots). Use features for many classes."""


NETWORKS = Registry("network", {"published": PublishedNetwork, "modulated": ModulatedNetwork})


Change = Literal["flip", "rotate90", "translate", "rotate"]


@dataclass(kw_only=True)
class _Changes:
    changes: list[Change] = field(default_factory=lambda: list(get_args(Change)))
    """flip: mirror left to right. rotate90: rotate by a multiple of 90 degrees. translate: shift by up to an eighth of
    the side, in whole pixels. rotate: rotate by any angle, once before and once after the other changes."""


@dataclass
class NoChanges:
    """No augmentation."""


@dataclass
class FixedChanges(_Changes):
    """Each change with a fixed probability, as published."""

    p: Annotated[float, Gt(0), Le(1)]
    """Probability of each change."""


@dataclass
class AdaptiveChanges(_Changes):
    """Each change with an adaptive probability.

    It starts at 0, grows while the mean sign of the discriminator's logits of real images is above `target`, and
    shrinks while it is below.
    """

    target: ClosedUnitInterval = 0.6
    """Target of the mean sign of the discriminator's logits of real images."""
    n_images: PositiveInt = 100_000
    """Number of real images after which the probability can have changed by 1."""


# A class of the user's own changes images (B, C, S, S) in [-1, 1] by `uniforms` (B, n_uniforms) in [0, 1) and must be
# differentiable. Its attribute `n_uniforms` is the number of uniforms per image (default 9).
CHANGES = Registry(
    "discriminator augmentation",
    {"none": NoChanges, "fixed": FixedChanges, "adaptive": AdaptiveChanges},
    "__call__(images, uniforms)",
)


@dataclass(kw_only=True)
class GanSettings(LaunchSettings):
    """Settings of the training of a GAN.

    The published values are in configs/few_shot_gan/train_gan-*-published-*.yaml.
    """

    steps: PositiveInt = 100_000
    """Number of updates of the discriminator."""
    end_after: RunOnly[PositiveInt | None] = None
    """End training after this step. A run that is resumed after this step trains no further and saves the best networks
    of its last checkpoint."""
    batch_size: PositiveInt = 32
    """Number of labelled images per step over all processes. As many images are generated, and as many unlabelled ones
    used."""
    lr: PositiveFloat = 4e-4
    """Learning rate of the generator (AdamW)."""
    d_lr: PositiveFloat = 1e-3
    """Learning rate of the discriminator (AdamW). With a lower one, the generator collapses to one image per class."""
    beta1: Momentum = 0.5
    """First beta of AdamW."""
    beta2: Momentum = 0.99
    """Second beta of AdamW."""
    weight_decay: NonNegativeFloat = 1e-6
    """Weight decay of AdamW."""
    d_steps_per_g: PositiveInt = 1
    """Number of updates of the discriminator per update of the generator."""
    gamma: NonNegativeFloat = 1.0
    """Weight of the noise regression loss of both networks."""
    alpha: NonNegativeFloat = 0.0
    """Weight of the unconditional loss of both networks."""
    mismatch: PositiveFloat | None = None
    """Weight of a discriminator loss on real images paired with the class of another image of the batch (Reed et al.,
    ICML 2016). Default: no such loss, as published."""
    r1: NonNegativeFloat = 1.0
    """Weight of the R1 penalty: half the squared gradient of the discriminator's logits with respect to real images
    (Mescheder et al., ICML 2018), computed every 16th step (Karras et al., 2020)."""
    ema: ClosedUnitInterval = 0.999
    """Decay of the running average of the generator's weights. In update n it is at most n / (n + 10). 0 uses the
    current weights."""
    augment: Annotated[Any, CHANGES] = field(default_factory=AdaptiveChanges)
    """Augmentation of all images that the discriminator sees."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Precision of the networks. Losses are always float32."""
    score_every: PositiveInt = 2000
    """Number of steps between FID scores, log records and checkpoints."""
    score_images: TwoOrMore = 5000
    """Maximum number of real images for FID. As many images are generated."""
