"""How an extractor is chosen, built and trained."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lowshot.core.settings import (
    ClosedUnitInterval,
    NetworkPrecision,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunOnly,
)

ModelName = str


HeadName = Literal["linear", "cosine", "mlp"]


LossName = Literal["plain", "sgm", "batchsgm", "l2"]


@dataclass(kw_only=True)
class NetworkChoice:
    """The settings by which a training stage is told its network."""

    model: ModelName = "ResNet10"
    """backbone; any of timm as timm:NAME, e.g. timm:resnet50.a1_in1k, with its own normalisation and preprocessing"""
    width: PositiveFloat = 1.0
    """factor on the number of channels, for small images"""
    drop_rate: ClosedUnitInterval = 0.0
    """DropBlock in the last two blocks of ResNet12 (0.1 in RFS and MetaOptNet); others have none"""
    image_size: PositiveInt | None = None
    """side in pixels that images on disk are cut to (224, or a timm model's own); stored pixels keep theirs, and a timm
    model that is to run at another size than its own must be told"""
    resize: bool = False
    """timm: stretch stored pixels to the side that the model runs at"""
    weights: Path | None = None
    """start from a model.pt, a released .tar checkpoint, torchvision's VGG-16, or a timm model's .safetensors or state
    dict; --epochs 0 only converts it"""
    pretrained: bool = False
    """timm: start from the weights of that name, downloaded"""


@dataclass(kw_only=True)
class ExtractorChoice:
    """The settings by which a stage is told its extractor."""

    extractor: Path | None = None
    """folder of a trained extractor"""
    timm: str | None = None
    """in its place a model of timm by name, e.g. resnet50.a1_in1k; its weights are downloaded"""
    weights: Path | None = None
    """timm: take the weights from this file (.safetensors or a state dict), download nothing"""
    image_size: PositiveInt | None = None
    """timm: side in pixels of the images that the network sees; its own size if not given"""


@dataclass
class AugmentationSettings:
    """Which random changes a training image goes through; everything is off by default."""

    flip: bool = False
    """mirror left to right with probability 1/2"""
    shift_pixels: NonNegativeInt = 0
    """shift by up to this many pixels each way, the border filled (random crop of a padded image)"""
    crop_pixels: NonNegativeInt = 0
    """cut 0 to this many pixels from each side and stretch back"""
    rotate_degrees: NonNegativeFloat = 0.0
    """rotate by up to this angle each way"""
    scale: ClosedUnitInterval = 0.0
    """stretch width and height independently by a factor in 1 +- this"""
    translate: ClosedUnitInterval = 0.0
    """shift by up to this share of the image each way"""
    shear_degrees: NonNegativeFloat = 0.0
    """shear by up to this angle each way"""
    affine_probability: ClosedUnitInterval = 1.0
    """how often rotate, scale, translate and shear happen (all together)"""
    border: Literal["zeros", "border", "reflection"] = "zeros"
    """what fills the outside of a moved image"""
    blur_sigma: NonNegativeFloat = 0.0
    """Gaussian blur with a standard deviation between 0 and this many pixels"""
    jitter: ClosedUnitInterval = 0.0
    """brightness, contrast and colour, in this order, by factors in 1 +- this (the published ImageJitter)"""
    resized_crop: bool = False
    """images on disk: a random part of 8 to 100 % of the area, stretched to the image size"""
    crop_area: ClosedUnitInterval | None = None
    """a random part of this share to all of the area, its sides as 3 to 4 up to 4 to 3, stretched to the image size"""
    blur_probability: ClosedUnitInterval | None = None
    """how often blur_sigma happens; always if not given"""
    jitter_probability: ClosedUnitInterval | None = None
    """how often jitter and hue happen (together); always if not given"""
    hue: ClosedUnitInterval | None = None
    """after the jitter, turn the hue by up to this share of the colour circle each way"""
    grey_probability: ClosedUnitInterval | None = None
    """how often an image loses its colours"""


@dataclass(kw_only=True)
class LaunchSettings:
    """Where a network of images is trained, and from which seed."""

    seed: NonNegativeInt = 0
    """of initialisation, data order and augmentation"""
    accelerator: RunOnly[str] = "auto"
    """where to train: auto, cpu, cuda, ..."""
    devices: RunOnly[PositiveInt] = 1
    """processes on this machine, one a device"""
    precision: NetworkPrecision = "32-true"
    """of the network; losses are always float32"""


@dataclass(kw_only=True)
class TrainingSettings(LaunchSettings):
    """How an image network is trained; the stages that train one add their losses and files to these."""

    epochs: NonNegativeInt = 90
    """passes over the training images"""
    batch_size: PositiveInt = 256
    """images a step, over all processes together"""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd with momentum, or adam with beta1 0.5 (the CIFAR system)"""
    lr: PositiveFloat = 0.1
    """learning rate"""
    momentum: NonNegativeFloat = 0.9
    """of sgd"""
    weight_decay: NonNegativeFloat = 1e-4
    """L2 on every parameter for sgd; on all but batch norm for adam, as each paper has it"""
    schedule: Literal["step", "cosine"] = "step"
    """step: times lr_decay every step_epochs; cosine: down to zero"""
    n_cycles: PositiveInt | None = None
    """cosine: start anew this many times; the rate is then set by whole epochs"""
    step_epochs: PositiveInt = 30
    """length of a step of the step schedule"""
    lr_decay: PositiveFloat = 0.1
    """factor at each step of the step schedule"""
    warmup_epochs: NonNegativeInt = 0
    """first epochs, at the constant rate warmup_lr"""
    warmup_lr: PositiveFloat = 0.01
    """rate of the warm-up"""
    holdout: ClosedUnitInterval = 0.0
    """share of the training images kept back to watch, and to stop early on with --patience"""
    patience: NonNegativeInt = 0
    """stop after this many epochs without a better held-out loss and keep the best weights; 0 trains to the end"""
    augment: AugmentationSettings = field(default_factory=AugmentationSettings)
    """random changes of the training images"""
    num_workers: RunOnly[NonNegativeInt] = 4
    """processes that decode images on disk; stored pixels need none"""
    checkpoint_minutes: RunOnly[NonNegativeFloat] = 0.0
    """least time from one checkpoint to the next, for epochs of seconds; 0 keeps one after every epoch"""


@dataclass
class Mixup:
    """Images blended with others of their batch, and their losses alike (Zhang et al., ICLR 2018; gan spec 1.4)."""

    alpha: NonNegativeFloat = 0.0
    """an image's own share is drawn from Beta(alpha, alpha), or uniformly from 0 to alpha; 0 blends none"""
    distribution: Literal["beta", "uniform"] = "beta"
    """of the share, which every image draws for itself"""


@dataclass(kw_only=True)
class ExtractorSettings(TrainingSettings):
    """How an extractor is trained; the stage adds its files to these."""

    loss: LossName = "plain"
    """plain cross-entropy, or with a shrinking term: sgm, batchsgm, l2"""
    loss_weight: NonNegativeFloat = 0.02
    """factor on the shrinking term (published: sgm 0.02 or 0.005, batchsgm 5, l2 0.03); unused by plain"""
    trained: list[str] | None = None
    """parts of the network that are trained, by how the names of their parameters begin: [classifier], or
    [classifier, trunk.6]; all if not given. With others frozen, batch norm keeps its running averages everywhere"""
    mixup: Mixup = field(default_factory=Mixup)
    """blended images, for the plain loss"""
