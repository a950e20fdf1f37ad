"""Omniglot (Lake et al., 2015) in its official folders: 1623 hand-drawn characters of 50 alphabets, 20 drawings each.

A class is 'alphabet/character', its superclass the alphabet. Characters of background alphabets are base classes,
characters of evaluation alphabets novel classes. Bright ink on a dark background, one channel. There are no test
images, so some drawings are held out at random (by default 10 per class).

The official files are 1-bit images of 105 px. Made smaller with antialiasing, they become grey; by nearest neighbour,
they stay 1-bit and strokes break. The two differ visibly at 28 px, and results on one are not results on the other.
"""

from functools import partial
from pathlib import Path

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.data.datasets.content import (
    Content,
    Found,
    Source,
    downloading,
    hold_out,
    image_digests,
    image_files,
    subfolders,
    superclasses,
)
from lowshot.data.datasets.images import Images, Resampling, open_image, resized
from lowshot.data.datasets.settings import Omniglot

_PARTS = ("images_background", "images_evaluation")


def find(settings: Omniglot, source: Source) -> Found:
    """Find ROOT/omniglot-py/images_* or ROOT/images_*; without a root, download if missing."""
    root = source.folder if (source.folder / _PARTS[0]).is_dir() else source.folder / "omniglot-py"
    if source.root is None and not (root / _PARTS[0]).is_dir():
        from torchvision import datasets  # slow to import, and only a download needs it

        with downloading("omniglot", source.folder):
            for background in (True, False):
                datasets.Omniglot(str(source.folder), background=background, download=True)
    classes = [_classes(root / part) for part in _PARTS]
    files = (file for part in classes for files in part.values() for file in files)
    return Found(image_digests(root, files), partial(_read, settings, source, *classes))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Map 'alphabet/character' to its drawings, for one of the two parts."""
    characters = [character for alphabet in subfolders(folder) for character in subfolders(alphabet)]
    drawings = {f"{character.parent.name}/{character.name}": image_files(character) for character in characters}
    for name, files in drawings.items():
        if not files:
            raise InputError(f"{folder / name}: contains no images")
    if not drawings:
        raise InputError(f"{folder}: contains no <alphabet>/<character> folders")
    return drawings


def _read(
    settings: Omniglot, source: Source, background: dict[str, list[Path]], evaluation: dict[str, list[Path]]
) -> Content:
    for name in background.keys() & evaluation.keys():
        raise InputError(f"{source.folder}: {name} is in both images_background and images_evaluation")
    drawings = background | evaluation
    names = list(drawings)
    labels = np.repeat(np.arange(len(names)), [len(files) for files in drawings.values()])
    size = settings.image_size or 28
    files = [file for part in drawings.values() for file in part]
    drawn = Progress(files, "omniglot", unit="image", leave=False)
    pixels = np.stack([_ink(file, size, settings.resampling) for file in drawn])
    is_test = hold_out(labels, settings.test_per_class or 10, source.seed, names)
    alphabets, superclass_of = superclasses([name.split("/")[0] for name in names])
    novel = list(range(len(background), len(names)))
    images = Images(labels, is_test, pixels[..., None], resampling=settings.resampling)
    return Content(images, names, alphabets, superclass_of, novel)


def _ink(file: Path, size: int, resampling: Resampling) -> np.ndarray:
    """Read a drawing as uint8 (size, size), 255 for ink, resized if needed."""
    return 255 - np.asarray(resized(open_image(file).convert("L"), size, resampling))
