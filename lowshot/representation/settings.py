"""Settings to choose, build and train an extractor."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen

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

Pooling = Literal["maximum", "average", "normalised"]
HeadName = Literal["linear", "cosine", "mlp"]

# Side in pixels to which images on disk are resized and cropped by default.
IMAGE_SIZE = 224


@dataclass
class Backbone:
    """A built-in network."""

    name: str
    width: PositiveFloat = 1.0
    """Factor on the number of channels, for small images."""
    image_size: PositiveInt = IMAGE_SIZE
    """Side in pixels to which images on disk are resized and cropped. Pixels stored in images.h5 keep their size."""


@dataclass
class ResNet12(Backbone):
    """The ResNet-12 of few-shot papers."""

    drop_rate: ClosedUnitInterval = 0.0
    """DropBlock probability in the last two blocks (0.1 in RFS and MetaOptNet)."""


@dataclass
class Airbench(Backbone):
    """The wide, shallow network of airbench, for images of about 32 px (Jordan, arXiv 2404.00498, 2024)."""

    widths: Annotated[list[PositiveInt], MinLen(1)] = field(default_factory=lambda: [64, 104, 160])
    """Number of channels of each group, before --model.width. Each group halves the image."""
    depth: PositiveInt = 3
    """Number of 3x3 convolutions in a group."""
    whitening_eps: PositiveFloat = 5e-4
    """Added to the eigenvalues of image patches in the first layer. Glyphs, whose patches are mostly constant, need
    more."""
    identity: bool = True
    """Start each convolution as the identity. False for glyphs: their rare strokes vanish in some of the copied
    channels, and batch norm then enlarges gradients many times over."""
    pooling: Pooling = "maximum"
    """What turns the last maps into features. For glyphs the average is better than the maximum, and normalised better
    still: the average and a last batch norm (the BNNeck of Luo et al., CVPR workshops 2019). Such features have both
    signs, and the analogy generator makes only features that are not negative."""


@dataclass
class Timm:
    """A timm model, with its own normalisation and preprocessing."""

    name: str
    image_size: PositiveInt | None = None
    """Side of the network's input in pixels (default: the model's native size). Stored pixels must have this size,
    unless --model.resize is set."""
    resize: bool = False
    """Resize stored pixels to the network's input size."""
    pretrained: bool = False
    """Start from timm's pretrained weights, which are downloaded."""


BACKBONES = Registry(
    "backbone",
    {**dict.fromkeys(("Conv4", "ResNet10"), Backbone), "ResNet12": ResNet12, "Airbench": Airbench,
     **dict.fromkeys(("ResNet18", "ResNet34", "ResNet50", "ResNet101", "VGG16BN"), Backbone), "timm:": Timm},
    "build(n_channels, image_size)",
)  # fmt: skip


@dataclass(kw_only=True)
class NetworkChoice:
    """Settings that choose the network of a training stage."""

    model: Annotated[Any, BACKBONES] = field(default_factory=lambda: Backbone("ResNet10"))
    """Backbone. timm:NAME selects a timm model, such as timm:resnet50.a1_in1k."""
    weights: Path | None = None
    """File of initial weights: a model.pt, a released .tar checkpoint, torchvision's VGG-16, or a .safetensors file or
    state dict of a timm model. With --epochs 0 the file is only converted."""

    renamed = {"model": "model.name"} | {
        name: f"model.{name}" for name in ("width", "drop_rate", "image_size", "resize", "pretrained")
    }


@dataclass
class TimmModel:
    """A pretrained timm model."""

    name: str
    """Name of the timm model, e.g. resnet50.a1_in1k."""
    weights: Path | None = None
    """File with the weights (.safetensors or a state dict). Default: download them."""
    image_size: PositiveInt | None = None
    """Side of the network's input in pixels (default: the model's native size)."""


# The extractor of photos by default: a small DINOv2 (Oquab et al., 2023), at 224 px instead of the native 518 px, which
# takes a fifth of the operations.
PRETRAINED = TimmModel("vit_small_patch14_dinov2.lvd142m", image_size=224)


@dataclass
class StretchingTimmModel(TimmModel):
    """A pretrained timm model that can resize stored pixels."""

    resize: bool = False
    """Resize stored pixels to the network's input size."""


