"""Feature extractors: a backbone with a classifier head over the classes of the split.

Backbones are the published ResNets, ResNet-12, VGG-16-BN, Conv-4, Airbench, all timm models, and the user's own. The
ResNets have the layout and the parameter names of Hariharan & Girshick's release, so that its checkpoints can be loaded
without their prefix `module.` (see `load_weights`). All extractors expect images in [0, 1] and normalise them
themselves, so that training and evaluation use the same scale.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DropBlock2d
from torchvision.transforms import v2

from lowshot.core.choices import code_file, named_class
from lowshot.core.errors import InputError
from lowshot.core.files import digest, read_json, write_json
from lowshot.core.settings import NonNegativeInt, PositiveFloat, PositiveInt, checked
from lowshot.core.state_dicts import fill, load_state, load_tensors, save_state
from lowshot.data.datasets.images import Resampling
from lowshot.representation.airbench import airbench_trunk
from lowshot.representation.settings import BACKBONES, HeadName
from lowshot.representation.timm_models import is_timm, timm_preprocessing, timm_trunk, timm_weights

_BLOCKS = {"ResNet10": [1, 1, 1, 1], "ResNet18": [2, 2, 2, 2], "ResNet34": [3, 4, 6, 3],
           "ResNet50": [3, 4, 6, 3], "ResNet101": [3, 4, 23, 3]}  # fmt: skip
_VGG16 = [64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool"]


# Name of a network that was made of several (`lowshot.representation.joining`).
JOINED = "Joined"


@dataclass
class ModelConfig:
    """The configuration that rebuilds an extractor; stored as `model` in its config.json.

    Its input are images of `n_channels` and `image_size`. `crop_pct`, `crop_mode` and `interpolation` (as in timm)
    define how a picture becomes one: resize the short side to image_size / crop_pct, then crop the centre. A timm model
    repeats a grey channel, and resizes images to `input_size` if given. If `embedding` is above 0, features are
    projected to that many dimensions. For the user's own backbone, `name` is its class. `options` are its settings,
    those of Airbench, or the members of joined extractors.

    `resampling` says how the training images were made smaller, and `brightness` is their mean in 0..1, if known.
    """

    name: str
    n_classes: NonNegativeInt
    n_channels: PositiveInt
    image_size: PositiveInt
    width: PositiveFloat = 1.0
    head: HeadName = "linear"
    drop_rate: float = 0.0
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    input_size: PositiveInt | None = None
    interpolation: str = "bilinear"
    crop_pct: PositiveFloat = 0.875
    crop_mode: str = "center"
    embedding: NonNegativeInt = 0
    options: dict[str, Any] = field(default_factory=dict)
    resampling: Resampling = "antialiased"
    brightness: float | None = None

    @property
    def small_images(self) -> bool:
        """Whether the first layer is a 3x3 convolution without pooling, as is common for images up to 32 px."""
        return self.image_size <= 32


class SimpleBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. A projection in the shortcut has batch norm, as released."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.C1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.BN1 = nn.BatchNorm2d(n_out)
        self.C2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.BN2 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.projects = n_in != n_out or stride != 1
        if self.projects:
            self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.BNshortcut = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        out = self.BN2(self.C2(self.relu(self.BN1(self.C1(x)))))
        return self.relu(out + (self.BNshortcut(self.shortcut(x)) if self.projects else x))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut. The 3x3 convolution has a bias and the projection no batch norm, as
    released."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        inner = n_out // 4
        self.C1 = nn.Conv2d(n_in, inner, 1, bias=False)
        self.BN1 = nn.BatchNorm2d(inner)
        self.C2 = nn.Conv2d(inner, inner, 3, stride, 1)
        self.BN2 = nn.BatchNorm2d(inner)
        self.C3 = nn.Conv2d(inner, n_out, 1, bias=False)
        self.BN3 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.projects = n_in != n_out or stride != 1
        if self.projects:
            self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.BN1(self.C1(x)))
        out = self.BN3(self.C3(self.relu(self.BN2(self.C2(out)))))
        return self.relu(out + (self.shortcut(x) if self.projects else x))


class WideBlock(nn.Module):
    """A block of ResNet-12 as in Lee et al. (MetaOptNet, CVPR 2019) and Tian et al. (RFS, ECCV 2020): three 3x3
    convolutions, a shortcut with projection, leaky ReLU, 2x2 max pooling.

    `drop` is DropBlock after the pooling. Images of at most 32 px pool with `ceil_mode`, so that 28 px lose no border
    (28, 14, 7, 4, 2). This makes no difference at 32 and 64 px. The last leaky ReLU is applied after the pooling, to a
    quarter of the values: an increasing function of a maximum is the maximum of its values.
    """

    def __init__(self, n_in: int, n_out: int, ceil_mode: bool, drop: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n in (n_in, n_out, n_out):
            layers += [nn.Conv2d(n, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.1, inplace=True)]
        self.convolutions = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))
        self.relu = nn.LeakyReLU(0.1, inplace=True)
        self.pool = nn.MaxPool2d(2, ceil_mode=ceil_mode)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.relu(self.pool(self.convolutions(x).add_(self.shortcut(x)))))


def _scaled(n: int, width: float) -> int:
    return n if width == 1 else max(8, round(n * width / 8) * 8)


def _resnet_trunk(config: ModelConfig) -> tuple[nn.Sequential, int]:
    bottleneck = config.name in ("ResNet50", "ResNet101")
    block = BottleneckBlock if bottleneck else SimpleBlock
    n_in = _scaled(64, config.width)
    small = config.small_images
    stem = (
        nn.Conv2d(config.n_channels, n_in, 3, 1, 1, bias=False)
        if small
        else nn.Conv2d(config.n_channels, n_in, 7, 2, 3, bias=False)
    )
    layers: list[nn.Module] = [
        stem,
        nn.BatchNorm2d(n_in),
        nn.ReLU(inplace=True),
        nn.Identity() if small else nn.MaxPool2d(3, 2, 1),
    ]
    for stage, n_blocks in enumerate(_BLOCKS[config.name]):
        n_out = _scaled(64 * 2**stage * (4 if bottleneck else 1), config.width)
        for j in range(n_blocks):
            layers.append(block(n_in, n_out, 2 if stage >= 1 and j == 0 else 1))
            n_in = n_out
    # The release pools a fixed 7x7 window. The global mean is the same at 224 px, and works at every size.
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), n_in


def _resnet12_trunk(config: ModelConfig) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    n_in, side = config.n_channels, config.image_size
    for stage, channels in enumerate((64, 160, 320, 640)):
        n_out, side = _scaled(channels, config.width), -(-side // 2) if config.small_images else side // 2
        block_size = 5 if side >= 5 else max(1, side - 1 + side % 2)  # odd, and at most the size of the feature map
        drop = DropBlock2d(config.drop_rate, block_size) if stage >= 2 and config.drop_rate else nn.Identity()
        layers.append(WideBlock(n_in, n_out, config.small_images, drop))
        n_in = n_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), n_in


def _vgg_trunk(config: ModelConfig) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    n_in = config.n_channels
    for entry in _VGG16:
        if entry == "pool":
            # With ceil_mode, 28 px end at 1 x 1 as 32 px do. Before the ReLU: faster, and the same values.
            layers.insert(-1, nn.MaxPool2d(2, ceil_mode=True))
        else:
            n_out = _scaled(entry, config.width)
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
            n_in = n_out
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten()), n_in


def _conv4_trunk(config: ModelConfig) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    n_in, side, n_out = config.n_channels, config.image_size, _scaled(64, config.width)
    for _ in range(4):
        layers += [
            nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),  # after the pooling: the same values, on a quarter of them
        ]
        n_in, side = n_out, side // 2
    if side == 0:
        raise InputError(
            f"Conv4: needs images of at least 16 px, but these have {config.image_size} px. Use larger images, or "
            f"another --model"
        )
    return nn.Sequential(*layers, nn.Flatten()), n_out * side * side


def _airbench_trunk(config: ModelConfig) -> tuple[nn.Sequential, int]:
    widths = [_scaled(width, config.width) for width in config.options["widths"]]
    smallest = 2 ** len(widths) + 1
    if config.image_size < smallest:
        raise InputError(
            f"Airbench: {len(widths)} groups need images of at least {smallest} px, but these have {config.image_size} "
            f"px. Use fewer --model.widths, or another --model"
        )
    return airbench_trunk(config.n_channels, **(config.options | {"widths": widths})), widths[-1]


def mlp_head(dim: int, n_classes: int) -> nn.Sequential:
    """Build the head of the CIFAR system: two hidden layers with batch norm, weights N(0, 0.02), bias 0."""
    head = nn.Sequential(
        nn.Linear(dim, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(),
        nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(),
        nn.Linear(512, n_classes),
    )  # fmt: skip
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(head[-1].bias)
    return head


class CosineHead(nn.Module):
    """Scores are the cosine of feature and class weight times a learned scale (Gidaris & Komodakis, CVPR 2018)."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_classes, dim) / dim**0.5)
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


