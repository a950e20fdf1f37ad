"""ImageNet-1k under the low-shot protocol of Hariharan & Girshick (ICCV 2017).

Reads ROOT/train/<wnid>/*.JPEG and ROOT/val/<wnid>/*.JPEG (the test images), and the published label_idx.json and
splitfile_{1..5}.json in the folder `protocol`. Class numbers follow `label_names` of label_idx.json, which is not
sorted. Train rows come before val rows; within each part they are sorted by class and file name. That the published row
numbers count images in this order is a guess: the list of files behind them was not published. Whatever the order,
shots are of the right class, which is checked.
"""

from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.files import digest
from lowshot.data.datasets.content import Content, Found, Source, image_files, listing_digest
from lowshot.data.datasets.images import Images
from lowshot.data.datasets.settings import ImageNet
from lowshot.data.protocol import check_draws, read_draws, read_split


def find(settings: ImageNet, source: Source) -> Found:
    """Find the images of all classes of the published protocol."""
    root = source.folder.resolve()
    split = read_split(settings.protocol / "label_idx.json")
    files = list_classes(root, split.class_names, "the protocol has this class")
    digests = {part: listing_digest(root, chain.from_iterable(classes)) for part, classes in files.items()}
    names = ["label_idx.json", *(f"splitfile_{trial}.json" for trial in range(1, settings.n_trials + 1))]
    digests |= {name: digest(settings.protocol / name) for name in names}
    return Found(digests, partial(_read, settings, root, files), stays=True)


def list_classes(root: Path, wnids: list[str], why: str) -> dict[str, list[list[Path]]]:
    """Return the image files of each class in `wnids`, per part ("train", "val").

    Raises InputError for a class without a folder or images; `why` says who needs the class.
    """
    return {part: [_files(root / part / wnid, why) for wnid in wnids] for part in ("train", "val")}


def _files(folder: Path, why: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder ({why})")
    if not (files := image_files(folder)):
        raise InputError(f"{folder}: contains no images")
    return files


def read_listed(root: Path, files: dict[str, list[list[Path]]]) -> Images:
    """Return the images that `list_classes` found, val as test images. Class numbers are positions in the lists."""
    parts = (files["train"], files["val"])
    labels = [np.repeat(np.arange(len(part)), [len(rows) for rows in part]) for part in parts]
    is_test = np.repeat([False, True], [len(part) for part in labels])
    in_order = chain.from_iterable(chain.from_iterable(parts))
    paths = np.array([file.relative_to(root).as_posix() for file in in_order], object)
    return Images(np.concatenate(labels), is_test, paths=paths, root=root)


def _read(settings: ImageNet, root: Path, files: dict[str, list[list[Path]]]) -> Content:
    split, images = read_split(settings.protocol / "label_idx.json"), read_listed(root, files)
    draws = published_draws(settings, images.labels[~images.is_test], root / "train")
    return Content(images, split.class_names, split=replace(split, dataset="imagenet"), draws=draws)


def published_draws(settings: ImageNet, train_labels: np.ndarray, train: Path) -> dict[int, list[np.ndarray]]:
    """Return the first `max_shots` rows per class of the published trials 1..n_trials.

    They are checked against `train_labels` (N,), the labels of the images in the folder `train`.
    """
    template = settings.protocol / "splitfile_{trial}.json"
    draws = read_draws(template, list(range(1, settings.n_trials + 1)))
    every_class = np.arange(train_labels.max() + 1)
    check_draws(draws, train_labels, every_class, settings.max_shots, template, train)
    return {trial: [rows[: settings.max_shots] for rows in classes] for trial, classes in draws.items()}
