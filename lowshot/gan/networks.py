"""The published generator and discriminator (Beckham et al., arXiv 2203.16662; spec 3).

A learned constant is grown into an image by residual blocks; in each of them FiLM (Perez et al., AAAI 2018) scales and
shifts channels by noise and class. The discriminator is a spectrally normalised residual network with a projection head
(Miyato & Koyama, ICLR 2018) and a head that reads the noise off the image (InfoGAN, Chen et al., NeurIPS 2016).

Images are in [-1, 1], of any number of channels (published: three, for grey characters too).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lowshot.errors import InputError

FinetuneMode = Literal["embed", "linear", "all"]
_SMALLEST_SIDE = 2  # of the constant: instance norm has nothing to normalise by in a single pixel


@dataclass
class GanConfig:
    """All that is needed to rebuild both networks."""

    n_classes: PositiveInt
    n_channels: PositiveInt
    image_size: PositiveInt
    ngf: PositiveInt = 64
    """channels of the generator's constant, halved by every doubling of the side"""
    blocks_per_res: list[int] = field(default_factory=lambda: [1, 1, 1, 1])
    """blocks behind each doubling of the side; the constant's side is the image's, halved as often"""
    z_dim: PositiveInt = 64
    """dimensions of the noise, and of the class embeddings of each block"""
    film: Literal["relu", "affine"] = "relu"
    """relu: scales and shifts are never negative, half of them zero at first, as released; affine: they start around 1
    and 0 and take any sign"""
    ndf: PositiveInt = 16
    """channels of the discriminator's first block, an eighth of its last"""


def check_sizes(config: GanConfig, where: str) -> None:
    """InputError, naming `where`, for an image side or a number of channels that the generator cannot make."""
    n = len(config.blocks_per_res)
    if config.image_size % 2**n or config.image_size // 2**n < _SMALLEST_SIDE:
        raise InputError(
            f"{where}: {n} doublings (blocks_per_res) make no image of {config.image_size} px; its side must be a "
            f"multiple of {2**n}, {_SMALLEST_SIDE * 2**n} at least"
        )
    if config.ngf % 2**n:
        raise InputError(f"{where}: ngf {config.ngf} cannot be halved {n} times (blocks_per_res)")


class Film(nn.Module):
    """gamma * x + beta, by noise and class: the class `table` (n_classes, z_dim) of a block, N(0, 1), and a `linear`
    layer on [noise, class embedding] (spec 3.1)."""

    def __init__(self, config: GanConfig, n_out: int) -> None:
        super().__init__()
        self.table = nn.Embedding(config.n_classes, config.z_dim)
        self.linear = nn.Linear(2 * config.z_dim, 2 * n_out)
        self.relu = config.film == "relu"

    def forward(self, x: Tensor, z: Tensor, embed: Callable[[nn.Embedding], Tensor]) -> Tensor:
        """`x` (B or 1, n_out, H, W) -> (B, n_out, H, W), with noise (B, z_dim)."""
        gamma, beta = self.linear(torch.cat([z, embed(self.table)], 1))[:, :, None, None].chunk(2, 1)
        return torch.addcmul(beta.relu(), gamma.relu(), x) if self.relu else torch.addcmul(beta, 1 + gamma, x)


class GeneratorBlock(nn.Module):
    """Two 3x3 convolutions with instance norm and FiLM, beside a shortcut; with `doubles` both double the side."""

    def __init__(self, config: GanConfig, n_in: int, n_out: int, doubles: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n_in, n_out, 3, 1, 1), nn.InstanceNorm2d(n_out, affine=True)
        self.conv2 = nn.ConvTranspose2d(n_out, n_out, 3, 2, 1, 1) if doubles else nn.Conv2d(n_out, n_out, 3, 1, 1)
        self.norm2, self.film = nn.InstanceNorm2d(n_out, affine=True), Film(config, n_out)
        wider = (nn.Conv2d(n_in, n_out, 1), nn.Upsample(scale_factor=2)) if doubles else ()
        self.shortcut = nn.Sequential(*wider)

    def forward(self, x: Tensor, z: Tensor, embed: Callable[[nn.Embedding], Tensor]) -> Tensor:
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (self.film(out, z, embed) + self.shortcut(x)).relu()


