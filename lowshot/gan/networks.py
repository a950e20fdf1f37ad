"""Generators and discriminator (Beckham et al., arXiv 2203.16662).

Both generators turn a learned constant into an image by residual blocks. The published generator applies FiLM (Perez et
al., AAAI 2018) after instance norm: noise and class scale and shift the channels. The modulated generator maps noise
and class to a style that modulates the convolutions (Karras et al., StyleGAN2, CVPR 2020). The discriminator is a
residual network, optionally with spectral norm. It has a projection head (Miyato & Koyama, ICLR 2018) and a head that
predicts the noise from the image (InfoGAN, Chen et al., NeurIPS 2016).

Images are in [-1, 1] and can have any number of channels (published: three, also for grey characters).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lowshot.core.errors import InputError
from lowshot.core.settings import NonNegativeInt, PositiveInt
from lowshot.gan.settings import FinetuneMode, NetworkSizes

_SMALLEST_SIDE = 2  # side of the constant: instance norm cannot normalise a single pixel
_SMALLEST_IMAGE = 16  # the discriminator halves it four times


@dataclass
class GanConfig(NetworkSizes):
    """Everything that is needed to rebuild both networks."""

    n_classes: PositiveInt
    n_channels: PositiveInt
    image_size: PositiveInt
    n_features: NonNegativeInt = 0
    """Dimensions of the features that classes are embedded by. 0: every class has a learned vector."""
    network: Literal["published", "modulated"] = "modulated"
    film: Literal["relu", "affine"] = "relu"
    """FiLM of the published generator."""

    @property
    def blocks(self) -> list[int]:
        """Number of blocks after each doubling of the side."""
        if self.blocks_per_res is not None:
            return self.blocks_per_res
        return [1] * max(n for n in range(5) if n == 0 or _can_be_halved(self.image_size, n))


def check_sizes(config: GanConfig, where: str) -> None:
    """Raise InputError, naming `where`, if the generator cannot make images of this side or with these channels."""
    if config.image_size < _SMALLEST_IMAGE:
        raise InputError(
            f"{where}: the images have {config.image_size} px, but a GAN needs at least {_SMALLEST_IMAGE} px per side. "
            "Use larger images (preprocessing.py --dataset.image_size)"
        )
    n = max(1, len(config.blocks))
    if not _can_be_halved(config.image_size, n):
        raise InputError(
            f"{where}: the images have {config.image_size} px, but {n} entries of blocks_per_res need a multiple of "
            f"{2**n}, at least {_SMALLEST_SIDE * 2**n} px. Use another --blocks_per_res or image size"
        )
    if not config.blocks:
        raise InputError(f"{where}: blocks_per_res must have at least one entry")
    if config.ngf % 2**n:
        raise InputError(f"{where}: ngf {config.ngf} must be divisible by {2**n} ({n} entries of blocks_per_res)")


def _can_be_halved(side: int, n: int) -> bool:
    """Whether `side` can be halved `n` times without going below the smallest side."""
    return side % 2**n == 0 and side // 2**n >= _SMALLEST_SIDE


class ClassMeans(nn.Module):
    """Embeddings of classes: one linear map, shared by all classes, of the mean features of their images.

    Replaces a table of learned vectors (n_classes, n_out). New classes are embedded without training.
    """

    def __init__(self, config: GanConfig, n_out: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(config.n_classes, config.n_features))
        self.linear, self.scale = nn.Linear(config.n_features, n_out), n_out**-0.5

    def forward(self, labels: Tensor) -> Tensor:
        """Classes int64 (B,) -> float32 (B, n_out). The initial length does not depend on n_out."""
        return self.linear(self.means[labels]).float() * self.scale


Table = nn.Embedding | ClassMeans
Embed = Callable[[Table], Tensor]


def class_table(config: GanConfig, n_out: int) -> Table:
    """Return the module that turns classes (B,) into embeddings (B, n_out)."""
    return ClassMeans(config, n_out) if config.n_features else nn.Embedding(config.n_classes, n_out)


class Film(nn.Module):
    """FiLM, gamma * x + beta: gamma and beta are a linear map of [noise, class embedding].

    Each block has its own class `table` (n_classes, z_dim), initialised from N(0, 1).
    """

    def __init__(self, config: GanConfig, n_out: int) -> None:
        super().__init__()
        self.table = class_table(config, config.z_dim)
        self.linear = nn.Linear(2 * config.z_dim, 2 * n_out)
        self.relu = config.film == "relu"

    def forward(self, x: Tensor, z: Tensor, embed: Embed) -> Tensor:
        """`x` (B or 1, n_out, H, W), noise `z` (B, z_dim) -> (B, n_out, H, W)."""
        gamma, beta = self.linear(torch.cat([z, embed(self.table)], 1))[:, :, None, None].chunk(2, 1)
        return torch.addcmul(beta.relu(), gamma.relu(), x) if self.relu else torch.addcmul(beta, 1 + gamma, x)


class GeneratorBlock(nn.Module):
    """Two 3x3 convolutions with instance norm and FiLM, plus a shortcut. With `doubles`, the side is doubled."""

    def __init__(self, config: GanConfig, n_in: int, n_out: int, doubles: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n_in, n_out, 3, 1, 1), nn.InstanceNorm2d(n_out, affine=True)
        self.conv2 = nn.ConvTranspose2d(n_out, n_out, 3, 2, 1, 1) if doubles else nn.Conv2d(n_out, n_out, 3, 1, 1)
        self.norm2, self.film = nn.InstanceNorm2d(n_out, affine=True), Film(config, n_out)
        wider = (nn.Conv2d(n_in, n_out, 1), nn.Upsample(scale_factor=2)) if doubles else ()
        self.shortcut = nn.Sequential(*wider)

    def forward(self, x: Tensor, z: Tensor, embed: Embed) -> Tensor:
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (self.film(out, z, embed) + self.shortcut(x)).relu()


class Generator(nn.Module):
    """Generator of images from noise and classes. A subclass defines the blocks and how they use both."""

    finetuned_parts: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        check_sizes(config, "generator")
        self.z_dim = config.z_dim
        side = config.image_size // 2 ** len(config.blocks)
        self.constant = nn.Parameter(torch.randn(1, config.ngf, side, side))
        blocks, n = [], config.ngf
        for n_more in config.blocks:
            blocks.append(self._block(config, n, n // 2, doubles=True))
            n //= 2
            blocks += [self._block(config, n, n, doubles=False) for _ in range(n_more)]
        self.blocks = nn.ModuleList(blocks)
        self.image = nn.Conv2d(n, config.n_channels, 3, 1, 1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Noise (B, z_dim) and int64 (B,) -> images (B, n_channels, S, S) in [-1, 1]."""
        return self._grow(z, lambda table: table(labels))

    def between(self, z: Tensor, labels: Tensor, others: Tensor, share: Tensor) -> Tensor:
        """Return images between two classes (`decode_mixup` of the released code).

        Each class embedding is `share` (B, 1) times that of `labels` plus 1 - `share` times that of `others`.
        """
        return self._grow(z, lambda table: torch.lerp(table(others), table(labels), share))

    def _block(self, config: GanConfig, n_in: int, n_out: int, doubles: bool) -> nn.Module:
        raise NotImplementedError

    def _grow(self, z: Tensor, embed: Embed) -> Tensor:
        raise NotImplementedError


