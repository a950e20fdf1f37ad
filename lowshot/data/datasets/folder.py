"""The user's own images: ROOT/<class>/*.jpg, or ROOT/<superclass>/<class>/*.jpg (jpg, png, bmp, gif, tif, webp).

Every image is decoded once, so that a corrupt one is reported here and not in the middle of a training. With
`image_size`, images are stored as squares of that side (short side resized, then centre cropped); without, their paths
are stored. There are no test images, so some are held out at random (by default a fifth of each class).
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lowshot.core.errors import CorruptImage, InputError
from lowshot.core.progress import Progress
from lowshot.data.datasets.content import (
    IMAGE_SUFFIXES,
    Content,
    Found,
    Source,
    hold_out,
    image_digests,
    image_files,
    subfolders,
    superclasses,
)
from lowshot.data.datasets.images import Images, Resampling, open_image, to_square
from lowshot.data.datasets.settings import Folder


def find(settings: Folder, source: Source) -> Found:
    """Find the class folders in ROOT and their images."""
    root = source.folder.resolve()
    classes = find_classes(root)
    files = [file for part in classes.values() for file in part]
    read = partial(_read, settings, source, root, classes)
    return Found(image_digests(root, files), read, stays=settings.image_size is None)


def find_classes(root: Path) -> dict[Path, list[Path]]:
    """Return the class folders in ROOT and the images in each, sorted by name.

    Raises InputError for a class without images.
    """
    classes = {folder: image_files(folder) for folder in _class_folders(root)}
    for folder, files in classes.items():
        if not files:
            raise InputError(f"{folder}: contains no images (supported: {' '.join(sorted(IMAGE_SUFFIXES))})")
        for path in (folder, *files):
            _check_inside(path, root)
    return classes


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
    """Say how many files in ROOT are ignored because of their suffix, such as the .heic photos of phones."""
    visible = (path for path in root.rglob("*") if not any(p.startswith(".") for p in path.relative_to(root).parts))
    others = [path for path in visible if path.suffix.lower() not in IMAGE_SUFFIXES and path.is_file()]
    suffixes = ", ".join(sorted({path.suffix or path.name for path in others}))
    return f"{len(others)} files in {root} are ignored, because they are not images ({suffixes})" if others else None


def _class_folders(root: Path) -> list[Path]:
    """Return the folders one level below ROOT, or two levels below. Raises InputError if the levels are mixed."""
    first = subfolders(root)
    if not first:
        raise InputError(f"{root}: contains no class folders. Expected <class>/*.jpg or <superclass>/<class>/*.jpg")
    below = {folder: subfolders(folder) for folder in first}
    with_folders = [folder for folder in first if below[folder]]
    if not with_folders:
        return first
    for folder in first:
        if not below[folder] or image_files(folder):
            raise InputError(
                f"{folder}: contains images, but {with_folders[0]} contains folders. Put all class folders on one level"
            )
    return [folder for part in below.values() for folder in part]


def _check_inside(path: Path, root: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise InputError(f"{path}: a symbolic link to a file outside {root}. Copy the file instead")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{os.fsencode(path)!r}: the name is not UTF-8. Rename the file") from None


def _read(settings: Folder, source: Source, root: Path, classes: dict[Path, list[Path]]) -> Content:
    if left_out := ignored(root):
        print(f"folder: {left_out}")
    names = [folder.relative_to(root).as_posix() for folder in classes]
    labels = np.repeat(np.arange(len(names)), [len(files) for files in classes.values()])
    is_test = hold_out(labels, settings.test_per_class or 0.2, source.seed, names)
    files = [file for part in classes.values() for file in part]
    if settings.image_size is None:
        check_decodable(files)
        paths = np.array([file.relative_to(root).as_posix() for file in files], object)
        images = Images(labels, is_test, paths=paths, root=root)
    else:
        pixels = np.empty((len(files), settings.image_size, settings.image_size, 3), np.uint8)
        form = {"size": settings.image_size, "resampling": settings.resampling}
        for row, square in enumerate(_each(files, partial(_square, **form))):
            pixels[row] = square
        images = Images(labels, is_test, pixels, resampling=settings.resampling)
    groups, superclass_of = superclasses([name.split("/")[0] for name in names]) if "/" in names[0] else ([], [])
    return Content(images, names, groups, superclass_of)


def check_decodable(files: list[Path]) -> None:
    """Decode all images. Raises CorruptImage with all that cannot be decoded."""
    for _ in _each(files, _check):
        pass


def _check(file: Path) -> None:
    open_image(file)


def _each(files: list[Path], task: Callable[[Path], Any]) -> Iterator:
    """Yield `task(file)` for each file, in order. Runs on several threads, as decoding releases the GIL, and in blocks
    of 256 files to bound memory.

    Raises CorruptImage at the end, with all corrupt images, of which nothing is yielded.
    """
    corrupt: list[CorruptImage] = []
    with ThreadPoolExecutor() as pool:
        for start in Progress(range(0, len(files), 256), "folder", unit="batch", leave=False):
            for result in pool.map(partial(_or_corrupt, task), files[start : start + 256]):
                if isinstance(result, CorruptImage):
                    corrupt.append(result)
                else:
                    yield result
    if len(corrupt) == 1:
        raise corrupt[0]
    if corrupt:
        causes = "; ".join(str(error).removesuffix(". Replace or remove it") for error in corrupt[:_LISTED])
        more = f"; and {len(corrupt) - _LISTED} more" if len(corrupt) > _LISTED else ""
        raise CorruptImage(f"{len(corrupt)} corrupt images: {causes}{more}. Replace or remove them")


_LISTED = 20  # corrupt images in one message


def _or_corrupt(task: Callable[[Path], Any], file: Path) -> Any:
    try:
        return task(file)
    except CorruptImage as error:
        return error


def _square(file: Path, size: int, resampling: Resampling) -> np.ndarray:
    return np.asarray(to_square(open_image(file), size, resampling))
