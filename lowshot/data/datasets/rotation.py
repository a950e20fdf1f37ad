"""Rotated classes: every class turned by 90, 180 and 270 degrees as classes of their own.

Vinyals et al. (NeurIPS 2016) and later work add them to Omniglot. A rotated class is base or novel with the class
itself, and counts as the same class when it is asked what has seen it (`lowshot.data.protocol.origins`).
"""

from dataclasses import replace

import numpy as np

from lowshot.core.errors import InputError
from lowshot.data.datasets.content import Content
from lowshot.data.datasets.images import Images
from lowshot.data.protocol import ROTATION, Split

_QUARTERS = range(4)


def rotated(content: Content) -> Content:
    """Add the rotated classes after the classes themselves, with their images, split and shots.

    Superclasses are rotated, too, so that the classes of a superclass have one rotation. Raises InputError for images
    without labels, without content, or that are not square.
    """
    images = content.images
    if not content.class_names or not images.has_content or images.labels.min() < 0:
        raise InputError("--rotations: needs images with classes")
    if any(ROTATION.search(name) for name in content.class_names):
        raise InputError("--rotations: this data set has rotated classes already. Leave --rotations out")
    if images.pixels is not None and images.pixels.shape[1] != images.pixels.shape[2]:
        raise InputError(f"--rotations: needs square images, not {images.pixels.shape[1]} x {images.pixels.shape[2]}")
    n, n_groups, n_train = len(content.class_names), len(content.superclass_names), len(images.rows(test=False))
    superclass_of = [_moved(group, quarter * n_groups) for quarter in _QUARTERS for group in content.superclass_of]
    names = _named(content.class_names), _named(content.superclass_names), superclass_of
    draws = content.draws and {
        trial: [rows + quarter * n_train for quarter in _QUARTERS for rows in classes]
        for trial, classes in content.draws.items()
    }
    split = content.split and _with_rotations(content.split, *names)
    novel = content.novel_classes and _all_of(content.novel_classes, n)
    return Content(_turned(images, n), *names, novel, split, draws)


def _moved(group: int | None, by: int) -> int | None:
    return None if group is None else group + by


def _named(names: list[str]) -> list[str]:
    return [f"{name} rot{90 * quarter:03}" if quarter else name for quarter in _QUARTERS for name in names]


def _all_of(classes: list[int], n: int) -> list[int]:
    """Return the numbers of the classes and of their rotations, where `n` is the number of classes."""
    return [c + quarter * n for quarter in _QUARTERS for c in classes]


def _with_rotations(split: Split, class_names: list[str], superclass_names: list[str], superclass_of: list) -> Split:
    parts = [f"{kind}_classes{half}" for kind in ("base", "novel") for half in ("", "_1", "_2")]
    lists = {part: _all_of(getattr(split, part), split.n_classes) for part in parts}
    names = {"class_names": class_names, "superclass_names": superclass_names, "superclass_of": superclass_of}
    return replace(split, **names, **lists, origins=split.origins * len(_QUARTERS))


def _turned(images: Images, n: int) -> Images:
    """Return the images four times, turned counter-clockwise by 0, 90, 180 and 270 degrees."""
    labels = np.concatenate([images.labels + quarter * n for quarter in _QUARTERS])
    is_test = np.tile(images.is_test, len(_QUARTERS))
    if images.pixels is not None:
        pixels = np.concatenate([np.rot90(images.pixels, quarter, axes=(1, 2)) for quarter in _QUARTERS])
        return replace(images, labels=labels, is_test=is_test, pixels=pixels)
    turns = np.repeat(np.arange(len(_QUARTERS), dtype=np.uint8), len(images))
    paths = np.tile(images.paths, len(_QUARTERS))
    return replace(images, labels=labels, is_test=is_test, paths=paths, turns=turns)