class PublishedGenerator(Generator):
    """Generator with class embeddings in every block.

    The convolutions of the first block are computed once for all images, since their input is the constant.
    """

    finetuned_parts: ClassVar = {"embed": ("table",), "linear": ("film",)}

    def _block(self, config: GanConfig, n_in: int, n_out: int, doubles: bool) -> nn.Module:
        return GeneratorBlock(config, n_in, n_out, doubles)

    def _grow(self, z: Tensor, embed: Embed) -> Tensor:
        x = self.constant
        for block in self.blocks:
            x = block(x, z, embed)
        return self.image(x).tanh()


class ModulatedConv(nn.Module):
    """3x3 convolution with weights modulated by a style.

    The style scales the weights of each input channel. Then the weights of each output channel are normalised to unit
    length (Karras et al., 2020, eq. 1 and 3). The implementation scales the channels of the images instead, which is
    equivalent and needs no separate weights per image.
    """

    def __init__(self, n_in: int, n_out: int, style_dim: int) -> None:
        super().__init__()
        self.style = nn.Linear(style_dim, n_in)
        nn.init.normal_(self.style.weight, std=style_dim**-0.5)
        nn.init.ones_(self.style.bias)
        self.weight = nn.Parameter(torch.randn(n_out, n_in, 3, 3) / (9 * n_in) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """`x` (B, n_in, H, W), `style` (B, style_dim) -> (B, n_out, H, W), activated."""
        scale = self.style(style)
        length = (scale.square() @ self.weight.square().sum((2, 3)).T + 1e-8).rsqrt()
        out = F.conv2d(x * scale[:, :, None, None], self.weight, padding=1)
        return F.leaky_relu(torch.addcmul(self.bias[:, None, None], out, length[:, :, None, None]), 0.2) * 2**0.5


class ModulatedBlock(nn.Module):
    """Two modulated convolutions plus a shortcut. With `doubles`, the side is doubled between them."""

    def __init__(self, n_in: int, n_out: int, style_dim: int, doubles: bool) -> None:
        super().__init__()
        self.conv1 = ModulatedConv(n_in, n_out, style_dim)
        self.conv2 = ModulatedConv(n_out, n_out, style_dim)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, bias=False) if n_in != n_out else nn.Identity()
        self.doubles = doubles

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        shortcut, x = self.shortcut(x), self.conv1(x, style)
        if self.doubles:
            x, shortcut = (F.interpolate(one, scale_factor=2.0, mode="bilinear") for one in (x, shortcut))
        return (self.conv2(x, style) + shortcut) * 0.5**0.5


