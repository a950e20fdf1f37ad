"""Seconds to the first batch and per epoch from JPEGs on disk: in the process itself, with workers, and by default.

Reads     nothing; makes smooth random images in a temporary folder.
Writes    a Markdown row per folder and number of workers on stdout.

    python benchmarks/decoding.py                          2000 images of 256 px and 300 of 1024 px: five minutes
    python benchmarks/decoding.py --n_images 500 100

Each row is a new process that does what a stage does: it starts the server of the workers, imports torch meanwhile,
makes a loader and reads three epochs, of random crops (the last with two views of each image). `import` is until the
loader is made. Without `ahead`, the server starts together with the workers.

Estimate: Pillow decodes 60 to 100 million pixels a second on a core. 256 px: 0.07 million pixels and 15 kB, 1 ms, and
with resizing, conversion and random numbers 2 ms. 1024 px: 1 million pixels and 200 kB, 12 to 18 ms. Two workers take
half if two cores are free. The server imports torch, torchvision and timm, as this process does, in 5 to 8 s; a fork of
it takes 0.02 s, and reading its batch of 50 images 0.1 s or 0.8 s.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.cli import run
from lowshot.core.settings import NonNegativeInt, PositiveInt
from lowshot.core.workers import start_ahead
from lowshot.data.datasets.images import Images


@dataclass
class Config:
    n_images: list[PositiveInt] = field(default_factory=lambda: [2000, 300])
    """Number of images of 256 and of 1024 px."""
    folder: Path | None = None
    """Measure this folder in this process."""
    num_workers: NonNegativeInt | None = None
    """Number of workers for --folder."""
    ahead: bool = True
    """Start the server of the workers ahead, as stages do."""


def main(config: Config) -> None:
    """Print a row for each folder of images and number of workers; the numbers of one folder as JSON."""
    if config.folder is not None:
        print(json.dumps(measured(config)))
        return
    print("| images | workers | import | first batch | epoch 1 | first batch | epoch 2 | with two views |")
    for n, side in zip(config.n_images, (256, 1024)):
        with TemporaryDirectory() as folder:
            make_images(Path(folder), n, side)
            for workers in (["--num_workers=0"], ["--num_workers=2", "--ahead=false"], ["--num_workers=2"], []):
                command = [sys.executable, __file__, f"--folder={folder}", *workers]
                cells = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                named = [f"{n} of {side} px", " ".join(workers) or "default", *map(str, cells)]
                print(f"| {' | '.join(named)} |", flush=True)


def measured(config: Config) -> list[float]:
    """Return the seconds of importing, and of the first batch and all batches of the epochs."""
    start = time.perf_counter()
    names = np.array(sorted(path.name for path in config.folder.iterdir()), object)
    n = len(names)
    if config.ahead:
        start_ahead(config.num_workers, 3 * n)
    from lowshot.representation.backbones import ModelConfig
    from lowshot.representation.loading import ImageLoader, in_batches

    images = Images(np.zeros(n, int), np.zeros(n, bool), paths=names, root=config.folder)
    model = ModelConfig("ResNet10", 10, 3, 224)
    loader = ImageLoader(images, model, config.num_workers, n_loaded=3 * n, smallest_area=0.08)
    times, parts = [time.perf_counter() - start], in_batches(np.arange(n), 50)
    for epoch, views in enumerate(([0], [0], [0, 1])):
        start = time.perf_counter()
        loaded = loader.views(parts, [(0, epoch, view) for view in views])
        next(loaded)
        times.append(time.perf_counter() - start)
        for _ in loaded:
            pass
        times.append(time.perf_counter() - start)
    return [round(one, 1) for one in (*times[:5], times[6])]


def make_images(folder: Path, n: int, side: int) -> None:
    """Write n smooth random JPEGs."""
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(256, size=(side // 16, side // 16, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:05}.jpg", quality=90)


if __name__ == "__main__":
    run(main, Config, __doc__)
