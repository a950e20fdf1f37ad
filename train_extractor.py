"""Train a feature extractor on the base classes, or fine-tune one on a few shots of the novel ones.

Reads   DATA/images.h5, DATA/split.json (preprocessing.py); to fine-tune DATA/draws.json, and maybe generated images
Writes  OUT/model.pt, OUT/config.json (together they rebuild the network), OUT/log.jsonl, OUT/tensorboard/

python train_extractor.py --data outputs/cifar100/data --out outputs/cifar100/resnet10_sgm/extractor \
    --model ResNet10 --loss sgm --loss_weight 0.02
python train_extractor.py --data outputs/photos/data --out outputs/photos/resnet50/extractor \
    --model timm:resnet50.a1_in1k --pretrained true --epochs 10 --lr 0.001
python train_extractor.py --data outputs/emnist_fs/seed0/data --model Conv4 \
    --weights outputs/emnist_fs/seed0/conv4/extractor/model.pt --shots 5 \
    --samples outputs/emnist_fs/seed0/samples/supervised/trial1_k5/samples.h5 \
    --trained "[classifier]" --mixup.alpha 1 --epochs 100 --lr 0.01 --out outputs/emnist_fs/seed0/conv4_k5/extractor
CPU, seconds:
python train_extractor.py --data outputs/glyphs/data --out outputs/glyphs/try/extractor --model Conv4 --epochs 1
Several processes: --devices 8, or
torchrun --nproc-per-node 8 train_extractor.py ... --devices 8
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowshot import gan, representation
from lowshot.core.artifacts import is_done
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.settings import PositiveInt, RunOnly
from lowshot.data.datasets.images import Images, read_images, rows_of, with_more
from lowshot.data.protocol import Split, read_split
from lowshot.representation.settings import ExtractorSettings, HeadName, NetworkChoice


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
    shots: PositiveInt | None = None
    """fine-tune on the first so many shots of every novel class, in place of the base classes; watched are those images
    of the novel classes that train_gan.py validates on"""
    trial: PositiveInt = 1
    """whose shots these are"""
    repeat_shots: PositiveInt = 1
    """how often an epoch shows every shot (published: pad_length); as many steps as with samples beside them"""
    samples: Path | None = None
    """images file of sample_gan.py to learn from beside the shots, of a GAN that was fine-tuned on the same ones"""
    overwrite: RunOnly[bool] = False
    """make it again even if it is there"""


def main(config: Config) -> Path:
    """Train and return the folder written."""
    representation.check_network(config)
    _check_settings(config)
    where = config.data / "images.h5"
    images, split = read_images(where), read_split(config.data / "split.json")
    inputs = {"images": where, "split": config.data / "split.json", "weights": config.weights}
    if config.shots:
        inputs |= {"draws": config.data / "draws.json", "samples": config.samples}
        images, train_rows, held_rows = few_shot_images(config, images, split)
    else:
        train_rows, held_rows = choose_rows(config, images, split)
    made_from = representation.training_recipe("train_extractor", config, inputs)
    if not config.shots:
        del made_from["config"]["trial"], made_from["config"]["repeat_shots"]
    if not config.mixup.alpha:
        del made_from["config"]["mixup"]
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    with representation.image_training(config, config.out, made_from, config.overwrite) as (fabric, training):
        model = representation.build_network(config, images, where, split.n_classes, config.head)
        if config.trained is not None:
            representation.freeze(model, config.trained)
        trained = representation.ExtractorTrainer(config, fabric, training, model, images, train_rows, held_rows).fit()
        if fabric.is_global_zero:
            representation.save_extractor(training.folder, trained, made_from)
    if fabric.is_global_zero:
        print(f"train_extractor: wrote {config.out} (D = {model.dim})")
    return config.out


def _check_settings(config: Config) -> None:
    if config.loss in ("sgm", "batchsgm") and config.head != "linear":
        raise InputError(f"loss {config.loss}: is the gradient of a linear head, not of a {config.head} one")
    if config.mixup.alpha and config.loss != "plain":
        raise InputError(f"mixup.alpha {config.mixup.alpha:g}: only the plain loss is blended, not {config.loss}")
    if config.shots is None and (config.samples is not None or config.trial != 1 or config.repeat_shots != 1):
        raise InputError("samples, trial and repeat_shots: are for fine-tuning on --shots")
    if config.shots and (config.validation_classes or config.holdout or config.patience):
        raise InputError("shots: validation_classes, holdout and patience are for training on base classes")
    if config.shots and not (config.weights or config.pretrained):
        raise InputError("shots: are to fine-tune a network; give its --weights")
    if config.trained == []:
        raise InputError("trained: names no part of the network")


def few_shot_images(config: Config, images: Images, split: Split) -> tuple[Images, np.ndarray, np.ndarray]:
    """The images with the samples behind them; the rows to train on, shots and samples alike; the rows to watch."""
    if config.weights:
        representation.check_knows_base_only(config.weights.parent, config.data / "split.json")
    rows = gan.read_few_shot_rows(images, split, config.data, config.shots, config.trial)
    learned = np.tile(rows.supports, config.repeat_shots)
    if config.samples is not None:
        made_for = config.data / "split.json", config.data / "draws.json"
        samples = gan.read_sample_images(config.samples, *made_for, config.trial, config.shots)
        learned = np.concatenate([learned, len(images) + np.arange(len(samples))])
        images = with_more(images, samples, config.samples)
    representation.check_training(config, images, len(learned))
    return images, learned, rows.validation


def choose_rows(config: Config, images: Images, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows held out) among the base classes' training images."""
    where = config.data / "images.h5"
    classes = split.base_classes + (split.novel_classes_1 if config.validation_classes else [])
    rows = rows_of(images, split, classes, where)
    if len(rows) == 0:
        raise InputError(f"{where}: no training image of a base class")
    return representation.hold_out(config, images, rows)


if __name__ == "__main__":
    run(main, Config, __doc__)
