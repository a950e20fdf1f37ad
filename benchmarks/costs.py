"""What the trainings that were never run would cost, from their operations.

Writes    a CSV file: training, images, operations, hours on a GPU

    python benchmarks/costs.py > docs/results/not_run.csv

Operations are additions and multiplications of convolutions and matrix products, three forward passes for a step
(`lowshot.representation.operations`). Hours are operations over 1e14 a second, which a data-centre GPU does in half
precision if images arrive fast enough: a lower bound.
"""

import csv
import sys
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.representation.backbones import Extractor, ModelConfig
from lowshot.representation.operations import PASSES_OF_A_STEP, operations_per_image

RATE = 1e14  # operations a second


class Training(NamedTuple):
    """A training that was not run: what it is, its network, side of the images, classes, images and epochs."""

    what: str
    network: str
    image_size: int
    n_classes: int
    n_images: int
    epochs: int


NOT_RUN = [
    Training("ImageNet, an extractor as published", "ResNet10", 224, 1000, 500_000, 90),
    Training("ImageNet, ResNet-50 as published", "ResNet50", 224, 1000, 500_000, 90),
    Training("tieredImageNet, ResNet-12 of RFS", "ResNet12", 84, 351, 448_695, 60),
    Training("BREEDS Living-17, ResNet-50", "ResNet50", 224, 17, 88_400, 200),
    Training("CIFAR-100 analogies, VGG-16 at paper size, all of at most 500 epochs", "VGG16BN", 32, 100, 40_000, 500),
    Training("mini-ImageNet, ResNet-12 of RFS", "ResNet12", 84, 64, 38_400, 100),
]


def main() -> None:
    """Print a row for each training."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["training", "images", "operations", "hours"])
    for one in NOT_RUN:
        model = Extractor(ModelConfig(one.network, one.n_classes, n_channels=3, image_size=one.image_size))
        total = PASSES_OF_A_STEP * operations_per_image(model, one.image_size) * one.n_images * one.epochs
        rows.writerow([one.what, one.n_images * one.epochs, f"{total:.1e}", f"{total / RATE / 3600:.1f}"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
