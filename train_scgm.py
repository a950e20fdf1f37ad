"""Train a feature extractor on superclasses, so that it tells their classes apart (SCGM and its baselines).

Reads   DATA/images.h5, DATA/split.json (preprocessing.py); of the classes only their superclasses
Writes  OUT/model.pt, OUT/config.json (together they rebuild the network), OUT/mixture.h5 (means, the assignment of
        training images to subclasses, its sizes over time), OUT/log.jsonl, OUT/tensorboard/

python train_scgm.py --data outputs/cifar100/data --out outputs/cifar100/scgm_g/extractor --model ResNet12
CPU, seconds:
python train_scgm.py --data outputs/glyphs/data --out outputs/glyphs/scgm/extractor --model Conv4 --epochs 2 \
    --n_cycles 1 --n_subclasses 40
Several processes: --devices 8, or
torchrun --nproc-per-node 8 train_scgm.py ... --devices 8
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from lowshot.artifacts import is_done
from lowshot.backbones import save_extractor
from lowshot.cli import run
from lowshot.datasets.images import Images, read_images
from lowshot.errors import InputError
from lowshot.image_training import hold_out, image_training, training_recipe
from lowshot.networks import NetworkChoice, build_network, check_network
from lowshot.protocol import Split, read_split
from lowshot.scgm.model import ScgmModel
from lowshot.scgm.training import ScgmSettings, ScgmTrainer, build_model


@dataclass(kw_only=True)
class Config(ScgmSettings, NetworkChoice):
    data: Path
    """folder with images.h5 and split.json"""
    out: Path
    """folder to write the extractor to"""
    classes: Literal["all", "base"] = "all"
    """whose training images are seen: of all classes (the published protocol but for tieredImageNet), or base ones"""
    overwrite: bool = False
    """make it again even if it is there"""


def main(config: Config) -> Path:
    """Train and return the folder written."""
    check_network(config)
    where = config.data / "images.h5"
    images, split = read_images(where), read_split(config.data / "split.json")
    train_rows, held_rows, superclass_of = choose_rows(config, images, split)
    inputs = {"images": where, "split": config.data / "split.json", "weights": config.weights}
    made_from = training_recipe("train_scgm", config, inputs)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    with image_training(config, config.out, made_from, config.overwrite) as (fabric, training):
        extractor = build_network(config, images, where, 0, embedding=config.embedding)
        model = build_model(config, extractor, superclass_of[images.labels[train_rows]])
        rows = train_rows, held_rows
        trained = ScgmTrainer(config, fabric, training, model, images, *rows, superclass_of).fit()
        if fabric.is_global_zero:
            save_extractor(training.folder, trained.extractor, made_from)
            save_means(training.folder / "mixture.h5", trained, train_rows, np.unique(superclasses_of(split)))
    if fabric.is_global_zero:
        print(f"train_scgm: wrote {config.out} (D = {extractor.dim})")
    return config.out


def superclasses_of(split: Split) -> np.ndarray:
    """The superclass of every class of the split, -1 for none: int64 (n_classes,)."""
    return np.array([-1 if one is None else one for one in split.superclass_of])


def choose_rows(config: Config, images: Images, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows to train on, rows held out, superclass of each class in 0..C-1), of the training images."""
    where = config.data / "images.h5"
    if images.labels.max() >= split.n_classes:
        raise InputError(f"{where}: label {images.labels.max()} is outside the split's {split.n_classes} classes")
    classes = np.arange(split.n_classes) if config.classes == "all" else np.array(split.base_classes)
    superclasses = superclasses_of(split)
    for c in classes[superclasses[classes] < 0][:1]:
        raise InputError(f"{config.data}/split.json: class {c} ({split.class_names[c]}) has no superclass to train on")
    rows = images.rows(test=False)
    rows = rows[np.isin(images.labels[rows], classes)]
    train_rows, held_rows = hold_out(config, images, rows)
    known = np.unique(superclasses[classes])
    for s in known[~np.isin(known, superclasses[images.labels[train_rows]])][:1]:
        raise InputError(f"{where}: no training image of superclass {s} ({split.superclass_names[s]})")
    if len(known) < 2:
        raise InputError(f"{config.data}/split.json: {len(known)} superclass to train on, two are needed")
    if config.has_mixture and not len(known) <= config.n_subclasses <= len(train_rows):
        raise InputError(
            f"n_subclasses {config.n_subclasses}: outside {len(known)} superclasses and {len(train_rows)} images"
        )
    return train_rows, held_rows, np.searchsorted(known, superclasses)


def save_means(path: Path, model: ScgmModel, train_rows: np.ndarray, superclasses: np.ndarray) -> None:
    """Write the means; with a mixture also the last assignment and the sizes of all, for pictures."""
    with h5py.File(path, "w") as file:
        file["superclasses"] = superclasses.astype(np.int32)
        file["superclass_means"] = model.superclasses.means.detach().cpu().numpy()
        if model.mixture is not None:
            file["subclass_means"] = model.mixture.subclass_means.detach().cpu().numpy()
            file["rows"] = train_rows.astype(np.int32)
            file["subclasses"] = model.subclasses.cpu().numpy().astype(np.int32)
            file["sizes"] = model.sizes.cpu().numpy().astype(np.int32)


if __name__ == "__main__":
    run(main, Config, __doc__)