class ModulatedGenerator(Generator):
    """Generator with one class table for all blocks.

    Noise and class embedding are each normalised to unit mean square and mapped to the style by two layers. Unlike
    StyleGAN2, it has no noise inputs, no output at each resolution and one learning rate for all layers.
    """

    finetuned_parts: ClassVar = {"embed": ("table",), "linear": ("table", "mapping", "style")}

    def __init__(self, config: GanConfig) -> None:
        super().__init__(config)
        self.table, n = class_table(config, config.z_dim), 2 * config.z_dim
        self.mapping = nn.Sequential(nn.Linear(n, n), nn.LeakyReLU(0.2), nn.Linear(n, n), nn.LeakyReLU(0.2))
        for layer in self.mapping[::2]:  # with a smaller style, images hardly depend on the noise and later ignore it
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.zeros_(layer.bias)

    def _block(self, config: GanConfig, n_in: int, n_out: int, doubles: bool) -> nn.Module:
        return ModulatedBlock(n_in, n_out, 2 * config.z_dim, doubles)

    def _grow(self, z: Tensor, embed: Embed) -> Tensor:
        style = self.mapping(torch.cat([_unit(z), _unit(embed(self.table))], 1))
        x = self.constant.expand(len(z), -1, -1, -1)
        for block in self.blocks:
            x = block(x, style)
        return self.image(x).tanh()


def _unit(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


GENERATORS = {"published": PublishedGenerator, "modulated": ModulatedGenerator}


class DiscriminatorOutput(NamedTuple):
    """Output of the discriminator.

    `unconditional` are the logits (B,) of being real. `conditional` (B,) adds the projection of the class on `hidden`
    (B, n). `z` (B, z_dim) is the predicted noise.
    """

    conditional: Tensor
    unconditional: Tensor
    z: Tensor
    hidden: Tensor


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions plus a shortcut. With `halves`, the output is pooled to half the side.

    The `first` block has no ReLU at its input. In its shortcut, pooling comes before the convolution instead of after.
    """

    def __init__(self, n_in: int, n_out: int, halves: bool, first: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = _xavier(nn.Conv2d(n_in, n_out, 3, 1, 1)), _xavier(nn.Conv2d(n_out, n_out, 3, 1, 1))
        pool = nn.AvgPool2d(2) if halves else nn.Identity()
        steps = [_xavier(nn.Conv2d(n_in, n_out, 1), gain=2**0.5)] if n_in != n_out else []
        steps.insert(0 if first else len(steps), pool)
        self.shortcut, self.pool, self.first = nn.Sequential(*steps), pool, first

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.first else x.relu()
        return self.pool(self.conv2(self.conv1(out).relu())) + self.shortcut(x)


class Discriminator(nn.Module):
    """Discriminator. One pass computes everything that the losses need.

    With `spectral_norm`, all layers have spectral norm except the class `table`.
    """

    finetuned_parts: ClassVar = {"embed": ("table",), "linear": ("table", "hidden", "logit", "noise")}

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        n, self.z_dim = config.ndf, config.z_dim
        self.trunk = nn.Sequential(
            DiscriminatorBlock(config.n_channels, n, halves=True, first=True),
            DiscriminatorBlock(n, 2 * n, halves=True),
            DiscriminatorBlock(2 * n, 4 * n, halves=True),
            DiscriminatorBlock(4 * n, 8 * n, halves=True),
            DiscriminatorBlock(8 * n, 8 * n, halves=False),
        )
        n *= 8
        self.table = class_table(config, n)
        self.hidden, self.logit = _xavier(nn.Linear(n, n)), _xavier(nn.Linear(n, 1))
        first, second, last = (_xavier(nn.Linear(n, n_out)) for n_out in (n, n, 2 * config.z_dim))
        # As in the released code, the first z_dim outputs are unused.
        self.noise = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        if config.spectral_norm:
            layers = [one for one in self.modules() if isinstance(one, (nn.Conv2d, nn.Linear))]
            for layer in set(layers) - set(self.table.modules()):
                spectral_norm(layer)

    def forward(self, images: Tensor, labels: Tensor) -> DiscriminatorOutput:
        """Images (B, n_channels, S, S) in [-1, 1], classes int64 (B,) -> output."""
        seen = self.trunk(images).relu().mean((2, 3))
        hidden = self.hidden(seen).relu()
        unconditional = self.logit(hidden)[:, 0]
        conditional = unconditional + self.match(hidden, labels)
        return DiscriminatorOutput(conditional, unconditional, self.noise(seen)[:, -self.z_dim :], hidden)

    def match(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the projection (B,) of `hidden` (B, n) on the embeddings of classes (B,)."""
        return (self.table(labels) * hidden).sum(1)


def choose_trained(network: Generator | Discriminator, mode: FinetuneMode) -> list[nn.Parameter]:
    """Return the parameters that fine-tuning in `mode` trains, and freeze all others.

    The released code only leaves the others out of the optimiser.
    """
    for name, parameter in network.named_parameters():
        chosen = mode == "all" or not set(name.split(".")).isdisjoint(network.finetuned_parts[mode])
        parameter.requires_grad_(chosen)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _xavier(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> nn.Conv2d | nn.Linear:
    nn.init.xavier_uniform_(layer.weight, gain)
    return layer
