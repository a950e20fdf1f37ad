"""How an extractor is chosen, built and trained."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from lowshot.core.artifacts import renamed
from lowshot.core.choices import Registry
from lowshot.core.settings import (
    ClosedUnitInterval,
    NetworkPrecision,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunOnly,
    Seed,
)

HeadName = Literal["linear", "cosine", "mlp"]

# Side in pixels that images on disk are cut to by default.
IMAGE_SIZE = 224


@dataclass
class Backbone:
    """A network of ours."""

    name: str
    width: PositiveFloat = 1.0
    """factor on the number of channels, for small images"""
    image_size: PositiveInt = IMAGE_SIZE
    """side in pixels that images on disk are cut to; stored pixels keep theirs"""


@dataclass
class ResNet12(Backbone):
    """The ResNet of few-shot papers."""

    drop_rate: ClosedUnitInterval = 0.0
    """DropBlock in the last two blocks (0.1 in RFS and MetaOptNet)"""


@dataclass
class Timm:
    """A model of timm, with its own normalisation and preprocessing."""

    name: str
    image_size: PositiveInt | None = None
    """side in pixels that it runs at; its own if not given, and it must be told where stored pixels have another"""
    resize: bool = False
    """stretch stored pixels to the side that it runs at"""
    pretrained: bool = False
    """start from the weights of that name, downloaded"""


BACKBONES = Registry(
    "backbone",
    {**dict.fromkeys(("Conv4", "ResNet10"), Backbone), "ResNet12": ResNet12,
     **dict.fromkeys(("ResNet18", "ResNet34", "ResNet50", "ResNet101", "VGG16BN"), Backbone), "timm:": Timm},
    "build(n_channels, image_size)",
)  # fmt: skip


@dataclass(kw_only=True)
class NetworkChoice:
    """The settings by which a training stage is told its network."""

    model: Annotated[Any, BACKBONES] = field(default_factory=lambda: Backbone("ResNet10"))
    """backbone; any of timm as timm:NAME, e.g. timm:resnet50.a1_in1k"""
    weights: Path | None = None
    """start from a model.pt, a released .tar checkpoint, torchvision's VGG-16, or a timm model's .safetensors or state
    dict; --epochs 0 only converts it"""

    renamed = {"model": "model.name"} | {
        name: f"model.{name}" for name in ("width", "drop_rate", "image_size", "resize", "pretrained")
    }


@dataclass
class TimmModel:
    """A model of timm with weights of its own."""

    name: str
    """e.g. resnet50.a1_in1k"""
    weights: Path | None = None
    """take the weights from this file (.safetensors or a state dict); downloaded if not given"""
    image_size: PositiveInt | None = None
    """side in pixels of the images that the network sees; its own size if not given"""


@dataclass
class StretchingTimmModel(TimmModel):
    """The same, where stored pixels can be stretched."""

    resize: bool = False
    """stretch stored pixels of another size than the model takes"""


@dataclass(kw_only=True)
class ExtractorChoice:
    """The settings by which a stage is told its extractor."""

    extractor: Path | None = None
    """folder of a trained extractor"""
    code: RunOnly[list[str]] = field(default_factory=list)
    """classes of your own, file.py:Class, that the extractor was made with and that this command may import"""
    timm: TimmModel | None = None
    """in its place a model of timm by name"""

    renamed = {"timm": "timm.name"} | {name: f"timm.{name}" for name in ("weights", "image_size", "resize")}

    @classmethod
    def older(cls, stored: dict) -> dict:
        """The recipe of an older revision, where settings of timm stood beside it whether it was chosen or not."""
        config = dict(stored["config"])
        if config.get("timm") is None:
            config = {name: value for name, value in config.items() if name not in ("image_size", "resize")}
        return renamed(cls.renamed, {**stored, "config": config})


@dataclass
class StandardAugmentation:
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


AUGMENTATIONS = Registry("augmentation", {"standard": StandardAugmentation}, "__call__(images, uniforms)")


@dataclass
class SGD:
    """Stochastic gradient descent with momentum."""

    momentum: NonNegativeFloat = 0.9


@dataclass
class Adam:
    """Adam with beta1 0.5 (the CIFAR system)."""


OPTIMIZERS = Registry("optimizer", {"sgd": SGD, "adam": Adam}, "build(model, lr, weight_decay)")


@dataclass(kw_only=True)
class _Schedule:
    warmup_epochs: NonNegativeInt = 0
    """first epochs, at the constant rate warmup_lr"""
    warmup_lr: PositiveFloat = 0.01
    """rate of the warm-up"""


@dataclass(kw_only=True)
class Steps(_Schedule):
    """The rate falls at every step."""

    step_epochs: PositiveInt = 30
    """length of a step"""
    decay: PositiveFloat = 0.1
    """factor at each step"""

    def rate(self, epoch: float, n_epochs: int, lr: float) -> float:
        """The learning rate at a point of training that begins with `lr`."""
        return self.warmup_lr if epoch < self.warmup_epochs else lr * self.decay ** int(epoch // self.step_epochs)


@dataclass(kw_only=True)
class Cosine(_Schedule):
    """The rate falls to zero along a cosine."""

    n_cycles: PositiveInt | None = None
    """start anew this many times; the rate is then set by whole epochs"""

    def rate(self, epoch: float, n_epochs: int, lr: float) -> float:
        """The learning rate at a point of training that begins with `lr`."""
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        done, n_left = epoch - self.warmup_epochs, max(1, n_epochs - self.warmup_epochs)
        if self.n_cycles:
            n_left = max(1, n_left // self.n_cycles)
            done = int(done) % n_left
        return lr * 0.5 * (1 + math.cos(math.pi * done / n_left))


SCHEDULES = Registry("schedule", {"step": Steps, "cosine": Cosine}, "rate(epoch, n_epochs, lr)")


@dataclass(kw_only=True)
class LaunchSettings:
    """Where a network of images is trained, and from which seed."""

    seed: Seed = 0
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
    optimizer: Annotated[Any, OPTIMIZERS] = field(default_factory=SGD)
    """sgd with momentum, or adam with beta1 0.5 (the CIFAR system)"""
    lr: PositiveFloat = 0.1
    """learning rate"""
    weight_decay: NonNegativeFloat = 1e-4
    """L2 on every parameter for sgd; on all but batch norm for adam, as each paper has it"""
    schedule: Annotated[Any, SCHEDULES] = field(default_factory=Steps)
    """step: times decay every step_epochs; cosine: down to zero"""
    augment: Annotated[Any, AUGMENTATIONS] = field(default_factory=StandardAugmentation)
    """random changes of the training images"""
    num_workers: RunOnly[NonNegativeInt] = 4
    """processes that decode images on disk; stored pixels need none"""
    checkpoint_minutes: RunOnly[NonNegativeFloat] = 0.0
    """least time from one checkpoint to the next, for epochs of seconds; 0 keeps one after every epoch"""
    end_after: RunOnly[PositiveInt | None] = None
    """end behind this epoch of the schedule, which stays that of all epochs; an unfinished run that is past it ends at
    once, its last checkpoint kept as the model"""

    renamed = {"optimizer": "optimizer.name", "momentum": "optimizer.momentum", "schedule": "schedule.name"} | {
        "lr_decay": "schedule.decay",
        **{name: f"schedule.{name}" for name in ("n_cycles", "step_epochs", "warmup_epochs", "warmup_lr")},
    }


@dataclass(kw_only=True)
class HoldoutSettings(TrainingSettings):
    """The same, with images kept back."""

    holdout: ClosedUnitInterval = 0.0
    """share of the training images kept back to watch, and to stop early on with --patience"""
    patience: NonNegativeInt = 0
    """stop after this many epochs without a better held-out loss and keep the best weights, beside them the last ones;
    0 trains to the end"""


@dataclass
class Plain:
    """Cross-entropy."""


@dataclass
class SGM:
    """Cross-entropy and the mean squared norm of the gradients of single examples."""

    weight: NonNegativeFloat = 0.02
    """factor on the shrinking term (published: 0.02 or 0.005)"""


@dataclass
class BatchSGM:
    """Cross-entropy and the squared norm of the batch's mean gradient."""

    weight: NonNegativeFloat = 0.02
    """factor on the shrinking term (published: 5)"""