_HEADS = {"linear": partial(nn.Linear, bias=False), "cosine": CosineHead, "mlp": mlp_head}


def _trunk(config: ModelConfig, own: Any) -> tuple[nn.Module, int]:
    if own is not None:
        return _own_trunk(config, own)
    if is_timm(config.name):
        return timm_trunk(config.name, config.input_size or config.image_size)
    if config.name == JOINED:
        return _joined_trunk(config)
    BACKBONES.find(config.name)
    if config.name == "Airbench":
        return _airbench_trunk(config)
    make = {"Conv4": _conv4_trunk, "ResNet12": _resnet12_trunk, "VGG16BN": _vgg_trunk}
    trunk, dim = make.get(config.name, _resnet_trunk)(config)
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return trunk, dim


class SideBySide(nn.ModuleList):
    """Trunks that see the same images, and whose features are joined."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([trunk(x) for trunk in self], dim=1)


def _joined_trunk(config: ModelConfig) -> tuple[SideBySide, int]:
    members = [checked(ModelConfig, member, Path("config.json")) for member in config.options["members"]]
    trunks, dims = zip(*(_trunk(member, None) for member in members))
    return SideBySide(trunks), sum(dims)


def _own_trunk(config: ModelConfig, own: Any) -> tuple[nn.Module, int]:
    """Build the user's backbone. A black image shows the dimension of its features."""
    trunk = own.build(config.n_channels, config.image_size)
    if not isinstance(trunk, nn.Module):
        raise InputError(f"{config.name}: build must return a torch.nn.Module, not {type(trunk).__name__}")
    with torch.no_grad():
        features = trunk.eval()(torch.zeros(1, config.n_channels, config.image_size, config.image_size))
    if not isinstance(features, Tensor) or features.ndim != 2:
        made = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"{config.name}: must return features of shape (1, D) for one image, not {made}")
    return trunk.train(), features.shape[1]


