"""Feature files in the published layout: `all_feats` float32 (N, D), `all_labels` int32 (N), `count` int32 (1).

Rows after `count` are padding, which only published files have, and are never read. Rows have the order of the images.
Our files may also contain `augmented_feats` float32 (N, A, D): the features of A augmented copies of each image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lowshot.core import health
from lowshot.core.artifacts import stored_recipe
from lowshot.core.errors import InputError
from lowshot.core.h5 import create_array, creating_h5, open_h5, require_datasets, reserve_space, update_h5, write_recipe
from lowshot.core.npz import read_npz
from lowshot.data.rows import check_usable

SCHEMA = "lowshot-features-1"
_SAME_RUN = "Use features and split of the same preprocessing run"


@dataclass
class Features:
    """The content of a feature file, and what is known about its extractor.

    Attributes:
        feats: float32 (N, D), without padding.
        labels: int64 (N,).
        path: The file.
        extractor: Digest of the extractor, if known.
        images: Digest of the images file, if known.
        views: The views of an image that its features are means over, as in the recipe; None for the image itself.
    """

    feats: np.ndarray
    labels: np.ndarray
    path: Path
    extractor: str | None = None
    images: str | None = None
    views: dict[str, Any] | None = None

    @property
    def dim(self) -> int:
        return self.feats.shape[1]


def read_features(path: Path, n_classes: int | None = None) -> Features:
    """Read and check a feature file, ours, a published one, or an .npz file with the arrays `feats` and `labels`.

    Raises InputError if the file is truncated, lacks a dataset, has fewer rows than `count`, contains NaN, infinity or
    numbers beyond ±1e16, or (if `n_classes` is given) has a label outside 0..n_classes-1.
    """
    is_npz = Path(path).suffix == ".npz"
    feats, labels = _read_npz(Path(path)) if is_npz else _read_h5(path)
    check_usable(feats, f"{path}: {'feats' if is_npz else 'all_feats'}")
    if n_classes is not None and (labels.min() < 0 or labels.max() >= n_classes):
        wrong = labels[(labels < 0) | (labels >= n_classes)][0]
        raise InputError(f"{path}: label {wrong} is outside the split's classes 0..{n_classes - 1}. {_SAME_RUN}")
    made_from = stored_recipe(path)
    known = {name: made_from["inputs"].get(name) for name in ("extractor", "images")}
    if known["extractor"] and (layer := made_from["config"].get("layer")):
        known["extractor"] += f":{layer}"  # features of another layer are in another space
    return Features(feats, labels, Path(path), views=views_of(made_from["config"]), **known)


def views_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the views of an image that features are means over, from the config of their recipe.

    Older recipes say `mirror: true`.
    """
    return config.get("views") or ({"name": "mirror"} if config.get("mirror") else None)


def _read_h5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with open_h5(path) as file:
        require_datasets(file, {"all_feats": ("floats", 2), "all_labels": ("integers", 1), "count": ("integers", 1)})
        count = int(file["count"][:1].sum())
        n_rows = min(len(file["all_feats"]), len(file["all_labels"]))
        if not 0 < count <= n_rows:
            raise InputError(f"{path}: count is {count}, but the file has {n_rows} rows")
        return file["all_feats"][:count].astype(np.float32, copy=False), file["all_labels"][:count].astype(np.int64)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    held = read_npz(path, ("feats", "labels"))
    feats, labels = held["feats"], held["labels"]
    if feats.ndim != 2 or feats.dtype.kind != "f" or 0 in feats.shape:
        raise InputError(f"{path}: feats must be floats (N, D), not {feats.dtype} {feats.shape}")
    if labels.shape != feats.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels must be integers ({len(feats)},), not {labels.dtype} {labels.shape}")
    with np.errstate(over="ignore"):
        return feats.astype(np.float32, copy=False), labels.astype(np.int64)


