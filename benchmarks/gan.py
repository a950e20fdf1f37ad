"""A training step of a few-shot GAN compared with a direct port of the released code, and the memory of a training.

    python benchmarks/gan.py steps              # the published networks, 32 px, 3 channels, 32 images per step
    python benchmarks/gan.py steps --alpha 0    # without the unconditional term: three passes instead of six
    python benchmarks/gan.py steps --n_workers 2    # the port loads its images in two processes
    python benchmarks/gan.py memory             # peak of a pre-training with the two-core settings, random images

The port (spec 1.3, 2.3, 7.3) makes four views of every image, one at a time, and uses one of them. The discriminator
sees real, generated and unlabelled images in separate passes, and generated images again without their class. The
update of the generator also computes gradients of the discriminator's weights. Estimate in image passes of the
discriminator, where forward, gradients of images and gradients of weights count 1 each: 6 x 32 x 3 = 576 per step, and
32 x 2 + 96 x 3 = 352 in ours.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.cli import run_commands
from lowshot.core.files import write_json
from lowshot.core.settings import NonNegativeFloat, NonNegativeInt, PositiveInt
from lowshot.data.datasets.images import Images, write_images
from lowshot.data.protocol import make_split
from lowshot.gan.data import Examples
from lowshot.gan.losses import discriminator_losses, generator_losses, weighted
from lowshot.gan.model import Gan
from lowshot.gan.networks import DiscriminatorOutput, GanConfig
from lowshot.gan.settings import GanSettings, NoChanges
from lowshot.gan.training import GanTrainer
from lowshot.representation.backbones import Extractor, ModelConfig, save_extractor

ROOT = Path(__file__).resolve().parents[1]
N_CLASSES, N_IMAGES, SIDE = 47, 4000, 32
CONFIG = GanConfig(N_CLASSES, 3, SIDE, z_dim=64, network="published", spectral_norm=True)


@dataclass
class StepsConfig:
    n_steps: PositiveInt = 15
    """Number of steps per round."""
    rounds: PositiveInt = 5
    """Number of rounds, in which the two sides alternate, after a warm-up round."""
    alpha: NonNegativeFloat = 1.0
    """Weight of the unconditional term; 0 leaves it out."""
    n_workers: NonNegativeInt = 0
    """Number of processes that load the images of the port."""


def _endless(loader: DataLoader) -> Iterator:
    while True:
        yield from loader


@dataclass
class MemoryConfig:
    n_steps: PositiveInt = 50
    """Number of training steps."""


class PlainItems(Dataset):
    """The items of the released code: four views of each image, and its class as a row of a new identity matrix."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels
        to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
        turn, size = [v2.RandomRotation((-90, -90)), v2.RandomHorizontalFlip(1.0)], v2.Resize(SIDE)
        self.plain = v2.Compose([*turn, size, *to_tensor])
        crop = v2.RandomResizedCrop(SIDE, scale=(1.0, 1.0))
        self.augmented = v2.Compose([*turn, v2.RandomRotation(0), crop, *to_tensor])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        image = Image.fromarray(self.pixels[row]).convert("RGB")
        views = torch.stack([self.augmented(image) for _ in range(3)])
        return views, self.plain(image), torch.eye(N_CLASSES)[self.labels[row]]


