"""Train a feature extractor on superclasses, so that it can distinguish their classes (SCGM and its baselines).

Reads   DATA/images.h5, DATA/split.json (preprocessing.py). Class labels are not used, only their superclasses.
Writes  OUT/model.pt, OUT/config.json (together they rebuild the network), OUT/mixture.h5 (means, the subclasses of
        training images, subclass sizes over time), OUT/log.jsonl, OUT/tensorboard/
        With --patience, model.pt has the best weights, and OUT/last.pt the last ones.

python train_scgm.py --data outputs/cifar100/data --out outputs/cifar100/scgm_g/extractor --model ResNet12
Small example (seconds on a CPU):
python train_scgm.py --data outputs/glyphs/data --out outputs/glyphs/scgm/extractor --model Conv4 --epochs 2 \\
    --schedule.n_cycles 1 --method.n_subclasses 40
Several processes: --devices 8, or
torchrun --nproc-per-node 8 train_scgm.py ... --devices 8
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lowshot import representation, scgm
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.h5 import creating_h5
from lowshot.core.publishing import is_done
from lowshot.core.settings import RunOnly
from lowshot.core.workers import start_ahead
from lowshot.data.datasets.images import Images, read_images, rows_of
from lowshot.data.lineage import Lineage
from lowshot.data.protocol import Split, read_split
from lowshot.representation.settings import NetworkChoice
from lowshot.scgm.settings import ScgmSettings, has_mixture


@dataclass(kw_only=True)
class Config(ScgmSettings, NetworkChoice):
    data: Path
    """Folder with images.h5 and split.json."""
    out: Path
    """Folder to write the extractor to."""
    classes: Literal["all", "base"] = "all"
    """Classes whose training images are used: all (as published, except for tieredImageNet) or base classes."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""

    renamed = ScgmSettings.renamed | NetworkChoice.renamed


def main(config: Config) -> Path:
    """Train the extractor, and return its folder."""
    where = config.data / "images.h5"
    images, split = read_images(where), read_split(config.data / "split.json")
    start_ahead(config.num_workers, config.epochs * images.n_encoded, config.devices)
    representation.check_network(config)
    chosen = choose_rows(config, images, split)
    inputs = {"images": where, "split": config.data / "split.json", "weights": config.weights}
    seen = Lineage(superclasses=frozenset(split.origins[c] for c in trained_classes(config, split)))
    seen |= representation.lineage_of_start(config)
    made_from = representation.training_recipe("train_scgm", config, inputs, seen)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    with representation.image_training(config, config.out, made_from, config.overwrite) as (fabric, training):
        extractor = representation.build_network(config, images, chosen.train, where, 0, embedding=config.embedding)
        model = scgm.build_model(config, extractor, chosen.superclass_of[images.labels[chosen.train]])
        rows = chosen.train, chosen.held
        trained = scgm.ScgmTrainer(config, fabric, training, model, images, *rows, chosen.superclass_of).fit()
        if fabric.is_global_zero:
            representation.save_extractor(training.folder, trained.extractor, made_from)
            save_means(training.folder / "mixture.h5", trained, chosen)
    if fabric.is_global_zero:
        print(f"train_scgm: wrote {config.out} (D = {extractor.dim})")
    return config.out


def trained_classes(config: Config, split: Split) -> np.ndarray:
    """Return the classes to train on, int64 (C,)."""
    return np.arange(split.n_classes) if config.classes == "all" else np.array(split.base_classes)


@dataclass(frozen=True)
class Chosen:
    """The rows of images to train on and the held-out rows; all int64.

    `superclasses` (C,) are their superclasses. `superclass_of` has the position in `superclasses` of each class of the
    split, or -1 if its superclass is not among them.
    """

    train: np.ndarray
    held: np.ndarray
    superclasses: np.ndarray
    superclass_of: np.ndarray


def choose_rows(config: Config, images: Images, split: Split) -> Chosen:
    """Choose the images to train on. Raises InputError if the superclasses or images do not allow training."""
    where = config.data / "images.h5"
    classes = trained_classes(config, split)
    superclass_of = np.array([-1 if one is None else one for one in split.superclass_of])
    if (superclass_of[classes] < 0).all():
        raise InputError(
            f"{config.data}/split.json: the split of {split.dataset} has no superclasses to train on. Use a data set "
            f"with superclasses, or train_extractor.py"
        )
    for c in classes[superclass_of[classes] < 0][:1]:
        raise InputError(
            f"{config.data}/split.json: class {c} ({split.class_names[c]}) has no superclass. All classes to train "
            f"on need one"
        )
    superclasses = np.unique(superclass_of[classes])
    train, held = representation.hold_out(config, images, rows_of(images, split, classes, where))
    for s in superclasses[~np.isin(superclasses, superclass_of[images.labels[train]])][:1]:
        raise InputError(f"{where}: has no training images of superclass {s} ({split.superclass_names[s]})")
    if len(superclasses) < 2:
        raise InputError(f"{config.data}/split.json: has a single superclass, but training needs at least two")
    if has_mixture(config) and not len(superclasses) <= config.method.n_subclasses <= len(train):
        raise InputError(
            f"--method.n_subclasses {config.method.n_subclasses}: must be between {len(superclasses)} (the number of "
            f"superclasses) and {len(train)} (the number of training images)"
        )
    places = np.where(np.isin(superclass_of, superclasses), np.searchsorted(superclasses, superclass_of), -1)
    return Chosen(train, held, superclasses, places)


def save_means(path: Path, model: scgm.ScgmModel, chosen: Chosen) -> None:
    """Write the means. With a mixture, also write the last assignment and all subclass sizes, for figures."""
    with creating_h5(path) as file:
        file["superclasses"] = chosen.superclasses.astype(np.int32)
        file["superclass_means"] = model.superclasses.means.detach().cpu().numpy()
        if model.mixture is not None:
            file["subclass_means"] = model.mixture.subclass_means.detach().cpu().numpy()
            file["rows"] = chosen.train.astype(np.int32)
            file["subclasses"] = model.subclasses.cpu().numpy().astype(np.int32)
            sizes = model.sizes.cpu().numpy().astype(np.int32)
            file["sizes"] = sizes[sizes.any(axis=1)]  # with --patience, the last assignments may be missing


def next_step(config: Config) -> list:
    """Return the command that reads the output."""
    features = config.out.parent / "features"
    return ["save_features.py", "--extractor", config.out, "--data", config.data, "--out", features]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