def constant_features(path: Path) -> str | None:
    """Return a sentence if all rows of a feature file are equal, judged by at most 2000 of them."""
    if path.suffix == ".npz":
        feats = _read_npz(path)[0]
        some = feats[:: max(1, len(feats) // 1000)]
    else:
        with open_h5(path) as file:
            count = int(file["count"][:1].sum())
            some = file["all_feats"][: count : max(1, count // 1000)]
    return health.constant(str(path), float(some.std(0).mean()), float(np.abs(some).mean()))


def read_copies(features: Features, rows: np.ndarray | None = None) -> np.ndarray:
    """Read the features of the augmented copies of `rows` (n,), or of all rows, float32 (n, A, D).

    Raises InputError if the file has none, or if they are incomplete, or contain what `read_features` refuses.
    """
    absent = InputError(f"{features.path}: has no augmented copies. Make them with save_features.py --copies 5")
    if features.path.suffix == ".npz":
        raise absent
    with open_h5(features.path) as file:
        if "augmented_feats" not in file:
            raise absent
        require_datasets(file, {"augmented_feats": ("floats", 3)})
        n_rows, dim = features.feats.shape
        stored = file["augmented_feats"]
        if len(stored) < n_rows or stored.shape[2] != dim:
            raise InputError(
                f"{features.path}: augmented_feats must have shape ({n_rows}, A, {dim}), not {stored.shape}"
            )
        copies = (stored[:n_rows] if rows is None else _rows_of(stored, rows)).astype(np.float32, copy=False)
    check_usable(copies, f"{features.path}: augmented_feats")
    return copies


def _rows_of(stored: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Read `rows` (n,) in any order, which HDF5 reads in ascending order only."""
    ascending, place = np.unique(rows, return_inverse=True)
    return stored[ascending][place]


def create_features(
    path: Path,
    n_rows: int,
    dim: int,
    labels: np.ndarray,
    made_from: dict,
    n_copies: int = 0,
    paths: np.ndarray | None = None,
) -> None:
    """Create a feature file with all labels, `count` 0, and space for the features of `n_rows` images and `n_copies`
    augmented copies of each. `paths` (n_rows,) are the names of image files."""
    with creating_h5(path) as file:
        create_array(file, "all_feats", (n_rows, dim), np.float32)
        if n_copies:
            create_array(file, "augmented_feats", (n_rows, n_copies, dim), np.float32)
        if (labels < 0).any():
            create_array(file, "is_blank", (n_rows,), bool)
        create_array(file, "count", (1,), np.int32)
        file.create_dataset("all_labels", data=labels.astype(np.int32))
        if paths is not None:
            file.create_dataset("paths", data=paths.astype(object), dtype=h5py.string_dtype("utf-8"))
        reserve_space(file)
        write_recipe(file, SCHEMA, made_from)


def write_features(path: Path, feats: np.ndarray, labels: np.ndarray, made_from: dict) -> None:
    """Write a complete feature file."""
    create_features(path, len(feats), feats.shape[1], labels, made_from)
    with update_h5(path) as file:
        file["all_feats"][:] = feats
        file["count"][:] = len(feats)


def check_classes(features: Features, classes: np.ndarray, class_names: list[str]) -> None:
    """Raise InputError unless each of `classes` has a row."""
    for c in classes[~np.isin(classes, features.labels)]:
        raise InputError(
            f"{features.path}: has no rows of class {c} ({class_names[c]}), which the setup needs. {_SAME_RUN}"
        )


def check_same_space(train: Features, test: Features) -> None:
    """Raise InputError unless both files have the same dimension and, as far as known, extractor and views."""
    if train.dim != test.dim:
        raise InputError(f"{test.path}: has {test.dim} dimensions, but {train.path} has {train.dim}")
    if train.extractor and test.extractor and train.extractor != test.extractor:
        raise InputError(f"{test.path}: made by another extractor than {train.path}. Use features of one extractor")
    if train.views != test.views:
        raise InputError(
            f"{test.path}: has features of other views of an image than {train.path}. Use the same --views for both "
            f"(save_features.py)"
        )


def export_npz(path: Path, out: Path) -> None:
    """Copy a complete feature file to an .npz file with the arrays `feats`, `labels` and, if it has them, `paths` and
    `is_blank`."""
    with open_h5(path) as file:
        paths = {"paths": file["paths"].asstr()[:].astype(str)} if "paths" in file else {}
        blank = {"is_blank": file["is_blank"][:]} if "is_blank" in file else {}
        arrays = {"feats": file["all_feats"][:], "labels": file["all_labels"][:].astype(np.int64), **paths, **blank}
    with out.open("wb") as file:  # numpy appends .npz to a name without it
        np.savez(file, **arrays)
