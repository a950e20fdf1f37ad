"""Cost of SCGM beyond its encoder: the assignment of an E-step, and the share of an epoch outside the encoder.

    python benchmarks/scgm.py assignment      # 50 000 images, 100 subclasses: seconds, balance
    python benchmarks/scgm.py share           # the two-core recipe on images like those of CIFAR-100

assignment: for embeddings in 100 Gaussian classes of 20 superclasses, with different overlap of the classes. share: the
part of real epochs and E-steps of `ScgmTrainer` that is not spent in its encoder. Time in the encoder is forward and
backward of the query, and forward of the keys and of the E-step, measured at the two ends of the encoder. The rest is
loading, augmentation, losses, queues, updates and assignment. The time of an E-step is divided among the epochs up to
the next one. Its assignment runs for the maximum number of iterations, as it mostly does on real images.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.progress import Progress
from lowshot.core.runtime import open_fabric
from lowshot.core.settings import build
from lowshot.core.training import TrainingRun
from lowshot.data.datasets.images import Images
from lowshot.representation.networks import build_network
from lowshot.representation.settings import NetworkChoice
from lowshot.scgm.assignment import assign_subclasses
from lowshot.scgm.mixture import Mixture
from lowshot.scgm.settings import ScgmSettings
from lowshot.scgm.training import ScgmTrainer, build_model

RECIPE = Path(__file__).parents[1] / "configs/scgm/train_scgm-cifar100-resnet10_quarter.yaml"
N_IMAGES, N_SUBCLASSES, N_SUPERCLASSES, N_CLASSES, DIM = 50_000, 100, 20, 100, 128


@dataclass(kw_only=True)
class Recipe(ScgmSettings, NetworkChoice):
    """The settings in the file of the recipe."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("assignment", "share"))
    parser.add_argument("--n_images", type=int, default=45_000, help="share: number of images per epoch")
    parser.add_argument("--methods", nargs="+", default=["scgm_g", "scgm_a"], help="share: methods to measure")
    options = parser.parse_args()
    assignment() if options.what == "assignment" else share(options.n_images, options.methods)


def assignment() -> None:
    """Time the assignment. Estimate: an iteration reads 40 MB once, 4 to 6 ms on a thread; at most 1001 iterations."""
    assign_subclasses(torch.rand(100, 10).log(), exponent=25)  # compiles
    for noise in (0.5, 1.0, 2.0):
        scores = clustered_scores(noise)
        start = time.perf_counter()
        found = assign_subclasses(scores, exponent=25)
        seconds = time.perf_counter() - start
        unbalance = (found.labels.bincount(minlength=N_SUBCLASSES) * N_SUBCLASSES / N_IMAGES - 1).abs().max()
        report(
            f"assignment of {N_IMAGES} x {N_SUBCLASSES}, noise {noise}",
            {"seconds": seconds, "iterations": found.n_iterations, "residual": found.residual,
             "largest deviation from the mean size": float(unbalance)},
        )  # fmt: skip


def clustered_scores(noise: float) -> Tensor:
    """Return log P (N_IMAGES, N_SUBCLASSES) of embeddings around class means, for subclass means drawn from these."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    superclass_means = normal(N_SUPERCLASSES, DIM)
    around = superclass_means.repeat_interleave(N_CLASSES // N_SUPERCLASSES, 0)
    class_means = F.normalize(around + normal(N_CLASSES, DIM))
    labels = torch.arange(N_IMAGES) % N_CLASSES
    embeddings = class_means[labels] + noise / DIM**0.5 * normal(N_IMAGES, DIM)
    mixture = Mixture(N_SUPERCLASSES, N_SUBCLASSES, DIM)
    with torch.no_grad():
        mixture.means.copy_(superclass_means)
        drawn = torch.randint(N_CLASSES, (N_SUBCLASSES,), generator=generator)
        mixture.subclass_means.copy_(class_means[drawn] + 0.5 / DIM**0.5 * normal(N_SUBCLASSES, DIM))
        return mixture.log_joint(embeddings, labels * N_SUPERCLASSES // N_CLASSES)


def share(n_images: int, methods: list[str]) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(N_CLASSES, size=n_images)
    images = Images(labels, np.zeros(n_images, bool), random.integers(256, size=(n_images, 32, 32, 3), dtype=np.uint8))
    for method in methods:
        with TemporaryDirectory() as folder:
            trainer = make_trainer(method, images, Path(folder))
            clock, train = EncoderClock(trainer), partial(trainer._train_epoch, bar=Progress(disable=True))
            rounds = [(clock.time(trainer._before_epoch, epoch), clock.time(train, epoch))
                      for epoch in (0, 2)]  # fmt: skip
        every = trainer.method.e_step_every
        e_step, epoch = np.median([one[0] for one in rounds], 0), np.median([one[1] for one in rounds], 0)
        shares = [1 - (one[0][1] / every + one[1][1]) / (one[0][0] / every + one[1][0]) for one in rounds]
        report(
            f"share of an epoch outside the encoder, {method}",
            {"share": float(np.median(shares)), "all": [round(one, 3) for one in shares], "epoch": epoch[0],
             "its encoder": epoch[1], "e_step": e_step[0], "encoder of it": e_step[1]},
        )  # fmt: skip


class EncoderClock:
    """A clock for the encoders of a trainer on a CPU: counts `features`, and backward after the gradient of its output
    is known."""

    def __init__(self, trainer: ScgmTrainer) -> None:
        self.seconds, self.reached = 0.0, 0.0
        model, fabric = trainer.model, trainer.fabric
        for encoder in (model.extractor, model.key_extractor):
            if encoder is not None:
                encoder.features = self.watched(encoder.features)
        backward = fabric.backward

        def timed_backward(loss: Tensor) -> None:
            backward(loss)
            self.seconds += time.perf_counter() - self.reached

        fabric.backward = timed_backward

    def watched(self, features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def timed(images: Tensor) -> Tensor:
            start = time.perf_counter()
            output = features(images)
            self.seconds += time.perf_counter() - start
            if output.requires_grad:
                output.register_hook(self.reach)
            return output

        return timed

    def reach(self, gradient: Tensor) -> None:
        self.reached = time.perf_counter()

    def time(self, work: Callable[[int], Any], epoch: int) -> tuple[float, float]:
        """Return the seconds of `work(epoch)`, and the seconds of it in the encoders."""
        self.seconds, start = 0.0, time.perf_counter()
        work(epoch)
        return time.perf_counter() - start, self.seconds


def make_trainer(method: str, images: Images, folder: Path) -> ScgmTrainer:
    """Return a trainer with the settings of the recipe, except that assignments run for the maximum of iterations."""
    torch.manual_seed(0)
    recipe = yaml.safe_load(RECIPE.read_text())
    settings = build(Recipe, {**recipe, "method": {**recipe["method"], "name": method, "residual": 1e-9}})
    extractor = build_network(settings, images, np.arange(len(images)), RECIPE, 0, embedding=settings.embedding)
    superclass_of = np.arange(N_CLASSES) * N_SUPERCLASSES // N_CLASSES
    rows = np.arange(len(images))
    model = build_model(settings, extractor, superclass_of[images.labels])
    fabric = open_fabric("cpu", settings.precision)
    return ScgmTrainer(settings, fabric, TrainingRun(folder, False, {}), model, images, rows, rows[:0], superclass_of)


def report(what: str, result: dict) -> None:
    print(json.dumps({"benchmark": "scgm", "what": what, **result, "threads": torch.get_num_threads()}))
    cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in result.values()]
    print("| " + " | ".join([what, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
