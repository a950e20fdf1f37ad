"""Settings of the recipe for a folder of photos, as shell variables: they follow from the numbers of photos.

python scripts/photos/plan.py FOLDER
"""

import os
import sys
from pathlib import Path

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.workers import available_cores
from lowshot.data.datasets.folder import find_folder
from lowshot.representation.settings import PRETRAINED, TimmModel
from lowshot.representation.weight_sources import check_available

SHOTS = (1, 2, 5, 10, 20)
# The benchmark divides the classes into two setups, and the test images of a class are a fifth of its photos.
FEWEST_CLASSES, FEWEST_TEST_IMAGES = 10, 5
# Photos below which a network of one's own learns less than nothing from them.
FEWEST_TO_TRAIN = 2000
PACKAGED = TimmModel("tf_efficientnet_lite0")
# Seconds per photo on a core with AVX2: EfficientNet-Lite0 measured, DINOv2 from its operations (14 times as many).
SECONDS = {PACKAGED.name: 0.07, PRETRAINED.name: 0.5}
EPOCHS, SECONDS_PER_EPOCH = 30, 0.006  # of the small network, per photo and core


def main(folder: Path) -> dict[str, object]:
    found = find_folder(folder.resolve())
    counts = np.bincount(found.labels, minlength=len(found.class_names))
    if found.is_test is None:
        n_test = np.maximum(1, np.round(0.2 * counts)).astype(int)
    else:
        n_test = np.bincount(found.labels[found.is_test], minlength=len(counts))
    least = int(os.environ.get("MAX_SHOTS") or (counts - n_test).min())
    plan = {
        "n_classes": len(counts),
        "n_photos": len(found.files),
        "can_judge": int(len(counts) >= FEWEST_CLASSES and n_test.min() >= FEWEST_TEST_IMAGES),
        "max_shots": max(1, min(max(SHOTS), least)),
        "shots": f"[{','.join(str(n) for n in SHOTS if n <= least) or 1}]",
        # A cluster of eight photos has a mean; fewer than two clusters have no analogies.
        "n_clusters": int(np.clip(least // 8, 2, 100)),
    }
    return plan | extractor(len(found.files))


def extractor(n_photos: int) -> dict[str, object]:
    """Choose the extractor: TIMM, the first of the pretrained models whose weights can be had, or a small network."""
    given = os.environ.get("TIMM", "")
    if given == "none":
        return small(n_photos, "TIMM=none")
    failure = ""
    for model in [TimmModel(given)] if given else [PRETRAINED, PACKAGED]:
        try:
            check_available(model.name)
        except InputError as error:
            failure = str(error)
            continue
        seconds = SECONDS.get(model.name, 0.5) * n_photos / available_cores()
        size = model.image_size or (PRETRAINED.image_size if model.name == PRETRAINED.name else "")
        return {
            "timm": model.name,
            "timm_size": size,
            "name": model.name.partition(".")[0],
            "minutes": minutes(seconds),
        }
    if given or n_photos < FEWEST_TO_TRAIN:
        few = f". {n_photos} photos are too few to train a network on (at least {FEWEST_TO_TRAIN})"
        raise InputError(failure + ("" if given else few))
    return small(n_photos, "no pretrained weights can be had")


def small(n_photos: int, why: str) -> dict[str, object]:
    print(f"photos: training a small network on the base classes: {why}", file=sys.stderr)
    return {"timm": "", "timm_size": "", "name": "airbench",
            "minutes": minutes(EPOCHS * SECONDS_PER_EPOCH * n_photos / available_cores())}  # fmt: skip


def minutes(seconds: float) -> int:
    return max(1, round(seconds / 60))


if __name__ == "__main__":
    try:
        for name, value in main(Path(sys.argv[1])).items():
            print(f"{name}={value}")
    except InputError as error:
        sys.exit(f"photos: error: {error}")