@dataclass(kw_only=True)
class ExtractorChoice:
    """Settings that choose the extractor of a stage."""

    extractor: Path | None = None
    """Folder of a trained extractor. Either --extractor or --timm is required."""
    code: RunOnly[list[str]] = field(default_factory=list)
    """Your own Python classes (file.py:Class) that the extractor was made with. This command imports only those named
    here."""
    timm: TimmModel | None = None
    """Pretrained timm model, in place of --extractor."""

    renamed = {"timm": "timm.name"} | {name: f"timm.{name}" for name in ("weights", "image_size", "resize")}

    @classmethod
    def older(cls, stored: dict) -> dict:
        """Update a recipe of an older revision, which had settings of timm even if --timm was not given."""
        config = dict(stored["config"])
        if config.get("timm") is None:
            config = {name: value for name, value in config.items() if name not in ("image_size", "resize")}
        return renamed(cls.renamed, {**stored, "config": config})


@dataclass
class StandardAugmentation:
    """Random changes of an image; all are off by default."""

    flip: bool = False
    """Flip horizontally with probability 1/2."""
    shift_pixels: NonNegativeInt = 0
    """Maximum shift in pixels in each direction (like a random crop of a padded image)."""
    crop_pixels: NonNegativeInt = 0
    """Maximum number of pixels to crop from each side, before resizing to the original size."""
    rotate_degrees: NonNegativeFloat = 0.0
    """Maximum rotation in degrees, in both directions."""
    scale: ClosedUnitInterval = 0.0
    """Scale width and height independently by a factor in 1 +- this value."""
    translate: ClosedUnitInterval = 0.0
    """Maximum shift in each direction, as a share of the image size."""
    shear_degrees: NonNegativeFloat = 0.0
    """Maximum shear angle in degrees, in both directions."""
    affine_probability: ClosedUnitInterval = 1.0
    """Probability of rotation, scaling, translation and shear (applied together)."""
    border: Literal["zeros", "border", "reflection"] = "zeros"
    """Padding mode outside the image."""
    blur_sigma: NonNegativeFloat = 0.0
    """Maximum standard deviation of a Gaussian blur, in pixels."""
    jitter: ClosedUnitInterval = 0.0
    """Change brightness, contrast and colour, in this order, by factors in 1 +- this value (the published ImageJitter).
    """
    resized_crop: bool = False
    """The same crop as --augment.crop_area 0.08, but made while an image on disk is decoded, which is faster."""
    crop_area: ClosedUnitInterval | None = None
    """Minimum area of a random crop, as a share (default: no crop). Crops have aspect ratios of 3:4 to 4:3 and are
    resized to the image size."""
    blur_probability: ClosedUnitInterval | None = None
    """Probability of the blur (default: 1)."""
    jitter_probability: ClosedUnitInterval | None = None
    """Probability of jitter and hue, applied together (default: 1)."""
    hue: ClosedUnitInterval | None = None
    """Maximum rotation of the hue after the jitter, as a share of the colour circle (default: 0)."""
    grey_probability: ClosedUnitInterval | None = None
    """Probability of converting an image to grey (default: 0)."""


AUGMENTATIONS = Registry("augmentation", {"standard": StandardAugmentation}, "__call__(images, uniforms)")


@dataclass
class MirrorViews:
    """An image and its mirror image. Not for characters."""


@dataclass
class RandomViews:
    """Randomly augmented views of an image (Bendou et al., EASY, J. Imaging 2022)."""

    n: PositiveInt
    """Number of views of each image (30 random crops in EASY)."""
    augment: Annotated[Any, AUGMENTATIONS] = field(default_factory=StandardAugmentation)
    """Random changes of the views, such as crop_area 0.14 (EASY), shift_pixels and flip for photos, or shift_pixels for
    characters. Images on disk are resized and cropped first."""


VIEWS = Registry("kind of view", {"mirror": MirrorViews, "random": RandomViews})


@dataclass
class SGD:
    """Stochastic gradient descent with momentum."""

    momentum: NonNegativeFloat = 0.9
    """Momentum."""
    nesterov: bool = False
    """Use Nesterov's momentum."""


@dataclass
class Adam:
    """Adam with beta1 = 0.5, as in the CIFAR system."""


OPTIMIZERS = Registry("optimizer", {"sgd": SGD, "adam": Adam}, "build(model, lr, weight_decay)")


@dataclass(kw_only=True)
class _Schedule:
    warmup_epochs: NonNegativeInt = 0
    """Number of warm-up epochs, with the constant learning rate warmup_lr."""
    warmup_lr: PositiveFloat = 0.01
    """Learning rate of the warm-up."""