def projection_head(dim: int, embedding: int) -> nn.Sequential:
    """Build the projection of Ni et al. (ICLR 2022): a hidden layer and a linear layer after the trunk."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, embedding))


class Extractor(nn.Module):
    """A trunk that computes features, an optional projection, and a classifier over all classes of the split.

    `dim` is the feature dimension D. The linear classifier has no bias, because SGM needs the features to be its
    gradient. With 0 classes there is no classifier. `own` is the user's own backbone, an object that builds the trunk;
    `code` is the file of its class.
    """

    def __init__(self, config: ModelConfig, own: Any = None) -> None:
        super().__init__()
        self.config, self.code = config, None if own is None else code_file(type(own))
        self.trunk, self.dim = _trunk(config, own)
        self.projection = projection_head(self.dim, config.embedding) if config.embedding else nn.Identity()
        self.dim = config.embedding or self.dim
        self.classifier = _HEADS[config.head](self.dim, config.n_classes) if config.n_classes else nn.Identity()
        smooth = v2.InterpolationMode.BICUBIC if config.interpolation == "bicubic" else v2.InterpolationMode.BILINEAR
        self.stretch = v2.Resize(config.input_size, smooth) if config.input_size else nn.Identity()
        n_normalised = 3 if is_timm(config.name) else config.n_channels  # timm models repeat a grey channel
        self.register_buffer("mean", torch.tensor(config.mean[:n_normalised]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std[:n_normalised]).view(-1, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Return features (N, D) of images (N, C, H, W) in [0, 1].

        Features are averages or maxima of the outputs of a (leaky) ReLU. Projected features, those of timm models and
        those of Airbench with normalised pooling can be negative.
        """
        return self.projection(self.trunk(self.normalise(images)))

    def normalise(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) in [0, 1] as the trunk takes them."""
        return (self.stretch(images) - self.mean) / self.std

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (N, n_classes) and features (N, D) of images (N, C, H, W) in [0, 1]."""
        features = self.features(images)
        return self.classifier(features), features


