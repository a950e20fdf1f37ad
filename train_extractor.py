"""Train a feature extractor on the base classes.

Reads   DATA/images.h5, DATA/split.json (preprocessing.py)
Writes  OUT/model.pt, OUT/config.json (together they rebuild the network), OUT/log.jsonl, OUT/tensorboard/
        With --patience, model.pt has the best weights, and OUT/last.pt the last ones.

    python train_extractor.py --data outputs/cifar100/data --out outputs/cifar100/resnet10_sgm/extractor \\
        --model ResNet10 --loss sgm --loss.weight 0.02

Start from a pretrained backbone of timm:

    python train_extractor.py --data outputs/photos/data --out outputs/photos/resnet50/extractor \\
        --model timm:resnet50.a1_in1k --model.pretrained --epochs 10 --lr 0.001

Small example (seconds on a CPU):

    python train_extractor.py --data outputs/glyphs/data --out outputs/glyphs/try/extractor --model Conv4 --epochs 1

Several GPUs: --devices 8 (or torchrun --nproc-per-node 8 train_extractor.py ... --devices 8).
To train on shots of novel classes, use finetune_extractor.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowshot import representation
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.publishing import is_done
from lowshot.core.workers import start_ahead
from lowshot.data.datasets.images import Images, read_images, rows_of
from lowshot.data.lineage import trained_on
from lowshot.data.protocol import Split, read_split
from lowshot.representation.settings import ExtractorStage, HoldoutSettings


@dataclass(kw_only=True)
class Config(ExtractorStage, HoldoutSettings):
    validation_classes: bool = False
    """Also train on the novel classes of the validation setup, as few-shot papers do after choosing all settings."""
    moved = dict.fromkeys(("shots", "trial", "repeat_shots", "samples"), "finetune_extractor.py")


def main(config: Config) -> Path:
    """Train the extractor, and return its folder."""
    where = config.data / "images.h5"
    images, split = read_images(where), read_split(config.data / "split.json")
    start_ahead(config.num_workers, config.epochs * images.n_encoded, config.devices)
    representation.check_stage(config)
    rows = choose_rows(config, images, split)
    inputs = {"images": where, "split": config.data / "split.json", "weights": config.weights}
    seen = representation.lineage_of_start(config) | trained_on(split, trained_classes(config, split))
    made_from = representation.training_recipe("train_extractor", config, inputs, seen)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    return representation.train_extractor(config, made_from, images, rows, split.n_classes, config.patience)


def trained_classes(config: Config, split: Split) -> list[int]:
    """Return the classes to train on."""
    return split.base_classes + (split.novel_classes_1 if config.validation_classes else [])


def choose_rows(config: Config, images: Images, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and the held-out rows, among the training images of base classes."""
    where = config.data / "images.h5"
    rows = rows_of(images, split, trained_classes(config, split), where)
    if len(rows) == 0:
        raise InputError(f"{where}: has no training images of base classes")
    return representation.hold_out(config, images, rows)


def next_step(config: Config) -> list:
    """Return the command that reads the output."""
    features = config.out.parent / "features"
    return ["save_features.py", "--extractor", config.out, "--data", config.data, "--out", features]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
