"""Your own data sets: a dataclass of settings with a method `read` that returns the content.

    @dataclass(kw_only=True)
    class Stripes(DrawnSplit):
        n_images: PositiveInt = 20

        def read(self, source: Source) -> Content:
            ...
            return Content(Images(labels, is_test, pixels), class_names=["thin", "thick", ...])

`source.root` is the folder of --root (None if not given), `source.seed` the seed of random draws. Inherit from a class
in `lowshot.data.datasets.settings` to offer its settings: `DrawnSplit` adds those of the split and the shots. Settings
that you do not inherit keep their defaults. `Content` can also hold superclasses, novel classes, or a whole split.
Unlabelled images have no classes, and the label -1.

An existing output is reused if the settings, the file of the class, and the names and sizes of all files in the root
folder have not changed. If your class reads other files, give it a method `digests(source)` that returns a dict of
name -> digest, both str.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lowshot.core.choices import own_name
from lowshot.core.errors import InputError
from lowshot.data.datasets.content import Content, Found, Source, image_digests
from lowshot.data.datasets.images import Images, check_images, open_image
from lowshot.data.protocol import Split, check_split


def find(dataset: Any, source: Source) -> Found:
    """Prepare the user's data set. What its methods return is checked."""
    name = own_name(type(dataset))
    digests = dataset.digests(source) if hasattr(dataset, "digests") else _listing(source.root)
    if not _is_of(digests, dict, str):
        raise InputError(f"{name}: digests must return a dict of str, not {_short(digests)}")
    return Found(digests, partial(_read, dataset, source, name), stays=source.root is not None)


def _listing(root: Path | None) -> dict[str, str]:
    if root is None:
        return {}
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    return image_digests(root, sorted(path for path in root.rglob("*") if path.is_file()), "files")


def _read(dataset: Any, source: Source, name: str) -> Content:
    content = dataset.read(source)
    if not isinstance(content, Content) or not isinstance(content.images, Images):
        raise InputError(f"{name}: read must return a Content with Images, not {_short(content)}")
    content.images = _checked_images(content.images, name)
    _check_classes(content, name)
    _check_split(content, name)
    return content


def _checked_images(images: Images, name: str) -> Images:
    """Check the images, and convert lists to arrays."""
    labels, is_test = np.asarray(images.labels), np.asarray(images.is_test)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or is_test.ndim != 1 or is_test.dtype != bool:
        raise InputError(
            f"{name}: expected labels int (N,) and is_test bool (N,), found {labels.dtype} {labels.shape} and "
            f"{is_test.dtype} {is_test.shape}"
        )
    if (images.pixels is None) == (images.paths is None):
        raise InputError(f"{name}: images must have either pixels or paths")
    if images.pixels is not None:
        checked = Images(labels, is_test, pixels=np.asarray(images.pixels))
    else:
        checked = Images(labels, is_test, paths=_texts(images.paths, name), root=_folder(images.root, name))
    check_images(checked, name)
    if not len(checked):
        raise InputError(f"{name}: contains no images")
    if checked.paths is not None:
        open_image(checked.root / checked.paths[0])  # reports a wrong root now, not in the middle of a training
    return checked


def _texts(paths: Iterable, name: str) -> np.ndarray:
    paths = [path.as_posix() if isinstance(path, Path) else path for path in paths]
    if not _is_of(paths, list, str):
        raise InputError(f"{name}: paths must be str or Path, relative to root")
    return np.array(paths, object)


def _folder(root: Any, name: str) -> Path:
    if not isinstance(root, (str, Path)) or not Path(root).is_dir():
        raise InputError(f"{name}: images with paths need root, the folder that they are relative to, not {root!r}")
    return Path(root).resolve()


def _check_classes(content: Content, name: str) -> None:
    """Raise InputError unless labels match the class names (-1 without any) and each class has an image."""
    names, labels = content.class_names, content.images.labels
    if not _is_of(names, list, str) or len(set(names)) != len(names):
        raise InputError(f"{name}: class_names must be a list of distinct str, not {_short(names)}")
    if not names and (labels != -1).any():
        raise InputError(f"{name}: images have labels, but class_names is empty. Name the classes, or use label -1")
    if names and (labels.min() < 0 or labels.max() >= len(names)):
        wrong = labels[(labels < 0) | (labels >= len(names))][0]
        raise InputError(f"{name}: label {wrong} is outside 0..{len(names) - 1}, the range of class_names")
    for c in np.setdiff1d(np.arange(len(names)), labels)[:1]:
        raise InputError(f"{name}: class {c} ({names[c]}) has no images")


def _check_split(content: Content, name: str) -> None:
    """Raise InputError for superclasses, novel classes or a split that do not match the classes."""
    n, groups, split = len(content.class_names), content.superclass_names, content.split
    if not _is_of(groups, list, str):
        raise InputError(f"{name}: superclass_names must be a list of str, not {_short(groups)}")
    given = [group for group in content.superclass_of if group is not None]
    if len(content.superclass_of) != n or not _are_below(given, len(groups)):
        raise InputError(f"{name}: superclass_of must have None or 0..{len(groups) - 1} for each of the {n} classes")
    if not _are_below(content.novel_classes or [], n):
        raise InputError(f"{name}: novel_classes has a class outside 0..{n - 1}")
    if split is not None and not (isinstance(split, Split) and split.class_names == content.class_names):
        raise InputError(f"{name}: split must be a Split with the same class_names")
    if split is not None:
        check_split(split, f"{name}: split")


def _are_below(numbers: Iterable, n: int) -> bool:
    return all(isinstance(one, int) and 0 <= one < n for one in numbers)


def _is_of(value: Any, container: type, entry: type) -> bool:
    entries = value.values() if isinstance(value, dict) else value
    return isinstance(value, container) and all(isinstance(one, entry) for one in entries)


def _short(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]}" if isinstance(value, (str, list)) else type(value).__name__
