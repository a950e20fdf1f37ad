"""Both networks of a GAN with the running average of the generator, and the folder that keeps them."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lowshot.classifiers.tasks import class_means
from lowshot.core.artifacts import digest, read_json, read_recipe, write_json
from lowshot.core.errors import InputError
from lowshot.core.seeds import stream
from lowshot.core.settings import checked
from lowshot.core.state_dicts import fill
from lowshot.gan.networks import GENERATORS, ClassMeans, Discriminator, GanConfig, Generator

SCHEMA = "lowshot-gan-1"
_BATCH = 256


class Gan(nn.Module):
    """`generator` and `discriminator`, and `averaged`, the running average of the generator's weights: what makes the
    images in the end."""

    def __init__(self, config: GanConfig, ema: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.generator: Generator = GENERATORS[config.network](config)
        self.discriminator = Discriminator(config)
        if config.n_features:  # of the base classes' means
            self.register_buffer("centre", torch.zeros(config.n_features))
            self.register_buffer("spread", torch.zeros(config.n_features))
        self.to(memory_format=torch.channels_last)  # convolutions are faster so, on a CPU too
        self.start_average(ema)

    def start_average(self, ema: float) -> None:
        """Let the average begin at the generator's present weights. In the n-th update what was before weighs `ema`,
        but no more than n / (n + 10): the first weights are soon forgotten."""

        def update(averages: list[Tensor], weights: list[Tensor], n: Tensor) -> None:
            torch._foreach_lerp_(averages, weights, 1 - min(ema, int(n) / (int(n) + 10)))

        self.averaged = AveragedModel(self.generator, multi_avg_fn=update)

    def describe(self, features: Tensor, labels: Tensor) -> None:
        """Say what classes are: the mean of the features (N, D) of images of each of `labels` (N,). What is described
        first, the base classes, has means of zero mean and unit variance; other classes are measured by them."""
        classes, which = labels.unique(return_inverse=True)
        means = class_means(features[None], which[None], len(classes))[0]
        if not self.spread.any():
            spread = means.std(0, correction=0)
            self.centre.copy_(means.mean(0))
            # What base classes hardly differ in says little of others, who would be far off by its measure.
            self.spread.copy_(spread.where(spread > 1e-3 * spread.max(), spread.max()))
        for table in self._described():
            table.means[classes] = (means - self.centre) / self.spread

    def check_knows(self, classes: list[int], where: Path) -> None:
        """InputError, naming the folder `where`, for a class that was never described."""
        for table in self._described():
            if unknown := set(classes) - set(table.means.any(1).nonzero()[:, 0].tolist()):
                raise InputError(f"{where}: knows no class {min(unknown)}: fine-tune it on shots of the novel classes")

    def _described(self) -> list[ClassMeans]:
        return [one for one in self.modules() if isinstance(one, ClassMeans)]

    def begin_finetuning(self, ema: float) -> None:
        """Go on from the averaged generator."""
        self.generator.load_state_dict(self.averaged.module.state_dict())
        self.start_average(ema)


def save_gan(folder: Path, gan: Gan, made_from: dict) -> None:
    """Write `model.pt` (a state dict) and the `config.json` that rebuilds the networks."""
    torch.save(gan.state_dict(), folder / "model.pt")
    write_json(folder / "config.json", {**made_from, "schema": SCHEMA, "model": asdict(gan.config)})


def gan_recipe(folder: Path, split: Path) -> dict:
    """What the GAN in `folder` was made from; InputError if it is none, or was trained on another split than the file
    `split`: its base classes may be novel there."""
    made_from = read_recipe(folder)
    if made_from is None or made_from["stage"] not in ("train_gan pretrain", "train_gan finetune"):
        raise InputError(f"{folder}: not a GAN that train_gan.py wrote")
    if made_from["inputs"]["split"] != digest(split):
        raise InputError(f"{folder}: trained on another split than {split}")
    return made_from


def load_gan(folder: Path) -> Gan:
    """Rebuild a GAN from its folder."""
    where = Path(folder) / "config.json"
    content = read_json(where)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{where}: does not describe a GAN")
    gan = Gan(checked(GanConfig, content["model"], where))
    fill(gan, Path(folder) / "model.pt")
    return gan


def sample_noise(seed: int, labels: list[int], numbers: list[int], z_dim: int) -> Tensor:
    """Noise float32 (N, z_dim) of the samples with these `numbers` of the classes `labels`: each has a random stream of
    its own, so it is the same whatever else is sampled (and its image, but for rounding)."""
    drawn = [stream(seed, "sample", c, i).standard_normal(z_dim, "float32") for c, i in zip(labels, numbers)]
    return torch.from_numpy(np.stack(drawn))


@torch.inference_mode()
def make_images(generator: nn.Module, z: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Images of noise (N, z_dim) and int64 (N,), batch by batch: uint8 (B, C, S, S), rounded."""
    for noise, classes in zip(z.split(_BATCH), labels.split(_BATCH)):
        yield to_bytes(generator(noise, classes))


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, rounded (released samples are truncated)."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1