@dataclass(kw_only=True)
class Steps(_Schedule):
    """A learning rate that decays in steps."""

    step_epochs: PositiveInt = 30
    """Length of a step in epochs."""
    decay: PositiveFloat = 0.1
    """Factor on the learning rate after each step."""

    def rate(self, epoch: float, n_epochs: int, lr: float) -> float:
        """Return the learning rate at `epoch`, for the initial learning rate `lr`."""
        return self.warmup_lr if epoch < self.warmup_epochs else lr * self.decay ** int(epoch // self.step_epochs)


@dataclass(kw_only=True)
class Cosine(_Schedule):
    """A learning rate that falls to zero along a cosine."""

    n_cycles: PositiveInt | None = None
    """Number of cycles, each of which restarts at lr. If given, the rate is constant within an epoch."""

    def rate(self, epoch: float, n_epochs: int, lr: float) -> float:
        """Return the learning rate at `epoch`, for the initial learning rate `lr`."""
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        done, n_left = epoch - self.warmup_epochs, max(1, n_epochs - self.warmup_epochs)
        if self.n_cycles:
            n_left = max(1, n_left // self.n_cycles)
            done = int(done) % n_left
        return lr * 0.5 * (1 + math.cos(math.pi * done / n_left))


@dataclass(kw_only=True)
class Triangle:
    """A learning rate that rises to lr along a line, and falls along another (Jordan, arXiv 2404.00498, 2024)."""

    rise: ClosedUnitInterval = 0.2
    """Share of the training in which the rate rises."""
    start: ClosedUnitInterval = 0.2
    """Rate at the start, as a share of lr."""
    end: ClosedUnitInterval = 0.0
    """Rate at the end, as a share of lr."""

    def rate(self, epoch: float, n_epochs: int, lr: float) -> float:
        """Return the learning rate at `epoch`, for the highest learning rate `lr`."""
        return lr * float(np.interp(epoch / n_epochs, [0.0, self.rise, 1.0], [self.start, 1.0, self.end]))


SCHEDULES = Registry("schedule", {"step": Steps, "cosine": Cosine, "triangle": Triangle}, "rate(epoch, n_epochs, lr)")


@dataclass(kw_only=True)
class ProgressiveResizing:
    """Training on smaller images at first, which takes fewer operations."""

    sizes: list[PositiveInt]
    """Sides in pixels, in the order of training. The full size follows."""
    until: list[ClosedUnitInterval]
    """Share of the training until which each size is used."""

    def at(self, done: float, full: int) -> int:
        """Return the side of images of `full` px when the share `done` of the training is done."""
        return next((size for size, until in zip(self.sizes, self.until, strict=True) if done < until), full)


@dataclass(kw_only=True)
class LaunchSettings:
    """Seed, device and precision of a training."""

    seed: Seed = 0
    """Seed of initialisation, data order and augmentation."""
    accelerator: RunOnly[str] = "auto"
    """Device type to train on: auto, cpu, cuda, ..."""
    devices: RunOnly[PositiveInt] = 1
    """Number of devices on this machine, with a process each. Another number gives slightly different weights."""
    precision: NetworkPrecision = "32-true"
    """Precision of the network; losses are always float32."""


@dataclass(kw_only=True)
class TrainingSettings(LaunchSettings):
    """How an image network is trained. Training stages add their losses and files."""

    epochs: NonNegativeInt = 90
    """Number of epochs."""
    batch_size: PositiveInt = 256
    """Batch size, over all processes together."""
    optimizer: Annotated[Any, OPTIMIZERS] = field(default_factory=SGD)
    """SGD with momentum, or Adam with beta1 = 0.5 (the CIFAR system)."""
    lr: PositiveFloat = 0.1
    """Initial learning rate."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay (L2). It applies to all parameters with sgd, and to all but those of batch norm with adam."""
    schedule: Annotated[Any, SCHEDULES] = field(default_factory=Steps)
    """Learning rate schedule: decay in steps, cosine, or a triangle."""
    augment: Annotated[Any, AUGMENTATIONS] = field(default_factory=StandardAugmentation)
    """Random changes of the training images."""
    progressive_resizing: ProgressiveResizing | None = None
    """Train on smaller images at first: --progressive_resizing.sizes 20 28 --progressive_resizing.until 0.2 0.5."""
    num_workers: RunOnly[NonNegativeInt | None] = None
    """Number of processes that decode images on disk. Default: one per core, at most 8; none for stored pixels and for
    few images."""
    checkpoint_minutes: RunOnly[NonNegativeFloat] = 0.0
    """Minimum time between checkpoints in minutes, useful if an epoch takes seconds. 0 saves one after each epoch."""
    end_after: RunOnly[PositiveInt | None] = None
    """End training after this epoch; the schedule remains that of all epochs. A run that is resumed after this epoch
    trains no further and saves its last checkpoint as the model."""

    renamed = {"optimizer": "optimizer.name", "momentum": "optimizer.momentum", "schedule": "schedule.name"} | {
        "lr_decay": "schedule.decay",
        **{name: f"schedule.{name}" for name in ("n_cycles", "step_epochs", "warmup_epochs", "warmup_lr")},
    }


@dataclass(kw_only=True)
class HoldoutSettings(TrainingSettings):
    """Training settings with held-out images."""

    holdout: ClosedUnitInterval = 0.0
    """Share of the training images to hold out; their accuracy is logged, and --patience stops by their loss."""
    patience: NonNegativeInt = 0
    """Stop after this many epochs without a lower held-out loss. The model then has the best weights; the last ones are
    saved too. 0 disables early stopping."""


@dataclass
class Plain:
    """Cross-entropy."""

    label_smoothing: ClosedUnitInterval = 0.0
    """Share of the target that is spread evenly over all classes."""


@dataclass
class SGM:
    """Cross-entropy plus the mean squared norm of the per-example gradients."""

    weight: NonNegativeFloat = 0.02
    """Weight of the gradient penalty (published: 0.02 or 0.005)."""


@dataclass
class BatchSGM:
    """Cross-entropy plus the squared norm of the mean gradient of a batch."""

    weight: NonNegativeFloat = 0.02
    """Weight of the gradient penalty (published: 5)."""


@dataclass
class L2:
    """Cross-entropy plus half the mean squared norm of the features."""

    weight: NonNegativeFloat = 0.02
    """Weight of the feature penalty (published: 0.03)."""


LOSSES = Registry(
    "loss", {"plain": Plain, "sgm": SGM, "batchsgm": BatchSGM, "l2": L2}, "__call__(scores, features, labels, model)"
)


@dataclass
class Mixup:
    """Blends each image with another of its batch, and their losses accordingly (Zhang et al., ICLR 2018)."""

    name: str
    alpha: PositiveFloat = 1.0
    """Distribution of an image's share: Beta(alpha, alpha) for beta, uniform from 0 to alpha for uniform."""


MIXUPS = Registry("mixup", dict.fromkeys(("beta", "uniform"), Mixup), "shares(n_images, device)")


@dataclass(kw_only=True)
class ExtractorSettings(TrainingSettings):
    """How an extractor is trained. The stages add their files."""

    loss: Annotated[Any, LOSSES] = field(default_factory=Plain)
    """Loss: plain cross-entropy, or with a penalty on gradients (sgm, batchsgm) or features (l2)."""
    trained: list[str] | None = None
    """Parts of the network to train, as prefixes of parameter names: trunk, trunk.6, classifier (default: all). If
    given, batch norm does not update its running statistics."""
    mixup: Annotated[Any, MIXUPS] | None = None
    """Mixup: mix pairs of images and their labels, with a random weight per image. For the plain loss only."""
    rotation_weight: NonNegativeFloat = 0.0
    """Weight of the loss of a second task: by how many quarter turns is an image turned? A quarter of each batch is
    turned once, a quarter twice and a quarter three times, which costs no operations. Not for characters. After EASY
    (Bendou et al., 2022), which weights both losses by 0.5 and has another pass with mixup."""
    head: HeadName = "linear"
    """Classifier: linear without bias (Hariharan & Girshick), cosine with a learned scale, or the MLP of the recipe
    analogy_cifar100."""

    renamed = TrainingSettings.renamed | {
        "loss": "loss.name",
        "loss_weight": "loss.weight",
        "mixup.distribution": "mixup.name",
    }


@dataclass(kw_only=True)
class ExtractorStage(ExtractorSettings, NetworkChoice):
    """Settings that the stages that train an extractor share."""

    data: Path
    """Folder that preprocessing.py wrote, with images.h5 and split.json."""
    out: Path
    """Folder to write the extractor to."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""

    renamed = ExtractorSettings.renamed | NetworkChoice.renamed
