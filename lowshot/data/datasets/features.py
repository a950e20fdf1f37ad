"""A feature file of train images, the user's own or a published one: its labels, without images.

For features that were made elsewhere, so that they can be evaluated. Classes are named by their labels.
"""

from functools import partial
from pathlib import Path

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.files import digest
from lowshot.data.datasets.content import Content, Found, Source
from lowshot.data.datasets.images import Images
from lowshot.data.datasets.settings import FeatureFile
from lowshot.data.features import read_features


def find(settings: FeatureFile, source: Source) -> Found:
    """Find the feature file ROOT."""
    if source.root is None:
        raise InputError("--root: is required (a path). Feature file of the train images, such as features/train.h5")
    return Found({"features": digest(source.root)}, partial(_read, settings, source.root))


def _read(settings: FeatureFile, path: Path) -> Content:
    labels = read_features(path).labels
    n_classes = int(labels.max()) + 1
    novel = settings.novel_classes
    if labels.min() < 0:
        raise InputError(f"{path}: has the label {labels.min()}. Labels must be class numbers from 0")
    if novel is not None and (wrong := sorted(set(novel) - set(range(n_classes)))):
        raise InputError(f"--dataset.novel_classes {wrong[0]}: {path} has the classes 0 to {n_classes - 1}")
    images = Images(labels, np.zeros(len(labels), bool))
    return Content(images, [str(c) for c in range(n_classes)], novel_classes=novel and sorted(set(novel)))
