"""Run a trained extractor, or a pretrained model of timm, over all images and save the features.

Reads   EXTRACTOR/ (train_extractor.py) or a model of timm, DATA/images.h5 (or another images file)
Writes  OUT/train.h5 and OUT/test.h5 (where there is a test part) in the published layout: all_feats, all_labels, count

With --copies, beside these augmented_feats float32 (N, copies, D): the features of randomly augmented copies of every
image, of which episodes.py --augmented_support makes the shots of its tasks.

Of unlabelled images (yfcc100m) those that cannot be decoded, or are black all over, get features that are zero; where
they are is in the dataset is_blank. Of a labelled set a corrupt image is refused.

python save_features.py --extractor outputs/cifar100/resnet10_sgm/extractor --data outputs/cifar100/data \\
    --out outputs/cifar100/resnet10_sgm/features
python save_features.py --timm resnet50.a1_in1k --data outputs/photos/data --out outputs/photos/resnet50/features
python save_features.py --extractor outputs/cifar100/scgm_g/extractor --data outputs/cifar100/data --copies 5 \\
    --copies.augment.flip --out outputs/cifar100/scgm_g/features
CPU, seconds:
python save_features.py --extractor outputs/glyphs/conv4_sgm/extractor --data outputs/glyphs/data \\
    --out outputs/glyphs/try/features
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np

from lowshot import core, gan, representation
from lowshot.core.artifacts import building, is_done, recipe
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.settings import NetworkPrecision, NonNegativeInt, PositiveInt, RunOnly, Seed
from lowshot.data.datasets.images import Images, images_file, read_images
from lowshot.data.features import create_features
from lowshot.representation.settings import (
    AUGMENTATIONS,
    ExtractorChoice,
    StandardAugmentation,
    StretchingTimmModel,
)

# Of the views of an image: 0 and the next few are training's.
_SUPPORT = 100


@dataclass
class Copies:
    """Augmented copies of every image, whose features are saved too."""

    n: PositiveInt
    """how many (5 in Ni et al., 2022)"""
    augment: Annotated[Any, AUGMENTATIONS] = field(default_factory=StandardAugmentation)
    """random changes of the copies, of images on disk as the extractor views them"""
    seed: Seed = 0
    """of these changes"""


@dataclass(kw_only=True)
class Config(ExtractorChoice):
    data: Path
    """folder with images.h5, or another images file: samples.h5 of sample_gan.py"""
    out: Path
    """folder to write train.h5 and test.h5 to"""
    timm: StretchingTimmModel | None = None
    """in the place of --extractor a model of timm by name"""
    layer: Literal["trunk"] | None = None
    """trunk: features as they are before the projection that train_scgm.py trains; embeddings if not given"""
    copies: Copies | None = None
    """augmented copies of every image, whose features are saved too; none if not given"""
    part: RunOnly[Literal["train", "test"] | None] = None
    """make this file only; both if not given"""
    batch_size: RunOnly[PositiveInt] = 256
    """images at once; changes the speed only"""
    accelerator: RunOnly[str] = "auto"
    """where to compute: auto, cpu, cuda, ..."""
    precision: NetworkPrecision = "32-true"
    """of the network; features are stored as float32"""
    num_workers: RunOnly[NonNegativeInt] = 4
    """processes that decode images on disk; stored pixels need none"""
    overwrite: RunOnly[bool] = False
    """make them again even if they are there"""

    renamed = ExtractorChoice.renamed | {"support": "copies.augment", "copies": "copies.n", "seed": "copies.seed"}


def main(config: Config) -> Path:
    """Save both files and return their folder."""
    where = images_file(config.data)
    images = read_images(where)
    model, chosen = representation.chosen_extractor(config, images)
    if config.layer == "trunk":
        representation.drop_projection(model, config)
    if config.copies:
        _check_copies(config.copies)
    of_samples = gan.handed_on(where)
    facts = representation.handed_on(config.extractor) if config.extractor else {}
    inputs = {"images": where, **chosen, **of_samples["inputs"]}
    made_from = recipe("save_features", config, inputs, **of_samples["config"], **facts)
    fabric = core.open_fabric(config.accelerator, config.precision)
    network = fabric.to_device(model)
    for name, test in (("train", False), ("test", True)):
        out, rows = config.out / f"{name}.h5", images.rows(test)
        if config.part not in (None, name):
            continue
        if len(rows) == 0:  # published few-shot splits are one pool: no test part
            if config.part:
                raise InputError(f"{where}: has no {name} part")
            continue
        if not is_done(out, made_from, config.overwrite):
            with building(out, made_from) as partial:
                extract(config, fabric, network, images, rows, partial, made_from)
            print(f"save_features: wrote {out}")
    return config.out


def _check_copies(copies: Copies) -> None:
    """InputError for copies that are all alike, or made in a way that is not there."""
    if copies.augment == StandardAugmentation():
        raise InputError(f"copies {copies.n}: all like the image; give a change, e.g. --copies.augment.flip")
    if isinstance(copies.augment, StandardAugmentation) and copies.augment.resized_crop:
        raise InputError("copies.augment.resized_crop: images are loaded once; give copies.augment.crop_area")


def extract(
    config: Config,
    fabric: Any,
    network: representation.Extractor,
    images: Images,
    rows: np.ndarray,
    path: Path,
    made_from: dict,
) -> None:
    """Write the features of `rows` block by block; goes on from `count` where a killed run left the file.

    Departs from Douze et al. (2018) in one thing: there, what cannot be decoded is a black picture with the features of
    one, and a hundred thousand equal vectors become hubs of the graph. Zero vectors have no neighbours.

    What changes a copy is drawn from (seed, copy, number of the image in images.h5), and only from that.
    """
    n_copies, augment, uniforms = 0, None, []
    if copies := config.copies:
        n_copies, augment = copies.n, representation.augmentation_of(copies.augment)
        uniforms = [augment.uniforms(len(images), copies.seed, i + 1, _SUPPORT) for i in range(n_copies)]
    if not path.exists():
        create_features(path, len(rows), network.dim, images.labels[rows], made_from, n_copies).close()

    def features(unit: Any) -> np.ndarray:
        feats = representation.batch_features(network, unit, fabric)
        if not np.isfinite(feats).all():
            raise InputError(f"{config.extractor or config.timm.name}: makes features that are NaN or infinite")
        return feats

    with h5py.File(path, "r+") as file:
        done = int(file["count"][0])
        if 0 < done < len(rows):
            print(f"save_features: continuing after {done} of {len(rows)} images", flush=True)
        unlabelled = images.labels[rows] < 0
        is_blank = file.require_dataset("is_blank", (len(rows),), bool) if unlabelled.any() else None
        parts = representation.in_batches(rows[done:], config.batch_size)
        loaded = representation.batches(images, parts, network.config, None, config.num_workers)
        name = path.stem.removesuffix(".partial")
        for part, pixels in core.Progress(zip(parts, loaded), name, len(parts), unit="batch", resumable=True):
            unit, block = representation.to_unit(pixels, fabric.device), slice(done, done + len(part))
            changed = (augment(unit, uniform[part].to(fabric.device)) for uniform in uniforms)
            feats = np.stack([features(unit), *map(features, changed)], axis=1)
            if is_blank is not None:
                is_blank[block] = blank = unlabelled[block] & (pixels.flatten(1).amax(1) == 0).numpy()
                feats[blank] = 0
            file["all_feats"][block] = feats[:, 0]
            if n_copies:
                file["augmented_feats"][block] = feats[:, 1:]
            done = block.stop
            file["count"][0] = done
            file.flush()
        if is_blank is not None:
            print(f"save_features: {np.sum(is_blank)} of {len(rows)} images are blank, so their features are zero")


def next_step(config: Config) -> list | None:
    """The command that takes the output: the benchmark, or episodes where all images are one pool."""
    split, draws = config.data / "split.json", config.data / "draws.json"
    train, test, results = config.out / "train.h5", config.out / "test.h5", config.out.parent / "results"
    if not (split.exists() and train.exists()):
        return None
    if not test.exists():
        return ["episodes.py", "--features", train, "--split", split, "--out", results / "episodes.json"]
    inputs = ["--train", train, "--test", test, "--split", split, "--draws", draws]
    return ["low_shot.py", *inputs, "--out", results / "linear_sgd.json"]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
