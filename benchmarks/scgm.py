"""What SCGM costs beside its encoder: the assignment of an E-step, and the share of an epoch outside the encoder.

    python benchmarks/scgm.py assignment      # 50 000 images, 100 subclasses: seconds, balance
    python benchmarks/scgm.py share           # a ResNet-10 at a quarter of its width on images of the form of CIFAR-100

assignment: scores of embeddings in 100 Gaussian classes of 20 superclasses, by how far the classes overlap. share:
whole epochs of `ScgmTrainer` against its encoder's passes alone (forward and backward of the query, forward of keys and
of the E-step) on batches that lie ready, in turns; what is left is loading, augmentation, losses, queues, updates and
assignment. An assignment is shared by the epochs up to the next one.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.augmentation import Augmentation
from lowshot.backbones import Extractor, ModelConfig
from lowshot.datasets.images import Images
from lowshot.runtime import open_fabric
from lowshot.scgm.assignment import assign_subclasses
from lowshot.scgm.mixture import Mixture
from lowshot.scgm.training import ScgmSettings, ScgmTrainer, build_model
from lowshot.training import TrainingRun

N_IMAGES, N_SUBCLASSES, N_SUPERCLASSES, N_CLASSES, DIM = 50_000, 100, 20, 100, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("assignment", "share"))
    parser.add_argument("--n_images", type=int, default=10_240, help="share: images of an epoch")
    options = parser.parse_args()
    assignment() if options.what == "assignment" else share(options.n_images)


def assignment() -> None:
    """Estimate: an iteration reads 40 MB twice, 8 to 10 ms; 1001 of them are the most."""
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
    """log P of embeddings around class means, by subclass means that were drawn from them: (N_IMAGES, N_SUBCLASSES)."""
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


def share(n_images: int) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(N_CLASSES, size=n_images)
    images = Images(labels, np.zeros(n_images, bool), random.integers(256, size=(n_images, 32, 32, 3), dtype=np.uint8))
    for method in ("scgm_g", "scgm_a"):
        with TemporaryDirectory() as folder:
            trainer = make_trainer(method, images, Path(folder))
            epochs = [(timed_epoch(trainer, epoch), encoder_alone(trainer)) for epoch in range(0, 15, 5)]
        shares = []
        for (e_step, assigning, epoch), (forward, step) in epochs:
            whole = (e_step + assigning) / trainer.settings.e_step_every + epoch
            shares.append(1 - (forward / trainer.settings.e_step_every + step) / whole)
        (e_step, assigning, epoch), (forward, step) = epochs[-1]
        report(
            f"share of an epoch outside the encoder, {method}",
            {"share": float(np.median(shares)), "all": [round(one, 3) for one in shares], "epoch": epoch,
             "encoder": step, "e_step": e_step, "its encoder": forward, "assignment": assigning},
        )  # fmt: skip


def make_trainer(method: str, images: Images, folder: Path) -> ScgmTrainer:
    torch.manual_seed(0)
    settings = ScgmSettings(method=method, augment=Augmentation(flip=True, shift_pixels=4), batch_size=256)
    extractor = Extractor(ModelConfig("ResNet10", 0, 3, 32, width=0.25, embedding=settings.embedding))
    extractor = extractor.to(memory_format=torch.channels_last)
    superclass_of = np.arange(N_CLASSES) * N_SUPERCLASSES // N_CLASSES
    rows = np.arange(len(images))
    model = build_model(settings, extractor, superclass_of[images.labels])
    fabric = open_fabric("cpu", "32-true")
    return ScgmTrainer(settings, fabric, TrainingRun(folder, False), model, images, rows, rows[:0], superclass_of)


def timed_epoch(trainer: ScgmTrainer, epoch: int) -> tuple[float, float, float]:
    """Seconds of the E-step's pass over the images, of its assignment, and of the rest of an epoch."""
    start = time.perf_counter()
    trainer._log_joint(epoch)
    passed = time.perf_counter()
    trainer._before_epoch(epoch)
    before = time.perf_counter()
    trainer._train_epoch(epoch)
    return passed - start, max(0.0, before - passed - (passed - start)), time.perf_counter() - before


def encoder_alone(trainer: ScgmTrainer) -> tuple[float, float]:
    """Seconds of the encoder's passes of an E-step, and of an epoch's steps, on one batch over and over."""
    settings, model = trainer.settings, trainer.model
    batch = torch.rand(settings.batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    n_steps = len(trainer.train_rows) / settings.batch_size
    start = time.perf_counter()
    for _ in range(round(n_steps)):
        with torch.no_grad():
            model.extractor.features(batch)
    passed = time.perf_counter()
    for _ in range(round(n_steps)):
        if model.key_extractor is not None:
            with torch.no_grad():
                model.key_extractor.features(batch)
        model.extractor.features(batch).sum().backward()
    return passed - start, time.perf_counter() - passed


def report(what: str, result: dict) -> None:
    print(json.dumps({"benchmark": "scgm", "what": what, **result, "threads": torch.get_num_threads()}))
    cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in result.values()]
    print("| " + " | ".join([what, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
