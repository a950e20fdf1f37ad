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
from typing import Literal

import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from lowshot.artifacts import is_done, recipe
from lowshot.backbones import (
    Extractor,
    HeadName,
    ModelConfig,
    ModelName,
    load_timm_weights,
    load_weights,
    save_extractor,
    timm_config,
)
from lowshot.cli import run
from lowshot.datasets.images import Images, read_images
from lowshot.errors import InputError
from lowshot.extractor_training import ExtractorSettings, ExtractorTrainer
from lowshot.protocol import Split, read_split
from lowshot.runtime import open_fabric
from lowshot.seeds import stream
from lowshot.timm_models import is_timm
from lowshot.training import refuse_other_leftover, training_run


@dataclass(kw_only=True)
class Config(ExtractorSettings):
    data: Path
    """folder with images.h5 and split.json"""
    out: Path
    """folder to write the extractor to"""
    model: ModelName = "ResNet10"
    """backbone; any of timm as timm:NAME, e.g. timm:resnet50.a1_in1k, with its own normalisation and preprocessing"""
    width: PositiveFloat = 1.0
    """factor on the number of channels, for small images"""
    head: HeadName = "linear"
    """classifier on top: linear without bias (Hariharan & Girshick), cosine softmax with a learned scale, or the MLP of
    the CIFAR system"""
    drop_rate: ClosedUnitInterval = 0.0
    """DropBlock in the last two blocks of ResNet12 (0.1 in RFS and MetaOptNet); others have none"""
    validation_classes: bool = False
    """train on the novel classes of the validation setup too (few-shot papers do so once everything has been chosen)"""
    image_size: PositiveInt | None = None
    """side in pixels that images on disk are cut to (224, or a timm model's own); stored pixels keep theirs, and a timm
    model that is to run at another size than its own must be told"""
    resize: bool = False
    """timm: stretch stored pixels to the side that the model runs at"""
    weights: Path | None = None
    """start from a model.pt, a released .tar checkpoint, torchvision's VGG-16, or a timm model's .safetensors or state
    dict; --epochs 0 only converts it"""
    pretrained: bool = False
    """timm: start from the weights of that name, downloaded"""
    accelerator: str = "auto"
    """where to train: auto, cpu, cuda, ..."""
    devices: PositiveInt = 1
    """processes on this machine, one a device"""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """of the network; losses are always float32"""
    overwrite: bool = False
    """make it again even if it is there"""


def main(config: Config) -> Path:
    """Train and return the folder written."""
    check_model(config)
    images, split = read_images(config.data / "images.h5"), read_split(config.data / "split.json")
    train_rows, held_rows = choose_rows(config, images, split)
    inputs = {"images": config.data / "images.h5", "split": config.data / "split.json", "weights": config.weights}
    made_from = recipe("train_extractor", config, inputs)
    if not is_timm(config.model):
        made_from["config"]["image_size"] = config.image_size or 224
        del made_from["config"]["resize"], made_from["config"]["pretrained"]
    if config.devices > 1:  # batch norm sees the images of its own process
        made_from["config"]["devices"] = config.devices
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    if not config.overwrite:
        refuse_other_leftover(config.out, made_from)
    fabric = open_fabric(config.accelerator, config.precision, config.devices)
    fabric.launch()
    if fabric.world_size < config.devices:
        raise InputError(f"devices {config.devices}: the launcher started {fabric.world_size} process (SLURM: ntasks)")
    fabric.seed_everything(config.seed, verbose=False)
    model = build_model(config, images, split)
    with training_run(config.out, made_from, config.overwrite, writes=fabric.is_global_zero) as training:
        fabric.barrier()
        trained = ExtractorTrainer(config, fabric, training, model, images, train_rows, held_rows).fit()
        fabric.barrier()
        if fabric.is_global_zero:
            save_extractor(training.folder, trained, made_from)
    if fabric.is_global_zero:
        print(f"train_extractor: wrote {config.out} (D = {model.dim})")
    return config.out


def check_model(config: Config) -> None:
    """InputError for settings that the chosen model has no use for."""
    timm = is_timm(config.model)
    if config.drop_rate and config.model != "ResNet12":
        raise InputError(f"drop_rate {config.drop_rate}: {config.model} has no DropBlock, only ResNet12 has")
    if timm and config.width != 1:
        raise InputError(f"width {config.width}: {config.model} has a width of its own")
    if not timm and (config.pretrained or config.resize):
        raise InputError(f"pretrained and resize are for timm models, {config.model} is none")
    if config.loss in ("sgm", "batchsgm") and config.head != "linear":
        raise InputError(f"loss {config.loss}: is the gradient of a linear head, not of a {config.head} one")
    if config.pretrained and config.weights:
        raise InputError("pretrained and weights: give one of the two")


def choose_rows(config: Config, images: Images, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows held out) among the base classes' training images."""
    where = config.data / "images.h5"
    if images.labels.max() >= split.n_classes:
        raise InputError(f"{where}: label {images.labels.max()} is outside the split's {split.n_classes} classes")
    rows = images.rows(test=False)
    classes = split.base_classes + (split.novel_classes_1 if config.validation_classes else [])
    rows = rows[np.isin(images.labels[rows], classes)]
    if len(rows) == 0:
        raise InputError(f"{where}: no training image of a base class")
    if config.patience and not config.holdout:
        raise InputError("patience needs a holdout above 0: early stopping watches the held-out loss")
    rows = stream(config.seed, "holdout").permutation(rows)
    n_held = round(config.holdout * len(rows))
    if config.patience and n_held == 0:
        raise InputError(f"holdout {config.holdout}: holds out none of {len(rows)} images, but patience needs some")
    if min(config.batch_size, len(rows) - n_held) < 2 * config.devices:
        raise InputError(
            f"batch_size {config.batch_size}: each process needs two of {len(rows) - n_held} images a step"
        )
    if config.augment.resized_crop and images.pixels is not None:
        raise InputError("augment.resized_crop: only for images on disk, these are stored pixels")
    return np.sort(rows[n_held:]), np.sort(rows[:n_held])


def build_model(config: Config, images: Images, split: Split) -> Extractor:
    """The network, freshly initialised, or started from --weights or --pretrained."""
    model = Extractor(model_config(config, images, split.n_classes))
    if config.weights:
        load_weights(model, config.weights)
    elif config.pretrained:
        load_timm_weights(model, None)
    return model.to(memory_format=torch.channels_last)


def model_config(config: Config, images: Images, n_classes: int) -> ModelConfig:
    """What the network is to be. Stored pixels are whole pictures; of images on disk it sees the centre."""
    if is_timm(config.model):
        form = n_classes, images.n_channels, images.size, config.image_size, config.resize
        return timm_config(config.model, *form, config.head)
    if images.size and config.image_size not in (None, images.size):
        raise InputError(
            f"image_size {config.image_size}: {config.data}/images.h5 stores pixels of {images.size} px a side"
        )
    size, crop_pct = (images.size, 1.0) if images.size else (config.image_size or 224, 0.875)
    form = n_classes, images.n_channels, size, config.width, config.head, config.drop_rate
    return ModelConfig(config.model, *form, crop_pct=crop_pct)


if __name__ == "__main__":
    run(main, Config, __doc__)
