"""What every reader takes and gives, and the few things that several readers do: list files, hold out a test part."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.seeds import stream
from lowshot.data.datasets.images import Images
from lowshot.data.protocol import Split

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Source:
    """Where a data set is looked for (`root`, None if none is given), and the `seed` of all that is drawn of it."""

    root: Path | None = None
    seed: int = 0

    @property
    def folder(self) -> Path:
        """Where our own readers look; without a root they may download what is not there."""
        return self.root or Path("data")


@dataclass
class Content:
    """A data set: its images, the names of its classes and what it fixes of the protocol.

    `superclass_of` maps each class to a position in `superclass_names` or None. `novel_classes`, `split` and `draws`
    are None where the data set leaves them open; `draws` has the form of `lowshot.data.protocol.make_draws`. A pool of
    unlabelled images has the label -1 everywhere and no classes, so there is nothing to split or draw.
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
    """A data set that is there but not read yet: `digests` (name -> digest of what `read` will read) for the recipe.

    `stays`: its images are not copied but stay below the root, which therefore belongs to the recipe.
    """

    digests: dict[str, str]
    read: Callable[[], Content]
    stays: bool = False


@contextmanager
def downloading(name: str, root: Path) -> Iterator[None]:
    """Turns a failed or corrupt download into an InputError that says what to do."""
    print(f"{name}: not found below {root}; downloading it")
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name}: the download failed ({error}); put the files below a folder, --root") from None


def superclasses(names: list[str]) -> tuple[list[str], list[int | None]]:
    """(sorted distinct names, position of each class in them) from the superclass name of each class."""
    distinct = sorted(set(names))
    return distinct, [distinct.index(name) for name in names]


def subfolders(folder: Path) -> list[Path]:
    """The folders inside `folder`, sorted by name, hidden ones left out."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """The image files directly inside `folder`, sorted by name, hidden ones left out."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if Path(e.name).suffix.lower() in IMAGE_SUFFIXES and e.is_file())
    return [folder / name for name in names if not name.startswith(".")]


def listing_digest(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the relative names and sizes of `files`: cheap, and blind to a change that keeps the size."""
    lines = (f"{os.fsencode(path.relative_to(root))!r} {path.stat().st_size}\n" for path in files)
    state = hashlib.sha256()
    for line in lines:
        state.update(line.encode())
    return state.hexdigest()


def hold_out(labels: np.ndarray, per_class: int | float, seed: int, class_names: list[str]) -> np.ndarray:
    """Mask (N,) of test images drawn at random in every class: `per_class`, or that share if below 1 (at least one).

    Each class draws from a stream of its own. Raises InputError for a class that would keep no training image.
    """
    is_test = np.zeros(len(labels), bool)
    for c, rows in enumerate(rows_by_class(labels, len(class_names))):
        n_test = per_class if per_class >= 1 else max(1, round(per_class * len(rows)))
        if len(rows) <= n_test:
            raise InputError(
                f"class {c} ({class_names[c]}) has {len(rows)} images: none is left beside {n_test} for test"
            )
        is_test[stream(seed, "held out", c).permutation(rows)[:n_test]] = True
    return is_test


def cap(images: Images, max_per_class: int, seed: int) -> Images:
    """At most `max_per_class` random images of a class in the train part, as many in the test part; order is kept."""
    n_classes = int(images.labels.max()) + 1
    group = images.labels * 2 + images.is_test
    kept = [
        stream(seed, "cap", g).permutation(rows)[:max_per_class]
        for g, rows in enumerate(rows_by_class(group, 2 * n_classes))
    ]
    return only_rows(images, np.sort(np.concatenate(kept)))


def validation_part(images: Images, share: float, seed: int, class_names: list[str]) -> Images:
    """The training images alone, `share` of every class in place of the test part: for choosing settings."""
    train = only_rows(images, images.rows(test=False))
    return replace(train, is_test=hold_out(train.labels, share, seed, class_names))


def only_rows(images: Images, rows: np.ndarray) -> Images:
    """The images of `rows`, in their order."""
    parts = {
        name: part[rows]
        for name in ("labels", "is_test", "pixels", "paths")
        if (part := getattr(images, name)) is not None
    }
    return replace(images, **parts)


def rows_by_class(labels: np.ndarray, n_classes: int) -> list[np.ndarray]:
    """The rows of `labels` (N,) of each class, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, n_classes)))
