"""The user's own images: ROOT/<class>/*.jpg, or ROOT/<superclass>/<class>/*.jpg (jpg, png, bmp, gif, tif, webp), or
both of them below ROOT/{train,val,test}.

Every image is decoded once, so that a corrupt one is reported here and not in the middle of a training. With
`image_size`, images are stored as squares of that side (short side resized, then centre cropped); without, their paths
are stored. Without a part of test images, some are held out at random (by default a fifth of each class).
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lowshot.core.choices import suggestion
from lowshot.core.errors import CorruptImage, InputError, listed
from lowshot.core.progress import Progress
from lowshot.data.datasets.content import (
    IMAGE_SUFFIXES,
    Content,
    Found,
    Source,
    hold_out,
    image_digests,
    image_files,
    only_rows,
    subfolders,
    superclasses,
)
from lowshot.data.datasets.images import Images, Resampling, open_image, to_square
from lowshot.data.datasets.settings import Folder

# Names of folders that are parts of a data set -> the part.
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Photos that phones and cameras write, and that cannot be read here.
_PHOTO_SUFFIXES = {".heic", ".heif", ".avif", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"}


@dataclass(frozen=True)
class FoundFolder:
    """The images in class folders, class after class.

    Attributes:
        class_names: "class" or "superclass/class", without the name of a part.
        files: The N image files.
        labels: int64 (N,), positions in `class_names`.
        is_test: bool (N,), or None if the folder is not divided into parts.
        notice: How the folders were read, in a line to print, if this needs saying.
    """

    class_names: list[str]
    files: list[Path]
    labels: np.ndarray
    is_test: np.ndarray | None = None
    notice: str | None = None

    def part(self, test: bool) -> tuple[list[Path], np.ndarray]:
        """Return files and labels of the test or the training part. Without parts, all are training images."""
        is_test = np.zeros(len(self.files), bool) if self.is_test is None else self.is_test
        rows = np.flatnonzero(is_test == test)
        return [self.files[row] for row in rows], self.labels[rows]


def find(settings: Folder, source: Source) -> Found:
    """Find the class folders in ROOT and their images."""
    if source.root is None:
        raise InputError("--root: is required (a path). Folder of your images: ROOT/<class>/*.jpg")
    root = source.root.resolve()
    found = find_folder(root)
    _check_settings(settings, found)
    novel = _novel_names(settings.novel_classes, root, found.class_names)
    names = {"novel_classes": hashlib.sha256("\n".join(novel).encode()).hexdigest()} if novel else {}
    digests = {**image_digests(root, found.files), **names}
    return Found(digests, partial(_read, settings, source, root, found, novel), stays=settings.image_size is None)


def find_folder(root: Path) -> FoundFolder:
    """Find the class folders in ROOT, or in its parts, and their images, sorted by name.

    ROOT has parts if all its folders are named as such (train, training; val, valid, validation; test, testing), and
    one of them is for training. The test images are those of test, or else of val; all others are for training.

    Raises InputError, with all classes concerned, for a class without images, or without images in one of both parts.
    """
    first = _folders(root, root)
    parts = _parts(first)
    classes = [
        (folder.relative_to(part).parts, is_test, image_files(folder))
        for part, is_test in (parts or {root: False}).items()
        for folder in _class_folders(part, root)
    ]
    classes.sort(key=lambda one: one[0])  # stable: within a class, training images come first
    for path in chain.from_iterable(files for *_, files in classes):
        _check_inside(path, root)
    names = ["/".join(name) for name, *_ in classes]
    class_names, sizes = list(dict.fromkeys(names)), [len(files) for *_, files in classes]
    numbers = {name: c for c, name in enumerate(class_names)}
    found = FoundFolder(
        class_names,
        [file for *_, files in classes for file in files],
        np.repeat(np.array([numbers[name] for name in names], np.int64), sizes),
        np.repeat(np.array([is_test for _, is_test, _ in classes]), sizes) if parts else None,
        _notice(first, parts),
    )
    _check_classes(root, found)
    return found


def find_images(root: Path) -> list[Path]:
    """List all image files in ROOT at any depth, sorted by path, without hidden ones."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    folders = [root, *sorted(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]
    files = [
        f
        for d in folders
        if not any(part.startswith(".") for part in d.relative_to(root).parts)
        for f in image_files(d)
    ]
    for file in files:
        _check_inside(file, root.resolve())
    return sorted(files)


def ignored(root: Path) -> str | None:
    """Say how many files in ROOT are ignored because of their suffix, and what to do about photos among them."""
    visible = (path for path in root.rglob("*") if not any(p.startswith(".") for p in path.relative_to(root).parts))
    others = [path for path in visible if path.suffix.lower() not in IMAGE_SUFFIXES and path.is_file()]
    if not others:
        return None
    suffixes = ", ".join(sorted({path.suffix or path.name for path in others}))
    photos = ", ".join(sorted({path.suffix for path in others if path.suffix.lower() in _PHOTO_SUFFIXES}))
    way_out = f". Convert {photos} to JPEG, with the export of the phone or photo app" if photos else ""
    return f"{len(others)} files in {root} are ignored, because they are not images ({suffixes}){way_out}"


