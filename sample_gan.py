"""Generate images with a trained GAN. save_features.py reads them like any other images file.

Reads   GAN/ (train_gan.py), SPLIT
Writes  one images file, with the samples of each class one after another. Sample i of a class does not depend on the
        number of samples.

python sample_gan.py --gan outputs/emnist_fs/seed0/gan/k5_trial1 --split outputs/emnist_fs/seed0/data/split.json \\
    --n_per_class 200 --out outputs/emnist_fs/seed0/gan/k5_trial1/samples.h5
python save_features.py --data outputs/emnist_fs/seed0/gan/k5_trial1/samples.h5 \\
    --extractor outputs/emnist_fs/seed0/conv4/extractor --out outputs/emnist_fs/seed0/gan/k5_trial1/features
On a CPU, in seconds:
python sample_gan.py --gan outputs/glyphs/try/gan --split outputs/glyphs/data/split.json --classes base \\
    --n_per_class 2 --out outputs/glyphs/try/samples.h5
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from lowshot import core, gan
from lowshot.core.artifacts import recipe
from lowshot.core.cli import run
from lowshot.core.files import check_suffix
from lowshot.core.publishing import is_done, writing
from lowshot.core.settings import NonNegativeFloat, PositiveInt, RunOnly, Seed
from lowshot.data.datasets.images import Images, write_images
from lowshot.data.protocol import read_split


@dataclass(kw_only=True)
class Config:
    gan: Path
    """Folder of a GAN (train_gan.py)."""
    split: Path
    """split.json that the GAN was trained on."""
    out: Path
    """Images file to write (.h5)."""
    n_per_class: PositiveInt
    """Number of samples per class."""
    classes: Literal["novel", "base"] = "novel"
    """Classes to generate: novel (fine-tuned on shots) or base (pre-trained)."""
    weights: Literal["best", "last"] = "best"
    """Weights with the best FID, or the last ones (if they are others: last.pt)."""
    noise_scale: NonNegativeFloat = 1.0
    """Standard deviation of the noise. Below 1, images are more alike; 0 gives one image a class."""
    mix: Annotated[float, Ge(0), Le(0.5)] = 0.0
    """Mix the class of each sample with another random class of the same kind, with a random share up to this one. The
    label is that of the larger share."""
    seed: Seed = 0
    """Seed of the noise. Every sample has its own random stream."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""


def main(config: Config) -> Path:
    """Generate samples and return the path of the images file."""
    import torch

    check_suffix("--out", config.out, ".h5")
    split = read_split(config.split)
    of_gan = gan.samples_recipe(config.gan, config.split)
    made_from = recipe("sample_gan", config, of_gan["inputs"], of_gan["lineage"].to_json(), **of_gan["config"])
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    trained, device = gan.load_gan(config.gan, config.weights), core.pick_device()
    generator = trained.averaged.module.to(device)
    classes = split.novel_classes if config.classes == "novel" else split.base_classes
    trained.check_knows(classes, config.gan)
    labels = np.repeat(classes, config.n_per_class)
    numbers = np.tile(np.arange(config.n_per_class), len(classes))
    z = config.noise_scale * gan.sample_noise(config.seed, labels, numbers, trained.config.z_dim)
    known = torch.from_numpy(labels)
    if config.mix:
        drawn = z, known, *gan.mixtures(config.seed, classes, labels, numbers, config.mix)
        batches = gan.make_mixed_images(generator, *(one.to(device) for one in drawn))
    else:
        batches = gan.make_images(generator, z.to(device), known.to(device))
    pixels = torch.cat([batch.permute(0, 2, 3, 1).cpu() for batch in batches]).numpy()
    with writing(config.out, made_from) as partial:
        write_images(partial, Images(labels, np.zeros(len(labels), bool), pixels), made_from)
    print(f"sample_gan: {len(labels)} images of {len(classes)} classes -> {config.out}")
    return config.out


def next_step(config: Config) -> list:
    """Return the command that uses the output. Capitals stand for paths that only the user knows."""
    return [
        "save_features.py",
        "--extractor",
        "EXTRACTOR",
        "--data",
        config.out,
        "--out",
        config.out.parent / "features",
    ]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
