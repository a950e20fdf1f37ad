"""Scores of generated images against real images, computed from their features.

The Fréchet and kernel distances (Heusel et al., NeurIPS 2017; Bińkowski et al., ICLR 2018) are from torchmetrics.
Precision and recall (Kynkäänniemi et al., NeurIPS 2019), density and coverage (Naeem et al., ICML 2020) use a ball
around each image with its distance to the k-th neighbour of the same kind as radius. None of these scores depends on
whether an image shows the requested class. The accuracy of the nearest class mean does.

Computed in float64: distances near a radius are differences of small numbers, and the matrix product of FID is
ill-conditioned.
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

# Maximum number of distances in memory at once: 64 MB.
_N_DISTANCES = 8_000_000
_KID_SUBSETS = 100


def image_scores(real: Tensor, fake: Tensor, n_neighbours: int = 3) -> dict[str, float]:
    """Score generated against real images, given their features (M, D) and (N, D) on one device.

    - `fid` is biased upwards unless N and M are much larger than D.
    - `kid` is unbiased. Its subsets have 1000 images, or min(N, M) if that is less.
    - `precision`: fraction of generated images in the ball of a real image.
    - `recall`: fraction of real images in the ball of a generated image.
    - `density`: mean number of real balls that contain a generated image, divided by `n_neighbours`.
    - `coverage`: fraction of real balls that contain a generated image.

    Raises InputError unless there are more than `n_neighbours` images of each kind.
    """
    if (fewest := min(len(real), len(fake))) <= n_neighbours:
        raise InputError(
            f"--n_neighbours {n_neighbours}: needs more than {n_neighbours} real and generated images, but there are "
            f"only {fewest}. Use a smaller --n_neighbours or more images"
        )
    real, fake = real.double(), fake.double()
    with warnings.catch_warnings():  # torchmetrics warns about the memory of stored features
        warnings.simplefilter("ignore", UserWarning)
        kernel = KernelInceptionDistance(_Features(real.shape[1]), _KID_SUBSETS, min(1000, fewest))
    _update(kernel, real, fake)
    with torch.random.fork_rng(devices=[]):  # the same subsets for every comparison
        torch.manual_seed(0)
        kid = kernel.compute()[0]
    return {"fid": frechet_distance(real, fake), "kid": float(kid), **_neighbour_scores(real, fake, n_neighbours)}


def nearest_own_class(real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
    """Return bool (N,): whether the nearest class mean of real images is that of the requested class.

    `real` and `fake` are features (N, D) of real and generated images, both with classes `labels` (N,).
    """
    classes, which = labels.unique(return_inverse=True)
    means = class_means(real[None].double(), which[None], len(classes))[0]
    return torch.cdist(fake.double(), means).argmin(1) == which


def scores_by_class(
    real: np.ndarray, fake: np.ndarray, labels: np.ndarray, n_neighbours: int, device: str | torch.device
) -> list[dict]:
    """Score all classes together (class None), then each class with more than `n_neighbours` images.

    Args:
        real, fake: (N, D) float32, features of real and generated images, both with classes `labels` (N,) int64.

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
    """Return the FID of features (N, D) and (M, D) on one device. With several processes, each computes its own."""
    metric = FrechetInceptionDistance(_Features(real.shape[1]), sync_on_compute=False)
    _update(metric, in_float64(real), in_float64(fake))
    return float(metric.compute())


class _Features(nn.Module):
    """Identity: torchmetrics expects a network that computes features."""

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
    """Return precision, recall, density and coverage of N real and M generated images, in blocks of distances."""
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
    """Return the distance (N,) of each image to its k-th neighbour, not counting the image itself."""
    parts = _parts(len(features), len(features))
    nearest = (torch.cdist(features[part], features).topk(k + 1, largest=False).values[:, k] for part in parts)
    return torch.cat(list(nearest))


def _parts(n_rows: int, n_columns: int) -> Iterator[slice]:
    step = max(1, _N_DISTANCES // n_columns)
    return (slice(start, start + step) for start in range(0, n_rows, step))