def _parts(first: list[Path]) -> dict[Path, bool]:
    """Map the folders `first` to whether they have test images, training parts first. Empty if they are no parts."""
    roles = {folder: _PARTS.get(folder.name.lower()) for folder in first}
    if None in roles.values() or "train" not in roles.values() or len(set(roles.values())) < 2:
        return {}
    test = "test" if "test" in roles.values() else "val"
    return dict(sorted(((folder, role == test) for folder, role in roles.items()), key=lambda one: one[1]))


def _notice(first: list[Path], parts: dict[Path, bool]) -> str | None:
    """Say which folders are parts, or why folders with the names of parts are none."""
    if parts:
        train, test = (" and ".join(f"{part.name}/" for part in parts if parts[part] == t) for t in (False, True))
        return f"the images in {train} are for training, those in {test} for test"
    named = [folder.name for folder in first if folder.name.lower() in _PARTS]
    if len({_PARTS[name.lower()] for name in named}) < 2:
        return None
    others = [folder.name for folder in first if folder.name not in named]
    why = f"there are others beside them ({listed(others)})" if others else "none of them is called train"
    return f"the folders {listed(named)} are no parts for training and test here, because {why}"


def _class_folders(part: Path, root: Path) -> list[Path]:
    """Return the folders one level below a part, or two levels below. Raises InputError if the levels are mixed."""
    first = _folders(part, root)
    if not first:
        raise InputError(f"{part}: contains no class folders. Expected <class>/*.jpg or <superclass>/<class>/*.jpg")
    below = {folder: _folders(folder, root) for folder in first}
    with_folders = [folder for folder in first if below[folder]]
    if not with_folders:
        return first
    for folder in first:
        if not below[folder] or image_files(folder):
            raise InputError(
                f"{folder}: contains images, but {with_folders[0]} contains folders. Put all class folders on one level"
            )
    return [folder for one in below.values() for folder in one]


def _folders(folder: Path, root: Path) -> list[Path]:
    found = subfolders(folder)
    for path in found:
        _check_inside(path, root)
    return found


