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
    --support.flip true --out outputs/cifar100/scgm_g/features
CPU, seconds:
python save_features.py --extractor outputs/glyphs/conv4_sgm/extractor --data outputs/glyphs/data \\
    --out outputs/glyphs/try/features
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from tqdm import tqdm

from lowshot import core, gan, representation
from lowshot.core.artifacts import building, is_done, merged, recipe
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.settings import NetworkPrecision, NonNegativeInt, PositiveInt, RunOnly
from lowshot.data.datasets.images import Images, images_file, read_images
from lowshot.data.features import create_features
from lowshot.representation.settings import AugmentationSettings, ExtractorChoice

# Of the views of an image: 0 and the next few are training's.
_SUPPORT = 100


@dataclass(kw_only=True)
class Config(ExtractorChoice):
    data: Path
    """folder with images.h5, or another images file: samples.h5 of sample_gan.py"""
    out: Path
    """folder to write train.h5 and test.h5 to"""
    resize: bool = False
    """timm: stretch stored pixels of another size than the model takes"""
    layer: Literal["trunk"] | None = None
    """trunk: features as they are before the projection that train_scgm.py trains; embeddings if not given"""
    copies: PositiveInt | None = None
    """augmented copies of every image whose features are saved too (5 in Ni et al., 2022); none if not given"""
    support: AugmentationSettings = field(default_factory=AugmentationSettings)
    """random changes of the copies, of images on disk as the extractor views them"""
    seed: NonNegativeInt = 0
    """of the copies' changes"""
    part: Literal["train", "test"] | None = None
    """make this file only; both if not given"""
    batch_size: PositiveInt = 256
    """images at once; changes the speed only"""
    accelerator: RunOnly[str] = "auto"
    """where to compute: auto, cpu, cuda, ..."""
    precision: NetworkPrecision = "32-true"
    """of the network; features are stored as float32"""
    num_workers: RunOnly[NonNegativeInt] = 4
    """processes that decode images on disk; stored pixels need none"""
    overwrite: RunOnly[bool] = False
    """make them again even if they are there"""


def main(config: Config) -> Path:
    """Save both files and return their folder."""
    where = images_file(config.data)
    images = read_images(where)
    model, chosen = representation.chosen_extractor(config, images, config.resize)
    if config.layer == "trunk":
        representation.drop_projection(model, config)
    _check_copies(config, images)
    made_from = merged(
        recipe("save_features", config, {"images": where, "weights": config.weights}), gan.handed_on(where)
    )
    made_from["inputs"] |= chosen
    for unread in ["batch_size", "part"] if config.copies else ["batch_size", "part", "support", "seed"]:
        made_from["config"].pop(unread)
    if config.extractor:
        made_from["config"] |= representation.novel_classes_seen(config.extractor)
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


def _check_copies(config: Config, images: Images) -> None:
    """InputError for settings of copies that are not made, all alike, or made in a way that is not there."""
    changes = config.support != AugmentationSettings()
    if changes and not config.copies:
        raise InputError("support: changes the copies of images, of which none are made; give --copies too")
    if config.copies and not changes:
        raise InputError(f"copies {config.copies}: all like the image; give a change, e.g. --support.flip true")
    if config.support.resized_crop:
        raise InputError("support.resized_crop: not for copies, whose images are loaded once; give support.crop_area")


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
    if not path.exists():
        create_features(path, len(rows), network.dim, images.labels[rows], made_from, config.copies or 0).close()
    draws = range(1, 1 + (config.copies or 0))
    augment = representation.Augmentation(**vars(config.support))
    uniforms = [augment.uniforms(len(images), config.seed, copy, _SUPPORT) for copy in draws]

    def features(unit: Any) -> np.ndarray:
        feats = representation.batch_features(network, unit, fabric)
        if not np.isfinite(feats).all():
            raise InputError(f"{config.extractor or config.timm}: makes features that are NaN or infinite")
        return feats

    with h5py.File(path, "r+") as file:
        done = int(file["count"][0])
        unlabelled = images.labels[rows] < 0
        is_blank = file.require_dataset("is_blank", (len(rows),), bool) if unlabelled.any() else None
        parts = representation.in_batches(rows[done:], config.batch_size)
        loaded = representation.batches(images, parts, network.config, None, config.num_workers)
        for part, pixels in tqdm(zip(parts, loaded), path.stem, len(parts), unit="batch"):
            unit, block = representation.to_unit(pixels, fabric.device), slice(done, done + len(part))
            copies = (augment(unit, uniform[part].to(fabric.device)) for uniform in uniforms)
            feats = np.stack([features(unit), *map(features, copies)], axis=1)
            if is_blank is not None:
                is_blank[block] = blank = unlabelled[block] & (pixels.flatten(1).amax(1) == 0).numpy()
                feats[blank] = 0
            file["all_feats"][block] = feats[:, 0]
            if config.copies:
                file["augmented_feats"][block] = feats[:, 1:]
            done = block.stop
            file["count"][0] = done
            file.flush()
        if is_blank is not None:
            print(f"save_features: {np.sum(is_blank)} of {len(rows)} images are blank, so their features are zero")


if __name__ == "__main__":
    run(main, Config, __doc__)
