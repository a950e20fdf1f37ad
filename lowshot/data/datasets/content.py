"""Input and output of the data set readers, and their shared helpers: list files, hold out test images."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lowshot.core.artifacts import CONTENT
from lowshot.core.errors import InputError, listed
from lowshot.core.files import content_digest
from lowshot.core.seeds import stream
from lowshot.data.datasets.images import Images
from lowshot.data.protocol import Split

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Source:
    """Where to find a data set (`root`, optional), and the `seed` of its random draws."""

    root: Path | None = None
    seed: int = 0

    @property
    def folder(self) -> Path:
        """The folder in which the built-in readers look. Without a root they may download to it."""
        return self.root or Path("data")


@dataclass
class Content:
    """A data set: images, class names, and the parts of the protocol that it prescribes.

    `superclass_of` maps each class to a position in `superclass_names`, or to None. `novel_classes`, `split` and
    `draws` are None if the data set does not prescribe them; `draws` has the form that
    `lowshot.data.protocol.make_draws` returns. Unlabelled images all have the label -1; they have no classes, split or
    draws.
    """

    images: Images
    class_names: list[str]
    superclass_names: list[str] = field(default_factory=list)
    superclass_of: list[int | None] = field(default_factory=list)
    novel_classes: list[int] | None = None
    split: Split | None = None
    draws: dict[int, list[np.ndarray]] | None = None

    def __post_init__(self) -> None:
        self.superclass_of = self.superclass_of or [None] * len(self.class_names)


@dataclass(frozen=True)
class Found:
    """A data set that exists but has not been read yet.

    `digests` (name -> digest of a file that `read` will read) goes into the recipe. `stays` is true if images are not
    copied: they stay in the root folder, which then belongs to the recipe.
    """

    digests: dict[str, str]
    read: Callable[[], Content]
    stays: bool = False


@contextmanager
def downloading(name: str, root: Path) -> Iterator[None]:
    """Announce a download, and raise InputError if it fails."""
    print(f"{name}: not found in the folder {root}, downloading it")
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name}: download failed ({error}). Download the files yourself and use --root") from None


def superclasses(names: list[str]) -> tuple[list[str], list[int | None]]:
    """From the superclass name of each class, return the sorted distinct names and each class's position in them."""
    distinct = sorted(set(names))
    return distinct, [distinct.index(name) for name in names]


def subfolders(folder: Path) -> list[Path]:
    """List the folders directly inside `folder`, sorted by name, without hidden ones."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """List the image files directly inside `folder`, sorted by name, without hidden ones."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if Path(e.name).suffix.lower() in IMAGE_SUFFIXES and e.is_file())
    return [folder / name for name in names if not name.startswith(".")]


def image_digests(root: Path, files: Iterable[Path], name: str = "images") -> dict[str, str]:
    """Return the digests of image files: that of their names and sizes (`name`), and that of their content."""
    listed = list(files)
    return {name: listing_digest(root, listed), CONTENT: content_digest(listed)}


def listing_digest(root: Path, files: Iterable[Path]) -> str:
    """Return the SHA-256 of the relative names and sizes of `files`. Cheap, but misses changes that keep the size: for
    data sets of which reading all files takes long.
    """
    lines = (f"{os.fsencode(path.relative_to(root))!r} {path.stat().st_size}\n" for path in files)
    state = hashlib.sha256()
    for line in lines:
        state.update(line.encode())
    return state.hexdigest()


def hold_out(labels: np.ndarray, per_class: int | float, seed: int, class_names: list[str]) -> np.ndarray:
    """Draw test images in every class and return their mask (N,).

    `per_class` is their number, or their share (at least one image) if below 1. Each class has its own random stream.
    Raises InputError with all classes that would have no training images left.
    """
    classes = rows_by_class(labels, len(class_names))
    sizes = [per_class if per_class >= 1 else max(1, round(per_class * len(rows))) for rows in classes]
    if small := [c for c, rows in enumerate(classes) if len(rows) <= sizes[c]]:
        told = listed(f"{class_names[c]} ({sizes[c]} of {len(classes[c])})" for c in small)
        raise InputError(
            f"holding out test images leaves none for training in these classes: {told}. "
            "Add images, hold out fewer, or remove the classes"
        )
    is_test = np.zeros(len(labels), bool)
    for c, rows in enumerate(classes):
        is_test[stream(seed, "held out", c).permutation(rows)[: sizes[c]]] = True
    return is_test


def cap(images: Images, max_per_class: int, seed: int) -> Images:
    """Keep at most `max_per_class` random train images and as many test images per class, in the same order."""
    n_classes = int(images.labels.max()) + 1
    group = images.labels * 2 + images.is_test
    kept = [
        stream(seed, "cap", g).permutation(rows)[:max_per_class]
        for g, rows in enumerate(rows_by_class(group, 2 * n_classes))
    ]
    return only_rows(images, np.sort(np.concatenate(kept)))


def validation_part(images: Images, share: float, seed: int, class_names: list[str]) -> Images:
    """Drop the test images and mark `share` of each class's train images as test images, for choosing settings."""
    train = only_rows(images, images.rows(test=False))
    return replace(train, is_test=hold_out(train.labels, share, seed, class_names))


def only_rows(images: Images, rows: np.ndarray) -> Images:
    """Return the images of `rows`, in that order."""
    parts = {
        name: part[rows]
        for name in ("labels", "is_test", "pixels", "paths", "turns")
        if (part := getattr(images, name)) is not None
    }
    return replace(images, **parts)


def rows_by_class(labels: np.ndarray, n_classes: int) -> list[np.ndarray]:
    """Return the rows of `labels` (N,) of each class, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, n_classes)))
