"""Share of loading and augmentation in a training step: Conv-4 at 32 px, batches of 128 from stored pixels.

Reads     nothing; makes random images like those of CIFAR-100.
Writes    a JSON line and a Markdown row per augmentation on stdout.

    python benchmarks/loading.py                    a minute on two cores

Estimate: a batch is 128 x 3 x 32 x 32 = 0.4 MB as bytes and 1.6 MB as floats. To select, convert and resample it
touches about 15 MB, 2 to 5 ms. The step of the network is about 128 x 14 M multiply-adds x 3 = 5.5 G, 100 ms or more.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.cli import run
from lowshot.core.settings import PositiveInt
from lowshot.data.datasets.images import Images
from lowshot.representation.augmentation import Augmentation
from lowshot.representation.backbones import Extractor, ModelConfig
from lowshot.representation.image_training import build_optimizer
from lowshot.representation.loading import ImageLoader, in_batches, to_unit
from lowshot.representation.losses import loss_of
from lowshot.representation.settings import Plain, TrainingSettings

AUGMENTATIONS = {
    "shift and flip": Augmentation(shift_pixels=4, flip=True),
    "everything": Augmentation(
        flip=True,
        crop_pixels=4,
        rotate_degrees=30,
        scale=0.15,
        translate=0.15,
        shear_degrees=12,
        border="reflection",
        blur_sigma=0.5,
        jitter=0.4,
    ),
}


@dataclass
class Config:
    n_steps: PositiveInt = 40
    """Number of timed steps, after two warm-up steps."""
    batch_size: PositiveInt = 128
    """Batch size."""


def main(config: Config) -> None:
    """Time both halves of every step and print the median share."""
    rng = np.random.default_rng(0)
    n = config.batch_size * (config.n_steps + 2)
    images = Images(
        rng.integers(100, size=n), np.zeros(n, bool), rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8)
    )
    for name, augment in AUGMENTATIONS.items():
        loading, whole = (1000 * np.array(times) for times in time_steps(config, images, augment))
        share = float(np.median(loading / whole))
        record = {"augmentation": name, "load_ms": round(float(np.median(loading)), 2),
                  "step_ms": round(float(np.median(whole)), 1), "share": round(share, 4)}  # fmt: skip
        print(json.dumps({"benchmark": "loading", **record}))
        print(f"| loading + {name} | {record['load_ms']} of {record['step_ms']} ms | {100 * share:.1f} % |")


def time_steps(config: Config, images: Images, augment: Augmentation) -> tuple[list[float], list[float]]:
    """Return the seconds of loading and augmentation, and of the whole step, for every timed step."""
    model = Extractor(ModelConfig("Conv4", 100, 3, 32)).to(memory_format=torch.channels_last).train()
    optimizer, loss = build_optimizer(TrainingSettings(), model), loss_of(Plain())
    uniforms = augment.uniforms(len(images), 0, 0)
    parts = in_batches(np.random.default_rng(1).permutation(len(images)), config.batch_size)
    loader, loading, whole = ImageLoader(images, model.config).whole(parts), [], []
    for part in parts:
        start = time.perf_counter()
        batch = augment(to_unit(next(loader), torch.device("cpu")), uniforms[part])
        labels = torch.from_numpy(images.labels[part])
        loaded = time.perf_counter()
        value = loss(*model(batch), labels, model)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        loading.append(loaded - start)
        whole.append(time.perf_counter() - start)
    return loading[2:], whole[2:]


if __name__ == "__main__":
    run(main, Config, __doc__)
