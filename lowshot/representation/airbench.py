"""The network of airbench: wide, shallow and pooled early, so that most of its operations are large matrix products
(Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, 2024)."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot.representation.settings import Pooling

_PATCH = 2
# Factor of the features. Maxima are larger than averages, so the classifier's first steps would be too large.
_SCALE = 1 / 9


class Whitening(nn.Module):
    """The first layer: a 2x2 convolution that whitens patches of the training images.

    Its filters are fixed (`whitening_filters`), so they are buffers; its bias is trained.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        n_filters = 2 * n_channels * _PATCH**2
        self.register_buffer("weight", torch.zeros(n_filters, n_channels, _PATCH, _PATCH))
        self.bias = nn.Parameter(torch.zeros(n_filters))

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight, self.bias)

    def fit(self, batches: Iterable[Tensor], eps: float) -> None:
        """Set the filters from batches (N, C, H, W) of normalised images."""
        moment, n = torch.zeros(self.weight[0].numel(), self.weight[0].numel(), dtype=torch.float64), 0
        for images in batches:
            patches = F.unfold(images, _PATCH).transpose(1, 2).flatten(0, 1).double()
            moment, n = moment + patches.T @ patches, n + len(patches)
        self.weight.copy_(whitening_filters(moment / n, eps).reshape(self.weight.shape))


def whitening_filters(moment: Tensor, eps: float) -> Tensor:
    """Return filters (2D, D) that whiten vectors with the second moment (D, D) about zero: its eigenvectors over
    sqrt(eigenvalue + eps), and the same negated."""
    values, vectors = torch.linalg.eigh(moment)
    filters = (vectors / (values + eps).sqrt()).T
    return torch.cat([filters, -filters])


def airbench_trunk(n_channels: int, widths: Sequence[int], depth: int, pooling: Pooling = "maximum") -> nn.Sequential:
    """Build the whitening layer, a group of `depth` convolutions per width, and the pooling.

    The first convolution of a group is pooled before its batch norm, which then sees a quarter of the values. The
    others are pairs with a shortcut; one that is left over has none. So a depth of 2 is that of airbench94, and 3 that
    of airbench96. In airbench all convolutions start as the identity: `start_as_identity`.

    Departs from airbench: ReLU in place of GELU; batch norm with trained gains and torch's eps and momentum; the bias
    of the whitening is trained to the end; images are normalised as for ImageNet; other poolings. The
    factor 1/9 of the maximum is applied to the features and not to the scores, which is the same and lets SGM see the
    classifier's gradient.
    """
    layers: list[nn.Module] = [Whitening(n_channels), nn.ReLU(inplace=True)]
    n_in = 2 * n_channels * _PATCH**2
    for width in widths:
        layers += [_convolution(n_in, width), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers += [Pair(width) for _ in range((depth - 1) // 2)]
        if depth % 2 == 0:
            layers += [_convolution(width, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        n_in = width
    return nn.Sequential(*layers, *_pooling(pooling, n_in))


def _pooling(name: Pooling, width: int) -> list[nn.Module]:
    if name == "maximum":
        return [GlobalMaximum(_SCALE)]
    norm = [nn.BatchNorm2d(width)] if name == "normalised" else []
    return [nn.AdaptiveAvgPool2d(1), *norm, nn.Flatten()]


class Pair(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            _convolution(width, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            _convolution(width, width), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.convolutions(x).add_(x))


class GlobalMaximum(nn.Module):
    """The maximum of each channel (N, C, H, W), times `scale`: features (N, C)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.adaptive_max_pool2d(x, 1).flatten(1)


def _convolution(n_in: int, n_out: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)


def start_as_identity(trunk: nn.Module) -> None:
    """Set the first filters of each convolution to the identity on the channels that it takes."""
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight.data[: layer.in_channels])