class Generator(nn.Module):
    """Images of noise and classes. The first block's convolutions see one constant, not one for each image."""

    finetuned_parts: ClassVar = {"embed": ("table",), "linear": ("film",)}

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        check_sizes(config, "generator")
        side = config.image_size // 2 ** len(config.blocks_per_res)
        self.constant = nn.Parameter(torch.randn(1, config.ngf, side, side))
        blocks, n = [], config.ngf
        for n_more in config.blocks_per_res:
            blocks.append(GeneratorBlock(config, n, n // 2, doubles=True))
            n //= 2
            blocks += [GeneratorBlock(config, n, n, doubles=False) for _ in range(n_more)]
        self.blocks = nn.ModuleList(blocks)
        self.image = nn.Conv2d(n, config.n_channels, 3, 1, 1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Noise (B, z_dim) and int64 (B,) -> images (B, n_channels, S, S) in [-1, 1]."""
        return self._grow(z, lambda table: table(labels))

    def between(self, z: Tensor, labels: Tensor, others: Tensor, share: Tensor) -> Tensor:
        """Images of classes in between: every block's class embedding is `share` (B, 1) times that of `labels` and the
        rest that of `others` (the release's decode_mixup, spec 3.1)."""
        return self._grow(z, lambda table: torch.lerp(table(others), table(labels), share))

    def _grow(self, z: Tensor, embed: Callable[[nn.Embedding], Tensor]) -> Tensor:
        x = self.constant
        for block in self.blocks:
            x = block(x, z, embed)
        return self.image(x).tanh()


class Judgement(NamedTuple):
    """What the discriminator says of images: the logits (B,) of being real, for their classes (`conditional`, equal to
    `unconditional` plus the projection on the class) and whatever their class, and the noise `z` (B, z_dim)."""

    conditional: Tensor
    unconditional: Tensor
    z: Tensor


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `halves` the side at its end. The `first` block has no ReLU in front and
    pools before its shortcut's convolution instead of behind it."""

    def __init__(self, n_in: int, n_out: int, halves: bool, first: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(n_in, n_out, 3), _conv(n_out, n_out, 3)
        pool = nn.AvgPool2d(2) if halves else nn.Identity()
        steps = [_conv(n_in, n_out, 1, gain=2**0.5)] if n_in != n_out else []
        steps.insert(0 if first else len(steps), pool)
        self.shortcut, self.pool, self.first = nn.Sequential(*steps), pool, first

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.first else x.relu()
        return self.pool(self.conv2(self.conv1(out).relu())) + self.shortcut(x)


class Discriminator(nn.Module):
    """Judges images, for all that the losses ask, in one pass. Spectral norm on all layers but the class `table`."""

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
        self.table = nn.Embedding(config.n_classes, n)
        self.hidden, self.logit = _linear(n, n), _linear(n, 1)
        layers = [_linear(n, n), nn.ReLU(), _linear(n, n), nn.ReLU(), _linear(n, 2 * config.z_dim)]
        self.noise = nn.Sequential(*layers)  # its first z_dim outputs are never used, as released

    def forward(self, images: Tensor, labels: Tensor) -> Judgement:
        """Images (B, n_channels, S, S) in [-1, 1], int64 (B,)."""
        seen = self.trunk(images).relu().mean((2, 3))
        hidden = self.hidden(seen).relu()
        unconditional = self.logit(hidden)[:, 0]
        conditional = unconditional + (self.table(labels) * hidden).sum(1)
        return Judgement(conditional, unconditional, self.noise(seen)[:, -self.z_dim :])


def choose_trained(network: Generator | Discriminator, mode: FinetuneMode) -> list[nn.Parameter]:
    """The parameters that fine-tuning in `mode` trains; all others are frozen (spec 3.3; released: kept out of the
    optimiser only)."""
    for name, parameter in network.named_parameters():
        chosen = mode == "all" or not set(name.split(".")).isdisjoint(network.finetuned_parts[mode])
        parameter.requires_grad_(chosen)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _conv(n_in: int, n_out: int, side: int, gain: float = 1.0) -> nn.Module:
    return _normalised(nn.Conv2d(n_in, n_out, side, padding=side // 2), gain)


def _linear(n_in: int, n_out: int) -> nn.Module:
    return _normalised(nn.Linear(n_in, n_out), 1.0)


def _normalised(layer: nn.Conv2d | nn.Linear, gain: float) -> nn.Module:
    nn.init.xavier_uniform_(layer.weight, gain)
    return spectral_norm(layer)
