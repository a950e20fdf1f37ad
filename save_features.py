"""Run a trained extractor, or a pretrained model of timm, over all images and save the features.

Reads   EXTRACTOR/ (train_extractor.py) or a model of timm, DATA/images.h5
Writes  OUT/train.h5 and OUT/test.h5 (where there is a test part) in the published layout: all_feats, all_labels, count

Of unlabelled images (yfcc100m) those that cannot be decoded, or are black all over, get features that are zero; where
they are is in the dataset is_blank. Of a labelled set a corrupt image is refused.

python save_features.py --extractor outputs/cifar100/resnet10_sgm/extractor --data outputs/cifar100/data \\
    --out outputs/cifar100/resnet10_sgm/features
python save_features.py --timm resnet50.a1_in1k --data outputs/photos/data --out outputs/photos/resnet50/features
CPU, seconds:
python save_features.py --extractor outputs/glyphs/conv4_sgm/extractor --data outputs/glyphs/data \\
    --out outputs/glyphs/try/features
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning_fabric import Fabric
from tqdm import tqdm

from lowshot.artifacts import building, is_done, recipe
from lowshot.cli import run
from lowshot.datasets.images import Images, read_images
from lowshot.errors import InputError
from lowshot.extractors import ExtractorChoice, open_extractor, saw_validation_classes
from lowshot.features import create_features
from lowshot.loading import batches, in_batches, to_unit
from lowshot.runtime import open_fabric


@dataclass(kw_only=True)
class Config(ExtractorChoice):
    data: Path
    """folder with images.h5"""
    out: Path
    """folder to write train.h5 and test.h5 to"""
    resize: bool = False
    """timm: stretch stored pixels of another size than the model takes"""
    batch_size: PositiveInt = 256
    """images at once; changes the speed only"""
    accelerator: str = "auto"
    """where to compute: auto, cpu, cuda, ..."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """of the network; features are stored as float32"""
    num_workers: NonNegativeInt = 4
    """processes that decode images on disk; stored pixels need none"""
    overwrite: bool = False
    """make them again even if they are there"""


def main(config: Config) -> Path:
    """Save both files and return their folder."""
    images = read_images(config.data / "images.h5")
    model, chosen = open_extractor(config, images, config.resize)
    made_from = recipe("save_features", config, {"images": config.data / "images.h5", "weights": config.weights})
    made_from["inputs"] |= chosen
    made_from["config"].pop("batch_size")
    if config.extractor and saw_validation_classes(config.extractor):
        made_from["config"]["validation_classes"] = True
    fabric = open_fabric(config.accelerator, config.precision)
    network = fabric.setup_module(model)
    network.mark_forward_method("features")
    for name, test in (("train", False), ("test", True)):
        out, rows = config.out / f"{name}.h5", images.rows(test)
        if len(rows) == 0:  # published few-shot splits are one pool: no test part
            continue
        if not is_done(out, made_from, config.overwrite):
            with building(out, made_from) as partial:
                extract(config, fabric, network, images, rows, partial, made_from)
            print(f"save_features: wrote {out}")
    return config.out


@torch.inference_mode()
def extract(
    config: Config,
    fabric: Fabric,
    network: torch.nn.Module,
    images: Images,
    rows: np.ndarray,
    path: Path,
    made_from: dict,
) -> None:
    """Write the features of `rows` block by block; goes on from `count` where a killed run left the file.

    Departs from Douze et al. (2018) in one thing: there, what cannot be decoded is a black picture with the features of
    one, and a hundred thousand equal vectors become hubs of the graph. Zero vectors have no neighbours.
    """
    if not path.exists():
        create_features(path, len(rows), network.dim, images.labels[rows], made_from).close()
    with h5py.File(path, "r+") as file:
        done = int(file["count"][0])
        unlabelled = images.labels[rows] < 0
        is_blank = file.require_dataset("is_blank", (len(rows),), bool) if unlabelled.any() else None
        parts = in_batches(rows[done:], config.batch_size)
        loaded = batches(images, parts, network.config, None, config.num_workers)
        for part, pixels in tqdm(zip(parts, loaded), path.stem, len(parts), unit="batch"):
            feats = network.features(to_unit(pixels, fabric.device)).float().cpu().numpy()
            if not np.isfinite(feats).all():
                raise InputError(f"{config.extractor or config.timm}: makes features that are NaN or infinite")
            block = slice(done, done + len(part))
            if is_blank is not None:
                is_blank[block] = blank = unlabelled[block] & (pixels.flatten(1).amax(1) == 0).numpy()
                feats[blank] = 0
            file["all_feats"][block] = feats
            done = block.stop
            file["count"][0] = done
            file.flush()
        if is_blank is not None:
            print(f"save_features: {np.sum(is_blank)} of {len(rows)} images are blank, so their features are zero")


if __name__ == "__main__":
    run(main, Config, __doc__)
