"""How near generated images are to real ones, by the features that a network of ours has of both.

Fréchet and kernel distance (Heusel et al., NeurIPS 2017; Bińkowski et al., ICLR 2018) are torchmetrics'. Precision and
recall (Kynkäänniemi et al., NeurIPS 2019), density and coverage (Naeem et al., ICML 2020) compare balls around images
that reach to their k-th neighbour of the same kind. None of them sees whether an image is of the class that was asked
for: the accuracy of the nearest class mean does. Distances are float64: the balls' borders are differences of small
numbers, and FID's matrix product of ill-conditioned ones.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lowshot.classifiers.tasks import class_means
from lowshot.core.errors import InputError
from lowshot.core.runtime import in_float64

# Distances that are in memory together: 64 MB.
_N_DISTANCES = 8_000_000
_KID_SUBSETS = 100


def image_scores(real: Tensor, fake: Tensor, n_neighbours: int = 3) -> dict[str, float]:
    """Scores of generated images against real ones, by features (N, D) and (M, D) on one device.

    `fid` is biased upwards where N or M is not far above D; `kid` is not, its subsets have 1000 images, or all of the
    fewer ones. Precision: the share of generated images in a real image's ball; recall: of real ones in a generated
    image's; density: in how many real balls a generated image lies, over `n_neighbours`; coverage: the share of real
    balls with a generated image in them. Raises InputError for fewer images than the balls need.
    """
    if (fewest := min(len(real), len(fake))) <= n_neighbours:
        raise InputError(f"scores of {fewest} images: more than {n_neighbours} are needed of either kind")
    real, fake = real.double(), fake.double()
    with warnings.catch_warnings():  # of the memory that features take
        warnings.simplefilter("ignore", UserWarning)
        kernel = KernelInceptionDistance(_Features(real.shape[1]), _KID_SUBSETS, min(1000, fewest))
    _update(kernel, real, fake)
    with torch.random.fork_rng(devices=[]):  # which subsets: the same for all that are compared
        torch.manual_seed(0)
        kid = kernel.compute()[0]
    return {"fid": frechet_distance(real, fake), "kid": float(kid), **_neighbour_scores(real, fake, n_neighbours)}


def nearest_own_class(real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
    """bool (N,): whether an image that was generated for a class of `labels` (N,) is nearer to the mean of that class's
    real images than to any other's, by features (N, D) of real and generated images, both of `labels`."""
    classes, which = labels.unique(return_inverse=True)
    means = class_means(real[None].double(), which[None], len(classes))[0]
    return torch.cdist(fake.double(), means).argmin(1) == which


def scores_by_class(
    real: np.ndarray, fake: np.ndarray, labels: np.ndarray, n_neighbours: int, device: str | torch.device
) -> list[dict]:
    """Scores of all classes together (class null), then of each that has images enough.

    Args:
        real, fake: (N, D) float32, features of real and of generated images, both of the classes `labels` (N,) int64.

    Returns:
        Entries of a results file: class, n_images, and `lowshot.gan.settings.SCORES`.
    """
    real, fake, labels = (torch.from_numpy(one).to(device) for one in (real, fake, labels))
    one_by_one = [(int(c), labels == c) for c in labels.unique()]
    parts = [(None, torch.ones_like(labels, dtype=torch.bool)), *one_by_one]
    right = nearest_own_class(real, fake, labels).double()
    return [
        {
            "class": c,
            "n_images": int(rows.sum()),
            **image_scores(real[rows], fake[rows], n_neighbours),
            "class_accuracy": right[rows].mean().item(),
        }
        for c, rows in parts
        if c is None or rows.sum() > n_neighbours
    ]


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """FID of features (N, D) and (M, D) on one device; with several processes each has its own, of all images."""
    metric = FrechetInceptionDistance(_Features(real.shape[1]), sync_on_compute=False)
    _update(metric, in_float64(real), in_float64(fake))
    return float(metric.compute())


class _Features(nn.Module):
    """Features in the place of images: torchmetrics asks for a network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        return features


def _update(metric: FrechetInceptionDistance | KernelInceptionDistance, real: Tensor, fake: Tensor) -> None:
    metric.to(real.device)
    metric.update(real, real=True)
    metric.update(fake, real=False)


def _neighbour_scores(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    """Of N real and M generated images: 3 N M multiply-adds a dimension, and as much for each kind against itself."""
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    in_real_balls, in_any_fake_ball, covered = [], [], real.new_zeros(len(real), dtype=torch.bool)
    for part in _parts(len(fake), len(real)):
        inside = torch.cdist(fake[part], real) < real_radii
        in_real_balls.append(inside.sum(1))
        covered |= inside.any(0)
    for part in _parts(len(real), len(fake)):
        in_any_fake_ball.append((torch.cdist(real[part], fake) < fake_radii).any(1))
    counts = torch.cat(in_real_balls).double()
    return {
        "precision": (counts > 0).double().mean().item(),
        "recall": torch.cat(in_any_fake_ball).double().mean().item(),
        "density": counts.mean().item() / k,
        "coverage": covered.double().mean().item(),
    }


def _radii(features: Tensor, k: int) -> Tensor:
    """Distance of each of N images to its k-th neighbour, itself not counted: (N,)."""
    parts = _parts(len(features), len(features))
    nearest = (torch.cdist(features[part], features).topk(k + 1, largest=False).values[:, k] for part in parts)
    return torch.cat(list(nearest))


def _parts(n_rows: int, n_columns: int) -> Iterator[slice]:
    step = max(1, _N_DISTANCES // n_columns)
    return (slice(start, start + step) for start in range(0, n_rows, step))