@dataclass
class L2:
    """Cross-entropy and half the mean squared norm of features."""

    weight: NonNegativeFloat = 0.02
    """factor on the shrinking term (published: 0.03)"""


LOSSES = Registry(
    "loss", {"plain": Plain, "sgm": SGM, "batchsgm": BatchSGM, "l2": L2}, "__call__(scores, features, labels, model)"
)


@dataclass
class Mixup:
    """Images blended with others of their batch, and their losses alike (Zhang et al., ICLR 2018; gan spec 1.4)."""

    name: str
    alpha: PositiveFloat = 1.0
    """beta: an image's own share is drawn from Beta(alpha, alpha); uniform: uniformly from 0 to alpha"""


MIXUPS = Registry("mixup", dict.fromkeys(("beta", "uniform"), Mixup), "shares(n_images, device)")


@dataclass(kw_only=True)
class ExtractorSettings(TrainingSettings):
    """How an extractor is trained; the stage adds its files to these."""

    loss: Annotated[Any, LOSSES] = field(default_factory=Plain)
    """plain cross-entropy, or with a shrinking term: sgm, batchsgm, l2"""
    trained: list[str] | None = None
    """parts of the network that are trained, by how the names of their parameters begin: [classifier], or
    [classifier, trunk.6]; all if not given. With others frozen, batch norm keeps its running averages everywhere"""
    mixup: Annotated[Any, MIXUPS] | None = None
    """blended images, for the plain loss; every image draws its own share"""
    head: HeadName = "linear"
    """classifier on top: linear without bias (Hariharan & Girshick), cosine softmax with a learned scale, or the MLP of
    the CIFAR system"""

    renamed = TrainingSettings.renamed | {
        "loss": "loss.name",
        "loss_weight": "loss.weight",
        "mixup.distribution": "mixup.name",
    }


@dataclass(kw_only=True)
class ExtractorStage(ExtractorSettings, NetworkChoice):
    """What the stages that train an extractor share."""

    data: Path
    """folder with images.h5, split.json and, to fine-tune, draws.json"""
    out: Path
    """folder to write the extractor to"""
    overwrite: RunOnly[bool] = False
    """make it again even if it is there"""

    renamed = ExtractorSettings.renamed | NetworkChoice.renamed
