"""Data sets of the user's own: a dataclass of settings whose method `read` returns what it holds.

    @dataclass(kw_only=True)
    class Stripes(DrawnSplit):
        n_images: PositiveInt = 20

        def read(self, source: Source) -> Content:
            ...
            return Content(Images(labels, is_test, pixels), class_names=["thin", "thick", ...])

`source` has the folder `root` (None if the command names none) and the `seed` of what is drawn at random. The classes
of `lowshot.data.datasets.settings` are for inheriting: with `DrawnSplit` the split and the shots have the settings that
they have in our data sets, without it the defaults hold. `Content` says what else may be given: superclasses,
novel classes, a split. Images without classes are unlabelled, with -1 for every label.

What is there already is recognised by the settings, by the file of the class, and by the names and sizes of all files
below the root; a class that knows better what it reads defines `digests(source)`, which returns name -> text.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lowshot.core.choices import own_name
from lowshot.core.errors import InputError
from lowshot.data.datasets.content import Content, Found, Source, listing_digest
from lowshot.data.datasets.images import Images, check_images, open_image
from lowshot.data.protocol import Split, check_split


def find(dataset: Any, source: Source) -> Found:
    """Look for a data set of the user's own; what it returns when it is read is checked."""
    name = own_name(type(dataset))
    digests = dataset.digests(source) if hasattr(dataset, "digests") else _listing(source.root)
    if not _is_of(digests, dict, str):
        raise InputError(f"{name}: digests returned {_short(digests)}, not a dict of texts")
    return Found(digests, partial(_read, dataset, source, name), stays=source.root is not None)


def _listing(root: Path | None) -> dict[str, str]:
    if root is None:
        return {}
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    return {"files": listing_digest(root, sorted(path for path in root.rglob("*") if path.is_file()))}


def _read(dataset: Any, source: Source, name: str) -> Content:
    content = dataset.read(source)
    if not isinstance(content, Content) or not isinstance(content.images, Images):
        raise InputError(f"{name}: read returned {_short(content)}, not a Content of Images")
    content.images = _checked_images(content.images, name)
    _check_classes(content, name)
    _check_split(content, name)
    return content


def _checked_images(images: Images, name: str) -> Images:
    """The images with arrays in the place of lists."""
    labels, is_test = np.asarray(images.labels), np.asarray(images.is_test)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or is_test.ndim != 1 or is_test.dtype != bool:
        raise InputError(
            f"{name}: labels are {labels.dtype} of shape {labels.shape} and is_test is {is_test.dtype} of shape "
            f"{is_test.shape}, not whole numbers (N,) and truth values (N,)"
        )
    if (images.pixels is None) == (images.paths is None):
        raise InputError(f"{name}: images have either pixels or paths")
    if images.pixels is not None:
        checked = Images(labels, is_test, pixels=np.asarray(images.pixels))
    else:
        checked = Images(labels, is_test, paths=_texts(images.paths, name), root=_folder(images.root, name))
    check_images(checked, name)
    if not len(checked):
        raise InputError(f"{name}: holds no image")
    if checked.paths is not None:
        open_image(checked.root / checked.paths[0])  # a wrong root is known now, not in a training
    return checked


def _texts(paths: Iterable, name: str) -> np.ndarray:
    paths = [path.as_posix() if isinstance(path, Path) else path for path in paths]
    if not _is_of(paths, list, str):
        raise InputError(f"{name}: paths are not texts, relative to root")
    return np.array(paths, object)


def _folder(root: Any, name: str) -> Path:
    if not isinstance(root, (str, Path)) or not Path(root).is_dir():
        raise InputError(f"{name}: images with paths need the folder that they are relative to as root, not {root!r}")
    return Path(root).resolve()


def _check_classes(content: Content, name: str) -> None:
    """InputError unless labels are those of the class names, or -1 without any, and each class has an image."""
    names, labels = content.class_names, content.images.labels
    if not _is_of(names, list, str) or len(set(names)) != len(names):
        raise InputError(f"{name}: class_names is {_short(names)}, not a list of different texts")
    if not names and (labels != -1).any():
        raise InputError(f"{name}: images have labels, but there are no class_names")
    if names and (labels.min() < 0 or labels.max() >= len(names)):
        wrong = labels[(labels < 0) | (labels >= len(names))][0]
        raise InputError(f"{name}: label {wrong} is outside 0..{len(names) - 1}, the classes that have names")
    for c in np.setdiff1d(np.arange(len(names)), labels)[:1]:
        raise InputError(f"{name}: class {c} ({names[c]}) has no image")


def _check_split(content: Content, name: str) -> None:
    """InputError for superclasses, novel classes or a split of other classes."""
    n, groups, split = len(content.class_names), content.superclass_names, content.split
    if not _is_of(groups, list, str):
        raise InputError(f"{name}: superclass_names is {_short(groups)}, not a list of texts")
    given = [group for group in content.superclass_of if group is not None]
    if len(content.superclass_of) != n or not _are_below(given, len(groups)):
        raise InputError(f"{name}: superclass_of is not, for each of {n} classes, None or 0..{len(groups) - 1}")
    if not _are_below(content.novel_classes or [], n):
        raise InputError(f"{name}: novel_classes holds a class outside 0..{n - 1}")
    if split is not None and not (isinstance(split, Split) and split.class_names == content.class_names):
        raise InputError(f"{name}: split is not a Split of the same class_names")
    if split is not None:
        check_split(split, f"{name}: split")


def _are_below(numbers: Iterable, n: int) -> bool:
    return all(isinstance(one, int) and 0 <= one < n for one in numbers)


def _is_of(value: Any, container: type, entry: type) -> bool:
    entries = value.values() if isinstance(value, dict) else value
    return isinstance(value, container) and all(isinstance(one, entry) for one in entries)


def _short(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]}" if isinstance(value, (str, list)) else type(value).__name__