class PlainStep:
    """The training step of the released code."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, alpha: float, n_workers: int) -> None:
        torch.manual_seed(0)
        self.gan, self.alpha = Gan(CONFIG).to(memory_format=torch.contiguous_format), alpha
        self.optimizers = [torch.optim.AdamW(net.parameters(), 2e-4, (0.9, 0.9), weight_decay=1e-6)
                           for net in (self.gan.generator, self.gan.discriminator)]  # fmt: skip
        items = PlainItems(pixels, labels)
        loader = DataLoader(items, 32, shuffle=True, num_workers=n_workers, persistent_workers=n_workers > 0)
        self.labelled, self.unlabelled = _endless(loader), _endless(loader)

    def _generate(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.gan.generator.constant.repeat(len(z), 1, 1, 1)
        for block in self.gan.generator.blocks:
            x = block(x, z, lambda table: table(labels))
        return self.gan.generator.image(x).tanh()

    def _discriminate(self, images: torch.Tensor, labels: torch.Tensor) -> DiscriminatorOutput:
        """Run a separate pass for each logit, if the unconditional one is needed."""
        one = self.gan.discriminator(images, labels)
        if not self.alpha:
            return one
        return one._replace(unconditional=self.gan.discriminator(images, labels).unconditional)

    def __call__(self, step: int) -> None:
        views, _, one_hot = next(self.labelled)
        x, labels = views[:, 0], one_hot.argmax(1)
        unlabelled = next(self.unlabelled)[0][:, 0] if self.alpha else None
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        z = torch.randn(len(x), CONFIG.z_dim)
        fake = self._generate(z, labels)
        weighted(generator_losses(self._discriminate(fake, labels), z), 1.0, self.alpha).backward()
        self.optimizers[0].step()
        self.optimizers[1].zero_grad()
        real = self.gan.discriminator(x, labels)
        pool = self.gan.discriminator(unlabelled, labels) if self.alpha else real
        losses = discriminator_losses(real, self._discriminate(fake.detach(), labels), pool, z)
        weighted(losses, 1.0, self.alpha).backward()
        self.optimizers[1].step()


def steps(config: StepsConfig) -> None:
    """Print the milliseconds per step, median over the rounds."""
    rng, n = np.random.default_rng(0), config.n_steps
    pixels, labels = rng.integers(0, 256, (N_IMAGES, 28, 28), np.uint8), rng.integers(0, N_CLASSES, N_IMAGES)
    takes = {"plain": PlainStep(pixels, labels, config.alpha, config.n_workers), "ours": _ours(labels, config.alpha)}
    times = {name: [] for name in takes}
    for start in range(0, (config.rounds + 1) * n, n):
        for name, step in takes.items():
            begun = time.perf_counter()
            for i in range(start, start + n):
                step(i)
            times[name].append((time.perf_counter() - begun) / n)
    plain, ours = (np.array(values[1:]) for values in times.values())
    ratios = plain / ours
    print(
        f"{torch.get_num_threads()} threads, alpha {config.alpha:g}: plain {1000 * statistics.median(plain):.0f} ms "
        f"per step, ours {1000 * statistics.median(ours):.0f} ms; {statistics.median(ratios):.2f} times as many steps "
        f"per second ({ratios.min():.2f} to {ratios.max():.2f})"
    )


def _ours(labels: np.ndarray, alpha: float) -> Callable[[int], object]:
    images = torch.randint(0, 256, (N_IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)
    known, augment = Examples(images, torch.from_numpy(labels)), NoChanges()
    settings = GanSettings(lr=2e-4, d_lr=2e-4, beta1=0.9, beta2=0.9, ema=0, r1=0, alpha=alpha, augment=augment)
    pool, fabric = known if alpha else None, Fabric(accelerator="cpu")
    return GanTrainer(settings, fabric, None, Gan(CONFIG), nn.Identity(), {}, known, pool)._step


def memory(config: MemoryConfig) -> None:
    """Print the peak memory of train_gan.py with the settings of the recipe, on as many images as two-core EMNIST."""
    settings = ROOT / "configs/few_shot_gan/train_gan-emnist_fs-pretrain.yaml"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(folder)
        command = [sys.executable, "train_gan.py", "pretrain", f"--config={settings}", f"--data={folder}",
                   f"--extractor={folder}/extractor", f"--out={folder}/gan", f"--steps={config.n_steps}"]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"peak memory {used:.2f} GiB: {config.n_steps} steps, and an FID of 5000 images")


def _write_inputs(folder: Path) -> None:
    """Write images.h5, split.json and an untrained Conv-4."""
    labels = np.repeat(np.arange(N_CLASSES), 756)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28, 1), np.uint8)
    made_from = {"stage": "benchmark", "config": {}, "inputs": {}}
    write_images(folder / "images.h5", Images(labels, np.arange(len(labels)) % 5 == 0, pixels), made_from)
    names = [str(c) for c in range(N_CLASSES)]
    write_json(folder / "split.json", make_split("benchmark", names, [], [None] * N_CLASSES, 0).to_json())
    (folder / "extractor").mkdir()
    save_extractor(folder / "extractor", Extractor(ModelConfig("Conv4", N_CLASSES, 1, 28)), made_from)


if __name__ == "__main__":
    run_commands({"steps": (steps, StepsConfig), "memory": (memory, MemoryConfig)}, __doc__)