def _check_inside(path: Path, root: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise InputError(f"{path}: a symbolic link to a file outside {root}. Copy the file instead")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{os.fsencode(path)!r}: the name is not UTF-8. Rename the file") from None


def _check_classes(root: Path, found: FoundFolder) -> None:
    """Raise InputError with all classes that have no images, or none in one of both parts."""
    parts = {"images": False} if found.is_test is None else {"training images": False, "test images": True}
    empty = {what: np.setdiff1d(np.arange(len(found.class_names)), found.part(t)[1]) for what, t in parts.items()}
    told = [f"no {what} in {listed(found.class_names[c] for c in rows)}" for what, rows in empty.items() if len(rows)]
    if told:
        left_out = ignored(root)
        raise InputError(
            f"{root}: {'; '.join(told)}. Add images ({' '.join(sorted(IMAGE_SUFFIXES))}) or remove the class folders"
            + (f". {left_out}" if left_out else "")
        )


def _check_settings(settings: Folder, found: FoundFolder) -> None:
    """Raise InputError for a setting that would be ignored."""
    if settings.test_per_class is not None and found.is_test is not None:
        raise InputError(
            f"--dataset.test_per_class {settings.test_per_class}: would be ignored: {found.notice}. Leave it out"
        )
    defaults = {field.name: field.default for field in fields(settings)}
    given = [name for name in ("novel_classes", "base_min", "novel_fraction", "novel_per_superclass")
             if getattr(settings, name) != defaults[name]]  # fmt: skip
    if len(given) > 1 and given[0] in ("novel_classes", "base_min"):
        raise InputError(
            f"--dataset.{given[1]}: would be ignored, because --dataset.{given[0]} decides which classes are novel. "
            "Leave one of them out"
        )


def _novel_names(given: list[str] | None, root: Path, class_names: list[str]) -> list[str]:
    """Return the names of the novel classes that were chosen, sorted; empty if none were. A single name can be that of
    a file with a name per line.
    """
    is_file = given is not None and len(given) == 1 and Path(given[0]).is_file()
    names = set(_lines(Path(given[0])) if is_file else given or [])
    if unknown := sorted(names.difference(class_names)):
        told = listed(f"'{name}'{suggestion(name, class_names)}" for name in unknown)
        raise InputError(f"--dataset.novel_classes: {root} has no classes of these names: {told}")
    if given is not None and not names:
        raise InputError("--dataset.novel_classes: names no classes. Name at least two, or leave it out")
    return sorted(names)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of class names ({error})") from None
    return [line.strip() for line in lines if line.strip()]


def _read(settings: Folder, source: Source, root: Path, found: FoundFolder, novel: list[str]) -> Content:
    for line in filter(None, (found.notice, ignored(root))):
        print(f"folder: {line}")
    images = Images(found.labels, _test_flags(settings, source, found.labels, found))
    if not settings.skip_corrupt:  # what can be refused is refused before the long decoding
        _novel_classes(settings, images, found.class_names, novel)
    images, corrupt = _with_content(images, settings, root, found.files)
    if corrupt and not settings.skip_corrupt:
        raise CorruptImage(f"{_all_of(corrupt)}, or leave corrupt images out with --dataset.skip_corrupt")
    if corrupt:
        left = ", ".join(found.files[row].relative_to(root).as_posix() for row in corrupt)
        print(f"folder: {len(corrupt)} corrupt images are left out: {left}")
        images = only_rows(images, np.setdiff1d(np.arange(len(images)), list(corrupt)))
        if found.is_test is None:
            images.is_test = _test_flags(settings, source, images.labels, found)
    names = found.class_names
    groups, superclass_of = superclasses([name.split("/")[0] for name in names]) if "/" in names[0] else ([], [])
    return Content(images, names, groups, superclass_of, _novel_classes(settings, images, names, novel))


def _test_flags(settings: Folder, source: Source, labels: np.ndarray, found: FoundFolder) -> np.ndarray:
    if found.is_test is not None:
        return found.is_test
    return hold_out(labels, settings.test_per_class or 0.2, source.seed, found.class_names)


def _with_content(
    images: Images, settings: Folder, root: Path, files: list[Path]
) -> tuple[Images, dict[int, CorruptImage]]:
    """Return the images with their pixels or paths, and row -> error of those that are corrupt."""
    corrupt, size = {}, settings.image_size
    pixels = None if size is None else np.empty((len(files), size, size, 3), np.uint8)
    task = _check if size is None else partial(_square, size=size, resampling=settings.resampling)
    for row, result in enumerate(_each(files, task)):
        if isinstance(result, CorruptImage):
            corrupt[row] = result
        elif pixels is not None:
            pixels[row] = result
    if pixels is not None:
        return replace(images, pixels=pixels, resampling=settings.resampling), corrupt
    paths = np.array([file.relative_to(root).as_posix() for file in files], object)
    return replace(images, paths=paths, root=root), corrupt


def _novel_classes(settings: Folder, images: Images, class_names: list[str], chosen: list[str]) -> list[int] | None:
    """Return the novel classes by choice, or None if they are to be drawn."""
    if settings.base_min is None and not chosen:
        return None
    counts = np.bincount(images.labels[images.rows(test=False)], minlength=len(class_names))
    by_size = settings.base_min is not None
    novel = np.flatnonzero(counts < settings.base_min if by_size else np.isin(class_names, chosen))
    if min(len(novel), len(counts) - len(novel)) < 2:
        given = f"base_min {settings.base_min}" if by_size else "novel_classes"
        raise InputError(
            f"--dataset.{given}: makes {len(novel)} of {len(counts)} classes novel, but two novel and two base "
            f"classes are needed at least. Classes have {counts.min()} to {counts.max()} training images"
        )
    return novel.tolist()


def check_decodable(files: list[Path]) -> None:
    """Decode all images. Raises CorruptImage with all that cannot be decoded."""
    if corrupt := _corrupt(files):
        raise CorruptImage(_all_of(corrupt))


def rows_decodable(files: list[Path], stage: str) -> list[int]:
    """Decode all images, name those that cannot be decoded, and return the positions of the others."""
    corrupt = _corrupt(files)
    if corrupt:
        print(f"{stage}: {len(corrupt)} corrupt images are left out: {listed(str(files[row]) for row in corrupt)}")
    return [row for row in range(len(files)) if row not in corrupt]


def _corrupt(files: list[Path]) -> dict[int, CorruptImage]:
    return {row: one for row, one in enumerate(_each(files, _check)) if isinstance(one, CorruptImage)}


def _check(file: Path) -> None:
    open_image(file)


def _square(file: Path, size: int, resampling: Resampling) -> np.ndarray:
    return np.asarray(to_square(open_image(file), size, resampling))


def _each(files: list[Path], task: Callable[[Path], Any]) -> Iterator:
    """Yield `task(file)`, or the CorruptImage that it raises, for each file, in order.

    Runs on several threads, as decoding releases the GIL, and in blocks of 256 files to bound memory.
    """
    with ThreadPoolExecutor() as pool:
        for start in Progress(range(0, len(files), 256), "folder", unit="batch", leave=False):
            yield from pool.map(partial(_or_corrupt, task), files[start : start + 256])


def _or_corrupt(task: Callable[[Path], Any], file: Path) -> Any:
    try:
        return task(file)
    except CorruptImage as error:
        return error


def _all_of(corrupt: dict[int, CorruptImage]) -> str:
    """Return one message of all errors."""
    if len(corrupt) == 1:
        return str(*corrupt.values())
    causes = listed((str(error).removesuffix(". Replace or remove it") for error in corrupt.values()), 20, "; ")
    return f"{len(corrupt)} corrupt images: {causes}. Replace or remove them"
