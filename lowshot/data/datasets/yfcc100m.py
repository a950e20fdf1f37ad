"""Images of YFCC100M (Thomee et al., 2016) without labels: the background of Douze et al. (CVPR 2018).

The set has 10^8 images in the order of its metadata, a thousand per zip file (stored, not compressed). Image i is the
member `<i mod 1000>.jpg` of ROOT/<i div 10^6>/<(i div 1000) mod 1000>.zip, with 3, 2 and 3 digits: image 12 345 678 is
12/345.zip/678.jpg. The images `start` to `start + count - 1` are read. (The published extraction ignored the start of a
block and read the same images for all blocks.) The members are not checked here: some hundred thousand are videos, and
save_features.py writes zeros for everything that cannot be decoded.
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
    """Find the zip files with the requested images. Raises InputError, with its name, if one is missing."""
    if source.seed:
        raise InputError(f"--seed {source.seed}: yfcc100m has no random draws. Leave --seed out")
    start, end = settings.start, settings.start + settings.count
    if end > N_IMAGES:
        raise InputError(
            f"--dataset.start {start} --dataset.count {settings.count}: exceeds the last image, {N_IMAGES - 1}"
        )
    root = source.folder.resolve()
    numbers = range(start, end)
    zips = [root / archive(i) for i in range(start - start % _A_ZIP, end, _A_ZIP)]
    for path in zips:
        if not path.is_file():
            raise InputError(f"{path}: no such zip file, but images {numbers[0]} to {numbers[-1]} need it")
    return Found({"zips": listing_digest(root, zips)}, partial(_read, root, zips, numbers), stays=True)


def archive(i: int) -> str:
    """Return the path of the zip file of image `i`, relative to the root."""
    return f"{i // 10**6:02d}/{i // _A_ZIP % 1000:03d}.zip"


def member(i: int) -> str:
    """Return the path of image `i`, including its zip file, relative to the root."""
    return f"{archive(i)}/{i % _A_ZIP:03d}.jpg"


def _read(root: Path, zips: list[Path], numbers: range) -> Content:
    for path in zips:
        if not zipfile.is_zipfile(path):  # a truncated download lacks the list of members at its end
            raise InputError(f"{path}: not a zip file, or truncated. Download it again")
    labels, is_test = np.full(len(numbers), -1), np.zeros(len(numbers), bool)
    paths = np.array([member(i) for i in numbers], object)
    return Content(Images(labels, is_test, paths=paths, root=root), class_names=[])
