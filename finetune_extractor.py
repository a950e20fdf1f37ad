"""Fine-tune a feature extractor on a few shots of the novel classes, and optionally on generated images of them.

Reads   DATA/images.h5, DATA/split.json, DATA/draws.json (preprocessing.py), WEIGHTS of an extractor that was trained on
        base classes only (train_extractor.py), and optionally SAMPLES of sample_gan.py
Writes  OUT/model.pt, OUT/config.json (together they rebuild the network), OUT/log.jsonl, OUT/tensorboard/

python finetune_extractor.py --data outputs/emnist_fs/seed0/data --model Conv4 \\
    --weights outputs/emnist_fs/seed0/conv4/extractor/model.pt --shots 5 \\
    --samples outputs/emnist_fs/seed0/samples/supervised/trial1_k5/samples.h5 \\
    --trained classifier --mixup beta --epochs 100 --lr 0.01 --out outputs/emnist_fs/seed0/conv4_k5/extractor
Several processes: --devices 8, or
torchrun --nproc-per-node 8 finetune_extractor.py ... --devices 8
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowshot import gan, representation
from lowshot.core.artifacts import renamed
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.files import digest, missing
from lowshot.core.publishing import is_done
from lowshot.core.settings import PositiveInt
from lowshot.data.datasets.images import Images, read_images, with_more
from lowshot.data.lineage import Lineage, check_base_only, lineage_of, lineage_of_shots
from lowshot.data.protocol import Split, read_split
from lowshot.representation.settings import ExtractorStage


@dataclass(kw_only=True)
class Config(ExtractorStage):
    shots: PositiveInt
    """Number of shots per novel class to train on. Validation uses the images of novel classes that train_gan.py
    validates on."""
    trial: PositiveInt = 1
    """Trial whose shots are used."""
    repeat_shots: PositiveInt = 1
    """How often each shot occurs per epoch (published: pad_length). Use it to get as many steps as with samples."""
    samples: Path | None = None
    """Images file of sample_gan.py to train on besides the shots, from a GAN that was fine-tuned on the same shots."""
    samples_only: bool = False
    """Train on the samples without the shots."""

    @staticmethod
    def older(stored: dict) -> dict:
        """Update a recipe of an older revision, in which train_extractor.py did the fine-tuning."""
        if stored["stage"] == "train_extractor" and stored["config"].get("shots"):
            off = ("validation_classes", "holdout", "patience")
            config = {name: value for name, value in stored["config"].items() if name not in off}
            stored = {**stored, "stage": "finetune_extractor", "config": config}
        return renamed(Config.renamed, stored)


def main(config: Config) -> Path:
    """Fine-tune the extractor, and return its folder."""
    representation.check_stage(config)
    if not (config.weights or representation.starts_pretrained(config)):
        raise InputError("--weights: is required, as fine-tuning starts from a trained network")
    if config.samples_only and config.samples is None:
        raise InputError("--samples_only: needs --samples")
    if config.weights and not config.weights.is_file():
        raise missing(config.weights)
    where = config.data / "images.h5"
    images, split = read_images(where), read_split(config.data / "split.json")
    inputs = {"images": where, "split": config.data / "split.json", "weights": config.weights,
              "draws": config.data / "draws.json", "samples": config.samples}  # fmt: skip
    seen = lineage(config, split)
    images, *rows = few_shot_images(config, images, split)
    made_from = representation.training_recipe("finetune_extractor", config, inputs, seen)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    return representation.train_extractor(config, made_from, images, rows, split.n_classes)


def lineage(config: Config, split: Split) -> Lineage:
    """Return what the network has seen. Raises InputError if its start has seen images of novel classes."""
    start, name = representation.lineage_of_start(config), str(config.weights or config.model.name)
    check_base_only(name, start, split)
    images = digest(config.data / "images.h5")
    seen = start | lineage_of_shots(split, config.data / "draws.json", config.trial, config.shots, images)
    return seen | lineage_of(config.samples) if config.samples else seen


def few_shot_images(config: Config, images: Images, split: Split) -> tuple[Images, np.ndarray, np.ndarray]:
    """Return the images with the samples appended, the rows to train on (shots and samples) and the rows to validate
    on."""
    rows = gan.read_few_shot_rows(images, split, config.data, config.shots, config.trial)
    learned = np.tile(rows.supports, config.repeat_shots)
    if config.samples is not None:
        made_for = config.data / "split.json", config.data / "draws.json"
        samples = gan.read_sample_images(config.samples, *made_for, config.trial, config.shots)
        kept = learned[:0] if config.samples_only else learned
        learned = np.concatenate([kept, len(images) + np.arange(len(samples))])
        images = with_more(images, samples, config.samples)
    representation.check_training(config, images, len(learned))
    return images, learned, rows.validation


def next_step(config: Config) -> list:
    """Return the command that reads the output."""
    features = config.out.parent / "features"
    return ["save_features.py", "--extractor", config.out, "--data", config.data, "--out", features]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
