"""Generator and discriminator of a GAN, the running average of the generator, and the folder that stores them."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lowshot.classifiers.tasks import class_means
from lowshot.core.artifacts import read_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.core.seeds import stream
from lowshot.core.settings import checked
from lowshot.core.state_dicts import fill, save_state
from lowshot.data.protocol import is_of_same_classes
from lowshot.gan.networks import GENERATORS, ClassMeans, Discriminator, GanConfig, Generator

SCHEMA = "lowshot-gan-1"
_BATCH = 256


class Gan(nn.Module):
    """`generator`, `discriminator`, and `averaged`: the running average of the generator, which makes the samples."""

    def __init__(self, config: GanConfig, ema: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.generator: Generator = GENERATORS[config.network](config)
        self.discriminator = Discriminator(config)
        if config.n_features:  # mean and standard deviation of the class means of the base classes
            self.register_buffer("centre", torch.zeros(config.n_features))
            self.register_buffer("spread", torch.zeros(config.n_features))
        self.to(memory_format=torch.channels_last)  # faster convolutions, on CPU too
        self.start_average(ema)

    def start_average(self, ema: float) -> None:
        """Start the average at the current weights of the generator.

        The decay of update n is min(`ema`, n / (n + 10)), so that the first weights soon have little influence.
        """

        def update(averages: list[Tensor], weights: list[Tensor], n: Tensor) -> None:
            torch._foreach_lerp_(averages, weights, 1 - min(ema, int(n) / (int(n) + 10)))

        self.averaged = AveragedModel(self.generator, multi_avg_fn=update)

    def describe(self, features: Tensor, labels: Tensor) -> None:
        """Set the embeddings of the classes in `labels` (N,) to the mean features of their images, features (N, D).

        The first call is for the base classes. It standardises their class means to zero mean and unit variance. Later
        calls apply the same standardisation to other classes.
        """
        classes, which = labels.unique(return_inverse=True)
        means = class_means(features[None], which[None], len(classes))[0]
        if not self.spread.any():
            spread = means.std(0, correction=0)
            self.centre.copy_(means.mean(0))
            # Where the base classes hardly differ, a small spread would put other classes far outside their range.
            self.spread.copy_(spread.where(spread > 1e-3 * spread.max(), spread.max()))
        for table in self._described():
            table.means[classes] = (means - self.centre) / self.spread

    def check_knows(self, classes: list[int], where: Path) -> None:
        """Raise InputError, naming the folder `where`, for a class without an embedding (see `describe`)."""
        for table in self._described():
            if unknown := set(classes) - set(table.means.any(1).nonzero()[:, 0].tolist()):
                raise InputError(
                    f"{where}: has no embedding of class {min(unknown)}. "
                    "Fine-tune the GAN on shots of the novel classes (train_gan.py finetune)"
                )

    def _described(self) -> list[ClassMeans]:
        return [one for one in self.modules() if isinstance(one, ClassMeans)]

    def begin_finetuning(self, ema: float) -> None:
        """Continue from the averaged generator."""
        self.generator.load_state_dict(self.averaged.module.state_dict())
        self.start_average(ema)


def save_gan(folder: Path, gan: Gan, made_from: dict) -> None:
    """Write `model.pt` (a state dict) and the `config.json` that rebuilds the networks."""
    save_state(gan.state_dict(), folder / "model.pt")
    write_json(folder / "config.json", {**made_from, "schema": SCHEMA, "model": asdict(gan.config)})


def gan_recipe(folder: Path, split: Path) -> dict:
    """Return the recipe of the GAN in `folder`.

    Raises InputError if the folder is not a GAN, or if the GAN was trained on another split than the file `split`: its
    base classes could be novel there.
    """
    made_from = read_recipe(folder)
    if made_from is None or made_from["stage"] not in ("train_gan pretrain", "train_gan finetune"):
        raise InputError(f"{folder}: not a GAN. Train one with train_gan.py")
    if not is_of_same_classes(made_from["inputs"].get("split"), split):
        raise InputError(f"{folder}: trained on another split than {split}. Use a GAN of this split")
    return made_from


def load_gan(folder: Path, weights: Literal["best", "last"] = "best") -> Gan:
    """Load a GAN from its folder, with the weights of the best FID or, if they are others, the last ones."""
    where = Path(folder) / "config.json"
    content = read_json(where)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{where}: not a GAN. Train one with train_gan.py")
    gan = Gan(checked(GanConfig, content["model"], where))
    last = Path(folder) / "last.pt"
    fill(gan, last if weights == "last" and last.is_file() else Path(folder) / "model.pt")
    return gan


def sample_noise(seed: int, labels: list[int], numbers: list[int], z_dim: int) -> Tensor:
    """Return the noise float32 (N, z_dim) of the samples with these `numbers` and classes `labels`.

    Each sample has its own random stream, so its noise (and, up to rounding, its image) does not depend on the others.
    """
    drawn = [stream(seed, "sample", c, i).standard_normal(z_dim, "float32") for c, i in zip(labels, numbers)]
    return torch.from_numpy(np.stack(drawn))


@torch.inference_mode()
def make_images(generator: nn.Module, z: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield images uint8 (B, C, S, S) of noise (N, z_dim) and classes int64 (N,), one batch at a time."""
    for noise, classes in zip(z.split(_BATCH), labels.split(_BATCH)):
        yield to_bytes(generator(noise, classes))


def mixtures(
    seed: int, classes: list[int], labels: np.ndarray, numbers: np.ndarray, most: float
) -> tuple[Tensor, Tensor]:
    """Draw another class, int64 (N,), for each sample, and the share of its own class, float32 (N, 1), at least
    1 - `most`. As in `sample_noise`, each sample has its own random stream."""
    drawn = [stream(seed, "mixture", c, i).random(2) for c, i in zip(labels.tolist(), numbers.tolist())]
    places, shares = np.stack(drawn).T
    own = np.searchsorted(classes, labels)
    steps = 1 + (places * (len(classes) - 1)).astype(np.int64)  # another class, as steps from the own one
    others = np.asarray(classes)[(own + steps) % len(classes)] if len(classes) > 1 else labels
    return torch.from_numpy(others), torch.from_numpy((1 - most * shares)[:, None].astype(np.float32))


@torch.inference_mode()
def make_mixed_images(
    generator: nn.Module, z: Tensor, labels: Tensor, others: Tensor, shares: Tensor
) -> Iterator[Tensor]:
    """Yield images between two classes, as `make_images` does."""
    for part in zip(*(one.split(_BATCH) for one in (z, labels, others, shares))):
        yield to_bytes(generator.between(*part))


def to_bytes(images: Tensor) -> Tensor:
    """Convert images in [-1, 1] to uint8 by rounding (the released code truncates)."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(pixels: Tensor) -> Tensor:
    """Convert images uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1