def timm_config(
    name: str,
    n_classes: int,
    n_channels: int = 3,
    stored_size: int | None = None,
    image_size: int | None = None,
    resize: bool = False,
    head: HeadName = "linear",
    embedding: int = 0,
) -> ModelConfig:
    """Return the configuration of a timm model, for images on disk or for stored pixels of `stored_size` px.

    The model has its own preprocessing, and runs at `image_size` px (default: its native size). Raises InputError if
    stored pixels have another size, unless `resize` is set.
    """
    preprocessing = timm_preprocessing(name)
    side = image_size or preprocessing["input_size"][1]
    if stored_size not in (None, side) and not resize:
        raise InputError(
            f"{name}: expects images of {side} px, but the stored images have {stored_size} px. Use "
            f"--timm.resize to resize the images, or --timm.image_size {stored_size} to run the model at that size "
            "(in training: --model.resize, --model.image_size)"
        )
    config = ModelConfig(name, n_classes, n_channels, stored_size or side, head=head, embedding=embedding)
    config.mean, config.std = list(preprocessing["mean"]), list(preprocessing["std"])
    config.interpolation, config.crop_mode = preprocessing["interpolation"], preprocessing["crop_mode"]
    config.crop_pct = 1.0 if stored_size else preprocessing["crop_pct"]
    config.input_size = side if side != config.image_size else None
    return config


def save_extractor(folder: Path, model: Extractor, made_from: dict) -> None:
    """Write `model.pt` (a state dict) and `config.json`, which together rebuild the network."""
    save_state(model.state_dict(), folder / "model.pt")
    content = {**made_from, "schema": "lowshot-extractor-1", "model": asdict(model.config)}
    write_json(folder / "config.json", content)


def load_extractor(folder: Path, code: Sequence[str] = ()) -> Extractor:
    """Rebuild an extractor from its folder, in evaluation mode.

    `code` lists the user's own classes (``file.py:Class``) that may be imported for it.
    """
    config, inputs = _described(Path(folder))
    model = Extractor(config, _own_backbone(config, inputs, Path(folder), code))
    fill(model, _weights(Path(folder)))
    return model.eval()


def _weights(folder: Path) -> Path:
    """Return the file of the weights: model.pt, or model.safetensors of a released extractor (half precision)."""
    released = folder / "model.safetensors"
    return released if released.is_file() else folder / "model.pt"


class Head(NamedTuple):
    """The classifier of an extractor: features (N, dim) to scores (N, n_classes)."""

    classifier: nn.Module
    dim: int
    n_classes: int


def load_head(folder: Path) -> Head:
    """Load the classifier of the extractor in a folder, in evaluation mode, without building its backbone."""
    config, path = _described(Path(folder))[0], _weights(Path(folder))
    if not config.n_classes:
        raise InputError(
            f"{folder}: has no classifier, as it was trained on superclasses or released without. Use another"
        )
    state = {name: value for name, value in load_tensors(path).items() if name.startswith("classifier.")}
    dim = next((value.shape[1] for value in state.values() if value.ndim == 2), 0)
    classifier = _HEADS[config.head](dim, config.n_classes)
    try:
        classifier.load_state_dict({name.removeprefix("classifier."): value for name, value in state.items()})
    except RuntimeError:
        raise InputError(f"{path}: contains no {config.head} classifier of {config.n_classes} classes") from None
    return Head(classifier.eval(), dim, config.n_classes)


