"""Train a feature extractor on the base classes.

Reads   DATA/images.h5, DATA/split.json (preprocessing.py)
Writes  OUT/model.pt, OUT/config.json (together they rebuild the network), OUT/log.jsonl, OUT/tensorboard/

python train_extractor.py --data outputs/cifar100/data --out outputs/cifar100/resnet10_sgm/extractor \
    --model ResNet10 --loss sgm --loss_weight 0.02
python train_extractor.py --data outputs/photos/data --out outputs/photos/resnet50/extractor \
    --model timm:resnet50.a1_in1k --pretrained true --epochs 10 --lr 0.001
CPU, seconds:
python train_extractor.py --data outputs/glyphs/data --out outputs/glyphs/try/extractor --model Conv4 --epochs 1
Several processes: --devices 8, or
torchrun --nproc-per-node 8 train_extractor.py ... --devices 8
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowshot.artifacts import is_done
from lowshot.backbones import HeadName, save_extractor
from lowshot.cli import run
from lowshot.datasets.images import Images, read_images
from lowshot.errors import InputError
from lowshot.extractor_training import ExtractorSettings, ExtractorTrainer
from lowshot.image_training import hold_out, image_training, rows_of, training_recipe
from lowshot.networks import NetworkChoice, build_network, check_network
from lowshot.protocol import Split, read_split


@dataclass(kw_only=True)
class Config(ExtractorSettings, NetworkChoice):
    data: Path
    """folder with images.h5 and split.json"""
    out: Path
    """folder to write the extractor to"""
    head: HeadName = "linear"
    """classifier on top: linear without bias (Hariharan & Girshick), cosine softmax with a learned scale, or the MLP of
    the CIFAR system"""
    validation_classes: bool = False
    """train on the novel classes of the validation setup too (few-shot papers do so once everything has been chosen)"""
    overwrite: bool = False
    """make it again even if it is there"""


def main(config: Config) -> Path:
    """Train and return the folder written."""
    check_network(config)
    if config.loss in ("sgm", "batchsgm") and config.head != "linear":
        raise InputError(f"loss {config.loss}: is the gradient of a linear head, not of a {config.head} one")
    where = config.data / "images.h5"
    images, split = read_images(where), read_split(config.data / "split.json")
    train_rows, held_rows = choose_rows(config, images, split)
    inputs = {"images": where, "split": config.data / "split.json", "weights": config.weights}
    made_from = training_recipe("train_extractor", config, inputs)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    with image_training(config, config.out, made_from, config.overwrite) as (fabric, training):
        model = build_network(config, images, where, split.n_classes, config.head)
        trained = ExtractorTrainer(config, fabric, training, model, images, train_rows, held_rows).fit()
        if fabric.is_global_zero:
            save_extractor(training.folder, trained, made_from)
    if fabric.is_global_zero:
        print(f"train_extractor: wrote {config.out} (D = {model.dim})")
    return config.out


def choose_rows(config: Config, images: Images, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows held out) among the base classes' training images."""
    where = config.data / "images.h5"
    classes = split.base_classes + (split.novel_classes_1 if config.validation_classes else [])
    rows = rows_of(images, split, classes, where)
    if len(rows) == 0:
        raise InputError(f"{where}: no training image of a base class")
    return hold_out(config, images, rows)


if __name__ == "__main__":
    run(main, Config, __doc__)
