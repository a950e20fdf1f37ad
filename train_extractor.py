"""Train a feature extractor on the base classes.

Reads   DATA/images.h5, DATA/split.json (preprocessing.py)
Writes  OUT/model.pt, OUT/config.json (together they rebuild the network), OUT/log.jsonl, OUT/tensorboard/; with
        --patience OUT/last.pt, the last weights beside the best

python train_extractor.py --data outputs/cifar100/data --out outputs/cifar100/resnet10_sgm/extractor \\
    --model ResNet10 --loss sgm --loss.weight 0.02
python train_extractor.py --data outputs/photos/data --out outputs/photos/resnet50/extractor \\
    --model timm:resnet50.a1_in1k --model.pretrained --epochs 10 --lr 0.001
CPU, seconds:
python train_extractor.py --data outputs/glyphs/data --out outputs/glyphs/try/extractor --model Conv4 --epochs 1
Several processes: --devices 8, or
torchrun --nproc-per-node 8 train_extractor.py ... --devices 8
On shots of novel classes: finetune_extractor.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowshot import representation
from lowshot.core.artifacts import is_done
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.data.datasets.images import Images, read_images, rows_of
from lowshot.data.protocol import Split, read_split
from lowshot.representation.settings import ExtractorStage, HoldoutSettings


@dataclass(kw_only=True)
class Config(ExtractorStage, HoldoutSettings):
    validation_classes: bool = False
    """train on the novel classes of the validation setup too (few-shot papers do so once everything has been chosen)"""
    moved = dict.fromkeys(("shots", "trial", "repeat_shots", "samples"), "finetune_extractor.py")


def main(config: Config) -> Path:
    """Train and return the folder written."""
    representation.check_stage(config)
    where = config.data / "images.h5"
    images, split = read_images(where), read_split(config.data / "split.json")
    rows = choose_rows(config, images, split)
    inputs = {"images": where, "split": config.data / "split.json", "weights": config.weights}
    made_from = representation.training_recipe("train_extractor", config, inputs)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    return representation.train_extractor(config, made_from, images, rows, split.n_classes, config.patience)


def choose_rows(config: Config, images: Images, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows held out) among the base classes' training images."""
    where = config.data / "images.h5"
    classes = split.base_classes + (split.novel_classes_1 if config.validation_classes else [])
    rows = rows_of(images, split, classes, where)
    if len(rows) == 0:
        raise InputError(f"{where}: no training image of a base class")
    return representation.hold_out(config, images, rows)


def next_step(config: Config) -> list:
    """The command that takes the output."""
    features = config.out.parent / "features"
    return ["save_features.py", "--extractor", config.out, "--data", config.data, "--out", features]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