def _described(folder: Path) -> tuple[ModelConfig, dict[str, str]]:
    """Read the configuration of an extractor and the digests of its inputs from config.json."""
    where = folder / "config.json"
    content = read_json(where)
    try:
        described = {"crop_pct": _older_crop_pct(content), **content["model"]}
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{folder}: not an extractor. Use a folder of train_extractor.py or train_scgm.py") from None
    return checked(ModelConfig, described, where), content.get("inputs", {})


def _own_backbone(config: ModelConfig, inputs: dict[str, str], folder: Path, code: Sequence[str]) -> Any:
    """Return the user's backbone of the extractor in `folder`; None for a built-in one or a timm model."""
    if config.name == JOINED:
        return None
    known = named_class(BACKBONES, config.name, code, folder)
    if known in BACKBONES.classes.values():
        return None
    if digest(code_file(known)) not in (inputs.get("code of model"), inputs.get("code of extractor")):
        print(f"{folder}: {code_file(known)} has changed since the extractor was trained")
    return checked(known, config.options, folder / "config.json")


def _older_crop_pct(content: dict) -> float:
    """Return the `crop_pct` of a config.json that is older than this key.

    Its recipe has the image size for images on disk. A network with another image size was trained on stored pixels,
    which are whole pictures.
    """
    side = content["model"]["image_size"]
    return ModelConfig.crop_pct if content.get("config", {}).get("image_size", side) == side else 1.0


def load_timm_weights(model: Extractor, path: Path | None) -> None:
    """Load timm's weights into the trunk of a timm model, from a file or (None) by download; see `timm_weights`."""
    side = model.config.input_size or model.config.image_size
    model.trunk.load_state_dict(timm_weights(model.config.name, side, path))


def load_weights(model: Extractor, path: Path) -> None:
    """Load initial weights from a model.pt, a released checkpoint `<epoch>.tar`, or torchvision's VGG-16 weights.

    Released checkpoints contain {epoch, state} with the key prefix `module.`; older ones also have a classifier bias,
    which is dropped. Only the 13 convolution kernels of torchvision's VGG-16 are used, as the CIFAR system does with
    Caffe's. A timm model accepts a model.pt, or a file of timm weights for its trunk (`load_timm_weights`).
    """
    if is_timm(model.config.name) and path.suffix == ".safetensors":
        return load_timm_weights(model, path)
    if is_timm(model.config.name) and "trunk" not in {key.split(".")[0] for key in load_state(path)}:
        return load_timm_weights(model, path)
    state = {name.removeprefix("module."): value for name, value in load_tensors(path).items()}
    if "features.0.weight" in state:
        state = _vgg_kernels(model, state)
    if model.config.head == "linear":
        state.pop("classifier.bias", None)
    current = model.state_dict()
    for name, value in state.items():
        if name not in current:
            raise InputError(f"{path}: parameter '{name}' is not in {model.config.name}. Use the weights of that model")
        if current[name].shape != value.shape:
            needed = f"{model.config.name} needs {tuple(current[name].shape)}"
            raise InputError(
                f"{path}: '{name}' has shape {tuple(value.shape)}, but {needed}. Use the --model of these weights, "
                f"with its settings"
            )
    if missing := current.keys() - state.keys():
        raise InputError(f"{path}: lacks the parameter '{min(missing)}' of {model.config.name}")
    model.load_state_dict(state)


def _vgg_kernels(model: Extractor, state: dict) -> dict:
    kernels = [v for k, v in state.items() if k.startswith("features.") and v.ndim == 4]
    current = model.state_dict()
    names = [k for k, v in current.items() if k.startswith("trunk.") and v.ndim == 4]
    return {**current, **dict(zip(names, kernels))}
