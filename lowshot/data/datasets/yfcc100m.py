"""Images of YFCC100M (Thomee et al., 2016) without labels: the background of Douze et al. (CVPR 2018).

The set is 10^8 images in the order of its metadata, a thousand to a zip (stored, not compressed): image i is the member
`<i mod 1000>.jpg` of ROOT/<i div 10^6>/<(i div 1000) mod 1000>.zip, in 3, 2 and 3 digits. Image 12 345 678 is
12/345.zip/678.jpg. The images `start` .. `start + count - 1` are taken; the published extraction ignored the start of a
block and read the same images for all. Members are not looked at here: some hundred thousand are videos, and what
cannot be decoded gets features that are zero (save_features.py).
"""

import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from lowshot.core.errors import InputError
from lowshot.data.datasets.content import Content, Found, Source, listing_digest
from lowshot.data.datasets.images import Images
from lowshot.data.datasets.settings import Yfcc100m

N_IMAGES = 10**8
_A_ZIP = 1000


def find(settings: Yfcc100m, source: Source) -> Found:
    """List the zips that hold the wanted images; InputError that names one that is not there."""
    if source.seed:
        raise InputError(f"--seed {source.seed}: nothing of yfcc100m is drawn at random")
    start, end = settings.start, settings.start + settings.count
    if end > N_IMAGES:
        raise InputError(
            f"--dataset.start {start} --dataset.count {settings.count}: past image {N_IMAGES - 1}, the last"
        )
    root = source.folder.resolve()
    numbers = range(start, end)
    zips = [root / archive(i) for i in range(start - start % _A_ZIP, end, _A_ZIP)]
    for path in zips:
        if not path.is_file():
            raise InputError(f"{path}: no such zip; images {numbers[0]}..{numbers[-1]} are wanted")
    return Found({"zips": listing_digest(root, zips)}, partial(_read, root, zips, numbers), stays=True)


def archive(i: int) -> str:
    """The zip of image `i`, relative to the root."""
    return f"{i // 10**6:02d}/{i // _A_ZIP % 1000:03d}.zip"


def member(i: int) -> str:
    """The path of image `i` through its zip, relative to the root."""
    return f"{archive(i)}/{i % _A_ZIP:03d}.jpg"


def _read(root: Path, zips: list[Path], numbers: range) -> Content:
    for path in zips:
        if not zipfile.is_zipfile(path):  # looks for the list of members at the end: a cut-off download has none
            raise InputError(f"{path}: not a zip, or cut off")
    labels, is_test = np.full(len(numbers), -1), np.zeros(len(numbers), bool)
    paths = np.array([member(i) for i in numbers], object)
    return Content(Images(labels, is_test, paths=paths, root=root), class_names=[])
